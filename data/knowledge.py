"""The knowledge of a meta-teacher: what it says of each training example, on disk, read by offset in any order.

N examples, M classes, H width, L layers chosen, A heads, n real tokens of an example. A record holds int32 `idxs` [1], float32
`logits` [M], `representation` [H], `domain_feature` [H], and as bytes, little-endian float16: `attention` [L, n, n] (mean over
heads) or [L, A, n, n], and on request `hidden` [L, n, H]. Beside the parts (see `data/ofrecord.py`) lie `offsets.npy`, int64
[N, 3] of (idxs, part, byte offset of the frame), rising, and `manifest.json`.
"""

import array
import contextlib
import hashlib
import io
import math
import os
import pathlib
import shutil

import numpy as np

from data.ofrecord import FRAME, MANIFEST, OFFSETS, PartWriter, check_part, decode_record, encode_record, open_part, read_manifest
from util import UserError, whole_folder, write_json

FORMAT = "meta-kd-knowledge-1"
STAGE_3 = "run meta_teacher_eval.py with this teacher and these records"
PREFIX = "knowledge"
MANIFEST_TYPES = {"offsets_sha256": "a SHA-256", "shapes": "an object"}
ORIGINS = {"teacher_sha256": "of another teacher", "content_sha256": "of other records"}
VECTORS = ("logits", "representation", "domain_feature")


def knowledge_folder(ofrecord_dir, teacher_sha256, knowledge_dir=None):
    """Where the knowledge of a teacher lies: `knowledge_dir`, or <ofrecord_dir>/knowledge-<start of the teacher's hash>."""
    return pathlib.Path(knowledge_dir or pathlib.Path(ofrecord_dir, f"knowledge-{teacher_sha256[:12]}"))


# --------------------------------------------------------------------------------------- how large


def expected_bytes(lengths, layers, classes, width, heads=None, hidden=False):
    """Disk that knowledge takes, in bytes: its parts and offsets, at most 64 bytes an example too much.

    Args:
        lengths: real tokens of each example, int [N]; layers: L; classes: M; width: H.
        heads: A where each head is stored, None for their mean; hidden: whether hidden states are stored.
    """
    lengths, shapes = np.asarray(lengths, np.int64), _shapes(layers, classes, width, heads, hidden)
    empty = {key: b"" if kind == "bytes" else np.zeros(size) for key, (kind, size) in _schema(shapes).items()}
    fixed = FRAME.size + len(encode_record(empty, _schema(shapes))) + 64  # 24 in offsets.npy, the rest for longer varints
    return int(2 * layers * ((heads or 1) * lengths ** 2 + width * hidden * lengths).sum() + fixed * len(lengths))


def check_space(folder, needed):
    """Raises a UserError where the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    path = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    if free < needed:
        raise UserError(f"{folder}: found {free / 1e6:.0f} MB free on this disk, expected {needed / 1e6:.0f} MB for the "
                        "knowledge: make room, name a --knowledge_dir elsewhere, or store less (--knowledge_layers).")


def _shapes(layers, classes, width, heads, hidden):
    """What the manifest says of the arrays: with it, the bytes of an example tell n."""
    return {"logits": [classes], "representation": [width], "domain_feature": [width],
            "attention": [layers] if heads is None else [layers, heads], "hidden": [layers, width] if hidden else None}


def _good_shapes(shapes):
    ranks = {"logits": (1,), "representation": (1,), "domain_feature": (1,), "attention": (1, 2), "hidden": (0, 2)}
    sizes = {key: [] if shape is None else shape for key, shape in shapes.items()}
    return sizes.keys() == ranks.keys() and all(
        isinstance(shape, list) and len(shape) in ranks[key] and all(type(size) is int and size > 0 for size in shape)
        for key, shape in sizes.items())


def _schema(shapes):
    """The schema of a record, from the manifest's `shapes`."""
    floats = {key: ("float32", shapes[key][0]) for key in VECTORS}
    halves = {key: ("bytes", None) for key in ("attention", "hidden") if shapes[key]}
    return {"idxs": ("int32", 1), **floats, **halves}


# --------------------------------------------------------------------------------------- writing


class KnowledgeWriter:
    """Writes the knowledge of a teacher, one example at a time: whole, or not at all. A context manager that closes itself.

    Args:
        folder: what stood there is replaced when the last example is written.
        facts: for the manifest: teacher_sha256, content_sha256 (of the records), layers, heads, precision and so on.
    """

    def __init__(self, folder, facts=(), part_size=1000):
        self.folder, self.facts, self.part_size = pathlib.Path(folder), dict(facts), part_size
        self._stack, self._offsets, self._parts, self._shapes = contextlib.ExitStack(), array.array("q"), None, None
        self._temporary = self._stack.enter_context(whole_folder(folder))

    def append(self, idxs, logits, representation, domain_feature, attention, hidden=None):
        """Writes one example; examples come in the order of their `idxs`.

        Args:
            logits: [M]; representation, domain_feature: [H].
            attention: float32 [L, n, n] or [L, A, n, n], scores before the softmax; hidden: float32 [L, n, H] or None.
        Raises:
            UserError: a value that is not finite, or that float16 cannot hold. ValueError: shapes unlike the first example's.
        """
        record = {"idxs": [idxs], "logits": logits, "representation": representation, "domain_feature": domain_feature}
        for key, values in {**record, "attention": attention, "hidden": hidden}.items():
            largest = np.finfo(np.float16 if key in ("attention", "hidden") else np.float32).max
            if values is not None and not np.abs(values).max() <= largest:  # NaN is not
                raise UserError(f"{self.folder}: found {np.abs(values).max()} in {key} of example {idxs}, expected finite "
                                f"numbers up to {largest:g}: this teacher cannot be distilled.")
        L, *A, n, _ = attention.shape
        shapes = _shapes(L, len(logits), len(representation), *A or [None], hidden is not None)
        if self._parts is None:
            self._shapes, self._parts = shapes, PartWriter(self._temporary, PREFIX, _schema(shapes), self.part_size)
        square = attention.shape == (L, *A, n, n) and (hidden is None or hidden.shape == (L, n, len(representation)))
        if shapes != self._shapes or not square:
            raise ValueError(f"example {idxs} has arrays of {shapes} and attention {attention.shape}, expected {self._shapes}")
        if self._offsets and idxs <= self._offsets[-3]:
            raise ValueError(f"example {idxs} comes after {self._offsets[-3]}, expected rising idxs")
        halves = {"attention": attention} if hidden is None else {"attention": attention, "hidden": hidden}
        record.update((key, np.asarray(values, "<f2").tobytes()) for key, values in halves.items())
        self._offsets.extend((idxs, *self._parts.append(record)))

    def close(self, facts=()):
        """Ends the knowledge, with more facts for its manifest, and gives the folder its name."""
        with self._stack:
            if self._parts is None:
                raise ValueError("no example was appended")
            parts, stream = self._parts.close(), io.BytesIO()
            np.save(stream, np.array(self._offsets, "<i8").reshape(-1, 3), allow_pickle=False)
            (self._temporary / OFFSETS).write_bytes(stream.getvalue())
            write_json(self._temporary / MANIFEST, {
                "format": FORMAT, **self.facts, **dict(facts), "count": len(self._offsets) // 3, "shapes": self._shapes,
                "offsets_sha256": hashlib.sha256(stream.getvalue()).hexdigest(), "parts": parts})

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        if fault[0] is None:
            return self.close()
        if self._parts is not None:
            self._parts.close()
        return self._stack.__exit__(*fault)


# --------------------------------------------------------------------------------------- reading


class Knowledge:
    """The knowledge of a teacher on disk, checked: manifest, sizes and hashes.

    The files stay open, so that what is read is what was checked even when stage 3 replaces the folder meanwhile.
    Attributes: `folder`, `manifest`, `idxs` (int64 [N], rising).

    Raises:
        UserError: something is missing, was changed, or does not fit together; the sentence names stage 3.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(folder, FORMAT, MANIFEST_TYPES, PREFIX, "the manifest of the knowledge", STAGE_3)
        if not _good_shapes(self.manifest["shapes"]):
            raise UserError(f"{self.folder / MANIFEST}: found shapes that no knowledge has: {STAGE_3}.")
        self._schema, self._files = _schema(self.manifest["shapes"]), []
        for part in self.manifest["parts"]:
            self._files.append(open_part(self.folder / part["file"], STAGE_3, part))
            check_part(self._files[-1], part, STAGE_3)
        self.idxs, self._part, self._start, self._end = self._frames()

    def _frames(self):
        """The columns of offsets.npy and the end of each frame, checked against the manifest's parts."""
        path, parts = self.folder / OFFSETS, self.manifest["parts"]
        with open_part(path, STAGE_3) as file:
            data = file.read()
        try:
            if hashlib.sha256(data).hexdigest() != self.manifest["offsets_sha256"]:
                raise ValueError
            idxs, part, start = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1, 3).T
            last = np.append(np.diff(part) != 0, True)  # of its part
            end = np.where(last, np.array([each["bytes"] for each in parts])[part], np.append(start[1:], 0))
            if not (np.array_equal(part, np.repeat(np.arange(len(parts)), [each["count"] for each in parts])) and idxs[0] >= 0
                    and (np.diff(idxs) > 0).all() and (end - start > FRAME.size).all()):
                raise ValueError
        except (ValueError, IndexError, EOFError):
            raise UserError(f"{path}: found offsets that do not fit to the manifest: {STAGE_3}.") from None
        return idxs, part, start, end

    def __len__(self):
        return len(self.idxs)

    def require(self, **facts):
        """Raises a UserError where the manifest says otherwise, as in require(teacher_sha256=..., content_sha256=...)."""
        for key, expected in facts.items():
            found = self.manifest.get(key)
            if found != expected:
                raise UserError(f"{self.folder}: found knowledge {ORIGINS.get(key, 'made otherwise')} ({key} {_short(found)}), "
                                f"expected {_short(expected)}: {STAGE_3}.")

    def rows(self, idxs):
        """Where examples stand in the knowledge. int [B] -> int [B]. UserError: an example that has none."""
        rows = np.minimum(np.searchsorted(self.idxs, idxs), len(self.idxs) - 1)
        if (missing := np.asarray(idxs)[self.idxs[rows] != idxs]).size:
            raise UserError(f"{self.folder}: found no knowledge of {missing.size} examples, the first being number {missing[0]}: "
                            f"{STAGE_3}, and with the same --train_example_num, --data_portion, --domain and --exclude_domain.")
        return rows

    def read(self, idxs):
        """The knowledge of examples, in the order asked for: a list of B dicts of arrays.

        Returns:
            float32 logits [M], representation [H], domain_feature [H]; float16 attention [L, n, n] or [L, A, n, n], and hidden
            [L, n, H] where the knowledge has it; `idxs`, a number.
        """
        return [self._read(int(row), int(number)) for row, number in zip(self.rows(idxs), idxs)]

    def _read(self, row, number):
        file, start, size = self._files[self._part[row]], int(self._start[row]), int(self._end[row] - self._start[row])
        frame = os.pread(file.fileno(), size, start)
        try:
            if len(frame) != size or FRAME.unpack_from(frame)[0] != size - FRAME.size:
                raise ValueError("a broken frame")
            record = decode_record(frame[FRAME.size:], self._schema)
            if record["idxs"] != number:
                raise ValueError(f"example {record['idxs'][0]}, expected {number}")
            return {**record, "idxs": number, **self._halves(record)}
        except ValueError as error:
            raise UserError(f"{file.name}: byte {start}: found {error}: {STAGE_3}.") from None

    def _halves(self, record):
        """The arrays of float16 in a record; n is the root of the number of values in a map of attention."""
        shapes = self.manifest["shapes"]
        attention = np.frombuffer(record["attention"], "<f2")
        n = math.isqrt(attention.size // math.prod(shapes["attention"]))
        if n * n * math.prod(shapes["attention"]) != attention.size:
            raise ValueError(f"attention of {attention.size} values, expected {shapes['attention']} times a square")
        halves = {"attention": attention.reshape(*shapes["attention"], n, n)}
        if shapes["hidden"]:
            L, H = shapes["hidden"]
            halves["hidden"] = np.frombuffer(record["hidden"], "<f2").reshape(L, n, H)
        return halves

    def close(self):
        """Closes the files."""
        for file in self._files:
            file.close()


def _short(value):
    """A value as it stands in a sentence: the start of a hash, anything else as it is."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
