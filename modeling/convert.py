"""Makes a model folder out of a BERT that is kept in another form. OneFlow is not needed: it runs where the form's own library is.

    python3 -m modeling.convert --source uncased_L-12_H-768_A-12 --target models/bert

The source is one of
- Google's BERT release: bert_model.ckpt.index and .data-*, bert_config.json, vocab.txt; TensorFlow reads it;
- a OneFlow snapshot of 2021: a folder for each variable, with its float32 values in `out` and, mostly, its shape in `meta`;
- a Hugging Face folder with pytorch_model.bin, whole or in shards; PyTorch reads it, and no code in it is run.

The encoder and the pooler are kept, all else is left out and named. What the names mean for both readers of models stands here too.
"""

import functools
import importlib
import importlib.util
import itertools
import math
import os
import pathlib
import re
import shutil
import sys
import types
from typing import Callable, NamedTuple

if importlib.util.find_spec("tqdm") is None:  # no bar is drawn here, and TensorFlow comes without it
    sys.modules["tqdm"] = types.SimpleNamespace(tqdm=None)

from util import UserError, entry, read_json, atomic_folder, write_json  # isort: skip  (before numpy: it names the BLAS kernel)

import numpy as np

from config import module_parser
from modeling.bert.names import current_names, encoder_shapes
from modeling.snapshots.weights import read_shards
from tokenization import load_vocab, tokenizer_for

# --------------------------------------------------------------------------------------- the three sources


class Variable(NamedTuple):
    """A tensor of a source: its name there, and a function that reads it, from its expected shape to an array of any shape."""

    name: str
    load: Callable


SNAPSHOT_WORDS = "bert-embeddings-word_embeddings"  # the folder by which a OneFlow snapshot is known
MARKS = {
    "pytorch": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    "tensorflow": ("bert_model.ckpt.index",),
    "oneflow": (f"{SNAPSHOT_WORDS}/out",),
}


def source_format(path):
    """What a folder is to be converted from, "pytorch", "tensorflow" or "oneflow"; None for any other, as one that can be read as it is."""
    if any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return None
    return next(
        (kind for kind, names in MARKS.items() if any((path / name).is_file() for name in names)), None
    )


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
    """Hugging Face's name for a variable of the BERT release, whose parts stand between / or, in a OneFlow snapshot, -."""
    name = re.sub(r"\.layer_(\d+)\.", r".layer.\1.", re.sub("[/-]", ".", name))
    name = re.sub(r"\.(kernel|gamma)$", ".weight", re.sub(r"\.beta$", ".bias", name))
    return re.sub(r"_embeddings$", "_embeddings.weight", name)


def is_transposed(name):
    """Whether the tensor of this Hugging Face name is a matrix [out, in], kept as [in, out] in the BERT release and in OneFlow."""
    return name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight"))


def tensorflow_variables(path):
    """Yields the Variables of Google's BERT release."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of which it would speak too
    tensorflow = import_library("tensorflow", "tensorflow-cpu")

    def load(name, shape):
        try:
            values = reader.get_tensor(name)
        except Exception as error:  # of any kind: OpError, IndexError and others, by what is wrong
            raise _tensorflow_error(path, name, error) from None
        return values.T if is_transposed(hugging_face_name(name)) else values

    try:
        reader = tensorflow.train.load_checkpoint(str(path / "bert_model.ckpt"))
    except Exception as error:  # as above
        raise _tensorflow_error(path, "bert_model.ckpt", error) from None
    for name in sorted(reader.get_variable_to_shape_map()):
        yield Variable(name, functools.partial(load, name))


def _tensorflow_error(path, name, error):
    return UserError(
        f"{path}: TensorFlow cannot read {name} ({' '.join(str(error).split()):.200}): take another copy of the model."
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
        dims, kind = (
            tuple(map(int, re.findall(r"\bdim:\s*(\d{1,18})\b", text))),
            re.search(r"\bdata_type:\s*(\w+)", text),
        )
        if (
            dims not in (kept, (1, *kept)) or kind is None or kind[1] != "kFloat"
        ):  # OneFlow's own position vectors are [1, positions, H]
            raise UserError(
                f"{folder / 'meta'}: found shape {dims} and type {kind and kind[1]}, expected {kept} and kFloat: "
                "take another copy of the model, or name its architecture with --config."
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
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (
        2,
        6,
    ):  # before, weights_only did not keep all code out
        raise UserError(
            f"torch {torch.__version__} is installed, 2.6 or newer reads a pickle safely: run 'pip install torch' with a newer Python."
        )

    def load(file):
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            return {str(name): tensor.detach() for name, tensor in tensors.items()}
        except (
            Exception
        ) as error:  # of any kind: it is unpickled; PyTorch's own words advise to run the code in it
            raise UserError(
                f"{file}: PyTorch cannot read it as weights alone ({type(error).__name__}): take another copy of the model."
            ) from None

    for name, tensor in read_shards(path, "pytorch_model.bin", load).items():

        def values(shape, tensor=tensor):
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

        yield Variable(name, values)


VARIABLES = {"pytorch": pytorch_variables, "tensorflow": tensorflow_variables, "oneflow": oneflow_variables}

# --------------------------------------------------------------------------------------- the architecture


def _is_count(value):
    return type(value) is int and value > 0


def _is_share(value):
    return type(value) in (int, float) and 0 <= value < 1


NEEDED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
KEYS = {
    **{name: ("a count", _is_count) for name in NEEDED},
    "hidden_act": ("'gelu'", lambda value: value == "gelu"),
    "hidden_dropout_prob": ("a share", _is_share),
    "attention_probs_dropout_prob": ("a share", _is_share),
    "initializer_range": ("a number between 0 and 1", lambda value: _is_share(value) and value > 0),
    "layer_norm_eps": ("a number between 0 and 1", lambda value: _is_share(value) and value > 0),
    "pad_token_id": ("a token's id", lambda value: type(value) is int and value >= 0),
    "model_type": ("'bert'", lambda value: value == "bert"),
    "position_embedding_type": ("'absolute'", lambda value: value == "absolute"),
}


def architecture(source, kind, file, heads):
    """The content of the new config.json, the keys that it leaves out, and words for where it is from.

    Args:
        file: of --config; None: config.json or bert_config.json in the source, or for a OneFlow snapshot the sizes of its files.
        heads: of --num_attention_heads, for the last.
    """
    file = file or next(
        (source / name for name in ("config.json", "bert_config.json") if (source / name).is_file()), None
    )
    if file is None and kind != "oneflow":
        raise UserError(
            f"{source}: neither config.json nor bert_config.json is there: name the model's architecture with --config."
        )
    if file is not None and heads is not None:
        raise UserError(f"--num_attention_heads: {file} says how many there are: leave the flag out.")
    if file is None:
        return *check_config(inferred_config(source, heads), source), "the sizes of the files"
    return *check_config(read_json(file, "the architecture of a BERT model"), file), str(file)


def check_config(values, path):
    """The content of the new config.json, and the keys of `values` that it leaves out.

    Raises:
        UserError: a key is missing, or not of the kind that this suite builds.
    """
    for name in NEEDED:
        if name not in values:
            raise UserError(f"{path}: the key {name!r} is missing: is this the architecture of a BERT model?")
    for name, (words, test) in KEYS.items():
        if name in values and not test(values[name]):
            raise UserError(
                f"{path}: {name} is {values[name]!r:.60}, expected {words}: no other BERT is built here."
            )
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UserError(
            f"{path}: hidden_size {values['hidden_size']} is not a multiple of num_attention_heads {values['num_attention_heads']}."
        )
    kept = {name: values[name] for name in KEYS if name in values}
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "position_embedding_type": "absolute",
        **kept,
    }
    return config, sorted(set(values) - set(config))


def inferred_config(path, heads):
    """The architecture of a OneFlow snapshot from the sizes of its files; BERT's heads are 64 wide."""

    def size(name):
        if not (path / name / "out").is_file():
            raise UserError(f"{path}: the variable {name} is missing: take another copy of the model.")
        return (path / name / "out").stat().st_size // 4

    H = size("bert-embeddings-LayerNorm-gamma")
    if heads is None and (H == 0 or H % 64):
        raise UserError(
            f"{path}: the model is {H} wide, which is not a multiple of BERT's 64 a head: say --num_attention_heads, or --config."
        )
    rows = {
        name: size(f"bert-embeddings-{name}_embeddings") // (H or 1)
        for name in ("word", "position", "token_type")
    }
    layers = [
        int(found[1])
        for folder in path.iterdir()
        if (found := re.match(r"bert-encoder-layer_(\d+)-", folder.name))
    ]
    return {
        "vocab_size": rows["word"],
        "hidden_size": H,
        "num_hidden_layers": max(layers, default=0) + 1,
        "num_attention_heads": H // 64 if heads is None else heads,
        "intermediate_size": size("bert-encoder-layer_0-intermediate-dense-bias"),
        "max_position_embeddings": rows["position"],
        "type_vocab_size": rows["token_type"],
    }


# --------------------------------------------------------------------------------------- the weights


def keep_encoder(variables, config, source):
    """The weights of the encoder and the pooler, {today's name: float32 array}, and the names of all other variables.

    Args:
        variables: the Variables of the source.
        config: the content of the new config.json.
        source: the folder, for the sentence of an error.
    Raises:
        UserError: a weight is missing, there twice, of another shape, not of finite floats, or of a layer too many.
    """
    variables, named = list(variables), {}
    names = current_names([hugging_face_name(variable.name) for variable in variables])
    for variable in variables:
        name = names[hugging_face_name(variable.name)]
        if name in named:
            raise UserError(
                f"{source}: {name!r:.80} is there under two names, {named[name].name!r:.80} and {variable.name!r:.80}, expected one."
            )
        named[name] = variable
    arrays, H = {}, config["hidden_size"]
    pooler = {"bert.pooler.dense.weight": (H, H), "bert.pooler.dense.bias": (H,)}
    shapes = encoder_shapes(types.SimpleNamespace(**config))
    for name, shape in itertools.chain(shapes, pooler.items() if named.keys() & pooler else ()):
        if name not in named:
            raise UserError(
                f"{source}: the weight {name} is missing: expected the weights that the config describes."
            )
        arrays[name] = _checked(named[name], shape, source)
        del named[name]
    too_many = [
        variable.name
        for name, variable in named.items()
        if re.fullmatch(r"bert\.encoder\.layer\.\d+\..*\.(weight|bias)", name)
    ]
    if too_many:
        raise UserError(
            f"{source}: it holds {len(too_many)} encoder weights that the config does not describe, {too_many[0]} first: "
            "mend num_hidden_layers there, or take another copy of the model."
        )
    return arrays, sorted(variable.name for variable in named.values())


def _checked(variable, shape, source):
    """The values of a variable as contiguous float32, which must have this shape and be finite."""
    values = variable.load(shape)
    if values.shape != shape:
        raise UserError(
            f"{source}: {variable.name} has the shape {values.shape}, the config says {shape}: take another copy of the model."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        floats = np.ascontiguousarray(values, np.float32) if values.dtype.kind == "f" else None
    if floats is None or not np.isfinite(floats).all():
        raise UserError(
            f"{source}: {variable.name} holds {values.dtype if floats is None else 'values that are not finite'}, "
            "expected finite floats: take another copy of the model."
        )
    return floats


def summarise(left_out):
    """The variables that are left out, in words: optimizer slots by their number, all others by name."""
    slots = [name for name in left_out if re.search("[/-](adam_)?[mv]$", name)]
    others = [name for name in left_out if name not in slots]
    return (
        "; ".join([f"{len(slots)} optimizer slots"] * bool(slots) + [", ".join(others)] * bool(others))
        or "nothing"
    )


# --------------------------------------------------------------------------------------- the command


def parse_flags():
    parser = module_parser(__doc__, "modeling.convert")
    parser.add_argument("--source", required=True, help="the folder to convert")
    parser.add_argument("--target", required=True, help="the model folder to write, new or empty")
    parser.add_argument("--vocab_file", help="the vocabulary, where the source has no vocab.txt")
    parser.add_argument(
        "--config", help="a config.json or bert_config.json, where the source has none or a wrong one"
    )
    parser.add_argument(
        "--num_attention_heads", type=int, help="of a OneFlow snapshot without a config; else its width / 64"
    )
    return parser.parse_args()


@entry
def main():
    args = parse_flags()
    save = import_library("safetensors.numpy", "safetensors").save
    source, target = pathlib.Path(args.source), pathlib.Path(args.target)
    kind = check_folders(source, target)
    config, keys_left_out, origin = architecture(source, kind, args.config, args.num_attention_heads)
    vocab_file, tokens, lower = vocabulary(source, args.vocab_file, config["vocab_size"])
    arrays, left_out = keep_encoder(VARIABLES[kind](source), config, source)

    with atomic_folder(target) as folder:
        write_json(folder / "config.json", config)
        (folder / "model.safetensors").write_bytes(save(arrays, metadata={"format": "pt"}))
        shutil.copyfile(vocab_file, folder / "vocab.txt")
        write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": lower,
                "model_max_length": config["max_position_embeddings"],
            },
        )
    print(f"architecture from {origin}: {', '.join(f'{name} {config[name]}' for name in NEEDED)}")
    print(f"keys left out: {', '.join(keys_left_out) or 'none'}")
    print(f"tensors left out: {summarise(left_out)}")
    print(f"vocabulary: {tokens} tokens, texts are {'' if lower else 'not '}lower-cased")
    print(
        f"{target}: {len(arrays)} tensors, {'with' if 'bert.pooler.dense.bias' in arrays else 'without'} the pooler, every one checked"
    )


def check_folders(source, target):
    """The kind of the source, after a check that it can be converted and that the target holds nothing that would be lost."""
    if not source.is_dir():
        raise UserError(f"--source {source}: there is no such folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target {target}: it holds something already: name a new folder.")
    kind = source_format(source)
    if kind is None and any(source.glob("model.safetensors*")):
        raise UserError(
            f"--source {source}: it holds model.safetensors, which the suite reads as it is: no conversion is needed."
        )
    if kind is None:
        raise UserError(
            f"--source {source}: found neither bert_model.ckpt.index, nor pytorch_model.bin, nor {SNAPSHOT_WORDS}/out: "
            "expected a BERT of Google, Hugging Face or OneFlow."
        )
    return kind


def vocabulary(source, file, words):
    """The file of the vocabulary, how many tokens it has, at most `words`, and whether the model's texts are lower-cased: by the
    source's tokenizer_config.json, else where no token has capital letters."""
    path = pathlib.Path(file or source / "vocab.txt")
    if not file and not path.is_file():
        raise UserError(
            f"{source}: no vocab.txt in this folder: name the model's vocabulary with --vocab_file."
        )
    tokens = load_vocab(path)
    if len(tokens) > words:
        raise UserError(
            f"{path}: it has {len(tokens)} tokens, the model {source} has {words} word vectors: name the vocabulary of this model."
        )
    if (source / "tokenizer_config.json").is_file():
        return path, len(tokens), tokenizer_for(source, path).do_lower_case
    return (
        path,
        len(tokens),
        not any(re.search("[A-Z]", token) for token in tokens if not re.fullmatch(r"\[.*\]", token)),
    )


if __name__ == "__main__":
    main()
