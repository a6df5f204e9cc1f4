"""Files of tables -> (number of the row, values of the columns wanted): CSV, TSV, JSON lines and Parquet,
packed or not.
"""

import csv
import functools
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterator

from data.lines import line_text, open_text
from data.prepare.parquet import parquet_values
from data.rows import unpacked
from data.tasks import clean
from util import UserError

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
FORMS = ("csv", "tsv", "jsonl", "parquet")
GZIP = b"\x1f\x8b"  # the first bytes of such a file


def bare_name(path) -> tuple[str, str]:
    """A file's name without suffixes, and the suffix of its form: ("books", "csv") of books.csv.gz."""
    path = pathlib.Path(path)
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.stem, path.suffix[1:].lower()


def detect_form(path) -> str:
    """The form that the suffix of a file says. UserError: none of FORMS."""
    _, form = bare_name(path)
    if form not in FORMS:
        raise UserError(
            f"{path}: found the suffix '{form:.20}', expected csv, tsv or jsonl, packed by gzip or not, or "
            "parquet: save it as one of these, or say what it is with --format."
        )
    return form


def read_values(
    path, form: str, delimiter: str, wanted: list[str], has_header=True
) -> Iterator[tuple[int, list[str]]]:
    """Yields (number, the cleaned values of the columns `wanted`) for each row of a file.

    The number is that of the line, of a row of many lines the first one's; in Parquet that of the row, from
    1.

    Args:
        form: one of FORMS; delimiter: what parts the fields of a CSV, a key of DELIMITERS.
        has_header: False: the first row of a CSV or TSV is one like the others, its columns numbered from 1.
    Raises:
        UserError: a fault, with file and line.
    """
    if form == "parquet":
        return parquet_values(path, wanted)
    if form == "jsonl":
        return _json_values(path, wanted)
    rows = _csv_rows(path, DELIMITERS[delimiter]) if form == "csv" else _tsv_rows(path)
    return _table_values(path, form, rows, wanted, has_header)


# --------------------------------------------------------------------------------------- lines


def _lines(path):
    """Yields the lines of a file as text, without their ends;
    what is packed by gzip is told by its first bytes.
    """
    with open_text(path, "a table: check --source, --dev and --test") as file:
        is_packed = file.peek(len(GZIP)).startswith(GZIP)
        for line, raw in enumerate(unpacked(path, file) if is_packed else file, 1):
            yield line_text(path, line, raw)


# --------------------------------------------------------------------------------------- CSV and TSV


def _table_values(path, form, rows, wanted, has_header):
    line, first = next(rows, (0, []))
    if line == 0:
        return
    if has_header:
        header = [clean(name) for name in first]
    else:
        header = [str(k) for k in range(1, len(first) + 1)]
        rows = itertools.chain([(line, first)], rows)
    order = [_column_index(f"{path}:{line}", header, first, name) for name in wanted]
    for line, fields in rows:
        if len(fields) != len(header):
            expected = "in the header" if has_header else "in the first row"
            raise UserError(
                f"{path}:{line}: found {len(fields)} field(s), expected {len(header)} as {expected}: "
                f"{_field_advice(form, fields)}"
            )
        yield line, [clean(fields[k]) for k in order]


def _field_advice(form, fields):
    if form == "tsv" and fields[-1].startswith('"') and not fields[-1].endswith('"'):
        return (
            "a field opens with a quote that is not closed on this line: say --format csv --delimiter tab if "
            "quotes hold it together."
        )
    return "mend the row, or check --format and --delimiter."


def _column_index(where, header, first, name):
    """Where a column stands, from 0: that of the name, else the one that the name counts from 1.

    Args:
        header: the names of columns; first: the first row of the file as it stands.
    """
    if name not in header and name.isdecimal() and len(name) < 6 and 0 < int(name) <= len(header):
        return int(name) - 1
    _check_columns(where, header, [name], functools.partial(_header_advice, first))
    return header.index(name)


def _check_columns(where, found, wanted, advise):
    """Refuses a table in which a column wanted stands not once. Args: advise: (found, name) -> what to do."""
    for name in wanted:
        if found.count(name) != 1:
            raise UserError(
                f"{where}: found {'no' if name not in found else 'more than one'} column '{name}' among "
                f"{', '.join(map(repr, found))[:300] or 'none at all'}, expected it once: "
                f"{advise(found, name)}"
            )


def _header_advice(first, found, name):
    for word, char in DELIMITERS.items():
        if len(first) == 1 and char in first[0] and name in map(clean, first[0].split(char)):
            return f"it is parted by {word}s, so say --format csv --delimiter {word}."
    if alike := [other for other in found if other.casefold() == name.casefold() and other != name]:
        return f"there is '{alike[0]}', in other letters."
    return (
        "check the names of columns, --format and --delimiter; without a header, say --no_header and number "
        "them."
    )


def _key_advice(found, name):
    return "check the names of columns, or mend the line."


def _csv_rows(path, delimiter):
    csv.field_size_limit(sys.maxsize)  # the length of a text is no fault
    lines, line = _lines(path), 1
    first = next(lines, "")
    if declared := re.fullmatch('"?sep=(.)"?', first):  # Excel's way to say it
        delimiter, line = declared[1], 2
    else:
        lines = itertools.chain([first], lines)
    ended = (text + "\n" for text in lines)  # the ends part words inside quotes
    reader, before = csv.reader(ended, delimiter=delimiter, strict=True, skipinitialspace=True), line
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}:{line}: the row that starts here is no CSV ({str(error).partition(' - ')[0]}), "
                f"expected {_csv_advice(str(error))}"
            ) from None
        if fields:
            yield line, fields
        line = before + reader.line_num


def _csv_advice(error):
    if "new-line character" in error:
        return "line ends of Unix or Windows: these are of old Macs, so convert them (tr '\\r' '\\n')."
    return (
        "quotes doubled inside quotes, not escaped otherwise, and closed: mend it, or say --format tsv where "
        "quotes mean nothing."
    )


def _tsv_rows(path):
    for line, text in enumerate(_lines(path), 1):
        if text:
            yield line, text.split("\t")


# --------------------------------------------------------------------------------------- JSON lines


def _json_values(path, wanted):
    for line, text in enumerate(_lines(path), 1):
        if text.strip():
            where = f"{path}:{line}"
            record = _json_record(where, text)
            _check_columns(where, list(record), wanted, _key_advice)
            yield line, [clean(_as_text(where, name, record[name])) for name in wanted]


def _json_record(where, text):
    try:  # numbers as they are written
        record = json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: the line is not JSON ({error}), expected an object a line: {_json_advice(text)}"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: found a {type(record).__name__}, expected a JSON object a line: {_json_advice(text)}"
        )
    return {clean(name): value for name, value in record.items()}


def _refuse(constant):
    raise ValueError(f"{constant} is no value of JSON")


def _json_advice(text):
    if text.lstrip().startswith("["):
        return "a JSON array is taken apart by jq -c '.[]'."
    if text.strip() == "{":
        return "objects over several lines are put on one each by jq -c ."
    return "check --format."


def _as_text(where, column, value):
    """A value of JSON as text: numbers are text already."""
    if isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        found = "null" if value is None else f"a {type(value).__name__}"
        raise UserError(
            f"{where}: found {found} in '{column}', expected text, a number, true or false: mend or remove "
            "the line."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: found half of a surrogate pair in '{column}', expected text: mend or remove the line."
        ) from None
    return value
