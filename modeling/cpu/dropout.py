"""Dropout on the rows of a shard: the masks of `modeling.bert.dropout`,
example after example without padding.
"""

import numpy as np

from modeling.bert.dropout import draw, inverse_keep_prob


class ShardDropout:
    """Draws the masks of one shard, from the streams of its examples in their order.

    Args:
        streams: a random stream of each example, or None in eval mode, where nothing is dropped.
    """

    def __init__(self, streams):
        self.streams = streams

    def mask(self, sizes, rate: float):
        """A Mask for `sizes[i]` values of example i, one example after the other;
        None where nothing is dropped.
        """
        if self.streams is None or not rate:
            return None
        keep, end = np.empty(int(sum(sizes)), bool), 0
        for stream, size in zip(self.streams, sizes):
            draw(stream, rate, keep[end : end + size])
            end += size
        return Mask(keep, inverse_keep_prob(rate))


class Mask:
    """keep: a flat array of bool; scale: what kept values are multiplied by."""

    def __init__(self, keep, scale):
        self.keep, self.scale = keep, scale

    def apply(self, x, start, out):
        """out = dropout(x), x being the values from `start` on; `out` may be x."""
        keep = self.keep[start : start + x.size].reshape(x.shape)
        np.multiply(x, keep, out=out)
        out *= self.scale
