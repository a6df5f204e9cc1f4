"""Makes a model folder out of a BERT that is kept in another form. OneFlow is not needed: it runs where the form's own library is.

    python3 -m modeling.convert --source uncased_L-12_H-768_A-12 --target models/bert

The source is one of
- Google's BERT release, or one fine-tuned by its code: a checkpoint (.index, .data-*), bert_config.json, vocab.txt;
  TensorFlow reads it;
- a OneFlow snapshot of 2021: a folder for each variable, with its float32 values in `out` and, mostly, its shape in `meta`;
- a folder with pytorch_model.bin, whole or in shards, or with one .pt, .pth or .bin file; PyTorch reads it, and no code
  in it is run.

The encoder and the pooler are kept, all else is left out and named.
"""

import importlib
import importlib.util
import itertools
import pathlib
import re
import sys
import types

if importlib.util.find_spec("tqdm") is None:  # no bar is drawn here, and TensorFlow comes without it
    sys.modules["tqdm"] = types.SimpleNamespace(tqdm=None)

from data.store.files import atomic_folder, write_json

from util import UserError, entry, read_json  # isort: skip  (before numpy: it names the BLAS kernel)

import numpy as np

from config import case, module_parser
from modeling.bert.names import current_names, encoder_shapes
from modeling.snapshots.sources import (
    SNAPSHOT_WORDS,
    VARIABLES,
    hugging_face_name,
    import_library,
    source_format,
)
from modeling.snapshots.tokenizer_file import save_tokenizer_files
from tokenization import describe_tokenizer, tokenizer_for

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
    case(parser)
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
    tokenizer = tokenizer_for(source, args.vocab_file, args.do_lower_case)
    if tokenizer.vocab_size > config["vocab_size"]:
        raise UserError(
            f"{tokenizer.vocab_file}: it has {tokenizer.vocab_size} tokens, the model {source} has "
            f"{config['vocab_size']} word vectors: name the vocabulary of this model."
        )
    arrays, left_out = keep_encoder(VARIABLES[kind](source), config, source)

    with atomic_folder(target) as folder:
        write_json(folder / "config.json", config)
        (folder / "model.safetensors").write_bytes(save(arrays, metadata={"format": "pt"}))
        save_tokenizer_files(folder, tokenizer, config["max_position_embeddings"])
    print(f"architecture from {origin}: {', '.join(f'{name} {config[name]}' for name in NEEDED)}")
    print(f"keys left out: {', '.join(keys_left_out) or 'none'}")
    print(f"tensors left out: {summarise(left_out)}")
    print(describe_tokenizer(tokenizer))
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
    broken = why_unreadable(source / "model.safetensors") if kind is None else None
    if broken and source_format(source, beside=True):
        print(f"model.safetensors is not read, but what lies beside it: {broken}")
        return source_format(source, beside=True)
    if broken:
        raise UserError(broken)
    if kind is None and any(source.glob("model.safetensors*")):
        raise UserError(
            f"--source {source}: it holds model.safetensors, which the suite reads as it is: no conversion is needed."
        )
    if kind is None:
        raise UserError(
            f"--source {source}: found neither bert_model.ckpt.index or another checkpoint, nor pytorch_model.bin, nor {SNAPSHOT_WORDS}/out: "
            "expected a BERT of Google, Hugging Face or OneFlow."
        )
    return kind


def why_unreadable(file):
    """The sentence of the error, where the file is there and not readable."""
    if not file.is_file():
        return None
    try:
        importlib.import_module("modeling.snapshots.weights").load_arrays(file)
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
