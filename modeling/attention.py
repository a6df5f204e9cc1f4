"""Self-attention over the real tokens of a batch, and its scores, with their gradients by hand.

Letters: B batch, T tokens, N rows, H hidden, A heads, D = H / A, n tokens of one example.
"""

import math

import numpy as np

from modeling import operation
from modeling.operation import Operation, flow, gain, scaled


class Packing:
    """Where the tokens of a batch lie among the rows of the encoder.

    On a CPU the rows are the real tokens alone, example after example, so that padding is never worked on; on other devices all
    B*T tokens. mask: [B, T], 1 at real tokens, which come first in each example.
    """

    def __init__(self, mask):
        self.B, self.T = mask.shape
        if operation.by_hand(mask):
            real = mask.numpy() != 0
            self.lengths = real.sum(axis=1)
            self.places = np.flatnonzero(real)
        else:
            self.lengths = np.full(self.B, self.T)
            self.places = np.arange(self.B * self.T)
            self.mask = ((1 - mask.to(flow.float32)) * -1e4).reshape(self.B, 1, 1, self.T)
        ends = np.cumsum(self.lengths)
        self.starts = ends - self.lengths
        self.examples = [slice(end - n, end) for n, end in zip(self.lengths, ends)]


def _heads(rows, heads):
    """[n, H] -> a view [A, n, D]"""
    return rows.reshape(len(rows), heads, -1).transpose(1, 0, 2)


class SelfAttention(Operation):
    """softmax(Q K^T / sqrt(D)) V of each example over its own tokens: [N, 3H], queries, keys and values side by side -> [N, H].

    The scores of one example lie transposed, [A, keys, queries], and stay in the cache while softmax and dropout pass over
    them: numpy takes maxima down the columns 4 times faster than along the rows.
    """

    def __init__(self, packing, heads, dropout):
        self.packing, self.heads, self.rate = packing, heads, dropout.rate
        self.ends = np.cumsum(heads * packing.lengths ** 2)
        self.kept = dropout.kept(int(self.ends[-1]))

    def _examples(self, qkv):
        """Of each example: its rows, q, k, v as [A, n, D], and where its scores lie in a flat array of all."""
        H = qkv.shape[1] // 3
        for rows, n, end in zip(self.packing.examples, self.packing.lengths, self.ends):
            q, k, v = (_heads(qkv[rows, i * H : (i + 1) * H], self.heads) for i in range(3))
            yield rows, q, k, v, slice(end - self.heads * n * n, end)

    def forward(self, qkv):
        N, H = len(qkv), qkv.shape[1] // 3
        self.scale = np.float32(1 / math.sqrt(H // self.heads))
        context, sums = np.empty((N, H), np.float32), np.empty((N, self.heads), np.float32)
        largest = self.heads * self.packing.T ** 2
        powers = np.empty(self.ends[-1] if self.saving else largest, np.float32)
        dropped = np.empty(largest, np.float32)
        for rows, q, k, v, place in self._examples(qkv):
            n = q.shape[1]
            e = powers[place if self.saving else slice(self.heads * n * n)].reshape(self.heads, n, n)
            np.matmul(k, (q * self.scale).transpose(0, 2, 1), out=e)
            e -= e.max(axis=1, keepdims=True)
            np.exp(e, out=e)
            sums[rows] = np.matmul(np.ones((1, n), np.float32), e)[:, 0].T
            p = e if self.kept is None else np.multiply(e, self.kept[place].reshape(e.shape), out=dropped[: e.size].reshape(e.shape))
            np.matmul(p.transpose(0, 2, 1), v, out=_heads(context[rows], self.heads))
        self.factor = (1 if self.kept is None else gain(self.rate)) / sums
        context.reshape(N, self.heads, -1)[:] *= self.factor[:, :, None]
        if self.saving:
            self.qkv, self.powers, self.context, self.sums = qkv, powers, context, sums
        return context

    def backward(self, dcontext):
        """With P = E / sums and the mask M: dS = E (M dC V^T - rowsum(dC C)) / sums, whose division dC has already had."""
        N, H = dcontext.shape
        dqkv = np.empty((N, 3 * H), np.float32)
        by_head = dcontext.reshape(N, self.heads, -1)
        shift = np.einsum("nad,nad->na", by_head, self.context.reshape(by_head.shape)) / self.sums
        divided = by_head * self.factor[:, :, None]
        buffer = np.empty(self.heads * self.packing.T ** 2, np.float32)
        for (rows, q, k, v, place), (_, dq, dk, dv, _) in zip(self._examples(self.qkv), self._examples(dqkv)):
            n = q.shape[1]
            e, ds = self.powers[place].reshape(self.heads, n, n), buffer[: self.heads * n * n].reshape(self.heads, n, n)
            dc = divided[rows].transpose(1, 0, 2)
            kept = None if self.kept is None else self.kept[place].reshape(e.shape)
            np.matmul(e if kept is None else np.multiply(e, kept, out=ds), dc, out=dv)
            np.matmul(v, dc.transpose(0, 2, 1), out=ds)
            if kept is not None:
                ds *= kept
            ds -= shift[rows].T[:, None, :]
            ds *= e
            np.matmul(ds, q * self.scale, out=dk)
            np.matmul(ds.transpose(0, 2, 1), k * self.scale, out=dq)
        return (dqkv,)

    def formula(self, qkv):
        B, T = self.packing.B, self.packing.T
        q, k, v = (part.reshape(B, T, self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        scores = flow.matmul(q, k.transpose(2, 3)) * (1 / math.sqrt(q.shape[-1])) + self.packing.mask
        p = flow.softmax(scores, dim=-1)
        if self.kept is not None:
            p = p * scaled(self.kept, self.rate, qkv.device).reshape(p.shape).transpose(2, 3)
        return flow.matmul(p, v).transpose(1, 2).reshape(B * T, -1)


class Scores(Operation):
    """Q K^T / sqrt(D), before mask, softmax and dropout, 0 at padding: [N, 3H] -> [B, A, T, T], or the mean over heads [B, T, T].

    The mean over heads is one product over all of H: no matrix of a single head is made.
    """

    def __init__(self, packing, heads, mean_over_heads):
        self.packing, self.heads, self.mean = packing, heads, mean_over_heads
        self.parts = 1 if mean_over_heads else heads

    def _scale(self, H):
        return np.float32(1 / math.sqrt(H // self.heads) / (self.heads if self.mean else 1))

    def forward(self, qkv):
        B, T, H = self.packing.B, self.packing.T, qkv.shape[1] // 3
        self.qkv = qkv
        scores = np.zeros((B, self.parts, T, T), np.float32)
        for rows, n, out in zip(self.packing.examples, self.packing.lengths, scores):
            q, k = _heads(qkv[rows, :H], self.parts), _heads(qkv[rows, H : 2 * H], self.parts)
            out[:, :n, :n] = q * self._scale(H) @ k.transpose(0, 2, 1)
        return scores[:, 0] if self.mean else scores

    def backward(self, dscores):
        H = self.qkv.shape[1] // 3
        dqkv = np.zeros_like(self.qkv)
        dscores = dscores.reshape(len(dscores), self.parts, *dscores.shape[-2:])
        for rows, n, ds in zip(self.packing.examples, self.packing.lengths, dscores):
            (q, k), (dq, dk) = ([_heads(x[rows, i * H : (i + 1) * H], self.parts) for i in (0, 1)] for x in (self.qkv, dqkv))
            np.matmul(ds[:, :n, :n], k * self._scale(H), out=dq)
            np.matmul(ds[:, :n, :n].transpose(0, 2, 1), q * self._scale(H), out=dk)
        return (dqkv,)

    def formula(self, qkv):
        B, T, H = self.packing.B, self.packing.T, qkv.shape[1] // 3
        q, k = (part.reshape(B, T, self.parts, -1).transpose(1, 2) for part in (qkv[:, :H], qkv[:, H : 2 * H]))
        scores = flow.matmul(q, k.transpose(2, 3)) * float(self._scale(H))
        return scores[:, 0] if self.mean else scores


class Unpack(Operation):
    """Rows back in their batch: [N, H] -> [B, T, H], 0 at padding."""

    def __init__(self, packing):
        self.packing = packing

    def forward(self, rows):
        B, T, H = self.packing.B, self.packing.T, rows.shape[1]
        if len(rows) == B * T:
            return rows.reshape(B, T, H)
        batch = np.zeros((B * T, H), np.float32)
        batch[self.packing.places] = rows
        return batch.reshape(B, T, H)

    def backward(self, dbatch):
        rows = dbatch.reshape(-1, dbatch.shape[-1])
        return (rows if len(rows) == len(self.packing.places) else rows[self.packing.places],)

    def formula(self, rows):
        return rows.reshape(self.packing.B, self.packing.T, -1)
