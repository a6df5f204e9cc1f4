"""Whether a snapshot is what a stage needs: its description, its task, its kind, its size."""

import pathlib

from data.store.manifest import TYPES
from data.tasks import OTHER_KINDS
from modeling.bert.config import other_problem
from util import UserError, read_json

META_TYPES = {
    "kind": "a text",
    "step": "a count",
    "task": "a text",
    "labels": "a list of different names",
    "domains": "a list of different names",
}
TRAINED_BY = {"teacher": "meta_teacher.py", "student": "meta_distill.py"}  # of each kind, the script
TEACHER_TYPES = {"domain_head": "true or false", "seen_domains": "a list of counts"}


def check_meta(meta, types, path):
    """Raises a UserError where a key of `meta` is not of the type that `types` says; `path`: its snapshot."""
    for key, kind in types.items():
        if key not in meta or not TYPES[kind](meta[key]):
            raise UserError(
                f"{pathlib.Path(path, 'meta.json')}: found {meta.get(key)!r:.60} as {key!r}, "
                f"expected {kind}: take another snapshot."
            )


def check_task(meta, task, path):
    """Raises a UserError where `meta` has other labels or domains than the task; `path`: its snapshot."""
    for key in ("labels", "domains"):
        found, expected = tuple(meta[key]), getattr(task, key)
        if found != expected:
            raise UserError(
                f"{path}: its {key} are {', '.join(found)}, the task {task.name} has {', '.join(expected)}: "
                "name a snapshot of this task."
            )


def check_kind(meta, kind, path):
    """Raises a UserError where `meta`, of the snapshot at `path`, is of another kind than the script that
    evaluates it or goes on with it: of TRAINED_BY.
    """
    if meta["kind"] != kind:
        other = TRAINED_BY.get(meta["kind"])
        raise UserError(
            f"{path}: it holds a {meta['kind']:.60}, expected a {kind}: "
            f"name a snapshot of {TRAINED_BY[kind]}" + (f", or run {other} on this one." if other else ".")
        )


def teacher_meta(meta, task, path):
    """`meta` of the snapshot at `path`, after a check that it is a teacher of this task.

    Raises:
        UserError: a plain model, a student, or a teacher of another task.
    """
    if (meta or {}).get("kind") != "teacher":
        raise UserError(
            f"{path}: it holds {'a ' + meta['kind'][:60] if meta else not_trained_here(path)}, "
            "expected a meta-teacher: name a snapshot of meta_teacher.py."
        )
    check_task(meta, task, path)
    check_meta(meta, TEACHER_TYPES, path)
    if not {*meta["seen_domains"]} <= {*range(len(task.domains))} or not meta["seen_domains"]:
        raise UserError(
            f"{path}: it was trained on the domains {meta['seen_domains']!r:.60}, "
            f"of the {len(task.domains)} that there are: take another snapshot."
        )
    return meta


def check_fits_model(folder, task, seq_length, tokenizer):
    """Raises a UserError where a model is too small for the texts.

    It has fewer positions than `seq_length`, fewer word vectors than the vocabulary has tokens, or one
    segment where the task has pairs of texts.
    """
    positions, words = folder.config.max_position_embeddings, folder.config.vocab_size
    if seq_length > positions:
        raise UserError(
            f"--seq_length {seq_length}: the model {folder.path} has {positions} positions: lower it."
        )
    if tokenizer.vocab_size > words:
        raise UserError(
            f"{tokenizer.vocab_file}: it has {tokenizer.vocab_size} tokens, "
            f"the model {folder.path} has {words} word vectors: name the vocabulary of this model."
        )
    if len(task.text) > folder.config.type_vocab_size:
        raise UserError(
            f"{folder.path}: the model has {folder.config.type_vocab_size} segment, and the task {task.name} "
            "has pairs of texts: name a model with type_vocab_size 2."
        )


def is_same_task(folder, task):
    """Whether a folder's heads are for the labels and domains of `task`; in a plain one, for its labels."""
    if folder.meta is not None:
        return (tuple(folder.meta["labels"]), tuple(folder.meta["domains"])) == (task.labels, task.domains)
    labels = read_json(folder.path / "config.json", "the architecture of a BERT model").get("id2label")
    return labels == {str(number): name for number, name in enumerate(task.labels)}


def read_problem(path):
    """The `other_problem` in a folder's config.json; None: one class per text, or no such file."""
    path = pathlib.Path(path, "config.json")
    return other_problem(read_json(path, "the architecture of a BERT model")) if path.is_file() else None


def not_trained_here(path):
    """Words for a sentence about the plain model in a folder, with what kept it from being trained here."""
    problem = read_problem(path)
    why = f" and whose config.json is for {problem} ({OTHER_KINDS[problem]})" if problem else ""
    return f"a model that was not trained here{why}"
