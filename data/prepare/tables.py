"""CSV, TSV and JSON lines -> rows of texts, a domain, a label and a group, each with file and line."""

import csv
import itertools
import json
import pathlib
import sys
from typing import NamedTuple, Optional

from data.lines import line_text, open_text
from data.rows import unpacked
from data.tasks import clean
from data.wordpiece.characters import has_visible
from util import UserError

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


class Columns(NamedTuple):
    """The columns that are read of a table."""

    text: tuple[str, ...]
    label: str
    domain: Optional[str]
    group: Optional[str]

    @property
    def wanted(self):
        """Their names, those that are not given left out."""
        return [name for name in (*self.text, *self[1:]) if name is not None]


class Row(NamedTuple):
    """A row of a table, its values on one line each."""

    texts: tuple[str, ...]
    domain: str
    label: str
    group: str  # empty: none
    where: str  # file:line


def is_quoted(text):
    """Whether a field is surely one that CSV quoted: in quotes, with doubled quotes and no others inside."""
    inner = text[1:-1]
    return (
        len(text) > 3 and text[0] == text[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    )


# --------------------------------------------------------------------------------------- reading


def read_rows(paths, columns, form=None, delimiter="comma", max_rows=None, domain_from_file=False):
    """The rows of some files, in their order, and the places ("file:line") of those that were left out, as a text of theirs has no visible character.

    Args:
        form: csv, tsv or jsonl; None: as the suffix of each file says.
        delimiter: what parts the fields of a CSV, a key of DELIMITERS.
        max_rows: so many of each file at most; None: all.
        domain_from_file: the domain of a row is its file's name without suffixes, not "all", where no column says it.
    Raises:
        UserError: a fault, with file and line.
    """
    rows, empty = [], []
    for path in paths:
        before = len(rows) + len(empty)
        domain = clean(_bare_name(path)[0]) if domain_from_file else "all"
        table = _read_values(path, form or _detect_form(path), DELIMITERS[delimiter], columns.wanted)
        for line, values in itertools.islice(table, max_rows):
            row = _row(f"{path}:{line}", columns, dict(zip(columns.wanted, values)), domain)
            if all(map(has_visible, row.texts)):
                rows.append(row)
            else:
                empty.append(row.where)
        if len(rows) + len(empty) == before:
            raise UserError(f"{path}: found no rows, expected one or more: check --source, --dev and --test.")
    return rows, empty


def _bare_name(path):
    """The name of a file without its suffixes, and the suffix of its form: ("books", "csv") of books.csv.gz."""
    path = pathlib.Path(path)
    path = path.with_suffix("") if _is_compressed(path) else path
    return path.stem, path.suffix[1:].lower()


def _is_compressed(path):
    """Whether a file is packed by gzip, as its suffix says."""
    return pathlib.Path(path).suffix.lower() == ".gz"


def _detect_form(path):
    _, form = _bare_name(path)
    if form not in ("csv", "tsv", "jsonl"):
        raise UserError(
            f"{path}: found the suffix '{form:.20}', expected csv, tsv or jsonl: say what it is with --format."
        )
    return form


def _row(where, columns, values, domain):
    domain = values[columns.domain] if columns.domain else domain
    for column, name in ((columns.label, values[columns.label]), (columns.domain, domain)):
        if not 0 < len(name) <= 100:
            found = f"a name of {len(name)} characters" if name else "nothing"
            raise UserError(
                f"{where}: found {found} in '{column}', expected up to 100 characters: fill it, remove the row, "
                "or name another column."
            )
    return Row(
        tuple(values[name] for name in columns.text),
        domain,
        values[columns.label],
        values.get(columns.group, ""),
        where,
    )


def _read_values(path, form, delimiter, wanted):
    """Yields (line, the cleaned values of the columns `wanted`) for each row of a file; a row of many lines has the first one's number."""
    if form == "jsonl":
        for line, record in _json_records(path):
            _check_columns(f"{path}:{line}", list(record), wanted)
            yield line, [clean(_as_text(f"{path}:{line}", name, record[name])) for name in wanted]
        return
    table = _csv_records(path, delimiter) if form == "csv" else _tsv_records(path)
    line, header = next(table, (0, []))
    if line == 0:
        return
    header = [clean(name) for name in header]
    order = [_column_number(f"{path}:{line}", header, name) for name in wanted]
    for line, fields in table:
        if len(fields) != len(header):
            advice = (
                "a field opens with a quote that is not closed on this line: say --format csv --delimiter tab if quotes hold it "
                "together."
                if form == "tsv" and fields[-1].startswith('"') and not fields[-1].endswith('"')
                else "mend the row, or check --format and --delimiter."
            )
            raise UserError(
                f"{path}:{line}: found {len(fields)} field(s), expected {len(header)} as in the header: {advice}"
            )
        yield line, [clean(fields[k]) for k in order]


def _column_number(where, header, name):
    """Where a column stands, from 0: that of the name, else the one that the name counts from 1."""
    if name not in header and name.isdecimal() and len(name) < 6 and 0 < int(name) <= len(header):
        return int(name) - 1
    _check_columns(where, header, [name])
    return header.index(name)


def _check_columns(where, found, wanted):
    for name in wanted:
        if found.count(name) != 1:
            raise UserError(
                f"{where}: found {'no' if name not in found else 'more than one'} column '{name}' among "
                f"{', '.join(map(repr, found))[:300] or 'none at all'}, expected it once: check the names of columns, "
                "--format and --delimiter."
            )


def _lines(path):
    """Yields the lines of a file as text, without their ends."""
    with open_text(path, "a table: check --source, --dev and --test") as file:
        for line, raw in enumerate(unpacked(path, file) if _is_compressed(path) else file, 1):
            yield line_text(path, line, raw)


def _csv_records(path, delimiter):
    csv.field_size_limit(sys.maxsize)  # the length of a text is no fault
    lines = (text + "\n" for text in _lines(path))  # the ends part words inside quotes
    reader, line = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True), 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}:{line}: the row that starts here is no CSV ({str(error).partition(' - ')[0]}), expected quotes "
                "doubled inside quotes and closed: mend it, or say --format tsv where quotes mean nothing."
            ) from None
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _tsv_records(path):
    for line, text in enumerate(_lines(path), 1):
        if text:
            yield line, text.split("\t")


def _json_records(path):
    def refuse(constant):
        raise ValueError(f"{constant} is no value of JSON")

    for line, text in enumerate(_lines(path), 1):
        if text.strip():
            try:  # numbers as they are written
                record = json.loads(text, parse_int=str, parse_float=str, parse_constant=refuse)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}:{line}: the line is not JSON ({error}), expected an object a line: check --format."
                ) from None
            if not isinstance(record, dict):
                raise UserError(
                    f"{path}:{line}: found a {type(record).__name__}, expected a JSON object a line."
                )
            yield line, {clean(name): value for name, value in record.items()}


def _as_text(where, column, value):
    """A value of JSON as text: numbers are text already."""
    if isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        found = "null" if value is None else f"a {type(value).__name__}"
        raise UserError(
            f"{where}: found {found} in '{column}', expected text, a number, true or false: mend or remove the line."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: found half of a surrogate pair in '{column}', expected text: mend or remove the line."
        ) from None
    return value
