"""What an import tells of the rows and of their split, as lines of text."""

import collections
import itertools

import numpy as np

from data.prepare.tables import Row, is_quoted
from data.prepare.task_files import count_table
from data.tasks import SPLITS, Task

WIDEST_TABLE = 10  # labels


def count_lines(task: Task, splits: dict) -> list[str]:
    """The number of rows per split, domain and label: a table,
    or with many labels a line for each domain and label.
    """
    if len(task.labels) <= WIDEST_TABLE:
        table = count_table(task, {split: plain_rows(rows) for split, rows in splits.items()})
        return list(dict.fromkeys(table.splitlines()))  # the one domain "all" is its own sum
    lines = [f"{'':<30}{''.join(f'{split:>9}' for split in splits)}"]
    for kind, names in (("domain", task.domains), ("label", task.labels)):
        counts = [collections.Counter(getattr(row, kind) for row in rows) for rows in splits.values()]
        lines += [f"{kind:<7}{name[:22]:<23}{''.join(f'{of[name]:>9}' for of in counts)}" for name in names]
    return lines


def plain_rows(rows: list[Row]) -> list[tuple]:
    return [(*row.texts, row.domain, row.label) for row in rows]


def length_lines(splits: dict, tokenizer, seq_length: int) -> list[str]:
    """How long the texts of each split are, in words, and in tokens where there is a tokenizer."""
    lines = []
    for split, rows in splits.items():
        lines.append(
            f"{split}: words a row: {_spread([sum(len(text.split()) for text in row.texts) for row in rows])}"
        )
        if tokenizer:
            tokens = [1 + sum(1 + sum(1 for _ in tokenizer.ids(text)) for text in row.texts) for row in rows]
            cut = 100 * np.mean(np.array(tokens) > seq_length)
            lines.append(
                f"{split}: tokens a row: {_spread(tokens)}; {cut:.1f}% of the rows are cut at --seq_length "
                f"{seq_length}"
            )
    return lines


def _spread(lengths):
    most = np.percentile(lengths, 95)
    return f"{np.mean(lengths):.1f} on average, 95% have at most {most:.0f}, the longest {max(lengths)}"


def repeat_lines(rows: list[Row]) -> list[str]:
    """Which texts stand in more than one row, and which of them have more than one label."""
    copies = collections.defaultdict(list)
    for row in rows:
        copies[row.texts].append(row)
    torn = [same for same in copies.values() if len({row.label for row in same}) > 1]
    lines = [
        f"rows that repeat the text of a row before: {len(rows) - len(copies)}",
        f"texts with contradicting labels: {len(torn)}",
    ]
    lines[1] += "".join(
        f"; {same[0].where} '{same[0].label}' but {other.where} '{other.label}'"
        for same in torn[:3]
        for other in [next(row for row in same if row.label != same[0].label)]
    )
    quoted = sum(text[0] == text[-1] == '"' for row in rows for text in row.texts if len(text) > 1)
    if surely := [row.where for row in rows if any(map(is_quoted, row.texts))]:
        lines.append(
            f"texts quoted as in CSV, with doubled quotes inside: {len(surely)} ({', '.join(surely[:3])}"
            f"{', ...' * (len(surely) > 3)}); their quotes stay in the texts unless you say --format csv "
            "--delimiter tab"
        )
    elif 2 * quoted > len(rows):
        lines.append(
            f"texts in double quotes: {quoted}; if these are not part of the texts, say --format csv "
            "--delimiter tab"
        )
    return lines


def damage_lines(rows: list[Row]) -> list[str]:
    """Which texts another program decoded wrongly before:
    by U+FFFD, or UTF-8 that was taken for Windows-1252.
    """
    kinds = {
        "with U+FFFD, where characters were lost": [
            row.where for row in rows if "\ufffd" in "".join(row.texts)
        ],
        "of UTF-8 that was taken for Windows-1252 (as caf\u00c3\u00a9)": [
            row.where for row in rows if any(map(_is_garbled, row.texts))
        ],
    }
    return [
        f"note: texts {kind}: {len(places)} ({', '.join(places[:3])}{', ...' * (len(places) > 3)}); they are "
        "taken as they stand: save the table anew from its source"
        for kind, places in kinds.items()
        if places
    ]


def _is_garbled(text):
    """Whether a text is UTF-8 that was decoded as Windows-1252: its bytes in that are UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return False
    return True


def leak_lines(splits: dict) -> list[str]:
    """How many texts stand on both sides of each pair of splits."""
    texts = {split: {row.texts for row in rows} for split, rows in splits.items()}
    return [
        f"texts of {a} that stand in {b} as well: {len(texts[a] & texts[b])}"
        for a, b in itertools.combinations(SPLITS, 2)
    ]
