"""Trains rows of the paper's table over several seeds and compares them: tables, CSV and plots in results/.

    python3 -m scripts.reproduce --task_name demo --data_dir data/DEMO --rows table --seeds 1,2,3

A row is a kind of teacher or of student. Every row has the same candidates of learning rate, or as many
settings of a grid; accuracy on dev with the first seed chooses. The same command goes on where it was
stopped.
"""

import shlex
import sys
import urllib.parse
from argparse import Namespace
from pathlib import Path
from typing import Optional

import config  # isort: skip  (first: it says what is not installed)

from data.store.files import lock
from data.tasks import Task, load_task
from scripts.reproduce import flags, outcomes, tables
from scripts.reproduce.grid import describe_candidates, read_grid
from scripts.reproduce.perturb import perturbation, with_perturbed_data, write_perturbed
from scripts.reproduce.plan import base, list_domains, list_seeds, run_name
from scripts.reproduce.rows import ROWS, Row, chosen_rows, with_teachers
from scripts.reproduce.runner import Runner
from scripts.reproduce.state import all_steps, survey, tried
from util import UserError, entry


def collect(rows: list[Row], task: Task, args: Namespace) -> None:
    """Writes table, CSV and plots of the rows and seeds that are finished."""
    _, choices, finished = survey(with_teachers(rows), task, args)
    found = []
    for row in rows:
        for seed in list_seeds(row, args) if row.name in choices else ():
            domains = list_domains(row, task)
            names = [run_name(row, domain, choices[row.name], seed) for domain in domains]
            if finished.issuperset(names):
                runs = [(base(args) / name, domain) for name, domain in zip(names, domains)]
                outcome = outcomes.read_outcome(row, seed, choices[row.name], runs)
                found.append(outcomes.over_domain(outcome, args.test_domain))
    if not found:
        print(f"{base(args)}: no row is finished with any seed, so there is no table to make")
        return
    facts = tables.Facts(
        base=base(args),
        data_dir=args.data_dir,
        command=shlex.join(["python3", "-m", "scripts.reproduce", *sys.argv[1:]]),
        baseline=args.baseline,
        baselines={row.name: baseline_row(row, args) for row in rows},
        candidates=describe_candidates(args),
        tried={row.name: tried(row, task, args, finished) for row in with_teachers(rows)},
        chosen=choices,
        train=outcomes.training_examples(task, args.data_dir, args.train_example_num),
        missing=[row.name for row in rows if row.name not in {each.row.name for each in found}],
        test_domain=args.test_domain,
    )
    target = Path(args.results)
    if args.test_domain is not None:  # beside the table over all, not in its place
        target /= f"test={urllib.parse.quote(args.test_domain, safe='')}"
    for path in tables.write_all(found, task, target, facts):
        print(path)


def baseline_row(row: Row, args: Namespace) -> Optional[str]:
    """The row that a row is compared with.

    For a portion it is that of the same portion. None: there is none.
    """
    if not row.student:
        return "mixed"
    if row.portion == 1:
        return args.baseline
    few = f"{args.baseline}-{row.portion}"
    return few if few in ROWS else None


def check(rows: list[Row], task: Task, args: Namespace) -> None:
    """Raises a UserError where the flags do not go with the rows or the task."""
    if args.test_domain not in (None, *task.domains):
        raise UserError(
            f"--test_domain {args.test_domain}: the task {task.name} has the domains "
            f"{', '.join(task.domains)}."
        )
    if args.baseline not in ROWS:
        raise UserError(
            f"--baseline {args.baseline}: there is no such row, expected one of {', '.join(ROWS)}."
        )
    if any(row.unlabelled for row in rows) != bool(args.unlabelled_file):
        raise UserError(
            "--unlabelled_file goes with the rows of the group unlabelled, and these with it: "
            "give both, or leave both out."
        )
    if args.unlabelled_file and not Path(args.unlabelled_file).is_file():
        raise UserError(
            f"--unlabelled_file {args.unlabelled_file}: there is no such file, expected a TSV with texts: "
            "check the path, or make one with data.prepare.augment."
        )
    if any(row.ensemble for row in rows) and len(args.teacher_seeds or args.seeds) < 2:
        raise UserError(
            "--rows ensemble: there is one seed of the teachers, and an ensemble takes several: "
            "give --teacher_seeds two or more, or other rows."
        )
    if args.student_epochs < 2 and any(row.student == "two-phase" for row in rows):
        raise UserError(
            "--student_epochs 1 has no room for the two phases of the row meta-two-phase: "
            "give 2 or more, or other rows."
        )
    if not args.attention_weight and any(row.student == "full-centred" for row in rows):
        raise UserError(
            "--attention_weight 0 leaves the row meta-full-centred no scores to centre: raise it, or give "
            "other rows."
        )


def print_commands(rows: list[Row], task: Task, args: Namespace) -> None:
    """Prints the commands that are known, and how many there are in all."""
    known, everything = survey(rows, task, args)[0], all_steps(rows, task, args, {})
    for step in known.values():
        print(shlex.join(["python3", *step.words]))
    trainings = sum(step.trains for step in everything.values())
    print(
        f"{len(everything)} steps in all, {trainings} of them training runs; {len(known)} are known "
        "before more is chosen, and BEST:folder stands for that run's best snapshot"
    )


@entry
def main():
    groups = (flags.what, flags.perturbation, flags.training, flags.running)
    args = config.parse(__doc__.split("\n\n")[0], *groups, prog="scripts/reproduce.sh")
    task, reported = load_task(args.task_name, args.data_dir), chosen_rows(args.rows)
    rows, original, change = with_teachers(reported), args, perturbation(args, task)
    if args.grid:
        args.grid = read_grid(args.grid, rows, args)
    if change:
        args = with_perturbed_data(args)
    check(rows, task, args)
    if args.dry_run:
        print_commands(rows, task, args)
        return
    if args.collect:
        collect(reported, task, args)
        return
    held = lock(base(args))
    if change:
        limit = original.train_example_num
        write_perturbed(task, original.data_dir, Path(args.data_dir), change, args.noise_seed, limit)
    try:
        failed = Runner(rows, task, args).run()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error} The runs are saved; the same command goes on with them.") from None
    collect(reported, task, args)
    held.close()
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
