"""Self-attention over the real tokens of a shard, and its scores, each with its backward pass.

Letters: N rows of a shard, H hidden, A heads, D = H / A; E examples of one length that are worked on
    together, n their tokens.
"""

import math
from typing import NamedTuple

import numpy as np

STACK = 1 << 16  # scores that are worked on together at most, unless one example has more


class Group(NamedTuple):
    """E examples of n tokens that stand side by side.

    rows: theirs; scores: where theirs lie in a flat array of all.
    """

    E: int
    n: int
    rows: slice
    scores: slice


def make_groups(lengths: np.ndarray, A: int) -> list:
    """The examples of a shard, int [B] tokens each, in Groups:
    runs of one length whose scores stay in the cache together.

    Below about 32 tokens one stacked product for several examples is faster than one for each, above it is
    slower.
    """
    groups, first, row, score = [], 0, 0, 0
    while first < len(lengths):
        n, E = int(lengths[first]), 1
        most = max(1, STACK // (A * n * n))
        while E < most and first + E < len(lengths) and lengths[first + E] == n:
            E += 1
        groups.append(Group(E, n, slice(row, row + E * n), slice(score, score + E * A * n * n)))
        first, row, score = first + E, row + E * n, score + E * A * n * n
    return groups


def by_head(rows: np.ndarray, group: Group, A: int) -> np.ndarray:
    """The rows of a group, [E*n, H], as a view [E, A, n, D]."""
    return rows.reshape(group.E, group.n, A, -1).transpose(0, 2, 1, 3)


def query_key_value(qkv: np.ndarray, group: Group, A: int) -> list:
    """Queries, keys and values of a group, each a view [E, A, n, D],
    of [N, 3H] where they stand side by side.
    """
    H = qkv.shape[1] // 3
    return [by_head(qkv[group.rows, i * H : (i + 1) * H], group, A) for i in range(3)]


def transposed(x: np.ndarray) -> np.ndarray:
    """The last two axes exchanged, a view."""
    return x.swapaxes(-1, -2)


class SelfAttention:
    """softmax(Q K^T / sqrt(D)) V of each example over its own tokens: [N, 3H] -> [N, H].

    The scores lie transposed, [E, A, keys, queries], and stay in the cache while softmax and dropout pass
    over them: numpy takes maxima down the columns 4 times faster than along the rows. Softmax is exp(scores)
    / sums, and the division waits until the product with V, which has fewer elements.
    """

    def __init__(self, groups, A, saving, mask=None):
        self.groups, self.A, self.saving, self.mask = groups, A, saving, mask
        self.largest = max(group.scores.stop - group.scores.start for group in groups)

    def forward(self, qkv):
        N, H, A = len(qkv), qkv.shape[1] // 3, self.A
        self.scale = np.float32(1 / math.sqrt(H // A))
        context, sums = np.empty((N, H), np.float32), np.empty((N, A), np.float32)
        powers = np.empty(self.groups[-1].scores.stop if self.saving else self.largest, np.float32)
        dropped = np.empty(self.largest, np.float32)
        for group in self.groups:
            q, k, v = query_key_value(qkv, group, A)  # [E, A, n, D] each
            e = self._scores(powers, group)  # [E, A, keys, queries]
            np.matmul(k, transposed(q * self.scale), out=e)  # K Q^T / sqrt(D): the scores, transposed
            e -= e.max(axis=-2, keepdims=True)  # down the keys of each query: no power is above 1
            np.exp(e, out=e)
            ones = np.ones((1, group.n), np.float32)
            total = np.matmul(ones, e)[:, :, 0]  # sums over the keys, [E, A, queries]
            sums[group.rows].reshape(group.E, group.n, A)[:] = total.swapaxes(1, 2)
            p = self._dropout(e, group, dropped)  # [E, A, keys, queries]
            np.matmul(transposed(p), v, out=by_head(context[group.rows], group, A))  # [E, A, n, D]
        self.factor = (1 if self.mask is None else self.mask.scale) / sums  # [N, A], of softmax and dropout
        context.reshape(N, A, -1)[:] *= self.factor[:, :, None]  # [N, A, D]
        if self.saving:
            self.qkv, self.powers, self.context, self.sums = qkv, powers, context, sums
        return context

    def _scores(self, flat, group):
        """The scores of a group, [E, A, n, n], in the array of all or, where nothing is kept,
        in the one that all share.
        """
        size = group.E * self.A * group.n * group.n
        place = group.scores if self.saving else slice(size)
        return flat[place].reshape(group.E, self.A, group.n, group.n)

    def _keep(self, group):
        return self.mask.keep[group.scores].reshape(group.E, self.A, group.n, group.n)

    def _dropout(self, e, group, buffer):
        """e with what is dropped set to 0, in the buffer; not yet scaled up."""
        if self.mask is None:
            return e
        return np.multiply(e, self._keep(group), out=buffer[: e.size].reshape(e.shape))

    def backward(self, dcontext):
        """With P = E / sums and the mask M: dS = E (M dC V^T - rowsum(dC C)) / sums,
        whose division dC has already had.
        """
        N, H, A = *dcontext.shape, self.A
        dqkv, heads = np.empty((N, 3 * H), np.float32), dcontext.reshape(N, A, -1)
        shift = np.einsum("nad,nad->na", heads, self.context.reshape(heads.shape)) / self.sums  # [N, A]
        divided = (heads * self.factor[:, :, None]).reshape(N, H)  # dC / sums, [N, H]
        buffer = np.empty(self.largest, np.float32)
        for group in self.groups:
            q, k, v = query_key_value(self.qkv, group, A)  # [E, A, n, D] each
            dq, dk, dv = query_key_value(dqkv, group, A)  # views, written in place
            e, dc = self._scores(self.powers, group), by_head(divided[group.rows], group, A)
            ds = buffer[: e.size].reshape(e.shape)  # [E, A, keys, queries]
            np.matmul(self._dropout(e, group, buffer), dc, out=dv)  # dV = P^T dC
            np.matmul(v, transposed(dc), out=ds)  # dP = dC V^T, transposed
            if self.mask is not None:
                ds *= self._keep(group)
            row_shift = shift[group.rows].reshape(group.E, group.n, A).swapaxes(1, 2)  # [E, A, queries]
            ds -= row_shift[:, :, None, :]
            ds *= e  # the gradient of the scores
            np.matmul(ds, q * self.scale, out=dk)  # dK = dS^T Q / sqrt(D)
            np.matmul(transposed(ds), k * self.scale, out=dq)  # dQ = dS K / sqrt(D)
        return dqkv


class Scores:
    """Q K^T / sqrt(D) before mask, softmax and dropout, into the outputs of the whole batch,
    which are 0 at padding.

    Args:
        examples: of the shard, their numbers in the batch; ends: the rows of example i end at ends[i].
        heads: A, or 1 for the mean over the heads, which is one product over all of H: no matrix of a single
            head is made.
    """

    def __init__(self, examples, lengths, A, mean_over_heads):
        ends = np.cumsum(lengths)
        self.places = [
            (example, Group(1, int(n), slice(end - n, end), None))
            for example, n, end in zip(examples, lengths, ends)
        ]
        self.A, self.parts = A, 1 if mean_over_heads else A

    def _scale(self, H):
        return np.float32(self.parts / self.A / math.sqrt(H // self.A))

    def forward(self, qkv, scores):
        """scores: [B, parts, T, T], where those of this shard are put."""
        self.qkv = qkv
        for example, group in self.places:
            q, k, _ = query_key_value(qkv, group, self.parts)  # [1, parts, n, H / parts] each
            scaled = q * self._scale(qkv.shape[1] // 3)
            scores[example, :, : group.n, : group.n] = (scaled @ transposed(k))[0]  # [parts, n, n]

    def backward(self, dscores, dqkv):
        """Adds to dqkv, [N, 3H], what comes back by dscores, [B, parts, T, T]."""
        scale = self._scale(dqkv.shape[1] // 3)
        for example, group in self.places:
            q, k, _ = query_key_value(self.qkv, group, self.parts)
            dq, dk, _ = query_key_value(dqkv, group, self.parts)
            ds = dscores[example, :, : group.n, : group.n]  # [parts, queries, keys]
            dq += ds @ (k * scale)
            dk += transposed(ds) @ (q * scale)
