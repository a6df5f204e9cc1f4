"""The records of a split: a TSV row -> features -> a record on disk -> checked arrays. N records, T = seq_length.

A folder `<ofrecord_dir>/<split>` holds parts as of `data/store/ofrecord.py` and `manifest.json`. It is written under another name and
renamed when whole, so that a writer that is killed leaves what was there before.
"""

import hashlib
import itertools
import pathlib

import numpy as np

from data.store.ofrecord import (
    MANIFEST,
    check_part,
    check_replaceable,
    is_count,
    open_part,
    read_manifest,
    read_part,
    write_parts,
)
from data.tasks import check_counts, read_examples, split_path
from tokenization import encode
from util import UserError, atomic_folder, sha256, write_json

FORMAT = "meta-kd-records-1"
TOKENS = ("input_ids", "input_mask", "segment_ids")
STAGE_1 = "run preprocess.py with --resave_ofrecord"
SOURCE_TYPES = {
    "task": "a text",
    "split": "a text",
    "seq_length": "a count",
    "labels": "a list of different names",
    "domains": "a list of different names",
    "vocab_size": "a count",
    "vocab_sha256": "a SHA-256",
    "do_lower_case": "true or false",
    "tsv_sha256": "a SHA-256",
}
MANIFEST_TYPES = {
    **SOURCE_TYPES,
    "counts": "an object",
    "cut": "a count",
    "content_sha256": "a SHA-256",
    "scores": "an object or null",
}


def record_schema(seq_length):
    """What a record is: three rows of `seq_length` whole numbers, three single ones, and the score of stage 1."""
    tokens, one = {key: ("int32", seq_length) for key in TOKENS}, ("int32", 1)
    return {**tokens, "domain": one, "label": one, "idxs": one, "weights": ("float32", 1)}


CONTENT = tuple(sorted(record_schema(0).keys() - {"weights"}))  # what a score does not change


class ContentHash:
    """SHA-256 over everything in the records but `weights`, in their order, however they are cut into parts."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, record):
        """Adds a record: {key: array or number}."""
        for key in CONTENT:
            values = np.asarray(record[key], "<i4").tobytes()
            self._digest.update(b"%s %d " % (key.encode(), len(values)) + values)

    def hexdigest(self):
        """The hash so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


class RecordCounter:
    """What the manifest says of the content of records, taken as they pass."""

    def __init__(self, labels, domains):
        self._content, self.count, self.cut = ContentHash(), 0, 0
        self.counts = {domain: {label: 0 for label in labels} for domain in domains}
        self._labels, self._domains = labels, domains

    def add(self, record):
        """Counts and hashes a record, and returns what of it goes to disk; a record without a score gets NaN."""
        self.counts[self._domains[int(record["domain"])]][self._labels[int(record["label"])]] += 1
        self.count, self.cut = self.count + 1, self.cut + bool(record.get("was_cut"))
        self._content.update(record)
        return {**{key: record[key] for key in CONTENT}, "weights": record.get("weights", np.nan)}

    def facts(self):
        """The manifest's keys count, counts, cut and content_sha256."""
        return {
            "count": self.count,
            "counts": self.counts,
            "cut": self.cut,
            "content_sha256": self._content.hexdigest(),
        }


# --------------------------------------------------------------------------------------- TSV -> records


def encode_split(task, data_dir, split, tokenizer, seq_length):
    """Yields the records of a split without `weights`, and in `was_cut` whether the text was cut to fit into `seq_length`.

    Raises:
        UserError: a fault in the TSV, or a text in which the tokenizer finds no token.
    """
    path = split_path(data_dir, split)
    for idxs, example in enumerate(read_examples(task, path)):
        features = encode_line(
            tokenizer, example.text_a, example.text_b, seq_length, f"{path}:{example.line}"
        )
        yield {
            "input_ids": features.input_ids,
            "input_mask": features.input_mask,
            "segment_ids": features.segment_ids,
            "domain": example.domain,
            "label": example.label,
            "idxs": idxs,
            "was_cut": features.was_cut,
        }


def encode_line(tokenizer, text_a, text_b, seq_length, where):
    """`encode` of the text or pair that stands at `where`, a file and a line. UserError: the tokenizer finds no token in it."""
    features = encode(tokenizer, text_a, text_b, seq_length)
    if features.input_mask.sum() <= (2 if text_b is None else 3):  # [CLS] [SEP], and [SEP] again in a pair
        raise UserError(f"{where}: found no token in the text, expected at least one: mend or drop the line.")
    return features


def source_facts(task, tsv, split, tokenizer, seq_length):
    """What the manifest says of where records come from: the keys of SOURCE_TYPES."""
    if not pathlib.Path(tsv).is_file():
        raise UserError(
            f"{tsv}: found nothing, expected the {split} split: name the folder that holds it with --data_dir."
        )
    return {
        "task": task.name,
        "split": split,
        "seq_length": seq_length,
        "labels": list(task.labels),
        "domains": list(task.domains),
        "vocab_size": tokenizer.vocab_size,
        "vocab_sha256": tokenizer.vocab_sha256,
        "do_lower_case": tokenizer.do_lower_case,
        "tsv_sha256": sha256(tsv),
    }


def save(task, data_dir, folder, split, tokenizer, seq_length, part_size=4096):
    """Writes the records of a split from its TSV, without scores, and returns them opened."""
    facts = source_facts(task, split_path(data_dir, split), split, tokenizer, seq_length)
    return write_records(
        folder, split, encode_split(task, data_dir, split, tokenizer, seq_length), facts, part_size=part_size
    )


def resave(task, data_dir, folder, split, tokenizer, seq_length, scored=True, part_size=4096):
    """--resave_ofrecord: tokenises the TSV again, and keeps the records with their scores where nothing changed.

    Args:
        scored: False in stage 1, and where nobody reads the scores: what is missing, damaged or of other content is written anew.
    Returns:
        Records, whose manifest now tells of the TSV and the vocabulary that are there.
    Raises:
        UserError: the training split has no example of a domain or class; scores are needed, and there are none or not for these
            texts; the sentence names stage 1.
    """
    facts = source_facts(task, split_path(data_dir, split), split, tokenizer, seq_length)
    tally = RecordCounter(task.labels, task.domains)
    for record in encode_split(task, data_dir, split, tokenizer, seq_length):
        tally.add(record)
    if split == "train":
        check_counts(
            task, [list(cells.values()) for cells in tally.counts.values()], split_path(data_dir, split)
        )
    fresh = {**facts, **tally.facts()}
    try:
        records = Records(folder, split)
        if scored:
            records.require_scores()
        if records.content_sha256 != fresh["content_sha256"]:
            raise UserError(_stale(records, facts))
    except UserError:
        if scored:
            raise
        check_replaceable(folder, split, "--ofrecord_dir")
        return save(task, data_dir, folder, split, tokenizer, seq_length, part_size)
    if {**records.manifest, **fresh} == records.manifest:
        return records
    write_json(records.folder / MANIFEST, {**records.manifest, **fresh})
    return Records(folder, split)


def check_fits(records, task, seq_length, tokenizer, tsv):
    """Raises a UserError where `records` were made of another TSV, task, vocabulary or seq_length than those given."""
    facts = source_facts(task, tsv, records.split, tokenizer, seq_length)
    if any(records.manifest[key] != value for key, value in facts.items()):
        raise UserError(_stale(records, facts))


def _stale(records, facts):
    """The sentence that says in what records differ from what they should be made of."""
    for key, value in facts.items():
        if records.manifest[key] != value:
            short = (lambda each: f"{each[:12]}...") if key.endswith("sha256") else "{!r:.200}".format
            found, expected = short(records.manifest[key]), short(value)
            return f"{records.folder}: found records made with {key} {found}, expected {expected}: {STAGE_1}."
    return f"{records.folder}: found records of other tokens than the TSV now gives, expected the same: {STAGE_1}."


# --------------------------------------------------------------------------------------- writing and reading


def write_records(folder, split, records, facts, scores=None, part_size=4096):
    """Writes the records of a split, holding one at a time: whole, or not at all.

    Args:
        folder: the folder of the split; records: an iterable of what `encode_split` yields, with or without `weights`.
        facts: `source_facts` of them; `cut`, where it is there, is taken from it instead of being counted.
        scores: what made the weights, for the manifest; None without them.
    Returns:
        Records, opened.
    """
    tally = RecordCounter(facts["labels"], facts["domains"])
    with atomic_folder(folder) as temporary:
        parts = write_parts(
            temporary, split, map(tally.add, records), record_schema(facts["seq_length"]), part_size
        )
        if not parts:
            raise UserError(f"{folder}: found no example for the {split} split, expected at least one.")
        write_json(
            temporary / MANIFEST,
            {"format": FORMAT, **tally.facts(), **facts, "scores": scores, "parts": parts},
        )
    return Records(folder, split)


def with_scores(records, scores, facts):
    """Writes the same records with `scores` as their weights, holding one part at a time, and returns them opened.

    Args:
        scores: an iterable of numbers, one per record, in their order.
        facts: what made them, for the manifest.
    Raises:
        UserError: a score that is not finite. ValueError: not as many scores as records.
    """
    scores = iter(scores)

    def rows():
        for block in records.blocks():
            for i, row in enumerate(zip(*(block[key] for key in CONTENT))):
                score = next(scores, None)
                if score is None:
                    raise ValueError(f"fewer scores than the {len(records)} records")
                if not np.isfinite(score):
                    raise UserError(
                        f"{records.folder}: found the score {score} for record {block['idxs'][i]}, expected a finite "
                        "number: check the model that --model_load_dir names."
                    )
                yield {**dict(zip(CONTENT, row)), "weights": score}
        if next(scores, None) is not None:
            raise ValueError(f"more scores than the {len(records)} records")

    kept = {key: records.manifest[key] for key in (*SOURCE_TYPES, "cut")}
    return write_records(
        records.folder, records.split, rows(), kept, facts, max(part["count"] for part in records.parts)
    )


class Records:
    """The records of a split on disk, checked: the manifest, and the size and the hash of every part.

    Attributes: `folder`, `manifest`, and each key of the manifest (SOURCE_TYPES, MANIFEST_TYPES, `count`, `parts`).

    Args:
        folder: the folder of the split.
    Raises:
        UserError: something is missing, was changed, or does not fit together; the sentence names --resave_ofrecord.
    """

    def __init__(self, folder, split):
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(
            folder, FORMAT, MANIFEST_TYPES, split, "the manifest of the records", STAGE_1
        )
        if self.manifest["split"] != split:
            raise UserError(
                f"{self.folder / MANIFEST}: found split {self.manifest['split']!r:.60}, expected {split!r}: {STAGE_1}."
            )
        vars(self).update({key: self.manifest[key] for key in (*MANIFEST_TYPES, "count", "parts")})
        if not self._good_counts():
            raise UserError(
                f"{self.folder / MANIFEST}: found counts per domain and class that do not fit its domains, labels or "
                f"{self.count} records: {STAGE_1}."
            )
        for part in self.parts:
            with open_part(self.folder / part["file"], STAGE_1, part) as file:
                check_part(file, part, STAGE_1)

    def _good_counts(self):
        rows = [row for row in self.counts.values() if isinstance(row, dict) and row.keys() == {*self.labels}]
        cells = [cell for row in rows for cell in row.values() if is_count(cell)]
        whole = self.counts.keys() == {*self.domains} and len(cells) == len(self.domains) * len(self.labels)
        return whole and sum(cells) == self.count

    def __len__(self):
        return self.count

    def require_scores(self):
        """Raises a UserError where stage 1 has not made the scores yet."""
        if self.scores is None:
            raise UserError(f"{self.folder}: found no scores, expected one per record: {STAGE_1}.")

    def blocks(self, limit=None):
        """Yields {key: array [n, T], or [n] of single values}, one part at a time, checked; the first `limit` records alone."""
        left, start = self.count if limit is None else limit, 0
        if left > self.count:
            raise UserError(
                f"{self.folder}: found {self.count} records, expected at least {left}: ask for fewer."
            )
        for part in self.parts:
            if start == left:
                return
            schema, path = record_schema(self.seq_length), self.folder / part["file"]
            rows = list(itertools.islice(read_part(path, schema, STAGE_1, part), left - start))
            block = {key: np.stack([row[key] for row in rows]) for key in schema}
            block = {key: array if key in TOKENS else array[:, 0] for key, array in block.items()}
            if fault := self._fault(block, start):
                raise UserError(f"{path}: found {fault}: {STAGE_1}.")
            yield block
            start += len(rows)

    def arrays(self, limit=None):
        """All blocks as one: {key: array [N, T] or [N]}."""
        blocks = list(self.blocks(limit))
        return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}

    def _fault(self, block, start):
        """What is wrong with the values of a block whose first record is number `start`; None when nothing is."""
        mask, ids = block["input_mask"], block["input_ids"]
        rules = {
            f"idxs that do not count up from {start}": block["idxs"] == np.arange(start, start + len(mask)),
            f"a domain that is not in 0..{len(self.domains) - 1}": (block["domain"] >= 0)
            & (block["domain"] < len(self.domains)),
            f"a label that is not in 0..{len(self.labels) - 1}": (block["label"] >= 0)
            & (block["label"] < len(self.labels)),
            f"a token that is not in 0..{self.vocab_size - 1}": (ids >= 0) & (ids < self.vocab_size),
            "a mask that is not ones and then zeros": mask
            == (np.arange(self.seq_length) < mask.sum(axis=1, keepdims=True)),
            "a record of fewer than 3 tokens": mask.sum(axis=1) >= 3,
            "a segment that is neither 0 nor 1": (block["segment_ids"] >> 1) == 0,
            "a score that is not finite": np.isfinite(block["weights"]) | (self.scores is None),
        }
        return next((words for words, holds in rules.items() if not holds.all()), None)
