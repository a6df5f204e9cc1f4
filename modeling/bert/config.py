"""The architecture of a BERT, and the one check of a config.json."""

import dataclasses

from util import UserError, read_json

# Models that are not built here, and why:
OTHER_TYPES = {
    "distilbert": "it has no segments and no pooler, and other names for its weights",
    "roberta": "it splits texts into other tokens, and counts positions from 2",
    "xlm-roberta": "it splits texts into other tokens, and counts positions from 2",
    "camembert": "it splits texts into other tokens, and counts positions from 2",
    "albert": "its layers share one set of weights, and it splits texts into other tokens",
    "deberta": "its attention is of relative positions",
    "deberta-v2": "its attention is of relative positions",
    "modernbert": "it has rotary positions and other layers",
    "electra": "its embeddings may be narrower than its layers, and it has no pooler",
    "mpnet": "its attention has relative positions, and it has no segments",
    "mobilebert": "its layers have bottlenecks",
}


def check_model_type(values, path) -> None:
    """Raises a UserError where `values`, the content of a config.json, are of another model than BERT."""
    kind = values.get("model_type", "bert")
    if kind != "bert":
        why = OTHER_TYPES.get(kind) if isinstance(kind, str) else None
        raise UserError(
            f"{path}: found model_type {kind!r:.60}, expected 'bert'{f' ({why})' if why else ''}: "
            "name the folder of a BERT model."
        )


def other_problem(values):
    """What a model's head is for by its config.json, whose content is `values`, in transformers' words:
    "regression" or "multi_label_classification"; None: one class per text, or it does not say.
    """
    kind, labels = values.get("problem_type"), values.get("id2label")
    if kind in ("regression", "multi_label_classification"):
        return kind
    single = values.get("num_labels") == 1 or isinstance(labels, dict) and len(labels) == 1
    return "regression" if single else None


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The architecture, by the names of a Hugging Face config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    @classmethod
    def from_file(cls, path):
        """Reads a config.json.

        Raises:
            UserError: not a BERT, a key missing or of the wrong kind, positions or an activation that are not
                built here, or heads that do not divide the hidden size.
        """
        return cls.from_dict(read_json(path, "the architecture of a BERT model"), path)

    @classmethod
    def from_dict(cls, values, path="config.json"):
        """The same from a dict; `path` stands in the sentence of the error."""
        check_model_type(values, path)
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"{path}: found position_embedding_type {values['position_embedding_type']!r:.60}, "
                "only 'absolute' is built."
            )
        known = {}
        for field in dataclasses.fields(cls):
            if field.name in values:
                known[field.name] = _checked(field, values[field.name], path)
            elif field.name in NEEDED:
                raise UserError(
                    f"{path}: the key {field.name!r} is missing: is this the config.json of a BERT model?"
                )
        config = cls(**known)
        if config.hidden_act != "gelu":
            raise UserError(f"{path}: found hidden_act {config.hidden_act!r:.60}, only 'gelu' is built.")
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"{path}: hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}."
            )
        return config

    def to_dict(self):
        """The content of a config.json that transformers opens."""
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "position_embedding_type": "absolute",
            **dataclasses.asdict(self),
        }


NEEDED = (  # what a config.json must have
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_MAY_BE_ZERO = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id")


def _checked(field, value, path):
    """`value` where it has the field's kind and range, else a UserError."""
    kinds = (int, float) if field.type is float else (field.type,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(
            f"{path}: {field.name} is {value!r:.60}, expected a value of kind {field.type.__name__}."
        )
    if field.type is not str and not (value > 0 or value == 0 and field.name in _MAY_BE_ZERO):
        raise UserError(f"{path}: {field.name} is {value!r}, expected a number above 0.")
    if field.type is float and value >= 1:  # shares, a standard deviation and an epsilon
        raise UserError(f"{path}: {field.name} is {value!r}, expected a number below 1.")
    return value
