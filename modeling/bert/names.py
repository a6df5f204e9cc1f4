"""The weights of a BERT by name and shape, as Hugging Face has them."""

import itertools
import re
from collections.abc import Iterator


def encoder_shapes(config) -> Iterator[tuple]:
    """Yields name and shape of each weight of the encoder, without the pooler, which a model folder may lack.

    One by one, so that they are checked before room is made for them: the number of layers is not yet
    believed.
    """
    H, inner = config.hidden_size, config.intermediate_size
    tables = {
        "word": config.vocab_size,
        "position": config.max_position_embeddings,
        "token_type": config.type_vocab_size,
    }
    for name, rows in tables.items():
        yield f"bert.embeddings.{name}_embeddings.weight", (rows, H)
    parts = {
        "attention.self.query": (H, H),
        "attention.self.key": (H, H),
        "attention.self.value": (H, H),
        "attention.output.dense": (H, H),
        "attention.output.LayerNorm": (H,),
        "intermediate.dense": (inner, H),
        "output.dense": (H, inner),
        "output.LayerNorm": (H,),
    }
    layers = (
        (f"bert.encoder.layer.{layer}.{name}", shape)
        for layer in range(config.num_hidden_layers)
        for name, shape in parts.items()
    )
    for name, shape in itertools.chain([("bert.embeddings.LayerNorm", (H,))], layers):
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]


def current_name(name: str) -> str:
    """A Hugging Face name as it is today: `bert.` before the encoder,
    LayerNorm.weight and .bias for gamma and beta.
    """
    name = re.sub(
        r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    )
    return "bert." + name if name.startswith(("embeddings.", "encoder.", "pooler.")) else name


def current_names(names) -> dict:
    """{name: the name of today} of a file's tensors, without what a wrapper put before all, as `module.`."""
    mark = "embeddings.word_embeddings.weight"
    prefixes = {name[: -len(mark)] for name in names if name.endswith(mark)}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    outer = prefix.removesuffix("bert.")

    def rename(name):
        if name.startswith(prefix) and prefix:
            name = "bert." + name[len(prefix) :]
        return current_name(name.removeprefix(outer))

    return {name: rename(name) for name in names}
