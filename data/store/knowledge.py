"""The knowledge of a meta-teacher: what it says of each training example,
on disk, read by offset in any order.

N examples, M classes, H width, L layers chosen, A heads, n real tokens of an example. A record holds
- int32 `idxs` [1];
- float32 `logits` [M], `representation` [H], `domain_feature` [H]; the last two on request as the rest is;
- as bytes, little-endian float16: `attention` [L, n, n] (mean over heads) or [L, A, n, n], none where L is 0,
  and on request `hidden` [L, n, H].

Beside the parts (see `data/store/ofrecord.py`) lie `offsets.npy`, int64 [N, 3] of (idxs, part, byte offset of
the frame), rising, and `manifest.json`.
"""

import hashlib
import io
import math
import os
import pathlib

import numpy as np

from data.store.knowledge_format import HALVED, VECTORS, are_good_shapes, make_schema
from data.store.layout import FRAME
from data.store.manifest import MANIFEST, OFFSETS, read_manifest
from data.store.ofrecord import check_part, decode_record, encode_record, open_part
from util import UserError

FORMAT = "meta-kd-knowledge-1"
STAGE_3 = "run meta_teacher_eval.py with this teacher and these records"
PREFIX = "knowledge"
MANIFEST_TYPES = {
    "offsets_sha256": "a SHA-256",
    "shapes": "an object",
    "teacher_sha256": "a SHA-256",
    "content_sha256": "a SHA-256",
    "layers": "a list of counts",
    "width": "a count",
    "hidden_states": "true or false",
    "domain_feature": "true or false",
}
ORIGINS = {
    "teacher_sha256": "of another teacher",
    "content_sha256": "of other records",
    "unlabelled_sha256": "of other unlabelled texts",
}
THE_SAME = {"unlabelled_sha256": ", and with the same --unlabelled_file"}
DEFAULTS = {"vectors": "float32"}  # of manifests that do not say


def knowledge_folder(ofrecord_dir, teacher_sha256, knowledge_dir=None):
    """Where the knowledge of a teacher lies: `knowledge_dir`,
    or <ofrecord_dir>/knowledge-<start of the teacher's hash>.
    """
    return pathlib.Path(knowledge_dir or pathlib.Path(ofrecord_dir, f"knowledge-{teacher_sha256[:12]}"))


# --------------------------------------------------------------------------------------- reading


class Knowledge:
    """The knowledge of a teacher on disk, checked: manifest, sizes and hashes.

    The files stay open, so that what is read is what was checked even when stage 3 replaces the folder
    meanwhile.
    Attributes: `folder`, `manifest`, `idxs` (int64 [N], rising).

    Raises:
        UserError: something is missing, was changed, or does not fit together; the sentence names stage 3.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        manifest = read_manifest(
            folder, FORMAT, MANIFEST_TYPES, PREFIX, "the manifest of the knowledge", STAGE_3
        )
        self.manifest = {**DEFAULTS, **manifest}
        if not are_good_shapes(self.manifest["shapes"]) or not self._fits_shapes(**self.manifest):
            raise UserError(f"{self.folder / MANIFEST}: found shapes that no knowledge has: {STAGE_3}.")
        self._vectors = self.manifest["vectors"]
        self._schema, self._files = make_schema(self.manifest["shapes"], self._vectors), []
        for part in self.manifest["parts"]:
            self._files.append(open_part(self.folder / part["file"], STAGE_3, part))
            check_part(self._files[-1], part, STAGE_3)
        self.idxs, self._part, self._start, self._end = self._frames()

    @staticmethod
    def _fits_shapes(shapes, layers, width, hidden_states, vectors, attention_heads=None, **others):
        L, *heads = shapes["attention"] or [0]
        one_of_each = attention_heads == "mean" or not L
        return (
            L == len(layers)
            and all(layers)
            and width == shapes["representation"][0] == shapes["domain_feature"][0]
            and (type(attention_heads) is int and heads == [attention_heads] if heads else one_of_each)
            and shapes["hidden"] == ([L, width] if hidden_states and L else None)
            and vectors in ("float32", "float16")
        )

    def _frames(self):
        """The columns of offsets.npy and the end of each frame, checked against the manifest's parts.

        Returns:
            idxs, part, start, end: int64 [N] each; start and end are bytes of the part.
        """
        parts, table = self.manifest["parts"], self._read_offsets()
        self._check_offsets(table is not None, "those of its hash, head and size")
        idxs, part, start = table.T
        counts, sizes = (np.array([each[key] for each in parts]) for key in ("count", "bytes"))
        self._check_offsets(
            np.array_equal(part, np.repeat(np.arange(len(parts)), counts)), "parts that count up"
        )
        self._check_offsets(idxs[0] >= 0 and (np.diff(idxs) > 0).all(), "idxs that rise from 0")
        last = np.append(np.diff(part) != 0, True)  # of its part
        end = np.where(last, sizes[part], np.append(start[1:], 0))
        self._check_offsets(
            start.min() >= 0 and (end - start > FRAME.size).all(), "frames that follow each other"
        )
        return idxs, part, start, end

    def _check_offsets(self, holds, expected):
        if not holds:
            raise UserError(
                f"{self.folder / OFFSETS}: found offsets that do not fit to the manifest, expected "
                f"{expected}: {STAGE_3}."
            )

    def _read_offsets(self):
        """The table in offsets.npy, int64 [N, 3]; None where its hash, its head or its size is another."""
        with open_part(self.folder / OFFSETS, STAGE_3) as file:
            data = file.read()
        count = self.manifest["count"]
        head = _npy_head(count)  # np.load would make room for what a forged head says
        whole = data.startswith(head) and len(data) == len(head) + 24 * count
        if not whole or hashlib.sha256(data).hexdigest() != self.manifest["offsets_sha256"]:
            return None
        return np.frombuffer(data, "<i8", offset=len(head)).reshape(count, 3)

    def __len__(self):
        return len(self.idxs)

    @property
    def summary(self):
        """For the log: whose knowledge it is."""
        return f"knowledge {self.folder}"

    def require(self, **facts):
        """Raises a UserError where the manifest says otherwise,
        as in require(teacher_sha256=..., content_sha256=...).
        """
        for key, expected in facts.items():
            found = self.manifest.get(key, DEFAULTS.get(key))
            if found != expected:
                raise UserError(
                    f"{self.folder}: found knowledge {ORIGINS.get(key, 'made otherwise')} ({key} "
                    f"{_short(found)}), "
                    f"expected {_short(expected)}: {STAGE_3}{THE_SAME.get(key, '')}."
                )

    def rows(self, idxs):
        """Where examples stand in the knowledge. int [B] -> int [B]. UserError: an example that has none."""
        rows = np.minimum(np.searchsorted(self.idxs, idxs), len(self.idxs) - 1)
        if (missing := np.asarray(idxs)[self.idxs[rows] != idxs]).size:
            raise UserError(
                f"{self.folder}: found no knowledge of {missing.size} examples, the first being number "
                f"{missing[0]}: "
                f"{STAGE_3}, and with the same --train_example_num, --domain, --exclude_domain, "
                "--data_portion and, with --data_portion, the same --seed."
            )
        return rows

    def read(self, idxs):
        """The knowledge of examples, in the order asked for: a list of B dicts of arrays.

        Returns:
            float32 logits [M], representation [H], domain_feature [H]; float16 attention [L, n, n] or [L, A,
            n, n], and hidden [L, n, H] where the knowledge has it; `idxs`, a number.
        """
        return [self._read(int(row), int(number)) for row, number in zip(self.rows(idxs), idxs)]

    def _read(self, row, number):
        file, start, size = (
            self._files[self._part[row]],
            int(self._start[row]),
            int(self._end[row] - self._start[row]),
        )
        frame = os.pread(file.fileno(), size, start)
        try:
            if len(frame) != size or FRAME.unpack_from(frame)[0] != size - FRAME.size:
                raise ValueError("a broken frame")
            record = decode_record(frame[FRAME.size :], self._schema)
            if record["idxs"] != number:
                raise ValueError(f"example {record['idxs'][0]}, expected {number}")
            record.update(self._widened(record))
            halves = self._halves(record)
            if not all(np.isfinite(record[key]).all() for key in VECTORS) or any(
                map(_not_finite, halves.values())
            ):
                raise ValueError("values that are not finite")
            return {**record, "idxs": number, **halves}
        except ValueError as error:
            raise UserError(f"{file.name}: byte {start}: found {error}: {STAGE_3}.") from None

    def logits(self, idxs):
        """The logits of examples alone, float32 [B, M]: the tail of each record is read, not its maps."""
        rows, M = self.rows(idxs), self.manifest["shapes"]["logits"][0]
        tail = self._tail_bytes()  # from the values of the logits to the end of the record
        logits = np.empty((len(rows), M), np.float32)
        for i, row in enumerate(rows.tolist()):
            file, end = self._files[self._part[row]], int(self._end[row])
            logits[i] = np.frombuffer(os.pread(file.fileno(), 4 * M, end - tail), "<f4")
        if not np.isfinite(logits).all():
            raise UserError(f"{self.folder}: found logits that are not finite: {STAGE_3}.")
        return logits

    def _tail_bytes(self):
        """Bytes from the first value of the logits to the end of a record: what stands there has the same
        size in all of them.
        """
        record = {
            key: bytes(size or 0) if kind == "bytes" else np.zeros(size)
            for key, (kind, size) in self._schema.items()
        }
        marked = encode_record(
            {**record, "logits": np.full(self.manifest["shapes"]["logits"][0], 1.5)}, self._schema
        )
        return len(marked) - marked.index(np.float32(1.5).tobytes())

    def prefetch(self, idxs):
        """Has the system read the knowledge of examples from the disk meanwhile; it does not wait."""
        for row in self.rows(idxs).tolist():
            file, start = self._files[self._part[row]], int(self._start[row])
            os.posix_fadvise(file.fileno(), start, int(self._end[row]) - start, os.POSIX_FADV_WILLNEED)

    def _widened(self, record):
        """Vectors that are stored as float16, in float32."""
        if self._vectors != "float16":
            return {}
        return {key: np.frombuffer(record[key], "<f2").astype(np.float32) for key in HALVED}

    def _halves(self, record):
        """The arrays of float16 in a record; n is the root of the number of values in a map of attention."""
        shapes = self.manifest["shapes"]
        if not shapes["attention"]:
            return {}
        attention = np.frombuffer(record["attention"], "<f2")
        n = math.isqrt(attention.size // math.prod(shapes["attention"]))
        if not n or n * n * math.prod(shapes["attention"]) != attention.size:
            raise ValueError(
                f"attention of {attention.size} values, expected {shapes['attention']} times a square"
            )
        halves = {"attention": attention.reshape(*shapes["attention"], n, n)}
        if shapes["hidden"]:
            L, H = shapes["hidden"]
            halves["hidden"] = np.frombuffer(record["hidden"], "<f2").reshape(L, n, H)
        return halves

    def close(self):
        """Closes the files."""
        for file in self._files:
            file.close()


def _not_finite(halves):
    """Whether float16 values hold an infinity or NaN, by their bits: many times faster than isfinite."""
    return (halves.view("<u2") & 0x7FFF).max() >= 0x7C00


def _npy_head(count):
    """What np.save writes before the values of an int64 array [count, 3]."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<i8", "fortran_order": False, "shape": (count, 3)}
    )
    return stream.getvalue()


def _short(value):
    """A value as it stands in a sentence: the start of a hash, anything else as it is."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else f"{value!r:.60}"
