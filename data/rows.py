"""Files of texts to answer, a row at a time, and the answers in the same form: lines, TSV, CSV, JSON lines.

A row with a fault is told by the fault and does not end the reading; only a file that cannot be read at all
does.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import pathlib
import sys
import zlib
from typing import NamedTuple, Optional

from data.lines import MARK, line_text, open_text, split_fields
from util import CLOSED, UserError

FORMS = ("lines", "tsv", "csv", "jsonl")
LONGEST_LINE = 64 << 20  # bytes
DIGITS = 6  # behind the point of a probability; the limits of a report are chosen among such ones
IDXS = "idxs"  # the column that numbers the rows from 0


def answer_names(others, labels):
    """The names of what an answer adds to the columns `others`: "label", then the label names.

    One that is taken by a column, or by the number of the row, begins with "predicted_".
    """
    names, taken = [], {IDXS, *others}
    for name in ("label", *labels):
        while name in taken:
            name = f"predicted_{name}"
        names.append(name)
        taken.add(name)
    return names


class Row(NamedTuple):
    """A row of a file of texts.

    `fault`: a sentence, or None; then there are the texts, one or two, and the other columns.
    """

    idxs: int  # its place among all rows, from 0
    texts: tuple = ()
    others: tuple = ()  # values of Table.others; of a JSON line its other keys and their values
    fault: Optional[str] = None


def form_and_compression(path, form="auto"):
    """The form of the file `path` and whether it is compressed, by suffixes such as .csv.gz or by `form`."""
    suffixes = [suffix[1:].lower() for suffix in pathlib.Path(path).suffixes]
    compressed = suffixes[-1:] == ["gz"]
    last = (suffixes[:-1] if compressed else suffixes)[-1:]
    return form if form != "auto" else last[0] if last and last[0] in FORMS[1:] else "lines", compressed


@contextlib.contextmanager
def open_rows(path, form):
    """The lines of bytes of a file of texts, "-" being standard input; a damaged .gz file is a UserError."""
    if path == "-":
        if "stdin" in CLOSED:
            raise UserError("--predict_file -: standard input is closed: open it, or name a file.")
        yield limited_lines("standard input", sys.stdin.buffer)
        return
    with open_text(path, "a file of texts: check --predict_file") as file:
        compressed = form_and_compression(path, form)[1]
        yield unpacked(path, file) if compressed else limited_lines(path, file)


def limited_lines(path, file):
    """The lines of bytes of an open file.

    UserError: one is longer than any text, as where the file is none of texts.
    """
    for line in itertools.count(1):
        raw = file.readline(LONGEST_LINE + 1)
        if len(raw) > LONGEST_LINE:
            raise UserError(
                f"{path}:{line}: found a line of more than {LONGEST_LINE >> 20} MB, expected texts: "
                "is this a text file?"
            )
        if not raw:
            return
        yield raw


def unpacked(path, file):
    """The lines of bytes of an open .gz file; a damaged one is a UserError."""
    try:
        yield from limited_lines(path, gzip.GzipFile(fileobj=file))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({error}), expected a whole gzip file: fetch it again."
        ) from None


def count_lines(path):
    """How many lines a file has; None for one that can be read but once or would have to be unpacked."""
    if path == "-" or not pathlib.Path(path).is_file() or form_and_compression(path)[1]:
        return None
    with open(path, "rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


class Table:
    """The rows of a file of texts.

    Args:
        path: names the file in sentences; lines: its lines of bytes.
        form: one of FORMS; lines have no header, and the texts alone, with a tab between the two of a pair.
        text: the names of the columns of the text.
        labels: those that the answers give, whose names no later JSON line may take.
    Attributes:
        others: the names of the other columns, in their order; of JSON lines those of the first line without
            a fault, and none before it is read.
        line: lines read so far.
    Raises:
        UserError: there is no row, or the header lacks a column of the text.
    """

    def __init__(self, path, lines, form, text, labels):
        self.path, self.form, self.text, self.line = path, form, tuple(text), 0
        self._digest, self._lines, self._others = hashlib.sha256(), iter(lines), []
        self._labels, self._added = labels, None  # _added: names that are ours in each answer to a JSON line
        self._records = {"lines": self._split, "tsv": self._split, "csv": self._csv, "jsonl": self._json}[
            form
        ]()
        self._first = None
        if form in ("tsv", "csv"):
            self._read_header(next(self._records, None))
        self._first = next(self._records, None)
        if self._first is None:
            what = "a header and no texts" if self.line else "no text"
            raise UserError(f"{path}: found {what}, expected one or more.")

    @property
    def others(self):
        """The names of the columns that are passed through."""
        return tuple(self._others)

    def content_sha256(self):
        """A hash of the lines of all rows that were handed out, and of the header."""
        return self._digest.hexdigest()

    def __iter__(self):
        idxs = 0
        while self._first is not None:
            raw, record, fault = self._first
            self._digest.update(raw)
            yield Row(idxs, fault=fault) if fault else self._row(idxs, record)
            self._first, idxs = next(self._records, None), idxs + 1

    def _row(self, idxs, record):
        if self.form == "lines":
            return Row(idxs, tuple(record))
        if self.form == "jsonl":
            others = tuple((name, value) for name, value in record.items() if name not in self.text)
            return Row(idxs, tuple(record[name] or "" for name in self.text), others)
        return Row(idxs, tuple(record[k] for k in self._places), tuple(record[k] for k in self._other_places))

    # ---------------------------------------------------------------- records: (bytes, values, fault)

    def _read_header(self, record):
        columns = ", ".join(map(repr, self.text))
        expected = f"expected a header with {columns}: check --text_column and --predict_format"
        if record is None:
            raise UserError(f"{self.path}: the file is empty, {expected}.")
        raw, header, fault = record
        if fault:
            raise UserError(fault)
        if any(header.count(name) != 1 for name in self.text) or len(set(header)) < len(header):
            if self.form == "csv" and len(header) == 1 and ";" in header[0]:
                expected = (
                    f"expected a header with {columns}, parted by commas: save it so, or check --text_column"
                )
            raise UserError(
                f"{self.path}:1: found {', '.join(map(repr, header))[:300]}, {expected}, each name once."
            )
        self._digest.update(raw)
        self._width = len(header)
        self._places = [header.index(name) for name in self.text]
        self._other_places = [k for k in range(len(header)) if k not in self._places]
        self._others = [header[k] for k in self._other_places]

    def _split(self):
        """Of lines with tabs between their fields, and no quotes."""
        for raw in self._lines:
            self.line += 1
            names = self.text if self.form == "lines" else None
            try:
                fields = split_fields(self.path, self.line, raw, names)
                yield raw, fields, self._width_fault(self.line, fields)
            except UserError as error:
                yield raw, None, str(error)

    def _csv(self):
        csv.field_size_limit(sys.maxsize)  # the length of a text is no fault
        taken = []

        def lines():
            for raw in self._lines:
                self.line += 1
                taken.append(raw)
                text = raw[len(MARK) :] if self.line == 1 and raw.startswith(MARK) else raw
                yield text.decode("utf-8", "surrogateescape")

        reader = csv.reader(lines(), strict=True)
        while True:
            first, fields, fault = self.line + 1, None, None
            try:
                fields = next(reader) or [""]
                fault = self._width_fault(first, fields)
                for offset, raw in enumerate(taken):
                    line_text(self.path, first + offset, raw)
            except StopIteration:
                return
            except csv.Error as error:
                fault = (
                    f"{self.path}:{first}: the row that starts here is no CSV "
                    f"({str(error).partition(' - ')[0]}), expected quotes doubled inside quotes and closed: "
                    "mend it."
                )
            except UserError as error:
                fault = str(error)
            yield b"".join(taken), fields, fault
            taken.clear()

    def _width_fault(self, line, fields):
        width = getattr(self, "_width", len(fields))
        if len(fields) != width:
            return (
                f"{self.path}:{line}: found {len(fields)} column(s), "
                f"expected {width} as in the header: mend the line."
            )
        return None

    def _json(self):
        for raw in self._lines:
            self.line += 1
            try:
                record = json.loads(line_text(self.path, self.line, raw), parse_constant=_refuse)
                yield raw, record, self._object_fault(record)
            except UserError as error:
                yield raw, None, str(error)
            except (ValueError, RecursionError) as error:
                yield (
                    raw,
                    None,
                    f"{self.path}:{self.line}: the line is not JSON ({error}), expected an object a line.",
                )

    def _object_fault(self, record):
        where = f"{self.path}:{self.line}"
        if not isinstance(record, dict):
            return f"{where}: found a {type(record).__name__}, expected a JSON object a line."
        for name in self.text:
            if not isinstance(record.get(name, 0), (str, type(None))):
                found = f"a {type(record[name]).__name__}" if name in record else "nothing"
                return f"{where}: found {found} under {name!r}, expected a text: check --text_column."
        try:
            # 1e400 is read as infinity, for which JSON has no word:
            json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except UnicodeEncodeError:
            return f"{where}: found half of a surrogate pair, expected text: mend the line."
        return self._key_fault(where, [name for name in record if name not in self.text])

    def _key_fault(self, where, others):
        """What would be lost where the keys `others` of an object are not those of the first."""
        if self._added is None:
            self._others = others
            self._added = {IDXS, *answer_names(others, self._labels)}.difference(others)
        expected = "expected it in every line or in none: mend the line, or rename the key in the file"
        for name in others:
            if name in self._added:
                return f"{where}: found the key {name!r}, which the first object does not have, {expected}."
        if IDXS in self._others and IDXS not in others:
            return f"{where}: found no key {IDXS!r}, which the first object has, {expected}."
        return None


def _refuse(constant):
    raise ValueError(f"{constant} is no value of JSON")


class AnswerWriter:
    """Answers as bytes, in the form of the texts (plain lines are answered in TSV).

    An answer has the row's number, unless a column `idxs` is there already, its other columns, the label, and
    the probability of each label. Where a column has the name of one of these, ours begins with "predicted_".
    """

    def __init__(self, form, others, labels):
        self.form, self.numbered = form, IDXS not in others
        self.names, self.others = answer_names(others, labels), others

    def header(self):
        """The line of the names of the columns; nothing for JSON lines."""
        if self.form == "jsonl":
            return b""
        return self._line([*[IDXS] * self.numbered, *self.others, *self.names])

    def answer(self, row, label, probabilities):
        """The answer to a Row. Args: label: "" for none; probabilities: of the labels, or None."""
        if self.form != "jsonl":
            shown = (
                [""] * (len(self.names) - 1)
                if probabilities is None
                else [f"{p:.{DIGITS}f}" for p in probabilities]
            )
            return self._line([*[row.idxs] * self.numbered, *row.others, label, *shown])
        shown = (
            [None] * (len(self.names) - 1)
            if probabilities is None
            else [round(float(p), DIGITS) for p in probabilities]
        )
        value = {IDXS: row.idxs} if self.numbered else {}
        value.update(row.others)
        value.update(zip(self.names, (label, *shown)))
        return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8")

    def _line(self, values):
        if self.form == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(values)
            return text.getvalue().encode("utf-8")
        return ("\t".join(map(str, values)) + "\n").encode("utf-8")
