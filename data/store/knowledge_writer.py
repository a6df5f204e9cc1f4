"""Writes a teacher's knowledge part by part, whole or not at all; several ranks may write side by side."""

import hashlib
import io
import pathlib

import numpy as np

from data.store.files import place_folder, write_json
from data.store.knowledge import FORMAT, PREFIX, STAGE_3
from data.store.knowledge_format import HALVED, MAPS, VECTORS, make_schema, make_shapes
from data.store.manifest import MANIFEST, OFFSETS
from data.store.ofrecord import encode_frame, part_name
from data.store.parts import PartsFolder
from util import UserError


class KnowledgeWriter:
    """Writes the knowledge of a teacher part by part: whole, or not at all.
    Several ranks may write side by side.

    Until the last part is there they lie in `.<name>.parts` beside the folder, where a run that was stopped
    is gone on with.

    Args:
        folder: what stood there is replaced at the end.
        facts: for the manifest: teacher_sha256, content_sha256 (of the records), layers, heads, precision and
            so on; `vectors`:
            float16 where representation and domain_feature are stored so.
        how: what else the bytes depend on, such as the size of a batch.
    """

    def __init__(self, folder, facts=(), how=()):
        self.folder, self.facts = pathlib.Path(folder), dict(facts)
        self._vectors = self.facts.get("vectors", "float32")
        self._halves = (*MAPS, *(HALVED if self._vectors == "float16" else ()))
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

        Its keys: idxs, a number; logits [M]; representation, domain_feature [H]; attention, float32 [L, n, n]
        or [L, A, n, n], scores before the softmax, or None; hidden, float32 [L, n, H] or None.
        Raises:
            UserError: a value that is not finite, or that float16 cannot hold.
                ValueError: shapes unlike the first example's.
        """
        frames, idxs, shapes = [], [], None
        for item in items:
            self._check_values(item)
            found = _item_shapes(item)
            if found != (shapes := shapes or found):
                raise ValueError(f"example {item['idxs']} has arrays of {found}, expected {shapes}")
            values = {
                key: item[key] for key in (*VECTORS, "attention", "hidden") if item.get(key) is not None
            }
            values.update(
                {key: np.asarray(values[key], "<f2").tobytes() for key in self._halves if key in values}
            )
            frames.append(
                encode_frame({"idxs": [item["idxs"]], **values}, make_schema(shapes, self._vectors))
            )
            idxs.append(int(item["idxs"]))
        if not frames:
            raise ValueError(f"part {number} has no example")
        starts = np.cumsum([0, *map(len, frames)])[:-1].tolist()
        self._parts.put(number, b"".join(frames), idxs=idxs, starts=starts, shapes=shapes)

    def _check_values(self, item):
        for key, values in item.items():
            largest = np.finfo(np.float16 if key in self._halves else np.float32).max
            if values is not None and not np.abs(values).max() <= largest:  # NaN is not
                raise UserError(
                    f"{self.folder}: found {np.abs(values).max()} in {key} of example {item['idxs']}, "
                    "expected finite "
                    f"numbers up to {largest:g}: this teacher cannot be distilled."
                )

    def finish(self, count):
        """Makes the knowledge of its `count` parts, and gives the folder its name:
        one rank, when all have written theirs.
        """
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
            rows = [facts["idxs"], [number] * len(facts["idxs"]), facts["starts"]]
            offsets.append(np.array(rows, "<i8").T)
        table = np.ascontiguousarray(np.concatenate(offsets)) if offsets else np.empty((0, 3), "<i8")
        offsets, stream = table, io.BytesIO()
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
    classes, width, hidden = len(item["logits"]), len(item["representation"]), item.get("hidden")
    if item["attention"] is None:
        return make_shapes(0, classes, width, None, False)
    L, *A, n, _ = item["attention"].shape
    if item["attention"].shape[-1] != n or (hidden is not None and hidden.shape != (L, n, width)):
        raise ValueError(
            f"example {item['idxs']} has attention {item['attention'].shape} that does not fit to the rest"
        )
    return make_shapes(L, classes, width, *A or [None], hidden is not None)
