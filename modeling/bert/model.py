"""BERT's encoder (Devlin et al., 2018) in OneFlow's own modules and operators,
by the names of Hugging Face's BertModel.

It runs on any device. On a CPU the encoder of `modeling.cpu`, which has the same parameters and outputs, is
several times faster.

Letters: B batch, T tokens, H hidden, A heads, D = H / A, L layers.
"""

import math
import zlib
from typing import NamedTuple, Optional

import numpy as np

from data.engine import load_oneflow
from modeling.bert.dropout import Dropout
from util import random_stream

flow = load_oneflow()
nn = flow.nn

MASKED = -1e4  # added to the scores of padding, whose softmax becomes 0


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch. Layers count from 1; what stands at padding has no meaning.

    pooled: [B, H], tanh of a linear map of [CLS]. last_hidden: [B, T, H], or None where it was not asked for.
    hidden: {layer: [B, T, H]} for the layers asked for. scores: {layer: [B, A, T, T]}, Q K^T / sqrt(D) before
        mask, softmax and dropout, for the layers asked for; or their means over the heads, [B, T, T].
    """

    pooled: "flow.Tensor"
    last_hidden: Optional["flow.Tensor"]
    hidden: dict
    scores: dict


class BertEmbeddings(nn.Module):
    """The sum of a word's, a position's and a segment's vector, normalised."""

    def __init__(self, config, masks):
        super().__init__()
        H = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, H)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, H)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, H)
        self.LayerNorm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = hidden_dropout(config, masks)

    def forward(self, input_ids, token_type_ids):
        positions = flow.arange(input_ids.shape[1], device=input_ids.device)  # [T]
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)  # [B, T, H]
        x = x + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V of each head."""

    def __init__(self, config, masks):
        super().__init__()
        H = config.hidden_size
        self.query, self.key, self.value = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.heads = config.num_attention_heads

        def draw_mask(shape, rate):
            return masks.attention(shape[1], shape[2], rate)

        self.dropout = Dropout(config.attention_probs_dropout_prob, draw_mask)

    def forward(self, x, bias):
        q, k, v = (self.by_head(linear(x)) for linear in (self.query, self.key, self.value))  # [B, A, T, D]
        scores = flow.matmul(q, k, transpose_b=True) * (1 / math.sqrt(q.shape[-1]))  # [B, A, T, T]
        p = self.dropout(flow.softmax(scores + bias, dim=-1))
        context = flow.matmul(p, v).transpose(1, 2)  # [B, T, A, D]
        return context.reshape(*x.shape), scores

    def by_head(self, x):
        """[B, T, H] -> [B, A, T, D]"""
        B, T, H = x.shape
        return x.reshape(B, T, self.heads, H // self.heads).transpose(1, 2)


class BertOutput(nn.Module):
    """A linear map, added to `residual` and normalised: the end of both halves of a layer."""

    def __init__(self, config, masks, inputs):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = hidden_dropout(config, masks)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertLayer(nn.Module):
    """Self-attention, then two linear maps around a GELU."""

    def __init__(self, config, masks):
        super().__init__()
        H, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.Module()
        self.attention.self = BertSelfAttention(config, masks)
        self.attention.output = BertOutput(config, masks, H)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(H, inner)
        self.output = BertOutput(config, masks, inner)

    def forward(self, x, bias, cls_only=False):
        """[B, T, H] -> [B, T, H], or [B, 1, H] where only [CLS] goes on after attention; and the scores."""
        context, scores = self.attention.self(x, bias)
        if cls_only:
            context, x = context[:, :1], x[:, :1]
        x = self.attention.output(context, x)
        inner = nn.functional.gelu(self.intermediate.dense(x))  # [B, T, inner]
        return self.output(inner, x), scores


class BertPooler(nn.Module):
    """tanh of a linear map of [CLS]."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x):
        return flow.tanh(self.dense(x[:, 0]))


class BertModel(nn.Module):
    """The encoder. `masks`, a DropoutMasks, is where its dropout comes from; heads may share it."""

    threads = None  # of the encoder for CPUs: who does the work in numpy

    def __init__(self, config, masks):
        super().__init__()
        self.config, self.masks = config, masks
        self.embeddings = BertEmbeddings(config, masks)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            [BertLayer(config, masks) for _ in range(config.num_hidden_layers)]
        )
        self.pooler = BertPooler(config)

    def forward(
        self,
        input_ids,
        attention_mask,
        token_type_ids,
        scores_of=(),
        hidden_of=(),
        mean_over_heads=False,
        last_hidden=True,
    ) -> EncoderOutput:
        """EncoderOutput of a batch.

        Args:
            input_ids, attention_mask, token_type_ids: int32 [B, T], real tokens first.
            scores_of, hidden_of: the layers whose attention scores and hidden states are wanted, from 1.
            mean_over_heads: whether scores are averaged over the heads.
            last_hidden: whether the last hidden states are wanted. Where not, only [CLS] goes through the
                last layer to its end.
        """
        last_hidden = last_hidden or len(self.encoder.layer) in hidden_of
        if self.training:
            self.masks.open_batch(attention_mask.numpy().sum(axis=1))
        bias = ((1 - attention_mask.to(flow.float32)) * MASKED).unsqueeze(1).unsqueeze(1)  # [B, 1, 1, T]
        x, hidden, scores = self.embeddings(input_ids, token_type_ids), {}, {}
        for number, layer in enumerate(self.encoder.layer, 1):
            is_last = number == len(self.encoder.layer)
            x, found = layer(x, bias, cls_only=is_last and not last_hidden)
            if number in scores_of:
                scores[number] = found.mean(dim=1) if mean_over_heads else found
            if number in hidden_of:
                hidden[number] = x
        return EncoderOutput(self.pooler(x), x if last_hidden else None, hidden, scores)


def hidden_dropout(config, masks) -> Dropout:
    """The Dropout of hidden states, [B, T, H]."""
    return Dropout(config.hidden_dropout_prob, lambda shape, rate: masks.hidden(shape[1], shape[2], rate))


def init_weights(module, seed: int, std: float):
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
