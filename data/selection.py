"""Which records a run uses: opening the splits as the flags say,
and choosing the training examples. N records.
"""

import hashlib
import pathlib
from typing import NamedTuple, Optional

import numpy as np

from data.batches import Examples
from data.store.records import Records
from data.store.writing import check_fits, resave
from data.tasks import SPLITS, missing_names, split_path
from util import UserError, random_stream


class RecordsOptions(NamedTuple):
    """The flags that say where the records are, and how they are made."""

    data_dir: str
    ofrecord_dir: Optional[str] = None
    resave_ofrecord: bool = False
    seq_length: int = 128

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the records of all splits."""
        return records_folder(self.data_dir, self.ofrecord_dir)


class Selection(NamedTuple):
    """The flags that choose examples, in the order in which they apply."""

    train_example_num: Optional[int] = None
    eval_example_num: Optional[int] = None
    domain: Optional[str] = None
    exclude_domain: Optional[str] = None
    data_portion: float = 1.0
    seed: int = 42


def open_records(options, task, tokenizer, split, scored=True):
    """The checked records of a split, written again from its TSV where --resave_ofrecord says so.

    Args:
        options: RecordsOptions.
        scored: whether scores must be there (stages 2 to 4); stage 1 makes them.
    Raises:
        UserError: the records are missing, broken, or of other data than the flags name.
    """
    folder = options.folder / split
    if options.resave_ofrecord:
        records = resave(task, options.data_dir, folder, split, tokenizer, options.seq_length, scored)
    else:
        records = Records(folder, split)
        check_fits(records, task, options.seq_length, tokenizer, split_path(options.data_dir, split))
        if scored:
            records.require_scores()
    return records


def open_splits(options, selection, task, tokenizer):
    """What a training script reads: the Records of each split, the chosen training Examples,
    and those of dev and test.

    Args:
        options: RecordsOptions; selection: Selection.
    Returns:
        {split: Records}, Examples, {"dev": Examples, "test": Examples}.
    """
    records = {split: open_records(options, task, tokenizer, split) for split in SPLITS}
    examples = training_examples(records["train"], task, selection)
    heldout = {
        "dev": dev_examples(records["dev"], task, selection),
        "test": Examples.of_records(records["test"]),
    }
    return records, examples, heldout


def records_line(records):
    """A line for the log: how many examples a split has, how many of its texts were cut,
    and what it has no example of.
    """
    counts = [[records.counts[domain][label] for label in records.labels] for domain in records.domains]
    missing = missing_names(records.domains, records.labels, counts)
    cut = describe_cut(records.cut, records.seq_length, records.truncate)
    return f"{records.split}: {len(records)} examples, {cut}" + (
        f"; note: none of {missing}" if missing else ""
    )


def describe_cut(cut, seq_length, truncate):
    """Words for the log: how many of the texts that it has just counted were cut, and where."""
    end = ", of which three quarters are from the end" if truncate == "head_tail" else ""
    return f"{cut} of them cut at {seq_length} tokens{end}"


def records_folder(data_dir: str, ofrecord_dir: Optional[str] = None) -> pathlib.Path:
    """The folder of the records of all splits."""
    return pathlib.Path(ofrecord_dir or pathlib.Path(data_dir, "ofrecord"))


def chosen_blocks(records, rows):
    """Yields, for each part of `records`, those of its records that are in `rows`, rising, as Examples."""
    chosen = Examples.of_records(records, rows)
    for part in records.part_rows():
        first, end = np.searchsorted(rows, (part.start, part.stop))
        yield chosen.take(slice(first, end))


def training_examples(records, task, selection):
    """The chosen training examples, Examples."""
    return Examples.of_records(records, select(records.domain, records.label, task, selection))


def dev_examples(records, task, selection):
    """The first --eval_example_num dev examples, of those the domains
    that --domain and --exclude_domain keep.
    """
    count = check_limit(len(records), selection.eval_example_num, "--eval_example_num", "dev")
    mask = domain_mask(records.domain[:count], task, selection.domain, selection.exclude_domain)
    rows = np.flatnonzero(mask)
    if not len(rows):
        raise UserError(
            "no dev example is left after --eval_example_num, --domain and --exclude_domain: loosen one of "
            "them."
        )
    return Examples.of_records(records, rows)


def select(domain, label, task, selection):
    """The rows of the training split that a Selection chooses, rising.

    Args:
        domain, label: int [N], of all records.
    Raises:
        UserError: more examples asked for than there are, an unknown domain, nothing left.
    """
    count = check_limit(len(domain), selection.train_example_num, "--train_example_num", "training")
    rows = np.arange(count, dtype=np.int32)
    rows = rows[domain_mask(domain[rows], task, selection.domain, selection.exclude_domain)]
    if selection.data_portion < 1:
        strata = (
            (rows[(domain[rows] == k) & (label[rows] == m)], k, m)
            for k in range(len(task.domains))
            for m in range(len(task.labels))
        )
        portions = [_portion(each, selection.data_portion, selection.seed, k, m) for each, k, m in strata]
        rows = np.sort(np.concatenate(portions))
    if not len(rows):
        raise UserError(
            "no training example is left after --train_example_num, --domain and --exclude_domain: loosen "
            "one of them."
        )
    return rows


def examples_facts(rows):
    """What manifests say of the training examples at `rows`: how many, and a hash of which."""
    return {
        "examples": len(rows),
        "examples_sha256": hashlib.sha256(np.asarray(rows, "<i8").tobytes()).hexdigest(),
    }


def check_limit(available, limit, flag, what):
    """`limit`, or all where it is None. UserError where it is more than there are."""
    if limit is not None and limit > available:
        raise UserError(
            f"{flag} {limit} is more than the {available} {what} examples there are: lower it or leave it "
            "out."
        )
    return available if limit is None else limit


def domain_mask(domain, task, only=None, without=None):
    """True where --domain, `only`, and --exclude_domain, `without`, keep an example. int [N] -> bool [N]."""
    keep = np.ones(len(domain), bool)
    for flag, name, wanted in (("--domain", only, True), ("--exclude_domain", without, False)):
        if name is not None:
            if name not in task.domains:
                raise UserError(
                    f"{flag} {name}: the task {task.name} has the domains {', '.join(task.domains)}."
                )
            keep &= (domain == task.domains.index(name)) == wanted
    return keep


def _portion(rows, share, seed, k, m):
    """At least one of `rows` where there is one, the same for a seed and a share."""
    wanted = max(1, round(len(rows) * share))
    return random_stream(seed, "portion", k, m).permutation(rows)[:wanted]
