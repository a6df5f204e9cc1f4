"""What a run has written, as it is read back: predictions and the lines of metrics.jsonl and timing.jsonl."""

import json
import pathlib

from util import UserError

COLUMNS = ("split", "idxs", "domain", "label", "predicted")  # of predictions.tsv, before those of the labels


def read_predictions(path, remedy: str = "evaluate the snapshot again") -> dict:
    """The lines of a predictions.tsv, {"dev": [{column: text}], "test": [...]};
    the probability of a label under ("p", label).

    Raises:
        UserError: a line that is cut or changed; `remedy` says what to do.
    """
    header, *lines = pathlib.Path(path).read_bytes().split(b"\n")
    keys = [*COLUMNS, *(("p", label) for label in header.decode("utf-8").split("\t")[len(COLUMNS) :])]
    rows = {"dev": [], "test": []}
    for number, line in enumerate(lines[:-1] if lines and not lines[-1] else lines, 2):
        row = line.decode("utf-8", "replace").split("\t")
        if len(row) != len(keys) or row[0] not in rows or not row[1].isdecimal():
            raise UserError(f"{path}:{number}: found a line that is cut or changed: {remedy}.")
        rows[row[0]].append(dict(zip(keys, row)))
    return rows


def read_json_lines(path) -> list:
    """The objects of a file with one in each line."""
    return [json.loads(line) for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines()]


def read_metrics(path) -> tuple:
    """The lines of a metrics.jsonl: (those of steps, those of evaluations),
    none where there is no such file.
    """
    lines = read_json_lines(path) if path.exists() else []
    return [line for line in lines if "dev" not in line], [line for line in lines if "dev" in line]
