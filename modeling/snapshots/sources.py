"""Readers of BERTs in other forms: Google's release, a OneFlow snapshot of 2021, files of PyTorch's.

A reader yields Variables, by the names of the source; modeling.convert renames and checks them.
"""

import functools
import glob
import importlib
import math
import os
import pathlib
import re
import sys
from typing import Callable, NamedTuple

import numpy as np

from modeling.snapshots.shards import read_shards
from util import UserError, check_not_pointer


class Variable(NamedTuple):
    """A tensor of a source: its name there, and a function that reads it.

    The function takes the expected shape, and gives an array of any shape.
    """

    name: str
    load: Callable


SNAPSHOT_WORDS = "bert-embeddings-word_embeddings"  # the folder by which a OneFlow snapshot is known
WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys of a training state that hold the weights
# Files of PyTorch's that a Trainer leaves beside the weights:
NOT_WEIGHTS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state")


def source_format(path, beside=False):
    """What a folder is to be converted from: "pytorch", "tensorflow" or "oneflow"; None: nothing is needed.

    beside: look for it beside a model.safetensors, too.
    """
    if not beside and any((path / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        return None
    if (path / "pytorch_model.bin.index.json").is_file() or pytorch_files(path):
        return "pytorch"
    if checkpoints(path):
        return "tensorflow"
    return "oneflow" if (path / SNAPSHOT_WORDS / "out").is_file() else None


def pytorch_files(path):
    """The files of weights that PyTorch wrote: pytorch_model.bin, else those of other names."""
    if (path / "pytorch_model.bin").is_file():
        return [path / "pytorch_model.bin"]
    files = sorted(
        each for each in path.glob("*") if each.suffix in (".bin", ".pt", ".pth") and each.is_file()
    )
    return [each for each in files if not each.name.startswith(NOT_WEIGHTS)]


def checkpoints(path):
    """The names of the checkpoints that TensorFlow wrote: bert_model.ckpt, else those of other names."""
    names = [each.name[: -len(".index")] for each in sorted(path.glob("*.index"))]
    names = [name for name in names if any(path.glob(f"{glob.escape(name)}.data-*"))]
    return ["bert_model.ckpt"] if (path / "bert_model.ckpt.index").is_file() else names


def find_checkpoint(path):
    """The name of a folder's checkpoint; of several, the last by TensorFlow's file `checkpoint`."""
    names = checkpoints(path)
    if len(names) > 1 and (path / "checkpoint").is_file():
        text = (path / "checkpoint").read_text(encoding="utf-8", errors="replace")
        last = re.search(r'^model_checkpoint_path: "([^"\n]+)"', text, re.M)
        names = [name for name in names if last and name == pathlib.PurePath(last[1]).name] or names
    return _only(path, names, "checkpoints")


def _only(path, names, what):
    if len(names) > 1:
        raise UserError(
            f"{path}: found several {what}, {', '.join(names)[:300]}, expected one: keep one in the folder."
        )
    return names[0]


def import_library(module, package):
    """Imports a library that may not be there.

    Raises:
        UserError: it is not, or it does not load.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise UserError(
            f"{package} is needed here and does not load for this Python ({sys.executable}: {error}): run "
            f"'pip install {package}', or use a Python that has it."
        ) from None


def hugging_face_name(name):
    """Hugging Face's name for a variable of the BERT release.

    Its parts stand between / or, in a OneFlow snapshot, -.
    """
    name = re.sub(r"\.layer_(\d+)\.", r".layer.\1.", re.sub("[/-]", ".", name))
    name = re.sub(r"\.(kernel|gamma)$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return re.sub(r"_embeddings$", "_embeddings.weight", name)


def is_transposed(name):
    """Whether the tensor of this name is [out, in] here, and [in, out] in the BERT release and in OneFlow."""
    return name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight"))


def tensorflow_variables(path):
    """Yields the Variables of Google's BERT release."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of which it would speak too
    tensorflow, name = import_library("tensorflow", "tensorflow-cpu"), find_checkpoint(path)

    def load(name, shape):
        try:
            values = reader.get_tensor(name)
        except Exception as error:  # of any kind: OpError, IndexError and others, by what is wrong
            raise _tensorflow_error(path, name, error) from None
        return values.T if is_transposed(hugging_face_name(name)) else values

    try:
        reader = tensorflow.train.load_checkpoint(str(path / name))
    except Exception as error:  # as above
        raise _tensorflow_error(path, name, error) from None
    for name in sorted(reader.get_variable_to_shape_map()):
        yield Variable(name, functools.partial(load, name))


def _tensorflow_error(path, name, error):
    return UserError(
        f"{path}: TensorFlow cannot read {name} ({' '.join(str(error).split()):.200}): "
        "take another copy of the model."
    )


def oneflow_variables(path):
    """Yields the Variables of a OneFlow snapshot of 2021."""
    for folder in sorted(path.iterdir()):
        if (folder / "out").is_file():
            yield Variable(folder.name, functools.partial(_load_oneflow, folder))


def _load_oneflow(folder, shape):
    """The values in `out`; where there is no `meta` beside it, only their number speaks for their shape."""
    turned = is_transposed(hugging_face_name(folder.name))
    kept = shape[::-1] if turned else shape
    if (folder / "meta").is_file():
        text = (folder / "meta").read_text(encoding="utf-8", errors="replace")
        dims = tuple(map(int, re.findall(r"\bdim:\s*(\d{1,18})\b", text)))
        kind = re.search(r"\bdata_type:\s*(\w+)", text)
        # OneFlow's own position vectors are [1, positions, H].
        if dims not in (kept, (1, *kept)) or kind is None or kind[1] != "kFloat":
            raise UserError(
                f"{folder / 'meta'}: found shape {dims} and type {kind and kind[1]}, "
                f"expected {kept} and kFloat: take another copy of the model, "
                "or name its architecture with --config."
            )
    size, expected = (folder / "out").stat().st_size, 4 * math.prod(kept)
    if size != expected:
        raise UserError(
            f"{folder / 'out'}: found {size} bytes, expected {expected}, float32 values of the shape {kept}: "
            "take another copy of the model, or name its architecture with --config."
        )
    values = np.fromfile(folder / "out", "<f4").reshape(kept)
    return values.T if turned else values


def pytorch_variables(path):
    """Yields the Variables of a Hugging Face folder with pytorch_model.bin."""
    torch = import_library("torch", "torch")
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < (2, 6):  # before, weights_only did not keep all code out
        raise UserError(
            f"torch {torch.__version__} is installed, 2.6 or newer reads a pickle safely: "
            "run 'pip install torch' with a newer Python."
        )

    def load(file):
        check_not_pointer(file)
        try:
            return unwrap(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # of any kind; PyTorch's own words advise to run the code in it
            raise UserError(
                f"{file}: PyTorch cannot read it as weights alone ({type(error).__name__}): "
                "take another copy of the model."
            ) from None

    in_shards = (path / "pytorch_model.bin.index.json").is_file() and not (
        path / "pytorch_model.bin"
    ).is_file()
    files = ["pytorch_model.bin"] if in_shards else [each.name for each in pytorch_files(path)]
    for name, tensor in read_shards(path, _only(path, files, "files of weights"), load).items():

        def values(shape, tensor=tensor):
            tensor = tensor.detach()
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

        yield Variable(name, values)


def unwrap(content):
    """{name: tensor} of what was saved: the weights themselves, or a training state that holds them."""
    key = next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)
    return {str(name): value for name, value in (content if key is None else content[key]).items()}


VARIABLES = {"pytorch": pytorch_variables, "tensorflow": tensorflow_variables, "oneflow": oneflow_variables}
