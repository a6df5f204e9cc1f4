"""The tensors of a model folder: model.safetensors, whole or in shards, as float32. OneFlow is not needed."""

import json
import math
from typing import NamedTuple, Optional

import numpy as np
import safetensors

from modeling.bert.names import current_names
from modeling.snapshots.shards import read_shards
from util import UserError, check_not_pointer

WEIGHTS = "model.safetensors"


class Weights(NamedTuple):
    """arrays: {today's name: float32 array}. left_over: tensors that are no floats, which no BERT needs.

    widened: how many were bfloat16.
    """

    arrays: dict
    left_over: tuple
    widened: int


def read_weights(path) -> Weights:
    """The Weights of a folder's model.safetensors or its shards.

    Raises:
        UserError: a broken file, values that are not finite, a weight of the encoder that is not of floats,
            or one under two names.
    """
    tensors = read_shards(path, WEIGHTS, load_arrays)
    names, arrays, left_over, widened = current_names(tensors), {}, [], 0
    for name, array in tensors.items():
        if name.endswith("position_ids"):
            continue
        today = names[name]
        if array.dtype.kind in "iub" and not today.endswith((".weight", ".bias")):
            left_over.append(name)
            continue
        if array.dtype == BFLOAT16:
            array, widened = widen(array), widened + 1
        if today in arrays:
            raise UserError(
                f"{path / WEIGHTS}: it holds {today!r:.80} under two names, expected one: take another "
                "copy of the model."
            )
        arrays[today] = _check_values(path / WEIGHTS, name, array)
    return Weights(arrays, tuple(left_over), widened)


def weights_size(snapshot) -> Optional[dict]:
    """{"snapshot": its name, "parameters", "bytes"} of a snapshot's weights; None where there are none."""
    path = snapshot / WEIGHTS
    if not path.is_file():
        return None
    with safetensors.safe_open(path, framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    parameters = sum(math.prod(shape) for shape in shapes)
    return {"snapshot": snapshot.name, "parameters": parameters, "bytes": path.stat().st_size}


def _check_values(path, name, array):
    """`array` as float32, which must be of finite floats."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = array.astype(np.float32, copy=False) if array.dtype.kind == "f" else None
    if values is None or not np.isfinite(values).all():
        found = array.dtype if values is None else "values that are not finite"
        raise UserError(
            f"{path}: the tensor {name!r:.80} holds {found}, expected finite floats: take another "
            "copy of the model."
        )
    return values


# --------------------------------------------------------------------------------------- files

BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # NumPy has none: the upper half of a float32


def widen(array) -> np.ndarray:
    """float32 of bfloat16: the same bits, then zeros."""
    return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)


def load_arrays(path) -> dict:
    """{name: array} of a safetensors file; bfloat16 ones have the type BFLOAT16.

    Raises:
        UserError: it is not readable, or holds numbers of a kind that NumPy has not.
    """
    check_not_pointer(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:  # which checks the header, offsets and all
            half = _bfloat16_places(path)
            return {name: half[name] if name in half else file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file of float tensors ({' '.join(str(error).split()):.200})."
        ) from None


def _bfloat16_places(path):
    """{name: array of BFLOAT16} of those tensors of a file that safetensors has checked."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, found = json.loads(file.read(size)), {}
        for name, facts in header.items():
            if name != "__metadata__" and facts["dtype"] == "BF16":
                file.seek(8 + size + facts["data_offsets"][0])
                count = int(np.prod(facts["shape"], dtype=np.int64))
                found[name] = np.fromfile(file, BFLOAT16, count).reshape(facts["shape"])
    return found
