"""The records of a split on disk, checked in one pass and then read by offset.

A record holds int32 `input_ids`, `input_mask`, `segment_ids` [T], int32 `domain`, `label`, `idxs` [1] and
float32 `weights` [1], the score of stage 1 (NaN before it). N records, T = seq_length. The parts (see
`data/store/ofrecord.py`) lie in a folder of the split with `manifest.json`, written last: it tells what they
were made of, and the size and the SHA-256 of each.
"""

import hashlib
import os
import pathlib
import zlib

import numpy as np

from data.encoding import TOKENS
from data.store.layout import decode_block
from data.store.manifest import MANIFEST, is_count, read_manifest
from data.store.ofrecord import decode_part, open_part, read_whole
from util import UserError

FORMAT = "meta-kd-records-1"
OLD_MANIFESTS_SAY = {"truncate": "head"}
STAGE_1 = "run preprocess.py with --resave_ofrecord"
SOURCE_TYPES = {
    "task": "a text",
    "split": "a text",
    "seq_length": "a count",
    "truncate": "a text",
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
    """What a record is: three rows of `seq_length` whole numbers,
    three single ones, and the score of stage 1.
    """
    tokens, one = {key: ("int32", seq_length) for key in TOKENS}, ("int32", 1)
    return {**tokens, "domain": one, "label": one, "idxs": one, "weights": ("float32", 1)}


CONTENT = tuple(sorted(record_schema(0).keys() - {"weights"}))  # what a score does not change


class ContentHash:
    """SHA-256 over all of the records but `weights`, in their order, however they are cut into parts."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, block):
        """Adds a block of records, {key: [n, T] or [n]}: of each record the name,
        the size and the values of each key.
        """
        n, columns = len(block["idxs"]), []
        for key in CONTENT:
            values = np.ascontiguousarray(block[key].reshape(n, -1), "<i4").view(np.uint8)
            head = np.frombuffer(b"%s %d " % (key.encode(), values.shape[1]), np.uint8)
            columns += [np.broadcast_to(head, (n, len(head))), values]
        self._digest.update(np.concatenate(columns, axis=1))

    def hexdigest(self):
        """The hash so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


class RecordCounter:
    """What the manifest says of the content of records, taken as they pass;
    `counts` int [K, M] of domains and labels.
    """

    def __init__(self, labels, domains):
        self._content, self.count, self.cut = ContentHash(), 0, 0
        self.counts = np.zeros((len(domains), len(labels)), np.int64)
        self._labels, self._domains = labels, domains

    def add(self, block):
        """Counts and hashes a block of records."""
        np.add.at(self.counts, (block["domain"], block["label"]), 1)
        self.count += len(block["label"])
        self.cut += int(block["was_cut"].sum()) if "was_cut" in block else 0
        self._content.update(block)

    def facts(self):
        """The manifest's keys count, counts, cut and content_sha256."""
        return {
            "count": self.count,
            "counts": dict(
                zip(self._domains, (dict(zip(self._labels, row)) for row in self.counts.tolist()))
            ),
            "cut": self.cut,
            "content_sha256": self._content.hexdigest(),
        }


class Records:
    """The records of a split on disk, checked: the manifest,
    the size and the hash of every part, and every value.

    What is small of each record stays in memory, 28 bytes in all; its tokens are read when they are asked
    for. The files stay open, so that what is read is what was checked even when the folder is replaced
    meanwhile.

    Attributes: `folder`, `manifest`, and each key of the manifest (SOURCE_TYPES, MANIFEST_TYPES, `count`,
    `parts`);
        `domain`, `label`, `lengths` (real tokens): int32 [N]; `weights`: float32 [N].

    Args:
        folder: the folder of the split.
    Raises:
        UserError: something is missing, was changed, or does not fit together;
            the sentence names --resave_ofrecord.
    """

    def __init__(self, folder, split):
        self.folder = pathlib.Path(folder)
        manifest = read_manifest(
            folder, FORMAT, MANIFEST_TYPES, split, "the manifest of the records", STAGE_1, OLD_MANIFESTS_SAY
        )
        if manifest["split"] != split:
            raise UserError(
                f"{self.folder / MANIFEST}: found split {manifest['split']!r:.60}, expected {split!r}: "
                f"{STAGE_1}."
            )
        self.set_manifest(manifest)
        if not self._good_counts():
            raise UserError(
                f"{self.folder / MANIFEST}: found counts per domain and class that do not fit its domains, "
                "labels or "
                f"{self.count} records: {STAGE_1}."
            )
        self._schema = record_schema(self.seq_length)
        self._files = [open_part(self.folder / part["file"], STAGE_1, part) for part in self.parts]
        self._first = np.cumsum([0, *(part["count"] for part in self.parts)])  # record of each part
        self._index()

    def set_manifest(self, manifest):
        """Takes a manifest that says the same of the parts."""
        self.manifest = manifest
        vars(self).update({key: manifest[key] for key in (*MANIFEST_TYPES, "count", "parts")})

    def _good_counts(self):
        rows = [row for row in self.counts.values() if isinstance(row, dict) and row.keys() == {*self.labels}]
        cells = [cell for row in rows for cell in row.values() if is_count(cell)]
        whole = self.counts.keys() == {*self.domains} and len(cells) == len(self.domains) * len(self.labels)
        return whole and sum(cells) == self.count

    def _index(self):
        """The one pass over all records: checks them, and keeps what is small of each."""
        columns = {name: [] for name in ("domain", "label", "lengths", "weights", "_ends", "_crcs")}
        for block, data, starts in self._parts():
            edges = starts.tolist()
            columns["lengths"].append(block["input_mask"].sum(axis=1, dtype=np.int32))
            columns["_ends"].append(starts[1:])  # of the frame, in its part
            view = memoryview(data)
            crcs = [zlib.crc32(view[start:end]) for start, end in zip(edges, edges[1:])]
            columns["_crcs"].append(np.array(crcs, np.uint32))
            for name in ("domain", "label", "weights"):
                columns[name].append(block[name])
        vars(self).update({name: np.concatenate(pieces) for name, pieces in columns.items()})

    def _parts(self):
        """Yields (block, bytes, starts [n + 1]) of each part, checked; one at a time is in memory."""
        for number, part in enumerate(self.parts):
            file = self._files[number]
            data = read_whole(file, part, STAGE_1)
            block, starts = decode_part(file.name, data, self._schema, STAGE_1, part)
            block = _flat(block)
            if fault := self._fault(block, np.arange(self._first[number], self._first[number + 1])):
                raise UserError(f"{file.name}: found {fault}: {STAGE_1}.")
            yield block, data, starts

    def __len__(self):
        return self.count

    def require_scores(self):
        """Raises a UserError where stage 1 has not made the scores yet."""
        if self.scores is None:
            raise UserError(f"{self.folder}: found no scores, expected one per record: {STAGE_1}.")

    def read(self, rows):
        """The records at `rows`, int [B], in that order: {key: int32 [B, T], or [B] of single values}.

        Raises:
            UserError: they are not what they were when the files were checked.
        """
        number, start, end = self._places(rows)
        frames = [
            os.pread(self._files[k].fileno(), size, offset)
            for k, offset, size in zip(number.tolist(), start.tolist(), (end - start).tolist())
        ]
        if [zlib.crc32(frame) for frame in frames] != self._crcs[rows].tolist():
            raise UserError(
                f"{self.folder}: found records that were changed since they were checked: {STAGE_1}."
            )
        edges = np.concatenate([[0], np.cumsum(end - start)])
        return _flat(decode_block(b"".join(frames), edges, self._schema))

    def prefetch(self, rows):
        """Has the system read the records at `rows` from the disk meanwhile; it does not wait."""
        number, start, end = self._places(rows)
        for k, offset, size in zip(number.tolist(), start.tolist(), (end - start).tolist()):
            os.posix_fadvise(self._files[k].fileno(), offset, size, os.POSIX_FADV_WILLNEED)

    def _places(self, rows):
        """The part of each record, and where its frame starts and ends in it; int [B] three times."""
        rows = np.asarray(rows)
        number = np.searchsorted(self._first, rows, "right") - 1
        start = np.where(rows == self._first[number], 0, self._ends[rows - 1])
        return number, start, self._ends[rows]

    def part_rows(self):
        """Yields the numbers of the records of each part, a range."""
        for first, end in zip(self._first.tolist(), self._first[1:].tolist()):
            yield range(first, end)

    def part_bytes(self, number):
        """The bytes of a part; the number of its first record; the ends of its records, int [n]."""
        data = bytearray(read_whole(self._files[number], self.parts[number], STAGE_1))
        first, end = self._first[number], self._first[number + 1]
        return data, first, self._ends[first:end]

    def arrays(self, limit=None):
        """All records, or the first `limit`, stacked: {key: array [N, T] or [N]}. For tests and small tools:
        it takes 12 T bytes each.
        """
        left = self.count if limit is None else limit
        if left > self.count:
            raise UserError(
                f"{self.folder}: found {self.count} records, expected at least {left}: ask for fewer."
            )
        blocks = [block for block, _, _ in self._parts()]
        return {key: np.concatenate([block[key] for block in blocks])[:left] for key in self._schema}

    def _fault(self, block, numbers):
        """What is wrong with the values of a block of the records that should have these `numbers`;
        None when nothing is.
        """
        mask, ids = block["input_mask"], block["input_ids"]
        sizes = mask.sum(axis=1, keepdims=True)  # [n, 1] real tokens
        rules = {
            f"idxs that do not count up from {numbers[0]}": block["idxs"] == numbers,
            f"a domain that is not in 0..{len(self.domains) - 1}": _within(
                block["domain"], len(self.domains)
            ),
            f"a label that is not in 0..{len(self.labels) - 1}": _within(block["label"], len(self.labels)),
            f"a token that is not in 0..{self.vocab_size - 1}": _within(ids, self.vocab_size),
            "a mask that is not ones and then zeros": mask == (np.arange(self.seq_length) < sizes),
            "a record of fewer than 3 tokens": sizes >= 3,
            "a segment that is neither 0 nor 1": (block["segment_ids"] >> 1) == 0,
            "a score that is not finite": np.isfinite(block["weights"]) | (self.scores is None),
        }
        return next((words for words, holds in rules.items() if not holds.all()), None)


def _within(values, limit):
    return (values >= 0) & (values < limit)


def _flat(block):
    """Single values as [n] instead of [n, 1]."""
    return {key: array if key in TOKENS else array[:, 0] for key, array in block.items()}
