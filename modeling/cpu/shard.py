"""A shard of a batch on its way through all layers, forward and backward, in one thread.

Letters: B batch, T tokens, H hidden, A heads, L layers; of the shard: b examples, N rows (tokens).
"""

import numpy as np

from modeling.cpu.attention import Scores, SelfAttention, make_groups
from modeling.cpu.layers import FeedForward, LayerNorm, Linear

TABLES = ("word", "position", "token_type")


class Shard:
    """Some examples of a batch, which go through all layers in one thread without waiting for the others.

    Its rows are the real tokens alone, example after example: padding is never worked on.
    """

    def __init__(self, number, examples, lengths, ids, segments, weights, config, dropout, wanted, saving):
        self.number, self.examples, self.lengths = number, examples, lengths
        self.weights, self.config, self.dropout = weights, config, dropout
        self.wanted, self.saving = wanted, saving
        self.starts = np.cumsum(lengths) - lengths  # where each [CLS] stands
        self.groups = make_groups(lengths, config.num_attention_heads)
        self.ids = np.concatenate([ids[i, :n] for i, n in zip(examples, lengths)])
        self.segments = np.concatenate([segments[i, :n] for i, n in zip(examples, lengths)])
        self.positions = np.concatenate([np.arange(n) for n in lengths])

    def forward(self, outputs):
        """Puts its examples into the outputs of the batch, {name: array}."""
        wanted, L = self.wanted, self.config.num_hidden_layers
        self.embeddings, self.layers = Embeddings(self), []
        x = self.embeddings.forward(self.ids, self.positions, self.segments)  # [N, H]
        for number in range(1, L + 1):
            layer = Layer(self, number, cls_only=number == L and not wanted.last_hidden)
            x = layer.forward(x, outputs.get(("scores", number)))
            if number in wanted.hidden_of:
                self._put(x, outputs["hidden", number])
            if self.saving:
                self.layers.append(layer)
        if wanted.last_hidden:
            self._put(x, outputs["last_hidden", None])
        self.pooler = Linear("pooler.dense", self.weights)
        self.cls = x[self.starts] if wanted.last_hidden else x  # [b, H]
        self.pooled = np.tanh(self.pooler.forward(self.cls))
        outputs["pooled", None][self.examples] = self.pooled

    def backward(self, doutputs, sums):
        """The way back, from the gradients of the outputs, {name: array},
        to the `sums` of those of the weights.
        """
        gradients = Gradients(sums, self.number)
        dpooled = doutputs["pooled", None][self.examples] * (1 - self.pooled * self.pooled)
        dx = self.pooler.backward(dpooled, self.cls, gradients)  # [b, H]
        if self.wanted.last_hidden:
            dx = self.spread(dx)  # [N, H]
            dx += self._take(doutputs["last_hidden", None])
        for number in range(len(self.layers), 0, -1):
            if number in self.wanted.hidden_of:
                dx += self._take(doutputs["hidden", number])
            layer, below = self.layers.pop(), self.layers[-1] if self.layers else self.embeddings
            dx = layer.backward(dx, below.output(), doutputs.get(("scores", number)), gradients)
        self.embeddings.backward(dx, gradients)

    def spread(self, rows):
        """Rows of [CLS] alone, [b, H], among zeros: [N, H]."""
        spread = np.zeros((len(self.ids), rows.shape[1]), np.float32)
        spread[self.starts] = rows
        return spread

    def _put(self, rows, batch):
        """Rows [N, H] into their places in [B, T, H]."""
        for example, start, n in zip(self.examples, self.starts, self.lengths):
            batch[example, :n] = rows[start : start + n]

    def _take(self, batch):
        """The rows [N, H] of [B, T, H]."""
        return np.concatenate([batch[example, :n] for example, n in zip(self.examples, self.lengths)])


class Gradients:
    """Where the kernels of shard `number` leave the gradients of weights."""

    def __init__(self, sums, number):
        self.sums, self.number = sums, number

    def add(self, name, array):
        self.sums.add(name, self.number, array)


class Embeddings:
    """dropout(LayerNorm(word + position + segment vectors)) -> [N, H]."""

    def __init__(self, shard):
        config, self.weights, self.saving = shard.config, shard.weights, shard.saving
        self.norm = LayerNorm("embeddings.LayerNorm", shard.weights, config.layer_norm_eps, shard.saving)
        self.mask = shard.dropout.mask(shard.lengths * config.hidden_size, config.hidden_dropout_prob)

    def forward(self, *places):
        self.places = places  # [N] each, by TABLES
        x, *more = (
            self.weights[f"embeddings.{table}_embeddings.weight"][rows] for table, rows in zip(TABLES, places)
        )  # [N, H] each
        for rows in more:
            x += rows
        y = self.norm.forward(x)
        if self.mask is not None:
            self.mask.apply(y, 0, y)
        if self.saving:
            self.y = y
        return y

    def output(self):
        """What `forward` returned."""
        return self.y

    def backward(self, dy, gradients):
        """Leaves the rows' gradients in `drows`, [N, H]:
        those of all shards are merged before they go to the tables.
        """
        if self.mask is not None:
            self.mask.apply(dy, 0, dy)
        self.drows, _ = self.norm.backward(dy, gradients)


class Layer:
    """One of L layers at work on a shard: self-attention, then the feed-forward part,
    each added to its input and normalised.

    `backward` reads as `forward` from bottom to top. With `cls_only` the rows of [CLS] alone go on after the
    attention.
    """

    def __init__(self, shard, number, cls_only):
        config, weights, saving = shard.config, shard.weights, shard.saving
        name = f"encoder.layer.{number - 1}"
        A, wanted = config.num_attention_heads, shard.wanted
        self.spread, self.starts, self.cls_only = shard.spread, shard.starts, cls_only
        mask = shard.dropout.mask(A * shard.lengths**2, config.attention_probs_dropout_prob)

        def norm(module):
            tokens = np.ones_like(shard.lengths) if cls_only else shard.lengths
            mask = shard.dropout.mask(tokens * config.hidden_size, config.hidden_dropout_prob)
            return LayerNorm(f"{name}.{module}.LayerNorm", weights, config.layer_norm_eps, saving, mask)

        self.projections = Linear(f"{name}.attention.self", weights)
        self.attention = SelfAttention(shard.groups, A, saving, mask)
        self.scores = (
            Scores(shard.examples, shard.lengths, A, wanted.mean_over_heads)
            if number in wanted.scores_of
            else None
        )
        self.attention_dense = Linear(f"{name}.attention.output.dense", weights)
        self.attention_norm = norm("attention.output")
        self.feed_forward = FeedForward(f"{name}.intermediate.dense", f"{name}.output.dense", weights, saving)
        self.output_norm = norm("output")

    def forward(self, x, scores):
        """[N, H] -> [N, H], or [b, H] of [CLS] alone; `scores`: where those of the batch go, or None."""
        qkv = self.projections.forward(x)  # [N, 3H]
        if scores is not None:
            self.scores.forward(qkv, scores)
        context = self.attention.forward(qkv)  # [N, H]
        if self.cls_only:
            context, x = context[self.starts], x[self.starts]  # [b, H]
        x = self.attention_norm.forward(self.attention_dense.forward(context), x)  # as context
        return self.output_norm.forward(self.feed_forward.forward(x), x)

    def output(self):
        """What `forward` returned, made again rather than kept."""
        return self.output_norm.output()

    def backward(self, dy, x, dscores, gradients):
        """[N, H] -> [N, H]; x: what `forward` had; dscores: the gradient of the batch's scores, or None."""
        # the feed-forward part: dx is what goes around it, [N, H] or [b, H]
        dinner, dx = self.output_norm.backward(dy, gradients)
        dx += self.feed_forward.backward(dinner, self.attention_norm.output(), gradients)

        # self-attention
        dcontext, dx = self.attention_norm.backward(dx, gradients)
        context = self.attention.context[self.starts] if self.cls_only else self.attention.context
        dcontext = self.attention_dense.backward(dcontext, context, gradients)
        if self.cls_only:
            dcontext, dx = self.spread(dcontext), self.spread(dx)  # [N, H]
        dqkv = self.attention.backward(dcontext)  # [N, 3H]
        if dscores is not None:
            self.scores.backward(dscores, dqkv)
        dx += self.projections.backward(dqkv, x, gradients)
        return dx
