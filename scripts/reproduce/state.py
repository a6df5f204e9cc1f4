"""What of a plan is finished, and which settings dev has chosen: read from the folder of the runs.

Beside the folder of each step lies `<step>.json`: its command, seconds, commit, and the hashes of the data.
"""

import functools
import pathlib
from argparse import Namespace
from collections.abc import Collection

from data.tasks import SPLITS, Task, split_path
from modeling.snapshots.best import best_snapshot_path
from scripts.reproduce import outcomes
from scripts.reproduce.grid import Setting, candidates
from scripts.reproduce.plan import BEST, Step, base, list_domains, list_seeds, plan, run_name
from scripts.reproduce.rows import Row
from util import UserError, read_json, sha256


def resolve_command(step: Step) -> list[str]:
    """The words of the step's command, with the best snapshots of its teachers, which must be finished."""
    words = ["python3"]
    for word in step.words:
        if word.startswith(BEST):
            word = str(best_snapshot_path(pathlib.Path(word[len(BEST) :])))
        words.append(word)
    return words


def read_step_record(step: Step, args: Namespace) -> dict:
    """What is noted of a step, {} where it was never started.

    Raises:
        UserError: it was started by another command, or over other data.
    """
    folder, path = base(args) / step.name, base(args) / f"{step.name}.json"
    if not path.exists():
        return {}
    record, command = read_json(path, "the record of a run"), resolve_command(step)
    if record["command"] != command:
        there = " ".join(differing_words(record["command"], command))
        here = " ".join(differing_words(command, record["command"]))
        raise UserError(
            f"{folder}: made by another command, which had '{there}' where this one has '{here}': "
            f"remove that folder and {path}, or name another --output."
        )
    if "data" in record and record["data"] != step_data(step, args):
        texts = f" and {args.unlabelled_file} hold" if takes_unlabelled(step) else " holds"
        raise UserError(
            f"{folder}: made of other TSV files than {args.data_dir}{texts} now: "
            "bring them back, or name another --output."
        )
    return record


def takes_unlabelled(step: Step) -> bool:
    return "--unlabelled_file" in step.words


def step_data(step: Step, args: Namespace) -> dict:
    """{what: SHA-256} of the files that a step is made of: those of the task, and texts without labels."""
    texts = {"unlabelled": file_hash(args.unlabelled_file)} if takes_unlabelled(step) else {}
    return {**data_hashes(args.data_dir), **texts}


@functools.lru_cache
def file_hash(path) -> str:
    """The SHA-256 of a file, taken once."""
    return sha256(path)


@functools.lru_cache
def data_hashes(data_dir) -> dict:
    """{split: SHA-256 of its TSV, None where there is none}, taken once."""
    paths = {split: split_path(data_dir, split) for split in SPLITS}
    return {split: sha256(path) if path.exists() else None for split, path in paths.items()}


def differing_words(words: list[str], others: list[str]) -> list[str]:
    """The flags with their values, and other words, of `words` that are not among `others`."""

    def parts(words):
        text = " ".join(words).split(" --")
        return [text[0], *(f"--{part}" for part in text[1:])]

    return [part for part in parts(words) if part not in parts(others)] or ["nothing else"]


def is_finished(step: Step, args: Namespace) -> bool:
    """Whether the results of a step, whose needs are finished, are there.

    Raises:
        UserError: they are those of another command, or of other data.
    """
    record, folder = read_step_record(step, args), base(args) / step.name
    if step.trains:
        return bool(record) and all((folder / name).exists() for name in ("results.json", "predictions.tsv"))
    return record.get("done", False)


def tried(row: Row, task: Task, args: Namespace, finished: Collection) -> dict[Setting, float]:
    """{setting: accuracy on dev with the first seed} of the candidates of a row that have been run."""
    found, seed = {}, list_seeds(row, args)[0]
    for setting in candidates(row, args):
        names = [run_name(row, domain, setting, seed) for domain in list_domains(row, task)]
        if set(finished).issuperset(names):
            found[setting] = outcomes.dev_accuracy([base(args) / name for name in names])
    return found


def choose(rows: list[Row], task: Task, args: Namespace, finished: Collection) -> dict[str, Setting]:
    """{row: the setting with the highest accuracy on dev with the first seed}.

    Rows of which some candidate has not been run are left out. A tie goes to the candidate listed first.
    """
    choices = {}
    for row in rows:
        settings = candidates(row, args)
        dev = tried(row, task, args, finished) if len(settings) > 1 else {}
        if len(settings) == 1:
            choices[row.name] = settings[0]
        elif set(dev) == set(settings):
            choices[row.name] = max(dev, key=dev.get)
    return choices


def survey(
    rows: list[Row], task: Task, args: Namespace, finished: Collection = (), running: Collection = ()
) -> tuple[dict[str, Step], dict[str, Setting], set[str]]:
    """The steps that are known, the choices made, and the names of the finished steps.

    Args:
        finished, running: names of steps of which it is known.
    """
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
        finished.update(more)  # which may decide a choice, by which more steps are known


def all_steps(rows: list[Row], task: Task, args: Namespace, choices: dict[str, Setting]) -> dict[str, Step]:
    """Every step of the whole set, as if the first candidate were chosen where none is yet."""
    return plan(rows, task, args, {**{row.name: candidates(row, args)[0] for row in rows}, **choices})
