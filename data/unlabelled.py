"""Texts without labels, which the teacher labels softly: a TSV with the task's text columns and, where it is
known, the domain.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from data.batches import Examples
from data.encoding import TOKENS, encode_rows
from data.lines import check_texts, lookup_index, open_text, split_fields
from data.selection import describe_cut, domain_mask
from util import UserError

SIZE = 4096  # texts to a block


def text_parser(task, path):
    """What takes (line, bytes) of the TSV at `path` to (text, second text or None, domain, label 0).

    Its header names the text columns and, perhaps, the domain's. The domain is its index in the task, or K,
    the number of domains, where it is not known; with one domain it is always known.

    Raises:
        UserError: another header; the function: a fault, with file and line.
    """
    domains = {name: k for k, name in enumerate(task.domains)}
    unknown = len(domains) if len(domains) > 1 else 0
    with open_text(path, "texts: check --unlabelled_file") as file:
        header = split_fields(path, 1, file.readline())
    if sorted(header) not in (sorted(task.text), sorted((*task.text, task.domain))):
        raise UserError(
            f"{path}:1: found {', '.join(map(repr, header))[:200]}, expected a header with "
            f"{', '.join(task.text)} "
            f"and, if it is known, {task.domain}, separated by tabs."
        )

    def parse(line, raw):
        row = dict(zip(header, split_fields(path, line, raw, header)))
        domain = unknown
        if task.domain in row:
            domain = lookup_index(path, line, task.domain, row[task.domain], domains)
        texts = [row[name] for name in task.text]
        check_texts(path, line, task.text, texts)
        return texts[0], texts[1] if len(texts) == 2 else None, domain, 0

    return parse


def _rows(path):
    with open_text(path, "texts: check --unlabelled_file") as file:
        file.readline()
        yield from enumerate(file, 2)


class PackedTexts:
    """Features without their padding, in memory: 2 or 4 bytes a token. N texts, T = seq_length."""

    def __init__(self, blocks, seq_length, vocab_size, pad):
        kind = np.uint16 if vocab_size <= 1 << 16 else np.int32
        ids, lengths, firsts, domains = [np.empty(0, kind)], [], [], [np.empty(0, np.int32)]
        self.cut = 0  # texts that were longer than T tokens
        for block in blocks:
            mask = block["input_mask"] > 0  # [n, T]
            self.cut += int(block["was_cut"].sum())
            ids.append(block["input_ids"][mask].astype(kind))
            lengths.append(mask.sum(axis=1))
            firsts.append((mask & (block["segment_ids"] == 0)).sum(axis=1))
            domains.append(block["domain"])
        self.domain = np.concatenate(domains)
        self.lengths = np.concatenate([np.empty(0, np.int32), *lengths]).astype(np.int32)
        # tokens of segment 0
        self._firsts = np.concatenate([np.empty(0, np.int32), *firsts]).astype(np.int32)
        self._ids, self._ends = np.concatenate(ids), np.cumsum(self.lengths)
        self._T, self._pad = seq_length, pad

    def read(self, rows):
        """The features of the texts at `rows`, int [B]: {name: int32 [B, T]}."""
        size, place = self.lengths[rows, None], np.arange(self._T)
        mask = place < size  # [B, T]
        ids = np.full(mask.shape, self._pad, np.int32)
        ids[mask] = self._ids[((self._ends[rows, None] - size) + place)[mask]]
        segments = mask & (place >= self._firsts[rows, None])
        return dict(zip(TOKENS, (ids, mask.astype(np.int32), segments.astype(np.int32))))

    def prefetch(self, rows):
        """They are in memory."""

    def sha256(self):
        """Of the features of all texts, name by name, and of their domains, as int32."""
        digest = hashlib.sha256()
        for name in TOKENS:
            for start in range(0, len(self.lengths), SIZE):
                rows = np.arange(start, min(start + SIZE, len(self.lengths)))
                digest.update(self.read(rows)[name].tobytes())
        digest.update(self.domain.astype(np.int32).tobytes())
        return digest.hexdigest()


class Unlabelled(NamedTuple):
    """Texts without labels.

    examples: those that the Selection takes, numbered from `start`; sha256: of all of the file; line: a line
    for the log, how many there are, and how many are cut and left out.
    """

    examples: Examples
    sha256: str
    line: str


def unlabelled_examples(path, seq_length, selection, task, tokenizer, start):
    """The texts of the file `path`, Unlabelled, numbered from `start`.

    Those of a domain that the Selection leaves out are left out; one whose domain is not known has domain K.
    Labels and scores are 0: see `with_pseudo_labels`. There may be none left.
    Raises:
        UserError: a fault in the file, or a file without texts.
    """
    blocks = encode_rows(_rows(path), text_parser(task, path), tokenizer, seq_length, SIZE)
    texts = PackedTexts(blocks, seq_length, tokenizer.vocab_size, tokenizer.vocab["[PAD]"])
    N = len(texts.lengths)
    if not N:
        raise UserError(f"{path}: found a header and no texts, expected one or more.")
    columns = {
        "domain": texts.domain,
        "label": np.zeros(N, np.int32),
        "idxs": np.arange(start, start + N, dtype=np.int32),
        "weights": np.zeros(N, np.float32),
    }
    kept = np.flatnonzero(domain_mask(texts.domain, task, selection.domain, selection.exclude_domain))
    examples = Examples(texts, np.arange(N, dtype=np.int32), columns, texts.lengths).take(kept)
    line = f"{path}: {N} texts without labels, {describe_cut(texts.cut, seq_length, tokenizer.truncate)}"
    if unknown := int((texts.domain == len(task.domains)).sum()):
        line += f", {unknown} of no known domain"
    if len(kept) < N:
        line += f"; note: {N - len(kept)} are left out, which are not of the domain that was asked for"
    return Unlabelled(examples, texts.sha256(), line)


def with_pseudo_labels(examples, unlabelled, knowledge):
    """Labelled training examples and unlabelled ones after them, Examples.

    An unlabelled one has the label that the teacher finds most probable, and the mean score of the labelled.
    """
    labels = knowledge.logits(unlabelled["idxs"]).argmax(axis=1).astype(np.int32)
    weights = np.full(len(labels), examples["weights"].mean(), np.float32)
    return examples.followed_by(unlabelled.with_columns(label=labels, weights=weights))
