"""BERT's encoder on OneFlow, by the names of Hugging Face's BertModel, shaped by what the engine does fast on a CPU."""

import dataclasses
import math
import zlib
from typing import NamedTuple

import numpy as np

from util import UserError, load_oneflow, random_stream, read_json

flow = load_oneflow()
nn = flow.nn

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
    if field.name.endswith("_prob") and value >= 1:
        raise UserError(f"{path}: {field.name} is {value!r}, expected a share below 1.")
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


class Dropouts:
    """Where the dropout masks of one model come from: each is a function of (seed, step, rank, ranks, number of the site).

    `key` opens a step; within it the sites are numbered in the order in which the forward pass reaches them. Nothing lives on
    from step to step, so that a resumed run draws what the first would have.
    """

    def __init__(self):
        self.key(0, 0)

    def key(self, seed, step, rank=0, ranks=1):
        """Opens step `step` of rank `rank` of `ranks`."""
        self._key, self._site = (seed, step, rank, ranks), 0

    def mask(self, shape, rate):
        """A float32 array of `shape`: 0 with probability `rate` (to the nearest 1/65536), else 1/(1 - rate)."""
        seed, *rest = self._key
        stream, self._site = random_stream(seed, "dropout", *rest, self._site), self._site + 1
        size = int(np.prod(shape))
        bits = stream.bit_generator.random_raw((size + 3) // 4).view(np.uint16)[:size]
        cut = round(rate * 65536)
        return np.multiply(bits >= cut, np.float32(65536 / (65536 - cut)), dtype=np.float32).reshape(shape)


class Dropout(nn.Module):
    """Dropout with the masks of `dropouts`; the identity in eval mode and at rate 0."""

    def __init__(self, rate, dropouts):
        super().__init__()
        self.rate, self.dropouts = rate, dropouts

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        return x * flow.from_numpy(self.dropouts.mask(tuple(x.shape), self.rate)).to(x.device)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, its means taken by matrix products.

    OneFlow's CPU kernels take 300 times longer to spread a [N, 1] operand over H columns than a product with a row of ones.
    """

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(flow.ones(size)), nn.Parameter(flow.zeros(size)), eps
        self.register_buffer("column", flow.full((size, 1), 1 / size), persistent=False)
        self.register_buffer("row", flow.ones(1, size), persistent=False)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        x = x - flow.matmul(flow.matmul(x, self.column), self.row)
        deviation = flow.sqrt(flow.matmul(flow.square(x), self.column) + self.eps)
        x = x * flow.matmul(1 / deviation, self.row)
        return (x * self.weight + self.bias).reshape(*shape)


class Outputs(NamedTuple):
    """What the encoder returns.

    hidden: L+1 tensors [B, T, H], the embeddings first. pooled: [B, H], tanh of a linear map of [CLS].
    scores: {layer, from 1: [B, A, T, T]}, Q K^T / sqrt(D) before mask, softmax and dropout, for the layers asked for.
    """

    hidden: list
    scores: dict
    pooled: "flow.Tensor"


class Embeddings(nn.Module):
    """LayerNorm of the sum of word, segment and position vectors, then dropout."""

    def __init__(self, config, dropouts):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, dropouts)

    def forward(self, input_ids, segment_ids):
        T = input_ids.shape[1]
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(segment_ids) + self.position_embeddings.weight[:T]
        return self.dropout(self.LayerNorm(x))


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D) + mask) V, head by head."""

    def __init__(self, config, dropouts):
        super().__init__()
        H, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.dropout = Dropout(config.attention_probs_dropout_prob, dropouts)

    def forward(self, x, mask):  # [B, T, H], [B, 1, 1, T] -> [B, T, H], [B, A, T, T]
        B, T, H = x.shape
        q, k, v = (linear(x).reshape(B, T, self.heads, -1).permute(0, 2, 1, 3) for linear in (self.query, self.key, self.value))
        scores = flow._C.matmul(q, k, transpose_b=True) * (1 / math.sqrt(H // self.heads))
        probabilities = self.dropout(flow.softmax(scores + mask, dim=-1))
        return flow.matmul(probabilities, v).permute(0, 2, 1, 3).reshape(B, T, H), scores


class ResidualOutput(nn.Module):
    """LayerNorm(dropout(linear(x)) + residual)."""

    def __init__(self, size, config, dropouts):
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob, dropouts)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    def __init__(self, config, dropouts):
        super().__init__()
        self.self = SelfAttention(config, dropouts)
        self.output = ResidualOutput(config.hidden_size, config, dropouts)

    def forward(self, x, mask):
        context, scores = self.self(x, mask)
        return self.output(context, x), scores


class Intermediate(nn.Module):
    """gelu(linear(x))."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x):
        return flow._C.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config, dropouts):
        super().__init__()
        self.attention = Attention(config, dropouts)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config, dropouts)

    def forward(self, x, mask):
        x, scores = self.attention(x, mask)
        return self.output(self.intermediate(x), x), scores


class Encoder(nn.Module):
    def __init__(self, config, dropouts):
        super().__init__()
        self.layer = nn.ModuleList([Layer(config, dropouts) for _ in range(config.num_hidden_layers)])


class Pooler(nn.Module):
    """tanh(linear(hidden of [CLS]))."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return flow.tanh(self.dense(hidden[:, 0]))


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
        self.encoder = Encoder(config, dropouts)
        self.pooler = Pooler(config)

    def forward(self, input_ids, input_mask, segment_ids, scores_of=()):
        """Outputs of a batch of int32 tensors [B, T], T up to max_position_embeddings; scores of layers `scores_of`, from 1."""
        B, T = input_ids.shape
        mask = ((1 - input_mask.to(flow.float32)) * -1e4).reshape(B, 1, 1, T)
        hidden, scores = [self.embeddings(input_ids, segment_ids)], {}
        for number, layer in enumerate(self.encoder.layer, 1):
            x, layer_scores = layer(hidden[-1], mask)
            hidden.append(x)
            if number in scores_of:
                scores[number] = layer_scores
        return Outputs(hidden, scores, self.pooler(hidden[-1]))
