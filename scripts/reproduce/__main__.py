"""Trains rows of the paper's table over several seeds and compares them: tables, CSV and plots in results/.

    python3 -m scripts.reproduce --task_name demo --data_dir data/DEMO --rows table --seeds 1,2,3

A row is a kind of teacher or of student. Every row has the same candidates of learning rate, of which the first seed's accuracy on
dev chooses. The same command goes on where it was stopped.
"""

import functools
import itertools
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

import config  # isort: skip  (first: it says what is not installed)

from data.tasks import SPLITS, load_task, split_path
from scripts.reproduce import results
from scripts.reproduce.plan import (
    GROUPS,
    ROWS,
    base,
    candidates,
    chosen_rows,
    list_domains,
    list_seeds,
    plan,
    run_name,
    with_teachers,
)
from util import UserError, entry, lock, read_json, remove_folder, sha256, stop_with_parent, write_json

# --------------------------------------------------------------------------------------- what is finished


def resolve_command(step):
    """The words of the step's command, the best snapshots of its teachers named where they are known."""
    return [
        "python3",
        *(
            str(best_snapshot_path(pathlib.Path(word[5:]))) if word.startswith("BEST:") else word
            for word in step.words
        ),
    ]


def best_snapshot_path(folder):
    return folder / read_json(folder / "best.json", "the name of the best snapshot")["snapshot"]


def read_step_record(step, args):
    """What is noted of a step, {} where it was never started.

    Raises:
        UserError: it was started by another command.
    """
    path = base(args) / f"{step.name}.json"
    if not path.exists():
        return {}
    record, command = read_json(path, "the record of a run"), resolve_command(step)
    if record["command"] != command:
        there, here = (
            " ".join(differing(*pair))
            for pair in ((record["command"], command), (command, record["command"]))
        )
        raise UserError(
            f"{base(args) / step.name}: made by another command, which had '{there}' where this one has '{here}': "
            f"remove that folder and {path}, or name another --output."
        )
    if "data" in record and record["data"] != data_hashes(args.data_dir):
        raise UserError(
            f"{base(args) / step.name}: made of other TSV files than {args.data_dir} holds now: bring them back, or name another "
            "--output."
        )
    return record


@functools.lru_cache
def data_hashes(data_dir):
    """{split: SHA-256 of its TSV, None where there is none}, taken once."""
    paths = {split: split_path(data_dir, split) for split in SPLITS}
    return {split: sha256(path) if path.exists() else None for split, path in paths.items()}


def differing(words, others):
    """The flags with their values, and other words, of `words` that are not among `others`."""

    def parts(words):
        text = " ".join(words).split(" --")
        return [text[0], *(f"--{part}" for part in text[1:])]

    return [part for part in parts(words) if part not in parts(others)] or ["nothing else"]


def is_finished(step, args):
    """Whether the results of a step, whose needs are finished, are there. UserError where they are those of another command."""
    record, folder = read_step_record(step, args), base(args) / step.name
    if step.trains:
        return bool(record) and all((folder / name).exists() for name in ("results.json", "predictions.tsv"))
    return record.get("done", False)


def choose(rows, task, args, finished):
    """{row: the candidate with the highest accuracy on dev with the first seed}, of the rows whose candidates have all been run."""
    choices = {}
    for row in rows:
        rates, seed = candidates(row, args), list_seeds(row, args)[0]
        runs = [[run_name(row, domain, rate, seed) for domain in list_domains(row, task)] for rate in rates]
        if len(rates) == 1:
            choices[row.name] = rates[0]
        elif finished.issuperset(itertools.chain.from_iterable(runs)):
            dev = [results.dev_accuracy([base(args) / name for name in names]) for names in runs]
            choices[row.name] = rates[dev.index(max(dev))]
    return choices


def survey(rows, task, args, finished=(), running=()):
    """The steps that are known, the choices made, and the names of the finished steps, of which `finished` are known to be so."""
    finished = set(finished)
    while True:
        choices = choose(rows, task, args, finished)
        steps = plan(rows, task, args, choices)
        open_steps = [
            step
            for name, step in steps.items()
            if name not in {*finished, *running} and finished.issuperset(step.needs)
        ]
        more = [step.name for step in open_steps if is_finished(step, args)]
        if not more:
            return steps, choices, finished
        finished.update(more)


def all_steps(rows, task, args, choices):
    """Every step of the whole set, as if the first candidate were chosen where none is yet."""
    return plan(rows, task, args, {**{row.name: candidates(row, args)[0] for row in rows}, **choices})


# --------------------------------------------------------------------------------------- running


class Job:
    """A step that is running."""

    def __init__(self, step, args):
        self.step, self.path, self.started = step, base(args) / f"{step.name}.json", time.monotonic()
        command = resolve_command(step)
        commit = (
            subprocess.run(
                ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
            ).stdout.strip()
            or None
        )
        self.record = {
            "seconds": 0.0,
            **read_step_record(step, args),
            "command": command,
            "commit": commit,
            "data": data_hashes(args.data_dir),
        }
        write_json(self.path, self.record)
        self.out = base(args) / f"{step.name}.out"
        with open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / command[1]), *command[2:]],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=lambda: stop_with_parent(signal.SIGTERM),
            )

    def close(self):
        """Notes the time that the step took, once it has ended."""
        done = self.process.wait() == 0
        self.record["seconds"] = round(self.record["seconds"] + time.monotonic() - self.started, 1)
        write_json(self.path, {**self.record, "done": done})

    def last_line(self):
        lines = self.out.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def save_disk(names, args):
    """Removes what only the resumption of a run would need (275 MB with MiniLM) from the finished ones."""
    for last in (base(args) / name / "snapshot_last" for name in names):
        if last.exists():
            remove_folder(last)


def run_all(rows, task, args):
    """Runs every step that is not finished, --jobs at a time; what needs a step that failed is left out. Returns the steps that failed."""
    running, failed = {}, set()
    steps, choices, finished = survey(rows, task, args)
    save_disk(finished, args)
    try:
        while True:
            waiting = [step for name, step in steps.items() if name not in {*running, *finished, *failed}]
            ready = [step for step in waiting if finished.issuperset(step.needs)]
            for step in ready[: args.jobs - len(running)]:
                running[step.name] = Job(step, args)
            if not running:
                return failed
            time.sleep(0.1)
            for name in [name for name, job in running.items() if job.process.poll() is not None]:
                job = running.pop(name)
                job.close()
                if job.process.returncode == 0 and is_finished(job.step, args):
                    steps, choices, finished = survey(rows, task, args, finished | {name}, running)
                    save_disk([name], args)
                    print(
                        progress_line(job, all_steps(rows, task, args, choices), finished, args), flush=True
                    )
                else:
                    failed.add(name)
                    print(
                        f"{name} failed: {job.last_line()} ({job.out} has the rest)",
                        file=sys.stderr,
                        flush=True,
                    )
    except BaseException:
        stop_all(running.values())
        raise


def stop_all(jobs):
    """Has the jobs save and end, and waits for them."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        job.close()


def progress_line(job, steps, finished, args):
    dev = f" dev {100 * results.dev_accuracy([base(args) / job.step.name]):.1f}" if job.step.trains else ""
    left = eta(steps, finished, args)
    return f"{len(finished)}/{len(steps)} steps | {job.step.name}{dev} | {job.record['seconds']:.0f} s | eta {clock(left)}"


def eta(steps, finished, args):
    """Seconds until all steps are finished: each takes the mean time of the finished ones of its stage, or of all, --jobs at a time."""
    seconds = {}
    for name in finished:
        seconds.setdefault(steps[name].stage, []).append(read_step_record(steps[name], args)["seconds"])
    everything = list(itertools.chain.from_iterable(seconds.values()))
    times = [seconds.get(step.stage, everything) for name, step in steps.items() if name not in finished]
    return sum(sum(each) / len(each) for each in times) / args.jobs


def clock(seconds):
    """45s, 3m10s, or 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}h{minutes % 60:02}m"
        if minutes >= 60
        else f"{minutes}m{rest:02}s"
        if minutes
        else f"{rest}s"
    )


# --------------------------------------------------------------------------------------- collecting


def collect(rows, task, args):
    """Writes table, CSV and plots of the rows and seeds that are finished."""
    steps, choices, finished = survey(with_teachers(rows), task, args)
    outcomes = []
    for row in rows:
        for seed in list_seeds(row, args) if row.name in choices else ():
            names = [run_name(row, domain, choices[row.name], seed) for domain in list_domains(row, task)]
            if finished.issuperset(names):
                runs = [(base(args) / name, domain) for name, domain in zip(names, list_domains(row, task))]
                outcomes.append(results.read_outcome(row, seed, choices[row.name], runs))
    if not outcomes:
        print(f"{base(args)}: no row is finished with any seed, so there is no table to make")
        return
    facts = {
        "base": base(args),
        "command": shlex.join(["python3", "-m", "scripts.reproduce", *sys.argv[1:]]),
        "baseline": args.baseline,
        "baselines": {row.name: baseline_row(row, args) for row in rows},
        "teacher candidates": args.teacher_learning_rates,
        "student candidates": args.student_learning_rates,
        "train": results.training_examples(task, args.data_dir, args.train_example_num),
        "data_dir": args.data_dir,
    }
    missing = [row.name for row in rows if row.name not in {outcome.row.name for outcome in outcomes}]
    for path in results.write_all(outcomes, task, pathlib.Path(args.results), {**facts, "missing": missing}):
        print(path)


def baseline_row(row, args):
    """The row that a row is compared with: for a portion that of the same portion, None where there is none."""
    if not row.student:
        return "mixed"
    if row.portion == 1:
        return args.baseline
    few = f"{args.baseline}-{row.portion}"
    return few if few in ROWS else None


# --------------------------------------------------------------------------------------- flags


def comma_list(kind):
    """An argparse type: distinct values of `kind`, such as 1,2,3."""

    def convert(text):
        values = [kind(word) for word in text.split(",")]
        if len(set(values)) < len(values):
            raise ValueError
        return values

    convert.__name__ = "comma list without repeats"
    return convert


def flags(parser):
    rates, seeds = comma_list(config.number(float, 0.0, open_low=True)), comma_list(config.natural)
    add = parser.add_argument
    add("--task_name", default="demo", help="name of the task")
    add("--data_dir", default="data/DEMO", help="folder of its TSV files")
    add("--model", default="models/MiniLM", help="the pretrained model that teachers and students start from")
    add("--rows", default="table", help=f"comma list of rows and groups ({', '.join(GROUPS)})")
    add(
        "--seeds",
        type=seeds,
        default=[1, 2, 3, 4, 5],
        help="comma list of the seeds of students and, without --teacher_seeds, of teachers",
    )
    add(
        "--teacher_seeds",
        type=seeds,
        help="comma list; the i-th student learns from the i-th of these, counted round (default: the seeds)",
    )
    add(
        "--jobs",
        type=config.count,
        default=len(os.sched_getaffinity(0)),
        help="runs side by side, each on one core",
    )
    add("--train_example_num", type=config.count, help="the first N training examples (default: all)")
    add("--seq_length", type=config.number(int, 3), default=64, help="longest text in tokens")
    add("--batch_size", type=config.count, default=24, help="examples of a training step")
    add("--teacher_epochs", type=config.count, default=3, help="passes of a teacher over its examples")
    add(
        "--student_epochs",
        type=config.count,
        default=4,
        help="passes of a student over all examples; few-shot rows have up to eight times as many",
    )
    add(
        "--student_layers",
        type=config.count,
        default=3,
        help="evenly spaced layers of the model that a student takes",
    )
    add(
        "--attention_weight",
        type=config.weight,
        default=0.1,
        help="weight of the attention term where a student has one",
    )
    add(
        "--eval_every",
        type=config.count,
        default=100,
        help="steps from one evaluation on dev to the next, over all examples",
    )
    add(
        "--teacher_learning_rates",
        type=rates,
        default=[5e-5],
        help="comma list of candidates, of which dev chooses for each row",
    )
    add("--student_learning_rates", type=rates, default=[1e-4], help="the same for students")
    add("--output", default="output/reproduce", help="folder of the runs")
    add("--results", default="results", help="folder of table, CSV and plots")
    add(
        "--baseline",
        default="hard",
        help="the row that student rows are compared with; teachers are compared with mixed",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print the commands that are known before anything is chosen, and run nothing",
    )
    add("--collect", action="store_true", help="run nothing; make table, CSV and plots of what is finished")


@entry
def main():
    args = config.parse(__doc__.split("\n\n")[0], flags)
    task, reported = load_task(args.task_name, args.data_dir), chosen_rows(args.rows)
    if args.baseline not in ROWS:
        raise UserError(
            f"--baseline {args.baseline}: there is no such row, expected one of {', '.join(ROWS)}."
        )
    rows = with_teachers(reported)
    if args.student_epochs < 2 and any(row.student == "two-phase" for row in rows):
        raise UserError(
            "--student_epochs 1 has no room for the two phases of the row meta-two-phase: give 2 or more, or other rows."
        )
    if args.dry_run:
        known, everything = survey(rows, task, args)[0], all_steps(rows, task, args, {})
        for step in known.values():
            print(shlex.join(["python3", *step.words]))
        print(
            f"{len(everything)} steps in all, {sum(step.trains for step in everything.values())} of them training runs; {len(known)} are known "
            "before more is chosen, and BEST:folder stands for that run's best snapshot"
        )
        return
    if args.collect:
        collect(reported, task, args)
        return
    held = lock(base(args))
    try:
        failed = run_all(rows, task, args)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error} The runs are saved; the same command goes on with them.") from None
    collect(reported, task, args)
    held.close()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
