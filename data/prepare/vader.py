"""The demo task: sentences about products, films, editorials and tweets, rated by twenty people each,
positive or negative.

Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM
2014.
"""

import collections
import html
import itertools
import tarfile

import numpy as np

from data.prepare.splitting import shuffle
from data.tasks import SPLITS, Task, clean
from data.wordpiece.characters import has_visible
from util import UserError

TASK = Task(
    "demo",
    ("text",),
    "domain",
    "sentiment",
    ("positive", "negative"),
    ("products", "films", "editorials", "tweets"),
)
FILES = dict(
    zip(TASK.domains, ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets"))
)
CELLS = len(TASK.domains) * len(TASK.labels)
NEUTRAL = 0.5  # mean ratings, -4 to 4: nearer to 0 is dropped
SEED = 2014


def read_sentences(archive) -> list[tuple]:
    """The rows (document, text, domain, label) of the data set, near-neutral ones and repeated texts dropped.

    Args:
        archive: the published .tar.gz as a binary file. Its lines are `id<TAB>mean rating<TAB>text`; ids
            of products and editorials such as 12_3 name document and sentence, those of films and tweets a
            sentence alone.
    """
    rows, seen = [], set()
    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        for domain in TASK.domains:
            content = (
                tar.extractfile(f"hutto_ICWSM_2014/{FILES[domain]}_GroundTruth.txt").read().decode("utf-8")
            )
            for line in content.splitlines():
                name, rating, text = line.split("\t")
                text = clean(html.unescape(text))
                if abs(float(rating)) > NEUTRAL and has_visible(text) and text.lower() not in seen:
                    seen.add(text.lower())
                    rows.append(
                        (
                            name.partition("_")[0],
                            text,
                            domain,
                            "positive" if float(rating) > 0 else "negative",
                        )
                    )
    return rows


def split_sentences(rows: list[tuple], sizes: dict[str, int]) -> dict[str, list]:
    """Splits the rows by document, with as many of each class in each domain.

    The sentences of a document are on one side. Documents come in random order; each goes to the first of
    test, dev and train that has room for one of its sentences, and what finds no room there is dropped. So
    test does not depend on the size of dev and train, nor dev on that of train.

    Args:
        rows: (document, text, domain, label), as read_sentences returns them.
        sizes: {"train": n, "dev": n, "test": n}, each a multiple of 8 (domains x classes).
    Returns:
        {split: rows (text, domain, label) in random order}; the same for the same arguments.
    Raises:
        UserError: a size is no multiple of 8, or more than there is.
    """
    _check_sizes(sizes)
    documents = collections.defaultdict(list)
    for document, *row in rows:
        documents[row[1], document].append(tuple(row))
    cells = itertools.product(SPLITS, TASK.domains, TASK.labels)
    room = {cell: sizes[cell[0]] // CELLS for cell in cells}
    splits = {split: [] for split in SPLITS}
    for sentences in shuffle(list(documents.values()), SEED, 0):
        with_room = (s for s in reversed(SPLITS) if any(room[(s, *row[1:])] for row in sentences))
        split = next(with_room, None)
        for row in sentences if split else ():
            if room[(split, *row[1:])]:
                room[(split, *row[1:])] -= 1
                splits[split].append(row)
    _check_filled(sizes, room)
    return {split: shuffle(splits[split], SEED, k) for k, split in enumerate(SPLITS, 1)}


def _check_filled(sizes, room):
    """Raises a UserError where a class of a domain has fewer sentences than its split shall have."""
    for (split, domain, label), missing in room.items():
        if missing:
            raise UserError(
                f"{split}: found {sizes[split] // CELLS - missing} {label} sentences about {domain}, "
                f"expected {sizes[split] // CELLS} for a size of {sizes[split]}: ask for a smaller one."
            )


def _check_sizes(sizes):
    for split, size in sizes.items():
        if size < CELLS or size % CELLS:
            raise UserError(
                f"{split}: found a size of {size}, expected a multiple of {CELLS} (domains x classes), such "
                f"as {max(size // CELLS, 1) * CELLS}."
            )


def describe_lengths(splits: dict) -> list[str]:
    """Lines that say how long the texts of each split are, in words."""
    lines = []
    for split, rows in splits.items():
        words = [len(row[0].split()) for row in rows]
        lines.append(
            f"{split}: {np.mean(words):.1f} words a text, 95% have at most {np.percentile(words, 95):.0f}"
        )
    return lines
