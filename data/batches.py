"""Batches: which examples, in which order; every draw a function of (seed, epoch). N examples, B to a batch, T tokens."""

from typing import NamedTuple

import numpy as np

from util import random_stream

WINDOW = (
    50  # batches among which examples of like length meet; the order of windows and of batches stays random
)


class Batch(NamedTuple):
    """Records side by side, cut to the longest: int32 [B, T] three times, then int32 [B] three times and float32 [B]."""

    input_ids: np.ndarray
    input_mask: np.ndarray
    segment_ids: np.ndarray
    domain: np.ndarray
    label: np.ndarray
    idxs: np.ndarray
    weights: np.ndarray


def make_batch(arrays, rows):
    """The `rows` of records stacked in `arrays` ({name: [N, ...]}) as a Batch, cut to its longest example."""
    longest = int(arrays["input_mask"][rows].sum(axis=1).max())
    tokens = (arrays[name][rows, :longest] for name in ("input_ids", "input_mask", "segment_ids"))
    single = (arrays[name][rows].reshape(len(rows)) for name in ("domain", "label", "idxs", "weights"))
    return Batch(*tokens, *single)


def lengths(arrays):
    """Real tokens of each record, int [N]."""
    return arrays["input_mask"].sum(axis=1)


def content_mask(input_mask, segment_ids):
    """1 at the tokens of the text or texts, 0 at [CLS], [SEP] and padding. int [B, T] -> int32 [B, T].

    [CLS] stands first, a [SEP] last and, in a pair, another one last in segment 0.
    """
    mask = input_mask.copy()
    rows, n = np.arange(len(mask)), input_mask.sum(axis=1)
    first = (input_mask * (1 - segment_ids)).sum(axis=1)  # tokens of segment 0
    mask[:, 0] = mask[rows, n - 1] = mask[rows, first - 1] = 0
    return mask


def epoch_batches(lengths, batch_size, seed, epoch):
    """The batches of an epoch, a list of int arrays of row numbers: every row once, the last partial batch too.

    The rows are shuffled, then examples of like length share a batch within each window of WINDOW batches, so that little
    padding is computed; then the batches of a window are shuffled. A function of (lengths, seed, epoch).
    """
    stream = random_stream(seed, "order", epoch)
    order, batches = stream.permutation(len(lengths)), []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(-lengths[window], kind="stable")]
        cut = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        batches += [cut[i] for i in stream.permutation(len(cut))]
    return batches


def corrupted_domains(domains, seed, epoch):
    """The corrupted domain labels z of an epoch: its domain labels permuted over all examples (fixed points stay). int [N]."""
    return random_stream(seed, "corruption", epoch).permutation(domains)


def domain_mix(domain, K, seen):
    """Rows that pick a domain's embedding: one-hot for a domain in `seen`, the mean of those seen for another, or for K, a domain that is
    not known. -> float32 [B, K]."""
    table = np.eye(K + 1, K, dtype=np.float32)
    unseen = [k for k in range(K + 1) if k not in seen]
    table[unseen] = np.isin(np.arange(K), list(seen)) / np.float32(len(seen))
    return table[domain]
