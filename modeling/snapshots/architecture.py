"""The config.json of a converted model: read from the source's own, or inferred from its files' sizes."""

import dataclasses
import re

from modeling.bert.config import BertConfig
from util import UserError, read_json


def architecture(source, kind, file, heads):
    """The content of the new config.json, the keys that it leaves out, and words for where it is from.

    Args:
        file: of --config; None: config.json or bert_config.json in the source, or for a OneFlow snapshot the
            sizes of its files.
        heads: of --num_attention_heads, for the last.
    """
    there = (source / name for name in ("config.json", "bert_config.json") if (source / name).is_file())
    file = file or next(there, None)
    if file is None and kind != "oneflow":
        raise UserError(
            f"{source}: neither config.json nor bert_config.json is there: "
            "name the model's architecture with --config."
        )
    if file is not None and heads is not None:
        raise UserError(f"--num_attention_heads: {file} says how many there are: leave the flag out.")
    if file is None:
        return *check_config(inferred_config(source, heads), source), "the sizes of the files"
    return *check_config(read_json(file, "the architecture of a BERT model"), file), str(file)


def check_config(values, path):
    """The content of the new config.json, and the keys of `values` that it leaves out.

    Raises:
        UserError: see `BertConfig.from_dict`.
    """
    full = BertConfig.from_dict(values, path).to_dict()
    defaults = {field.name for field in dataclasses.fields(BertConfig)} - set(values)
    config = {name: value for name, value in full.items() if name not in defaults}
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
            f"{path}: the model is {H} wide, which is not a multiple of BERT's 64 a head: "
            "say --num_attention_heads, or --config."
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
