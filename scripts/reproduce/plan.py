"""The calls of the four scripts that the rows of a set take, in the order in which they are run.

`args` are the flags of scripts.reproduce throughout, `task` a data.tasks.Task.
"""

import itertools
import pathlib
import urllib.parse
from argparse import Namespace
from typing import NamedTuple, Optional

from data.tasks import Task
from scripts.reproduce.grid import Setting, candidates, row_words
from scripts.reproduce.rows import ROWS, Row

MOST_EPOCHS = 8  # a run over a portion of the examples has at most this many times the epochs of one over all

BEST = "BEST:"  # what stands before a run folder in the words of a Step


class Step(NamedTuple):
    """A call of one of the four scripts.

    words: its command line after `python3`; BEST and a run folder stand for the best snapshot of that run.
    needs: the names of the steps whose results it uses.
    """

    name: str
    words: tuple
    needs: tuple

    @property
    def stage(self) -> str:
        return self.words[0]

    @property
    def trains(self) -> bool:
        return "--do_train" in self.words


# ------------------------------------------------------------------ seeds, candidates, domains, names


def base(args: Namespace) -> pathlib.Path:
    """The folder of all runs of the task."""
    return pathlib.Path(args.output, args.task_name)


def list_seeds(row: Row, args: Namespace) -> list[int]:
    """The seeds of a row's runs."""
    return args.seeds if row.student else args.teacher_seeds or args.seeds


def list_domains(row: Row, task: Task) -> tuple:
    """The domain of each run of a row; None: all."""
    return (None,) if row.runs == "all" else task.domains


def run_name(row: Row, domain: Optional[str], setting: Setting, seed: int) -> str:
    where = "" if domain is None else f"-{urllib.parse.quote(domain, safe='')}"
    return f"{'student' if row.student else 'teacher'}-{row.name}{where}-{setting.name}-s{seed}"


# ------------------------------------------------------------------ the plan


def plan(rows: list[Row], task: Task, args: Namespace, choices: dict[str, Setting]) -> dict[str, Step]:
    """The steps that are known, {name: Step}, each after those that it needs.

    They come seed by seed, so that a set that is stopped has compared its rows over the seeds before.
    Ensembles, which need the teachers of all seeds, come last.

    Args:
        rows: with their teachers.
        choices: {row: setting} of the rows for which it has been chosen.
    """
    steps = {}
    known = [row for row in rows if row.teacher is None or row.teacher in choices]
    numbers = range(max(len(args.seeds), len(args.teacher_seeds or ())))
    for ensembles, number in itertools.product((False, True), numbers):
        for row in (row for row in known if row.ensemble == ensembles):
            runs = itertools.product(attempts(row, number, args, choices), list_domains(row, task))
            for (setting, seed), domain in runs:
                for step in run_steps(row, domain, setting, seed, task, args, choices):
                    steps[step.name] = step
    return steps


def attempts(row: Row, number: int, args: Namespace, choices: dict) -> list[tuple[Setting, int]]:
    """(setting, seed) of the runs of a row with its seed of that number.

    The first seed tries each candidate, the others the one that was chosen.
    """
    if number == 0:
        settings = candidates(row, args)
    else:
        settings = [choices[row.name]] if row.name in choices else []
    return [(setting, seed) for setting in settings for seed in list_seeds(row, args)[number : number + 1]]


def run_steps(
    row: Row, domain: Optional[str], setting: Setting, seed: int, task: Task, args: Namespace, choices: dict
) -> list[Step]:
    """The steps of a run: records, for a student its teacher's knowledge, training."""
    left_out = domain if "without" in (row.runs, row.teacher_runs) else None
    records = records_step(left_out, args)
    name, folder = run_name(row, domain, setting, seed), base(args)
    flags = [*common_flags(args, records.name), *training_flags(row, domain, setting, seed, task, args)]
    target = ["--model_save_dir", str(folder / name)]
    if not row.student:
        words = ("meta_teacher.py", *flags, "--model_load_dir", args.model, *target)
        return [records, Step(name, words, (records.name,))]

    teachers = list_teachers(row, domain, seed, task, args, choices)
    snapshots = [f"{BEST}{folder / teacher}" for teacher in teachers]
    start = snapshots[0] if row.start == "teacher" else args.model
    flags += ["--student_model", start, "--student_layers", str(args.student_layers), *target]
    hidden = row.student == "hidden" or dict(setting.flags).get("hidden_loss_weight", 0) > 0
    knowledge = [knowledge_step(row, domain, hidden, teacher, records, args) for teacher in teachers]
    if teachers:
        flags += ["--teacher_model", *snapshots]
        flags += ["--knowledge_dir", *(str(folder / step.name) for step in knowledge)]
    needs = (records.name, *teachers, *(step.name for step in knowledge))
    return [records, *knowledge, Step(name, ("meta_distill.py", *flags), needs)]


def records_step(left_out: Optional[str], args: Namespace) -> Step:
    """Stage 1. left_out: a domain that the prototypes do without."""
    name, without = "ofrecord", ()
    if left_out is not None:
        name = f"ofrecord-without-{urllib.parse.quote(left_out, safe='')}"
        without = ("--exclude_domain", left_out)
    model = ("--model_load_dir", args.model)
    return Step(name, ("preprocess.py", *common_flags(args, name), *without, *model, "--resave_ofrecord"), ())


def list_teachers(
    row: Row, domain: Optional[str], seed: int, task: Task, args: Namespace, choices: dict
) -> list[str]:
    """The names of the runs of the teachers that a student of this seed learns from."""
    if row.teacher is None:
        return []
    teacher = ROWS[row.teacher]
    seeds, setting = list_seeds(teacher, args), choices[teacher.name]
    if row.ensemble:
        return [run_name(teacher, None, setting, each) for each in seeds]
    own = seeds[args.seeds.index(seed) % len(seeds)]
    domains = task.domains if row.several else [None if teacher.runs == "all" else domain]
    return [run_name(teacher, each, setting, own) for each in domains]


def knowledge_step(
    row: Row, domain: Optional[str], hidden: bool, teacher: str, records: Step, args: Namespace
) -> Step:
    """Stage 3 of the run `teacher`, for a student over this domain; None: over all.

    A teacher of one domain that is one of several has to answer the texts of all.

    Args:
        hidden: whether hidden states are stored.
    """
    folder, name, more = base(args), f"knowledge-{teacher}", []
    if row.several and row.teacher_runs == "domain":
        name += "-all"
    elif row.teacher_runs != "all":
        more += ["--domain", domain]
    if hidden:
        name += "-hidden"
        more += ["--hidden_states"]
    if row.unlabelled:
        name += "-unlabelled"
        more += ["--unlabelled_file", args.unlabelled_file]
        if row.student == "logits":  # kilobytes a text, where layers take many times as much
            name += "-answers"
            more += ["--knowledge_layers", "none", "--knowledge_vectors", "float16"]
    words = ["meta_teacher_eval.py", *common_flags(args, records.name)]
    words += ["--model_load_dir", f"{BEST}{folder / teacher}", "--knowledge_dir", str(folder / name), *more]
    return Step(name, tuple(words), (records.name, teacher))


# ------------------------------------------------------------------ flags of the scripts


def common_flags(args: Namespace, records: str) -> list[str]:
    """Flags of all four scripts. records: the name of the records' folder."""
    flags = {
        "--task_name": args.task_name,
        "--data_dir": args.data_dir,
        "--ofrecord_dir": base(args) / records,
        "--seq_length": args.seq_length,
        "--cpu_processes": 1,
    }
    if args.train_example_num:
        flags["--train_example_num"] = args.train_example_num
    return [str(word) for pair in flags.items() for word in pair]


def training_flags(
    row: Row, domain: Optional[str], setting: Setting, seed: int, task: Task, args: Namespace
) -> list[str]:
    """Flags of a run of stage 2 or 4.

    A run over fewer examples is evaluated as often as one over all of them.
    """
    epochs, share = (args.student_epochs if row.student else args.teacher_epochs), row.portion
    epochs = dict(setting.flags).get("num_epochs", epochs)
    if row.portion < 1:
        more = min(round(1 / row.portion), MOST_EPOCHS)
        epochs, share = epochs * more, share * more
    if row.runs != "all":
        share *= (1 if row.runs == "domain" else len(task.domains) - 1) / len(task.domains)
    flags = {
        "--seed": seed,
        "--num_epochs": epochs,
        "--learning_rate": repr(setting.rate),
        "--batch_size_per_device": args.batch_size,
        "--eval_every_step_num": max(1, round(args.eval_every * share)),
    }
    words = ["--resume", "--do_train", "--do_eval"]
    words += [str(word) for pair in flags.items() for word in pair]
    words += row_words(row, args, third=max(1, epochs // 3))
    if row.runs == "domain":
        words += ["--domain", domain]
    if row.runs == "without":
        words += ["--exclude_domain", domain]
    if row.portion < 1:
        words += ["--data_portion", str(row.portion)]
    if row.unlabelled:
        words += ["--unlabelled_file", args.unlabelled_file]
    return words + setting.words()  # which win over what stands before them
