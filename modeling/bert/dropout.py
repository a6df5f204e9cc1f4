"""Dropout whose masks are a function of a key, so that a resumed run draws what the first would have.

Every example of a batch has a random stream of its own, keyed by (seed, step, rank, ranks, batch of the step,
example), and takes its masks from it in the order in which the layers come. So the masks do not depend on how
much padding the example has, which examples a thread works on, or which encoder asks: `BertModel` and the
encoder for CPUs draw the same bits. The heads, whose inputs are one row to an example, share one more stream.
"""

import numpy as np

from data.engine import load_oneflow
from util import random_stream

flow = load_oneflow()

HEADS_STREAM = 0  # the place of the heads' stream; example i has the place i + 1


class DropoutMasks:
    """Where the masks of one model come from. `open_step` opens a step of training,
    `open_batch` a batch in it.
    """

    def __init__(self):
        self.open_step(0, 0)

    def open_step(self, seed: int, step: int, rank: int = 0, ranks: int = 1):
        """The draws from now on belong to `step`, in rank `rank` of `ranks`."""
        self._key, self._batch = (seed, step, rank, ranks), -1

    def open_batch(self, lengths):
        """The draws from now on are the next batch's, whose examples have `lengths` real tokens, int [B]."""
        self._batch += 1
        self.lengths = lengths
        self.streams = [self._stream(i + 1) for i in range(len(lengths))]
        self._heads = self._stream(HEADS_STREAM)

    def _stream(self, place):
        seed, *rest = self._key
        return random_stream(seed, "dropout", *rest, self._batch, place)

    def hidden(self, T: int, H: int, rate: float) -> np.ndarray:
        """[B, T, H] of bool for the first T tokens of each example; padding is kept."""
        masks = np.ones((len(self.lengths), T, H), bool)
        for mask, n, stream in zip(masks, self.lengths, self.streams):
            n = min(n, T)
            draw(stream, rate, mask[:n].reshape(-1))
        return masks

    def attention(self, A: int, T: int, rate: float) -> np.ndarray:
        """[B, A, T, T] of bool for queries and keys. An example's n x n are drawn key by key,
        as the CPU has them.
        """
        masks = np.ones((len(self.lengths), A, T, T), bool)
        for mask, n, stream in zip(masks, self.lengths, self.streams):
            drawn = draw(stream, rate, np.empty(A * n * n, bool)).reshape(A, n, n)  # [A, keys, queries]
            mask[:, :n, :n] = drawn.transpose(0, 2, 1)
        return masks

    def heads(self, shape: tuple, rate: float) -> np.ndarray:
        """A mask of `shape`, of bool, for what a head works on."""
        return draw(self._heads, rate, np.empty(int(np.prod(shape)), bool)).reshape(shape)


def draw(stream, rate: float, out: np.ndarray) -> np.ndarray:
    """Fills `out`, a flat array of bool, from the stream:
    False with probability `rate`, to the nearest 1/65536.

    Four values from each 64 bits. numpy's `integers` lets other Python threads run meanwhile; `random_raw`
    would not.
    """
    bits = stream.integers(0, 2**64, (out.size + 3) // 4, dtype=np.uint64)
    return np.greater_equal(bits.view(np.uint16)[: out.size], round(rate * 65536), out=out)


def inverse_keep_prob(rate: float) -> np.float32:
    """What kept values are multiplied by, 1 / (1 - rate), with the rate that `draw` really has."""
    return np.float32(65536 / (65536 - round(rate * 65536)))


class Dropout(flow.nn.Module):
    """x * mask / (1 - rate) in training mode, x in eval mode or at rate 0.

    Args:
        rate: the share of values that become 0.
        draw_mask: takes (shape of x, rate) to a mask of that shape.
    """

    def __init__(self, rate: float, draw_mask):
        super().__init__()
        self.rate, self.draw_mask = rate, draw_mask

    def forward(self, x):
        if not (self.training and self.rate):
            return x
        mask = self.draw_mask(tuple(x.shape), self.rate)
        factor = np.multiply(mask, inverse_keep_prob(self.rate), dtype=np.float32)
        return x * flow.from_numpy(factor).to(x.device)
