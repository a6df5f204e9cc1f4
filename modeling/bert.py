"""BERT's encoder on OneFlow, by the names of Hugging Face's BertModel, shaped by what the engine does fast on a CPU."""

import collections.abc
import dataclasses
import zlib
from typing import NamedTuple

import numpy as np

from modeling.attention import Packing, Scores, SelfAttention, Unpack
from modeling.layers import Affine, FeedForward, LayerNorm, Norm, Take
from modeling.operation import Block, Dropout, flow, nn, settle
from util import UserError, random_stream, read_json

# Letters: B batch, T tokens, H hidden, A heads, D = H / A, L layers, N = B*T.


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
            UserError: not a BERT, a key missing or of the wrong kind, positions or an activation that are not built here,
                or heads that do not divide the hidden size.
        """
        return cls.from_dict(read_json(path, "the architecture of a BERT model"), path)

    @classmethod
    def from_dict(cls, values, path="config.json"):
        """The same from a dict; `path` stands in the sentence of the error."""
        if values.get("model_type", "bert") != "bert":
            raise UserError(f"{path}: found model_type {values['model_type']!r}, expected 'bert': name the folder of a BERT model.")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(f"{path}: found position_embedding_type {values['position_embedding_type']!r}, only 'absolute' is built.")
        known = {}
        for field in dataclasses.fields(cls):
            if field.name in values:
                known[field.name] = _checked(field, values[field.name], path)
            elif field.name in _NEEDED:
                raise UserError(f"{path}: the key {field.name!r} is missing: is this the config.json of a BERT model?")
        config = cls(**known)
        if config.hidden_act != "gelu":
            raise UserError(f"{path}: found hidden_act {config.hidden_act!r}, only 'gelu' is built.")
        if config.hidden_size % config.num_attention_heads:
            raise UserError(f"{path}: hidden_size {config.hidden_size} is not a multiple of "
                            f"num_attention_heads {config.num_attention_heads}.")
        return config

    def to_dict(self):
        """The content of a config.json that transformers opens."""
        return {"architectures": ["BertModel"], "model_type": "bert", "position_embedding_type": "absolute",
                **dataclasses.asdict(self)}


_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
           "type_vocab_size")
_MAY_BE_ZERO = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pad_token_id")


def _checked(field, value, path):
    """`value` where it has the field's kind and range, else a UserError."""
    kinds = (int, float) if field.type is float else (field.type,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(f"{path}: {field.name} is {value!r}, expected a value of kind {field.type.__name__}.")
    if field.type is not str and not (value > 0 or value == 0 and field.name in _MAY_BE_ZERO):
        raise UserError(f"{path}: {field.name} is {value!r}, expected a number above 0.")
    if field.type is float and value >= 1:  # shares, a standard deviation and an epsilon
        raise UserError(f"{path}: {field.name} is {value!r}, expected a number below 1.")
    return value


def init_weights(module, seed, std):
    """Draws every parameter anew: weights from normal(0, std), biases 0, LayerNorm's gains 1.

    A value is a function of (seed, name of the parameter) alone, whatever else the module holds.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            values = np.zeros(parameter.shape, np.float32)
        elif name.endswith("LayerNorm.weight"):
            values = np.ones(parameter.shape, np.float32)
        else:
            stream = random_stream(seed, "init", zlib.crc32(name.encode()))
            values = stream.standard_normal(parameter.shape, np.float32) * np.float32(std)
        parameter.data.copy_(flow.tensor(values))


class HiddenStates(collections.abc.Sequence):
    """L+1 tensors [B, T, H], the embeddings first, 0 at padding; each is laid out when it is asked for.

    rows: a tensor [N, H] of each; the last is None where only [CLS] went through to the end.
    """

    def __init__(self, rows, packing):
        self._rows, self._packing = rows, packing

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, layer):
        if self._rows[layer] is None:
            raise ValueError("the last hidden states were not asked for")
        return Unpack(self._packing)(self._rows[layer])


class Outputs(NamedTuple):
    """What the encoder returns.

    hidden: L+1 tensors [B, T, H], the embeddings first. pooled: [B, H], tanh of a linear map of [CLS].
    scores: {layer, from 1: [B, A, T, T]}, Q K^T / sqrt(D) before mask, softmax and dropout, for the layers asked for;
    or their means over the heads, [B, T, T]. Hidden states and scores are 0 at padding (on a GPU: not meaningful).
    """

    hidden: HiddenStates
    scores: dict
    pooled: "flow.Tensor"


class Embeddings(Block):
    """dropout(LayerNorm(word + position + segment vectors)): [B, T] ids -> [N, H]."""

    def __init__(self, config, dropouts):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size)
        self.eps, self.dropout = config.layer_norm_eps, Dropout(config.hidden_dropout_prob, dropouts)

    def forward(self, input_ids, segment_ids, packing):
        ids, segments = (x.numpy().reshape(-1)[packing.places] for x in (input_ids, segment_ids))

        def wire(run, words, positions, types, *norm):
            x = run(Take(ids, packing.places % packing.T, segments), words, positions, types)
            return (run(Norm(self.eps), x, *norm),)

        return self.dropout(*self.chain(wire))


class Layer(Block):
    """One of L layers: self-attention, then two linear maps around a GELU, each added to its input and normalised."""

    def __init__(self, config, dropouts):
        super().__init__()
        H, inner = config.hidden_size, config.intermediate_size
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        self.dropout = Dropout(config.hidden_dropout_prob, dropouts)
        self.score_dropout = Dropout(config.attention_probs_dropout_prob, dropouts)
        self.attention = _modules(self=_modules(query=nn.Linear(H, H), key=nn.Linear(H, H), value=nn.Linear(H, H)),
                                  output=_modules(dense=nn.Linear(H, H), LayerNorm=LayerNorm(H)))
        self.intermediate = _modules(dense=nn.Linear(H, inner))
        self.output = _modules(dense=nn.Linear(inner, H), LayerNorm=LayerNorm(H))

    def forward(self, x, packing, scores=None, places=None):
        """[N, H] -> a tuple of [N, H] and, where an operation `scores` is given, what it makes of queries, keys and values.

        places: of the rows that go on after the attention, if not all do.
        """
        kept = x.numel() if places is None else len(places) * x.shape[1]

        def norm():
            return Norm(self.eps, self.dropout.kept(kept), self.dropout.rate)

        def wire(run, x, *p):  # p: weights and biases in the order of __init__
            qkv = run(Affine(), x, *p[0:6])
            context = run(SelfAttention(packing, self.heads, self.score_dropout), qkv)
            if places is not None:
                context, x = run(Take(places), context), run(Take(places), x)
            x = run(norm(), run(Affine(), context, *p[6:8]), *p[8:10], x)
            y = run(norm(), run(FeedForward(), x, *p[10:14]), *p[14:16], x)
            return (y, run(scores, qkv)) if scores else (y,)

        return self.chain(wire, x)


class Pooler(Block):
    """tanh(linear(hidden of [CLS])): [N, H], where [CLS] stands at `places` -> [B, H]."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x, places):
        def wire(run, x, *p):
            return (run(Affine(), run(Take(places), x), *p),)

        return flow.tanh(*self.chain(wire, x))


def _modules(**children):
    """A module that is nothing but its children, under the names of Hugging Face."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


class BertModel(nn.Module):
    """The encoder. Parameters bear Hugging Face's names without the prefix `bert.`.

    Args:
        config: a BertConfig.
        dropouts: the source of dropout masks, which heads may share.
    """

    def __init__(self, config, dropouts):
        super().__init__()
        self.config, self.dropouts = config, dropouts
        self.embeddings = Embeddings(config, dropouts)
        self.encoder = _modules(layer=nn.ModuleList([Layer(config, dropouts) for _ in range(config.num_hidden_layers)]))
        self.pooler = Pooler(config)

    def forward(self, input_ids, input_mask, segment_ids, scores_of=(), mean_over_heads=False, last_hidden=True):
        """Outputs of a batch of int32 tensors [B, T], T up to max_position_embeddings, real tokens first; scores of the layers
        `scores_of`, counted from 1. Without `last_hidden` only [CLS] goes through the last layer to its end, where most of its work is."""
        settle()
        packing, last = Packing(input_mask), len(self.encoder.layer)
        rows, scores = [self.embeddings(input_ids, segment_ids, packing)], {}
        for number, layer in enumerate(self.encoder.layer, 1):
            wanted = Scores(packing, self.config.num_attention_heads, mean_over_heads) if number in scores_of else None
            x, *made = layer(rows[-1], packing, wanted, None if last_hidden or number < last else packing.starts)
            rows.append(x)
            scores.update(zip([number], made))
        if last_hidden:
            return Outputs(HiddenStates(rows, packing), scores, self.pooler(x, packing.starts))
        return Outputs(HiddenStates([*rows[:-1], None], packing), scores, self.pooler(x, np.arange(packing.B)))
