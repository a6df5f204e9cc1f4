"""Makes a model folder out of a BERT that is kept in another form.

OneFlow is not needed: it runs where the form's own library is.

    python3 -m modeling.convert --source uncased_L-12_H-768_A-12 --target models/bert

The source is one of
- Google's BERT release, or one fine-tuned by its code: a checkpoint (.index, .data-*), bert_config.json,
  vocab.txt; TensorFlow reads it;
- a OneFlow snapshot of 2021: a folder for each variable, with its float32 values in `out` and, mostly, its
  shape in `meta`;
- a folder with pytorch_model.bin, whole or in shards, or with one .pt, .pth or .bin file; PyTorch reads it,
  and no code in it is run.

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

from util import UserError, entry  # isort: skip  (before numpy: it names the BLAS kernel)

import numpy as np

from config import case, count, module_parser
from modeling.bert.config import NEEDED
from modeling.bert.names import current_names, encoder_shapes
from modeling.snapshots.architecture import architecture
from modeling.snapshots.sources import (
    SNAPSHOT_WORDS,
    VARIABLES,
    hugging_face_name,
    import_library,
    source_format,
)
from modeling.snapshots.tokenizer_file import save_tokenizer_files
from tokenization import describe_tokenizer, tokenizer_for

# --------------------------------------------------------------------------------------- the weights


def keep_encoder(variables, config, source):
    """The encoder's and the pooler's weights, {today's name: float32 array}; and all other variables' names.

    Args:
        variables: the Variables of the source.
        config: the content of the new config.json.
        source: the folder, for the sentence of an error.
    Raises:
        UserError: a weight is missing, there twice, of another shape,
            not of finite floats, or of a layer too many.
    """
    named = _name_variables(list(variables), source)
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
            f"{source}: it holds {len(too_many)} encoder weights that the config does not describe, "
            f"{too_many[0]} first: mend num_hidden_layers there, or take another copy of the model."
        )
    return arrays, sorted(variable.name for variable in named.values())


def _name_variables(variables, source):
    """{today's name: Variable}; a UserError where two variables would have the same name."""
    named = {}
    names = current_names([hugging_face_name(variable.name) for variable in variables])
    for variable in variables:
        name = names[hugging_face_name(variable.name)]
        if name in named:
            raise UserError(
                f"{source}: {name!r:.80} is there under two names, {named[name].name!r:.80} and "
                f"{variable.name!r:.80}, expected one."
            )
        named[name] = variable
    return named


def _checked(variable, shape, source):
    """The values of a variable as contiguous float32, which must have this shape and be finite."""
    values = variable.load(shape)
    if values.shape != shape:
        raise UserError(
            f"{source}: {variable.name} has the shape {values.shape}, the config says {shape}: "
            "take another copy of the model."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        floats = np.ascontiguousarray(values, np.float32) if values.dtype.kind == "f" else None
    if floats is None or not np.isfinite(floats).all():
        found = values.dtype if floats is None else "values that are not finite"
        raise UserError(
            f"{source}: {variable.name} holds {found}, expected finite floats: "
            "take another copy of the model."
        )
    return floats


def summarise(left_out):
    """The variables that are left out, in words: optimizer slots by their number, all others by name."""
    slots = [name for name in left_out if re.search("[/-](adam_)?[mv]$", name)]
    others = [name for name in left_out if name not in slots]
    parts = [f"{len(slots)} optimizer slots"] * bool(slots) + [", ".join(others)] * bool(others)
    return "; ".join(parts) or "nothing"


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
        "--num_attention_heads",
        type=count,
        help="of a OneFlow snapshot without a config; else its width / 64",
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
    pooler = "with" if "bert.pooler.dense.bias" in arrays else "without"
    print(f"{target}: {len(arrays)} tensors, {pooler} the pooler, every one checked")


def check_folders(source, target):
    """The kind of the source, after checks that it can be converted and the target is free."""
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
            f"--source {source}: it holds model.safetensors, which the suite reads as it is: "
            "no conversion is needed."
        )
    if kind is None:
        raise UserError(
            f"--source {source}: found neither bert_model.ckpt.index or another checkpoint, "
            f"nor pytorch_model.bin, nor {SNAPSHOT_WORDS}/out: expected a BERT of Google, "
            "Hugging Face or OneFlow."
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
