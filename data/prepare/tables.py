"""Tables of any form -> rows of texts, a domain, a label and a group, each with file and line."""

import itertools
from typing import NamedTuple, Optional

from data.prepare.readers import bare_name, detect_form, read_values
from data.tasks import clean
from data.wordpiece.characters import has_visible
from util import UserError


class Columns(NamedTuple):
    """The columns that are read of a table."""

    text: tuple[str, ...]
    label: str
    domain: Optional[str]
    group: Optional[str]

    @property
    def wanted(self) -> list[str]:
        """Their names, those that are not given left out."""
        return [name for name in (*self.text, *self[1:]) if name is not None]


class Row(NamedTuple):
    """A row of a table, its values on one line each."""

    texts: tuple[str, ...]
    domain: str
    label: str
    group: str  # empty: none
    where: str  # file:line


def is_quoted(text: str) -> bool:
    """Whether a field is surely one that CSV quoted: in quotes, with doubled quotes and no others inside."""
    inner = text[1:-1]
    return (
        len(text) > 3 and text[0] == text[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    )


# --------------------------------------------------------------------------------------- reading


def read_rows(
    paths,
    columns: Columns,
    form: Optional[str] = None,
    delimiter: str = "comma",
    max_rows: Optional[int] = None,
    domain_from_file: bool = False,
    has_header: bool = True,
) -> tuple[list[Row], list[str]]:
    """The rows of some files, in their order, and the places ("file:line") of those that were left out.

    Left out is a row of which a text has no visible character.

    Args:
        form: csv, tsv, jsonl or parquet; None: as the suffix of each file says.
        delimiter: what parts the fields of a CSV, a key of DELIMITERS.
        max_rows: so many of each file at most; None: all.
        domain_from_file: the domain of a row is its file's name without suffixes, not "all", where no
            column says it.
        has_header: False: no file begins with the names of columns; they are numbered from 1.
    Raises:
        UserError: a fault, with file and line.
    """
    rows, empty = [], []
    for path in paths:
        before = len(rows) + len(empty)
        domain = clean(bare_name(path)[0]) if domain_from_file else "all"
        table = read_values(path, form or detect_form(path), delimiter, columns.wanted, has_header)
        for line, values in itertools.islice(table, max_rows):
            row = _row(f"{path}:{line}", columns, dict(zip(columns.wanted, values)), domain)
            if all(map(has_visible, row.texts)):
                rows.append(row)
            else:
                empty.append(row.where)
        if len(rows) + len(empty) == before:
            raise UserError(f"{path}: found no rows, expected one or more: check --source, --dev and --test.")
    return rows, empty


def _row(where, columns, values, domain):
    domain = values[columns.domain] if columns.domain else domain
    for column, name in ((columns.label, values[columns.label]), (columns.domain, domain)):
        if not has_visible(name) or len(name) > 100:
            found = f"a name of {len(name)} characters" if has_visible(name) else "nothing"
            raise UserError(
                f"{where}: found {found} in '{column}', expected up to 100 characters: fill it, remove the "
                "row, or name another column."
            )
    return Row(
        tuple(values[name] for name in columns.text),
        domain,
        values[columns.label],
        values.get(columns.group, ""),
        where,
    )
