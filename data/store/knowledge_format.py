"""What knowledge is made of: the arrays of an example, their sizes on disk,
and what a manifest may say of them.

N examples, M classes, H width, L layers stored, A heads, n real tokens of an example.
"""

import pathlib
import shutil

import numpy as np

from data.store.ofrecord import encode_frame
from util import UserError

VECTORS = ("logits", "representation", "domain_feature")
MAPS = ("attention", "hidden")  # of layers, as float16
HALVED = ("representation", "domain_feature")  # where vectors are stored as float16; logits never are
OFFSET_BYTES = 24  # of an example in offsets.npy


def expected_sizes(lengths, layers, classes, width, heads=None, hidden=False, vectors="float32"):
    """Disk that knowledge takes, {kind: bytes}: "attention", "hidden states", "logits and vectors"; at most
    64 bytes an example too much.

    Args:
        lengths: real tokens of each example, int [N]; layers: L; classes: M; width: H.
        heads: A where each head is stored, None for their mean; hidden: whether hidden states are stored.
        vectors: float32 or float16.
    """
    lengths, shapes = np.asarray(lengths, np.int64), make_shapes(layers, classes, width, heads, hidden)
    schema = make_schema(shapes, vectors)
    empty = {
        key: bytes(size or 0) if kind == "bytes" else np.zeros(size) for key, (kind, size) in schema.items()
    }
    fixed = len(encode_frame(empty, schema)) + OFFSET_BYTES + 40  # for longer varints
    sizes = {
        "attention": 2 * layers * (heads or 1) * (lengths**2).sum(),
        "hidden states": 2 * layers * width * hidden * lengths.sum(),
        "logits and vectors": fixed * len(lengths),
    }
    return {kind: int(size) for kind, size in sizes.items() if size}


def check_space(folder, needed):
    """Raises a UserError where the disk of `folder`, which need not exist yet,
    has fewer than `needed` bytes free.
    """
    path = pathlib.Path(folder).absolute()
    free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    if free < needed:
        raise UserError(
            f"{folder}: found {free / 1e6:.0f} MB free on this disk, expected {needed / 1e6:.0f} MB for the "
            "knowledge: make room, name a --knowledge_dir elsewhere, or store less (--knowledge_layers, "
            "--knowledge_vectors float16)."
        )


def make_shapes(layers, classes, width, heads, hidden):
    """What the manifest says of the arrays: with it, the bytes of an example tell n.
    No layers: answers and vectors alone.
    """
    attention = [layers] if heads is None else [layers, heads]
    return {
        "logits": [classes],
        "representation": [width],
        "domain_feature": [width],
        "attention": attention if layers else None,
        "hidden": [layers, width] if hidden and layers else None,
    }


def are_good_shapes(shapes):
    """Whether the value of a manifest is what `make_shapes` may return."""
    ranks = {
        "logits": (1,),
        "representation": (1,),
        "domain_feature": (1,),
        "attention": (0, 1, 2),
        "hidden": (0, 2),
    }
    sizes = {key: [] if shape is None else shape for key, shape in shapes.items()}
    return sizes.keys() == ranks.keys() and all(
        isinstance(shape, list)
        and len(shape) in ranks[key]
        and (shape or shapes[key] is None)
        and all(type(size) is int and size > 0 for size in shape)
        for key, shape in sizes.items()
    )


def make_schema(shapes, vectors="float32"):
    """The schema of a record, from the manifest's `shapes` and `vectors`."""
    floats = {key: ("float32", shapes[key][0]) for key in VECTORS}
    if vectors == "float16":
        floats.update({key: ("bytes", 2 * shapes[key][0]) for key in HALVED})
    halves = {key: ("bytes", None) for key in MAPS if shapes[key]}
    return {"idxs": ("int32", 1), **floats, **halves}
