"""Labels and domains of a table that may not be what was meant: alike, standing for nothing, scores, lists;
and --labels, which maps and drops labels.
"""

import collections
import shlex
import unicodedata

from data.tasks import ONE_CLASS
from data.wordpiece.characters import CLEAN
from util import UserError

NOTHING = {"-", "--", "?", "nan", "none", "null", "nil", "n/a", "na", "nat", "<na>", "unknown"}
MOST_SCORES = 10  # different numbers with fractions; more are taken for a regression


def apply_labels(tables: dict, entries: list[str]) -> tuple[dict, list[str]]:
    """The tables with labels mapped and dropped as the `entries` of --labels say, and the names among these
    in their order.

    Args:
        tables: {split: rows}.
        entries: names; "OLD=NEW": OLD becomes NEW; "OLD=": its rows are dropped. A label of the rows is a
            name, "=" or not.
    Raises:
        UserError: there is no label OLD.
    """
    found = {row.label for rows in tables.values() for row in rows}
    changes = [entry for entry in entries if "=" in entry and entry not in found]
    names = {}
    for entry in changes:
        old, _, new = entry.rpartition("=")
        if old not in found:
            raise UserError(
                f"--labels {entry}: found no label {old!r} in the rows, expected one of "
                f"{', '.join(sorted(found))[:300]}."
            )
        names[old] = new
    if dropped := sum(names.get(row.label) == "" for rows in tables.values() for row in rows):
        print(f"rows dropped by --labels: {dropped}")
    tables = {
        split: [row._replace(label=name) for row in rows if (name := names.get(row.label, row.label))]
        for split, rows in tables.items()
    }
    return tables, [entry for entry in entries if entry not in changes]


def refuse_scores(column: str, rows: list, order: list[str]) -> None:
    """Refuses labels that are scores, many numbers with fractions, unless --labels names their `order`."""
    names = {row.label for row in rows}
    if not order and len(names) > MOST_SCORES and _are_scores(names):
        raise UserError(
            f"--label {column}: found {len(names)} different numbers such as {_fractions(names)[0]}, which "
            f"are scores, and regression is {ONE_CLASS}: bring the scores into a few classes, or name each "
            "with --labels."
        )


def refuse_lists(column: str, rows: list, order: list[str]) -> None:
    """Refuses labels that are lists, as of several labels a text, unless --labels names their `order`."""
    names = {row.label for row in rows}
    lists = sorted(name for name in names if name[0] + name[-1] in ("[]", "{}"))
    if not order and 2 * len(lists) > len(names):
        raise UserError(
            f"--label {column}: found lists such as {lists[0][:80]!r}, and several labels a text are "
            f"{ONE_CLASS}: choose one for each text, or name each list with --labels, as a class of its own."
        )


def label_notes(rows: list, order: list[str]) -> list[str]:
    """Notes, a line each, on labels that look alike, that stand for nothing, and that are scores; none where
    --labels names them.
    """
    counts = collections.Counter(row.label for row in rows)
    if order:
        return []
    notes = []
    for names in _find_alike(counts):
        most = max(names, key=counts.get)
        flags = " ".join(_change(name, most) for name in names if name != most)
        notes.append(
            f"note: labels that look alike, each a class of its own: {_told(names, counts)}; --labels "
            f"{flags} makes one of them"
        )
    if nothing := [name for name in sorted(counts) if name.casefold() in NOTHING]:
        flags = " ".join(_change(name, "") for name in nothing)
        notes.append(
            f"note: labels that may stand for none, each a class of its own: {_told(nothing, counts)}; "
            f"--labels {flags} drops their rows"
        )
    if _are_scores(counts):
        notes.append(
            "note: labels that look like scores, each a class of its own: "
            f"{_told(_fractions(counts), counts)}; regression is not done"
        )
    return notes


def domain_notes(rows: list) -> list[str]:
    """Notes, a line each, on domains that look alike."""
    counts = collections.Counter(row.domain for row in rows)
    return [
        f"note: domains that look alike, each one of its own: {_told(names, counts)}; mend the table if they "
        "are one"
        for names in _find_alike(counts)
    ]


def _find_alike(names):
    """Lists of names that look alike, sorted."""
    alike = collections.defaultdict(list)
    for name in sorted(names):
        alike[_canonical(name)].append(name)
    return [same for same in alike.values() if len(same) > 1]


def _change(old, new):
    """The word of --labels that changes a label; a blank before a "-", which would begin a flag."""
    return shlex.quote(f" {old}={new}" if old.startswith("-") else f"{old}={new}")


def _told(names, counts):
    return ", ".join(f"{name!r} ({counts[name]})" for name in names)[:300]


def _canonical(name):
    """What names that look alike share: the number, or the visible letters whatever their case and width."""
    name = unicodedata.normalize("NFKC", name.translate(CLEAN))
    number = _number(name)
    return name.casefold() if number is None else number


def _number(name):
    """The finite number that a label is, or None."""
    try:
        value = float(name)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _are_scores(names):
    return bool(_fractions(names)) and all(
        _number(name) is not None for name in names if name.casefold() not in NOTHING
    )


def _fractions(names):
    """The labels that are numbers with a fraction, by their size."""
    numbers = {name: _number(name) for name in names}
    return sorted(
        (name for name, value in numbers.items() if value is not None and value % 1), key=numbers.get
    )
