"""What a task is: its columns, labels and domains, and the TSV files that hold its examples."""

import dataclasses
import os
import pathlib
import re
import unicodedata
from typing import NamedTuple, Optional

import numpy as np

from data.lines import check_texts, lookup_index, open_text, split_fields
from util import UserError, read_json

SPLITS = ("train", "dev", "test")
ONE_CLASS = "not built, since prototypes and expertise weights know one class per text"
OTHER_KINDS = {  # of problems, by transformers' names
    "multi_label_classification": f"several labels a text are {ONE_CLASS}",
    "regression": f"regression is {ONE_CLASS}",
}
REPLACEMENT = ".meta-kd-replacement"  # a folder that is there while the files of a task take their names
NAME_BYTES = (
    150  # of a task's name, so that with what stands around it the name of a snapshot has 255 at most
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task over several domains; the order of `labels` and of `domains` is their ids."""

    name: str
    text: tuple[str, ...]  # the columns of the text: one, or two for pairs
    domain: str  # the column of the domain
    label: str  # the column of the label
    labels: tuple[str, ...]
    domains: tuple[str, ...]

    @property
    def columns(self):
        """The header of the task's TSV files."""
        return (*self.text, self.domain, self.label)


class Example(NamedTuple):
    """A row of a TSV file."""

    text_a: str
    text_b: Optional[str]  # None where the task has one text column
    domain: int  # index into Task.domains
    label: int  # index into Task.labels
    line: int  # counted from 1, the header's being 1


BUILT_IN = {
    "senti": Task(
        "senti",
        ("review",),
        "domain",
        "sentiment",
        ("positive", "negative"),
        ("books", "dvd", "electronics", "kitchen"),
    ),
    "mnli": Task(
        "mnli",
        ("premise", "hypothesis"),
        "genre",
        "label",
        ("entailment", "neutral", "contradiction"),
        ("fiction", "government", "slate", "telephone", "travel"),
    ),
}

# --------------------------------------------------------------------------------------- the task


def load_task(task_name, data_dir):
    """The task that `data_dir`/task.json describes, or the built-in one of that name
    where there is no such file.

    Raises:
        UserError: no such folder or task, task.json is broken or describes another task,
            or the files are of two imports.
    """
    path = pathlib.Path(data_dir, "task.json")
    if not path.parent.is_dir():
        raise UserError(
            f"{data_dir}: no such folder, expected the data of task '{task_name}': check --task_name and "
            "--data_dir (TASK_NAME and DATA_DIR of the scripts)."
        )
    if os.path.lexists(path.with_name(REPLACEMENT)):
        raise UserError(
            f"{data_dir}: found {REPLACEMENT}, an import that was killed, or still works, while its files "
            "take their names, so some of them may be of another: wait for it, or give the command that made "
            "the data again."
        )
    if path.exists():
        task = read_task(path)
        if task.name != task_name:
            raise UserError(
                f"{path}: describes task '{task.name}', expected '{task_name}': check --task_name and "
                "--data_dir."
            )
        return task
    if task_name not in BUILT_IN:
        raise UserError(
            f"{path}: missing, and '{task_name}' is not a built-in task ({', '.join(BUILT_IN)}): describe it "
            "there."
        )
    return BUILT_IN[task_name]


def read_task(path):
    """The task that the JSON file `path` describes.

    Raises:
        UserError: a key is missing, unknown or of the wrong kind; names repeat or would not fit a TSV file.
    """
    value = read_json(path, "the description of the task")
    if kind := _other_kind(value):
        raise UserError(
            f"{path}: found {kind[0]}, and {OTHER_KINDS[kind[1]]}: give each text one of the labels."
        )
    keys = [field.name for field in dataclasses.fields(Task)]
    if sorted(value) != sorted(keys):
        raise UserError(
            f"{path}: found the keys {', '.join(map(repr, value))[:200] or '(none)'}, expected "
            f"{', '.join(keys)}."
        )
    for key, least, most in (("text", 1, 2), ("labels", 2, None), ("domains", 1, None)):
        _check_names(path, key, value[key], least, most)
    for key in ("name", "domain", "label"):
        _check_names(path, key, [value[key]], 1, 1)
    if not re.fullmatch(r"[\w.-]+", value["name"]):
        raise UserError(
            f"{path}: found the name '{value['name']:.80}', expected letters, digits, '_', '.' and '-' alone."
        )
    if len(value["name"].encode()) > NAME_BYTES:
        raise UserError(
            f"{path}: the name '{value['name']:.20}...' has {len(value['name'].encode())} bytes in UTF-8, "
            f"expected {NAME_BYTES} at most, since names of files are made of it: shorten it."
        )
    task = Task(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})
    _check_names(path, "text, domain, label", list(task.columns), 3, 4)
    return task


def _other_kind(value):
    """What in a task.json asks for another kind of problem, in words, and the kind; None: nothing does."""
    problem, label, labels = (value.get(key) for key in ("problem_type", "label", "labels"))
    if isinstance(problem, str) and problem in OTHER_KINDS:
        return f"problem_type {problem!r}", problem
    if isinstance(label, list) and len(label) != 1:
        return f"'label' {label!r:.80}", "multi_label_classification"
    if isinstance(labels, list) and any(isinstance(name, (list, dict)) for name in labels):
        return f"'labels' {labels!r:.80}", "multi_label_classification"
    return None


def _check_names(path, key, names, least, most):
    wanted = f"{least} or more" if most is None else f"{least} or {most}" if least < most else str(least)
    if not isinstance(names, list) or not least <= len(names) <= (most or len(names)):
        raise UserError(f"{path}: '{key}' is {names!r:.80}, expected a list of {wanted} names.")
    for name in names:
        if (
            not isinstance(name, str)
            or name != clean(name).encode("utf-8", "ignore").decode()
            or not 0 < len(name) <= 100
        ):
            raise UserError(
                f"{path}: '{key}' holds {name!r:.80}, expected a name of up to 100 characters without tabs, "
                "line ends or spaces around it."
            )
    if len(set(names)) < len(names):
        raise UserError(
            f"{path}: '{key}' names {max(names, key=names.count)!r:.80} twice, expected distinct names."
        )


# --------------------------------------------------------------------------------------- reading


def split_path(data_dir, split):
    """The TSV file of `split` (train, dev or test)."""
    return pathlib.Path(data_dir, f"{split}.tsv")


def read_examples(task, path):
    """Yields an Example for each row of the TSV file `path`, in its order, a row at a time.

    The first line names the columns of the task, in any order. Fields are taken as they stand: no quoting, no
    escapes. A byte-order mark at the start and line ends of Windows are accepted. A text without a visible
    character is refused.

    Raises:
        UserError: a fault, with file and line.
    """
    parse = example_parser(task, path)
    for line, raw in example_rows(path):
        yield parse(line, raw)


def example_rows(path):
    """Yields (line, bytes) of each row of the TSV file `path` behind its header. UserError: there is none."""
    with open_text(path, "a TSV file: check --data_dir") as file:
        file.readline()
        line = 1
        for line, raw in enumerate(file, 2):
            yield line, raw
        if line == 1:
            raise UserError(f"{path}: found a header and no examples, expected one or more.")


def example_parser(task, path):
    """What takes (line, bytes) of the TSV file `path` to an Example; UserError: its header has other columns
    than the task.
    """
    with open_text(path, "a TSV file: check --data_dir") as file:
        order = _read_header(task, path, file.readline())
    domains, labels = ({name: k for k, name in enumerate(names)} for names in (task.domains, task.labels))

    def parse(line, raw):
        fields = split_fields(path, line, raw, task.columns)
        *texts, domain, label = [fields[k] for k in order]
        check_texts(path, line, task.text, texts)
        if label not in labels and (kind := _other_label(label, labels)):
            raise UserError(
                f"{path}:{line}: found {task.label} {label[:80]!r}, expected one of "
                f"{', '.join(labels)[:500]}; {OTHER_KINDS[kind]}."
            )
        return Example(
            texts[0],
            texts[1] if len(texts) == 2 else None,
            lookup_index(path, line, task.domain, domain, domains),
            lookup_index(path, line, task.label, label, labels),
            line,
        )

    return parse


def _other_label(name, labels):
    """The kind of problem of which the label of a row is, several labels or a score; None: it is unknown."""
    parts = [part.strip(" '\"") for part in re.split("[,;|]", name.strip("[]{}()"))]
    if len(parts) > 1 and all(part in labels for part in parts) or name[:1] in ("[", "{"):
        return "multi_label_classification"
    return "regression" if re.fullmatch(r"[+-]?\d*[.]\d+", name) else None


def _read_header(task, path, raw):
    """Where each of task.columns stands in the header line `raw`, as a list of indices."""
    expected = f"expected a header with the columns {', '.join(task.columns)}, separated by tabs"
    if not raw:
        raise UserError(f"{path}: the file is empty, {expected}.")
    header = split_fields(path, 1, raw)
    if sorted(header) != sorted(task.columns):
        raise UserError(f"{path}:1: found {', '.join(map(repr, header))[:200]}, {expected}.")
    return [header.index(column) for column in task.columns]


def check_counts(task, counts, path):
    """Refuses a training split in which a domain or a class of the task has no examples;
    a domain may lack a class.

    Args:
        counts: examples per domain and class, [K, M].
        path: the file, named in the sentence.
    """
    if missing := missing_names(task.domains, task.labels, counts):
        raise UserError(
            f"{path}: found no example of {missing}, expected some of each domain and class: "
            "add examples, or describe the task without it in task.json."
        )


def missing_names(domains, labels, counts):
    """The domains and classes that have no examples, such as "domain books; class up, down";
    empty where each has some.

    Args:
        domains, labels: the names of K domains and M classes; counts: examples per domain and class, [K, M].
    """
    counts, kinds = np.asarray(counts), []
    for kind, names, totals in (("domain", domains, counts.sum(1)), ("class", labels, counts.sum(0))):
        if missing := [name for name, total in zip(names, totals) if total == 0]:
            kinds.append(f"{kind} {', '.join(missing):.300}")
    return "; ".join(kinds)


# --------------------------------------------------------------------------------------- names and texts


def clean(text):
    """The text on one line: whitespace collapsed to single spaces, none at the ends,
    other control characters dropped.
    """
    if not text.isprintable():
        text = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    return " ".join(text.split())
