"""The knowledge of a meta-teacher: what it says of each training example, on disk, read by offset in any order.

N examples, M classes, H width, L layers chosen, A heads, n real tokens of an example. A record holds int32 `idxs` [1], float32
`logits` [M], `representation` [H], `domain_feature` [H], and as bytes, little-endian float16: `attention` [L, n, n] (mean over
heads) or [L, A, n, n], and on request `hidden` [L, n, H]. Beside the parts (see `data/store/ofrecord.py`) lie `offsets.npy`, int64
[N, 3] of (idxs, part, byte offset of the frame), rising, and `manifest.json`.
"""

import hashlib
import io
import math
import os
import pathlib
import shutil

import numpy as np

from data.store.layout import FRAME
from data.store.manifest import MANIFEST, OFFSETS, read_manifest
from data.store.ofrecord import check_part, decode_record, encode_frame, open_part, part_name
from data.store.parts import PartsFolder
from util import UserError, place_folder, write_json

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
    fixed = len(encode_frame(empty, _schema(shapes))) + 64  # 24 in offsets.npy, the rest for longer varints
    return int(
        2 * layers * ((heads or 1) * lengths**2 + width * hidden * lengths).sum() + fixed * len(lengths)
    )


def check_space(folder, needed):
    """Raises a UserError where the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    path = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    if free < needed:
        raise UserError(
            f"{folder}: found {free / 1e6:.0f} MB free on this disk, expected {needed / 1e6:.0f} MB for the "
            "knowledge: make room, name a --knowledge_dir elsewhere, or store less (--knowledge_layers)."
        )


def _shapes(layers, classes, width, heads, hidden):
    """What the manifest says of the arrays: with it, the bytes of an example tell n."""
    return {
        "logits": [classes],
        "representation": [width],
        "domain_feature": [width],
        "attention": [layers] if heads is None else [layers, heads],
        "hidden": [layers, width] if hidden else None,
    }


def _good_shapes(shapes):
    ranks = {
        "logits": (1,),
        "representation": (1,),
        "domain_feature": (1,),
        "attention": (1, 2),
        "hidden": (0, 2),
    }
    sizes = {key: [] if shape is None else shape for key, shape in shapes.items()}
    return sizes.keys() == ranks.keys() and all(
        isinstance(shape, list)
        and len(shape) in ranks[key]
        and all(type(size) is int and size > 0 for size in shape)
        for key, shape in sizes.items()
    )


def _schema(shapes):
    """The schema of a record, from the manifest's `shapes`."""
    floats = {key: ("float32", shapes[key][0]) for key in VECTORS}
    halves = {key: ("bytes", None) for key in ("attention", "hidden") if shapes[key]}
    return {"idxs": ("int32", 1), **floats, **halves}


# --------------------------------------------------------------------------------------- writing


class KnowledgeWriter:
    """Writes the knowledge of a teacher part by part: whole, or not at all. Several ranks may write side by side.

    Until the last part is there they lie in `.<name>.parts` beside the folder, where a run that was stopped is gone on with.

    Args:
        folder: what stood there is replaced at the end.
        facts: for the manifest: teacher_sha256, content_sha256 (of the records), layers, heads, precision and so on.
        how: what else the bytes depend on, such as the size of a batch.
    """

    def __init__(self, folder, facts=(), how=()):
        self.folder, self.facts = pathlib.Path(folder), dict(facts)
        self._parts = PartsFolder(
            self.folder.with_name(f".{self.folder.name}.parts"),
            PREFIX,
            {"format": FORMAT, **self.facts, **dict(how)},
        )

    def begin(self):
        """Makes the place for the parts: one rank, before the others."""
        self._parts.begin()

    def discard(self):
        """Takes away what a run that was killed at its very end has left beside the folder: one rank."""
        self._parts.discard()

    def has(self, number):
        """Whether part `number` is done."""
        return self._parts.get(number) is not None

    def write(self, number, items):
        """Writes part `number`, from 0: an iterable of examples in the order of their `idxs`, each a dict.

        Its keys: idxs, a number; logits [M]; representation, domain_feature [H]; attention, float32 [L, n, n] or [L, A, n, n], scores
        before the softmax; hidden, float32 [L, n, H] or None.
        Raises:
            UserError: a value that is not finite, or that float16 cannot hold. ValueError: shapes unlike the first example's.
        """
        frames, idxs, shapes = [], [], None
        for item in items:
            self._check_values(item)
            found = _item_shapes(item)
            if found != (shapes := shapes or found):
                raise ValueError(f"example {item['idxs']} has arrays of {found}, expected {shapes}")
            halves = {
                key: np.asarray(item[key], "<f2").tobytes() for key in ("attention", "hidden") if shapes[key]
            }
            frames.append(
                encode_frame(
                    {"idxs": [item["idxs"]], **{key: item[key] for key in VECTORS}, **halves}, _schema(shapes)
                )
            )
            idxs.append(int(item["idxs"]))
        if not frames:
            raise ValueError(f"part {number} has no example")
        starts = np.cumsum([0, *map(len, frames)])[:-1].tolist()
        self._parts.put(number, b"".join(frames), idxs=idxs, starts=starts, shapes=shapes)

    def _check_values(self, item):
        for key, values in item.items():
            largest = np.finfo(np.float16 if key in ("attention", "hidden") else np.float32).max
            if values is not None and not np.abs(values).max() <= largest:  # NaN is not
                raise UserError(
                    f"{self.folder}: found {np.abs(values).max()} in {key} of example {item['idxs']}, expected finite "
                    f"numbers up to {largest:g}: this teacher cannot be distilled."
                )

    def finish(self, count):
        """Makes the knowledge of its `count` parts, and gives the folder its name: one rank, when all have written theirs."""
        parts, offsets, shapes = [], [], None
        for number in range(count):
            facts = self._note(number)
            if facts["shapes"] != (shapes := shapes or facts["shapes"]):
                raise ValueError(f"part {number} has arrays of {facts['shapes']}, expected {shapes}")
            parts.append(
                {
                    "file": part_name(PREFIX, number),
                    "count": len(facts["idxs"]),
                    "bytes": facts["bytes"],
                    "sha256": facts["sha256"],
                }
            )
            offsets += [(idxs, number, start) for idxs, start in zip(facts["idxs"], facts["starts"])]
        offsets, stream = np.array(offsets, "<i8").reshape(-1, 3), io.BytesIO()
        if not len(offsets) or not (np.diff(offsets[:, 0]) > 0).all():
            raise ValueError("expected examples in the order of their idxs")
        np.save(stream, offsets, allow_pickle=False)
        self._parts.folder.joinpath(OFFSETS).write_bytes(stream.getvalue())
        write_json(
            self._parts.folder / MANIFEST,
            {
                "format": FORMAT,
                **self.facts,
                "count": len(offsets),
                "shapes": shapes,
                "offsets_sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
                "parts": parts,
            },
        )
        self._parts.close()
        place_folder(self._parts.folder, self.folder)

    def _note(self, number):
        done = self._parts.get(number)
        if done is None:
            raise UserError(
                f"{self._parts.folder}: part {number} is missing or was changed meanwhile: {STAGE_3} again."
            )
        return done[1]


def _item_shapes(item):
    """The `shapes` of one example; ValueError where its maps are not square or not of one size."""
    L, *A, n, _ = item["attention"].shape
    width, hidden = len(item["representation"]), item.get("hidden")
    if item["attention"].shape[-1] != n or (hidden is not None and hidden.shape != (L, n, width)):
        raise ValueError(
            f"example {item['idxs']} has attention {item['attention'].shape} that does not fit to the rest"
        )
    return _shapes(L, len(item["logits"]), width, *A or [None], hidden is not None)


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
        self.manifest = read_manifest(
            folder, FORMAT, MANIFEST_TYPES, PREFIX, "the manifest of the knowledge", STAGE_3
        )
        if not _good_shapes(self.manifest["shapes"]) or not self._fits_shapes(**self.manifest):
            raise UserError(f"{self.folder / MANIFEST}: found shapes that no knowledge has: {STAGE_3}.")
        self._schema, self._files = _schema(self.manifest["shapes"]), []
        for part in self.manifest["parts"]:
            self._files.append(open_part(self.folder / part["file"], STAGE_3, part))
            check_part(self._files[-1], part, STAGE_3)
        self.idxs, self._part, self._start, self._end = self._frames()

    @staticmethod
    def _fits_shapes(shapes, layers, width, hidden_states, attention_heads=None, **others):
        L, *heads = shapes["attention"]
        return (
            L == len(layers)
            and all(layers)
            and width == shapes["representation"][0] == shapes["domain_feature"][0]
            and (
                attention_heads == "mean"
                if not heads
                else type(attention_heads) is int and heads == [attention_heads]
            )
            and (shapes["hidden"] == [L, width] if hidden_states else not shapes["hidden"])
        )

    def _frames(self):
        """The columns of offsets.npy and the end of each frame, checked against the manifest's parts."""
        path, parts = self.folder / OFFSETS, self.manifest["parts"]
        with open_part(path, STAGE_3) as file:
            data = file.read()
        try:
            if hashlib.sha256(data).hexdigest() != self.manifest["offsets_sha256"]:
                raise ValueError
            head = _npy_head(self.manifest["count"])  # np.load would make room for what a forged head says
            if not data.startswith(head) or len(data) != len(head) + 24 * self.manifest["count"]:
                raise ValueError
            idxs, part, start = (
                np.frombuffer(data, "<i8", offset=len(head)).reshape(self.manifest["count"], 3).T
            )
            last = np.append(np.diff(part) != 0, True)  # of its part
            end = np.where(last, np.array([each["bytes"] for each in parts])[part], np.append(start[1:], 0))
            if not (
                np.array_equal(part, np.repeat(np.arange(len(parts)), [each["count"] for each in parts]))
                and idxs[0] >= 0
                and start.min() >= 0
                and (np.diff(idxs) > 0).all()
                and (end - start > FRAME.size).all()
            ):
                raise ValueError
        except (ValueError, IndexError):
            raise UserError(f"{path}: found offsets that do not fit to the manifest: {STAGE_3}.") from None
        return idxs, part, start, end

    def __len__(self):
        return len(self.idxs)

    def require(self, **facts):
        """Raises a UserError where the manifest says otherwise, as in require(teacher_sha256=..., content_sha256=...)."""
        for key, expected in facts.items():
            found = self.manifest.get(key)
            if found != expected:
                raise UserError(
                    f"{self.folder}: found knowledge {ORIGINS.get(key, 'made otherwise')} ({key} {_short(found)}), "
                    f"expected {_short(expected)}: {STAGE_3}."
                )

    def rows(self, idxs):
        """Where examples stand in the knowledge. int [B] -> int [B]. UserError: an example that has none."""
        rows = np.minimum(np.searchsorted(self.idxs, idxs), len(self.idxs) - 1)
        if (missing := np.asarray(idxs)[self.idxs[rows] != idxs]).size:
            raise UserError(
                f"{self.folder}: found no knowledge of {missing.size} examples, the first being number {missing[0]}: "
                f"{STAGE_3}, and with the same --train_example_num, --data_portion, --domain and --exclude_domain."
            )
        return rows

    def read(self, idxs):
        """The knowledge of examples, in the order asked for: a list of B dicts of arrays.

        Returns:
            float32 logits [M], representation [H], domain_feature [H]; float16 attention [L, n, n] or [L, A, n, n], and hidden
            [L, n, H] where the knowledge has it; `idxs`, a number.
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
            halves = self._halves(record)
            if not all(np.isfinite(record[key]).all() for key in VECTORS) or any(
                map(_not_finite, halves.values())
            ):
                raise ValueError("values that are not finite")
            return {**record, "idxs": number, **halves}
        except ValueError as error:
            raise UserError(f"{file.name}: byte {start}: found {error}: {STAGE_3}.") from None

    def _halves(self, record):
        """The arrays of float16 in a record; n is the root of the number of values in a map of attention."""
        shapes = self.manifest["shapes"]
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
    """Whether float16 values hold an infinity or NaN: by their bits, many times faster than numpy's isfinite."""
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
