"""Batches: which examples, in which order; every draw a function of (seed, epoch).
N examples, B to a batch, T tokens.
"""

from typing import NamedTuple

import numpy as np

from data.encoding import TOKENS
from util import random_stream

COLUMNS = ("domain", "label", "idxs", "weights")

# Batches among which examples of like length meet; the order of windows and of batches stays random:
WINDOW = 50


class Batch(NamedTuple):
    """Records side by side, cut to the longest: int32 [B, T] three times,
    then int32 [B] three times and float32 [B].
    """

    input_ids: np.ndarray
    input_mask: np.ndarray
    segment_ids: np.ndarray
    domain: np.ndarray
    label: np.ndarray
    idxs: np.ndarray
    weights: np.ndarray


class Examples:
    """N examples of which all but the tokens is in memory: `examples["label"]` and so on, and `lengths`;
    tokens are read with a batch.

    Args:
        source: its `read(rows)` gives {name: [B, T]} of TOKENS and more, its `prefetch(rows)` says that they
            will be asked for.
        rows: where each example stands in the source, int [N].
        columns: {name: [N]} of COLUMNS; lengths: real tokens of each, int [N].
    """

    def __init__(self, source, rows, columns, lengths):
        self._source, self._rows, self._columns, self.lengths = source, rows, columns, lengths
        self._beside = None

    @classmethod
    def of_records(cls, records, rows=None):
        """The records at `rows`, rising; None: all of them."""
        rows = np.arange(len(records), dtype=np.int32) if rows is None else rows
        pick = (lambda array: array) if len(rows) == len(records) else (lambda array: array[rows])
        columns = {name: pick(getattr(records, name)) for name in ("domain", "label", "weights")}
        return cls(records, rows, {**columns, "idxs": rows}, pick(records.lengths))

    @classmethod
    def of_arrays(cls, arrays):
        """Records stacked in memory, {name: [N, ...]}."""
        columns = {name: arrays[name].reshape(-1) for name in COLUMNS}
        mask = arrays["input_mask"]
        return cls(_Stacked(arrays), np.arange(len(mask)), columns, mask.sum(axis=1))

    def __getitem__(self, name):
        return self._columns[name]

    def __len__(self):
        return len(self.lengths)

    def take(self, rows):
        """The examples at `rows`, an array of numbers or a slice."""
        columns = {name: column[rows] for name, column in self._columns.items()}
        return Examples(self._source, self._rows[rows], columns, self.lengths[rows])

    def with_columns(self, **columns):
        """The same examples with other values in some columns."""
        return Examples(self._source, self._rows, {**self._columns, **columns}, self.lengths)

    def followed_by(self, others):
        """These examples and after them `others`."""
        columns = {name: np.concatenate([self[name], others[name]]) for name in COLUMNS}
        lengths = np.concatenate([self.lengths, others.lengths])
        return Examples(_Chain(self, others), np.arange(len(lengths)), columns, lengths)

    def read(self, rows):
        """The tokens of the examples at `rows`, int [B]: {name: int32 [B, T]}."""
        return self._source.read(self._rows[rows])

    def prefetch(self, rows):
        """Has the tokens of the examples at `rows` read from the disk meanwhile,
        and what is read beside them.
        """
        self._source.prefetch(self._rows[rows])
        if self._beside:
            self._beside.prefetch(self["idxs"][rows])

    def read_beside(self, knowledge):
        """From now on `prefetch` reads the `knowledge` of the examples too."""
        self._beside = knowledge


class _Stacked:
    """A source in memory."""

    def __init__(self, arrays):
        self._arrays = arrays

    def read(self, rows):
        return {name: self._arrays[name][rows] for name in TOKENS}

    def prefetch(self, rows):
        pass


class _Chain:
    """Two Examples as one source."""

    def __init__(self, first, second):
        self._first, self._second = first, second

    def _parts(self, rows):
        inside = rows < len(self._first)
        return (self._first, inside, rows[inside]), (self._second, ~inside, rows[~inside] - len(self._first))

    def read(self, rows):
        pieces = [(at, part.read(mine)) for part, at, mine in self._parts(rows) if len(mine)]
        T = pieces[0][1][TOKENS[0]].shape[1]
        tokens = {name: np.empty((len(rows), T), np.int32) for name in TOKENS}
        for at, piece in pieces:
            for name in TOKENS:
                tokens[name][at] = piece[name]
        return tokens

    def prefetch(self, rows):
        for part, _, mine in self._parts(rows):
            part.prefetch(mine)


def make_batch(examples, rows):
    """The `rows` of examples, Examples or records stacked in {name: [N, ...]},
    as a Batch, cut to its longest.
    """
    examples = as_examples(examples)
    longest, read = int(examples.lengths[rows].max()), examples.read(rows)
    return Batch(*(read[name][:, :longest] for name in TOKENS), *(examples[name][rows] for name in COLUMNS))


def as_examples(examples):
    """Examples as they are, and records stacked in memory as Examples."""
    return examples if isinstance(examples, Examples) else Examples.of_arrays(examples)


def lengths(examples):
    """Real tokens of each example, int [N]."""
    return as_examples(examples).lengths


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
    """The batches of an epoch, a list of int arrays of row numbers:
    every row once, the last partial batch too.

    The rows are shuffled, then examples of like length share a batch within each window of WINDOW batches, so
    that little padding is computed; then the batches of a window are shuffled. A function of (lengths, seed,
    epoch).
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
    """The corrupted domain labels z of an epoch: its domain labels permuted over all examples (fixed points
    stay). int [N].
    """
    return random_stream(seed, "corruption", epoch).permutation(domains)


def domain_mix(domain, K, seen):
    """Rows that pick a domain's embedding: one-hot for a domain in `seen`, the mean of those seen for
    another, or for K, a domain that is not known. -> float32 [B, K].
    """
    table = np.eye(K + 1, K, dtype=np.float32)
    unseen = [k for k in range(K + 1) if k not in seen]
    table[unseen] = np.isin(np.arange(K), list(seen)) / np.float32(len(seen))
    return table[domain]
