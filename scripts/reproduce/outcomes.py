"""What finished runs came to, read from their folders."""

import collections
import itertools
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from data.tasks import Task, read_examples, split_path
from modeling.reports import run_files
from scripts.reproduce.grid import Setting
from scripts.reproduce.rows import Row
from util import UserError, read_json, sha256


class Outcome(NamedTuple):
    """What a row came to with one seed."""

    row: Row
    seed: int
    setting: Setting  # learning rate and what else was chosen
    dev: float  # accuracy on dev over all its runs
    test: dict  # {idxs: (domain, label, predicted)}
    parameters: int  # of one of its models
    seconds: float  # of all its runs
    curve: dict  # {step: accuracy on dev over all its runs}


def read_answers(folder: Path) -> dict[str, dict]:
    """The predictions of a run, {split: {idxs: (domain, label, predicted)}}.

    Raises:
        UserError: the file is missing, is not the one that the run has written, is cut short, or has no
            predictions on dev.
    """
    path = Path(folder, "predictions.tsv")
    remedy = "remove the folder of that run, and run this again"
    written = read_json(Path(folder, "results.json"), "the results of a run").get("predictions_sha256")
    if not path.is_file():
        raise UserError(f"{path}: missing, expected the predictions of a run: {remedy}.")
    if written not in (None, sha256(path)):  # None: a run of an earlier version
        raise UserError(f"{path}: its content is not what its run has written: {remedy}.")
    splits = {
        split: {int(row["idxs"]): (row["domain"], row["label"], row["predicted"]) for row in rows}
        for split, rows in run_files.read_predictions(path, remedy).items()
    }
    if not splits["dev"]:
        raise UserError(f"{path}: holds no predictions on dev, by which settings are chosen: {remedy}.")
    return splits


def dev_accuracy(folders: list[Path]) -> float:
    """Share of right answers on dev over all runs in `folders`."""
    answers = itertools.chain.from_iterable(read_answers(folder)["dev"].values() for folder in folders)
    right = [label == predicted for _, label, predicted in answers]
    return sum(right) / len(right)


def read_outcome(row: Row, seed: int, setting: Setting, runs: list[tuple[Path, Optional[str]]]) -> Outcome:
    """The Outcome of a row.

    Args:
        runs: (folder, the domain that it is tested on; None: all) of each of its runs.
    """
    test = {}
    for folder, domain in runs:
        for idxs, line in read_answers(folder)["test"].items():
            if domain in (None, line[0]):
                test[idxs] = line
    folders = [folder for folder, _ in runs]
    records = [read_json(folder.parent / f"{folder.name}.json", "the record of a run") for folder in folders]
    return Outcome(
        row,
        seed,
        setting,
        dev=dev_accuracy(folders),
        test=dict(sorted(test.items())),
        parameters=read_json(folders[0] / "results.json", "the results of a run")["parameters"],
        seconds=sum(record["seconds"] for record in records),
        curve=mean_curve([read_curve(folder) for folder in folders]),
    )


def over_domain(outcome: Outcome, domain: Optional[str]) -> Outcome:
    """The Outcome over the test examples of one domain; None: over all."""
    kept = {idxs: line for idxs, line in outcome.test.items() if domain in (None, line[0])}
    return outcome._replace(test=kept)


def read_curve(folder: Path) -> dict[int, tuple[float, int]]:
    """{step: (accuracy on dev, dev examples)} of a run."""
    _, evaluations = run_files.read_metrics(folder / "metrics.jsonl")
    return {line["step"]: (line["dev"]["accuracy"], line["dev"]["examples"]) for line in evaluations}


def mean_curve(curves: list[dict[int, tuple[float, int]]]) -> dict[int, float]:
    """{step: accuracy over the dev examples of all runs}, at the steps that all of them have."""
    means = {}
    for step in sorted(set.intersection(*map(set, curves))):
        accuracies, examples = zip(*(curve[step] for curve in curves))
        means[step] = float(np.average(accuracies, weights=examples))
    return means


def training_examples(task: Task, data_dir: str, limit: Optional[int]) -> collections.Counter:
    """How many training examples each domain and label has, among the first `limit` or all."""
    examples = itertools.islice(read_examples(task, split_path(data_dir, "train")), limit)
    return collections.Counter((example.domain, example.label) for example in examples)


def portion_size(cells: collections.Counter, portion: float) -> int:
    """How many training examples --data_portion keeps of `cells`, as data.selection.select does."""
    return sum(max(1, round(count * portion)) for count in cells.values())
