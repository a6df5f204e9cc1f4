"""Tables of your own, CSV, TSV or JSON lines -> train.tsv, dev.tsv, test.tsv and task.json, split by domain and label.

    python3 -m data.import_tsv --source reviews.csv --data_dir data/REVIEWS --task_name reviews --text text --label stars \\
        [--domain category] [--group customer] [--dedup] [--vocab_file vocab.txt]

CSV has a header, and quotes around what holds commas or line ends. TSV is the suite's own: a header, tabs, and quotes are text like
any other; for a quoted one say --format csv --delimiter tab. JSON lines have an object a line, whose numbers, true and false are
taken as the text they are written in. All are UTF-8.
"""

import argparse
import collections
import csv
import itertools
import json
import math
import pathlib
import re
import shlex
import sys
from typing import NamedTuple, Optional

import numpy as np

from config import count, natural, number
from data.tasks import BUILT_IN, SPLITS, Task, clean, count_table, split_path, write_task
from tokenization import tokenizer_for
from util import UserError, entry, random_stream

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}
MOST_NAMES = 1000  # labels or domains; more are taken for a wrong column
WIDEST_TABLE = 10  # labels


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


# --------------------------------------------------------------------------------------- reading


def read_rows(paths, columns, form=None, delimiter="comma"):
    """The rows of some files, in their order, and the places ("file:line") of those that were left out, as a text of theirs is empty.

    Args:
        form: csv, tsv or jsonl; None: as the suffix of each file says.
        delimiter: what parts the fields of a CSV, a key of DELIMITERS.
    Raises:
        UserError: a fault, with file and line.
    """
    rows, empty = [], []
    for path in paths:
        before = len(rows) + len(empty)
        for line, values in _read_values(path, form or _form_of(path), DELIMITERS[delimiter], columns.wanted):
            row = _row(f"{path}:{line}", columns, dict(zip(columns.wanted, values)))
            if all(row.texts):
                rows.append(row)
            else:
                empty.append(row.where)
        if len(rows) + len(empty) == before:
            raise UserError(f"{path}: found no rows, expected one or more: check --source, --dev and --test.")
    return rows, empty


def _form_of(path):
    form = pathlib.Path(path).suffix[1:].lower()
    if form not in ("csv", "tsv", "jsonl"):
        raise UserError(f"{path}: found the suffix '{form:.20}', expected csv, tsv or jsonl: say what it is with --format.")
    return form


def _row(where, columns, values):
    domain = values[columns.domain] if columns.domain else "all"
    for column, name in ((columns.label, values[columns.label]), (columns.domain, domain)):
        if not 0 < len(name) <= 100:
            found = f"a name of {len(name)} characters" if name else "nothing"
            raise UserError(f"{where}: found {found} in '{column}', expected up to 100 characters: fill it, remove the row, "
                            "or name another column.")
    return Row(tuple(values[name] for name in columns.text), domain, values[columns.label], values.get(columns.group, ""), where)


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
    _check_columns(f"{path}:{line}", header, wanted)
    order = [header.index(name) for name in wanted]
    for line, fields in table:
        if len(fields) != len(header):
            raise UserError(f"{path}:{line}: found {len(fields)} field(s), expected {len(header)} as in the header: mend the row, or check "
                            "--format and --delimiter.")
        yield line, [clean(fields[k]) for k in order]


def _check_columns(where, found, wanted):
    for name in wanted:
        if found.count(name) != 1:
            raise UserError(f"{where}: found {'no' if name not in found else 'more than one'} column '{name}' among "
                            f"{', '.join(map(repr, found))[:300] or 'none at all'}, expected it once: check the names of columns, "
                            "--format and --delimiter.")


def _lines(path):
    """Yields the lines of a file as text, with their ends, the byte-order mark left out."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a table: check --source, --dev and --test.") from None
    with file:
        for line, raw in enumerate(file, 1):
            raw = raw[3:] if line == 1 and raw.startswith(b"\xef\xbb\xbf") else raw
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{line}: found byte 0x{raw[error.start]:02x} at position {error.start} of the line, "
                                "expected UTF-8: convert the file.") from None
            if "\0" in text:
                raise UserError(f"{path}:{line}: found a NUL character, expected text in UTF-8: convert the file.")
            yield text


def _csv_records(path, delimiter):
    csv.field_size_limit(sys.maxsize)  # the length of a text is no fault
    reader, line = csv.reader(_lines(path), delimiter=delimiter, strict=True, skipinitialspace=True), 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{line}: the row that starts here is no CSV ({str(error).partition(' - ')[0]}), expected quotes "
                            "doubled inside quotes and closed: mend it, or say --format tsv where quotes mean nothing.") from None
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _tsv_records(path):
    for line, text in enumerate(_lines(path), 1):
        if text.strip("\r\n"):
            yield line, text.rstrip("\n").rstrip("\r").split("\t")


def _json_records(path):
    def refuse(constant):
        raise ValueError(f"{constant} is no value of JSON")

    for line, text in enumerate(_lines(path), 1):
        if text.strip():
            try:  # numbers as they are written
                record = json.loads(text, parse_int=str, parse_float=str, parse_constant=refuse)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{line}: the line is not JSON ({error}), expected an object a line: check --format.") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}:{line}: found a {type(record).__name__}, expected a JSON object a line.")
            yield line, {clean(name): value for name, value in record.items()}


def _as_text(where, column, value):
    """A value of JSON as text: numbers are text already."""
    if isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str):
        found = "null" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: found {found} in '{column}', expected text, a number, true or false: mend or remove the line.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: found half of a surrogate pair in '{column}', expected text: mend or remove the line.") from None
    return value


# --------------------------------------------------------------------------------------- labels and domains


def check_column(rows, kind, column):
    """Refuses a column that can hold no labels (or domains): too many different values for the rows that there are."""
    names = {getattr(row, kind) for row in rows}
    if len(names) > MOST_NAMES or len(names) > max(len(rows) / 2, 2):
        raise UserError(f"--{kind} {column}: found {len(names)} different values in {len(rows)} rows, expected at most {MOST_NAMES} and two "
                        "rows or more for each: is this the right column?")


def drop_rare(tables, least):
    """The tables without the rows of labels and domains that have fewer than `least` rows in all, and {(kind, name): rows dropped}.

    What is left may be rare once others are dropped: so until nothing is rare.
    """
    dropped = {}
    while rare := find_rare(tables, least):
        dropped.update(rare)
        tables = {split: [row for row in rows if not {("label", row.label), ("domain", row.domain)} & rare.keys()]
                  for split, rows in tables.items()}
    return tables, dropped


def find_rare(tables, least):
    """{(kind, name): rows} of the labels and domains that have fewer than `least` rows in all."""
    counts = collections.Counter(key for rows in tables.values() for row in rows for key in (("label", row.label), ("domain", row.domain)))
    return {key: n for key, n in sorted(counts.items()) if n < least}


def in_order(names):
    """Distinct names in the order of their numbers if all are numbers, else of the alphabet."""
    names = sorted(set(names))
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else names)


def _is_number(name):
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", name, re.ASCII) is not None


def make_task(name, columns, rows, labels=None):
    """The Task of the rows, the labels in the order of `labels` where they are named.

    Raises:
        UserError: there is one label only, or `labels` are not those of the rows.
    """
    found = in_order(row.label for row in rows)
    if len(found) < 2:
        raise UserError(f"--label {columns.label}: found {'the one label ' + repr(found[0]) if found else 'no rows left'}, expected two labels "
                        "or more: check the column, or lower --min_examples.")
    if labels and sorted(labels) != sorted(found):
        raise UserError(f"--labels {' '.join(labels)[:300]}: found the labels {', '.join(found)[:300]} in the rows, expected the same, each once.")
    domain = columns.domain or next(name for name in ("domain", "domain_", "domain__", "domain___") if name not in columns.wanted)
    return Task(name, columns.text, domain, columns.label, tuple(labels or found), in_order(row.domain for row in rows))


# --------------------------------------------------------------------------------------- splitting


def deduplicate(tables):
    """The tables with the first row of each text alone, test before dev before train, so that given test texts stay."""
    seen, kept = set(), {}
    for split in reversed(SPLITS):
        kept[split] = []
        for row in tables.get(split, ()):
            if row.texts not in seen:
                seen.add(row.texts)
                kept[split].append(row)
    return {split: kept[split] for split in tables}


def split_rows(rows, portions, seed):
    """Splits rows at random, as many of each domain and label (a cell) on each side as its share is, rounded up or down.

    Rows of one text, and of one group, stay on one side, even where the shares suffer. Train has some of each cell; dev and test
    have some of each domain and of each label where there are rows enough.

    Args:
        portions: {"dev": share, "test": share} of the rows; 0: none.
    Returns:
        {split: rows in random order}; the same for the same arguments.
    """
    stream = random_stream(seed, "split", 0)
    units = tied_rows(rows)
    units = [units[k] for k in stream.permutation(len(units))]
    units.sort(key=lambda unit: len(unit) == 1)  # single rows last: they fill what is left
    cells = [collections.Counter((rows[k].domain, rows[k].label) for k in unit) for unit in units]
    sizes = collections.Counter((row.domain, row.label) for row in rows)
    places = _Places(cells, quotas(sizes, portions))
    for cell in sorted(sizes):
        places.cover("train", cell)
    for split in [split for split in SPLITS[1:] if portions[split]]:
        for name in sorted({(kind, cell[kind]) for cell in sizes for kind in (0, 1)}):
            places.cover(split, name)
    places.fill(stream)
    splits = {split: [] for split in SPLITS}
    for unit, split in zip(units, places.split_of):
        splits[split] += [rows[k] for k in unit]
    return {split: [part[k] for k in random_stream(seed, "split", 1 + SPLITS.index(split)).permutation(len(part))]
            for split, part in splits.items()}


def tied_rows(rows):
    """Lists of the indices of rows that must stay on one side, as they share a text or a group, or are tied through others that do."""
    parent, first, units = list(range(len(rows))), {}, collections.defaultdict(list)

    def root(k):
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for k, row in enumerate(rows):
        for key in filter(None, (row.texts, row.group)):
            parent[root(k)] = root(first.setdefault(key, k))
    for k in range(len(rows)):
        units[root(k)].append(k)
    return list(units.values())


def quotas(cells, portions):
    """How many rows of each cell go to each split, {split: {cell: rows}}, at least one of each to train.

    Dev and test get the share of a cell rounded up or down, so that the shares of all cells together come out right too, and then
    one more row for each domain and each label that they would have none of, where a cell of it can spare one.

    Args:
        cells: {(domain, label): rows}.
    """
    room = {split: dict.fromkeys(sorted(cells), 0) for split in SPLITS}
    for split, portion in portions.items():
        total = 0
        for cell in sorted(cells):
            room[split][cell] = math.floor((total + cells[cell]) * portion + 0.5) - math.floor(total * portion + 0.5)
            total += cells[cell]
    for cell, n in cells.items():
        while n - sum(room[split][cell] for split in portions) < 1:
            most = max(portions, key=lambda split: room[split][cell] - n * portions[split])
            room[most][cell] -= 1
        room["train"][cell] = n - sum(room[split][cell] for split in portions)
    for split in [split for split in portions if portions[split]]:
        _leave_none_out(room, split)
    return room


def _leave_none_out(room, split):
    """Moves a row of each domain and label that `split` has none of from train, where one more is left."""
    for kind in (0, 1):
        for name in sorted({cell[kind] for cell in room[split]}):
            cells = [cell for cell in room[split] if cell[kind] == name]
            largest = max(cells, key=room["train"].get)
            if not any(room[split][cell] for cell in cells) and room["train"][largest] > 1:
                room["train"][largest] -= 1
                room[split][largest] += 1


class _Places:
    """Which split each unit (rows that stay together) goes to.

    Args:
        cells: for each unit {(domain, label): rows}.
        room: {split: {cell: rows that it has room for}}, used up.
    """

    def __init__(self, cells, room):
        self.cells, self.room, self.split_of, self.covered = cells, room, [None] * len(cells), set()
        self.open = [split for split in SPLITS if any(room[split].values())]
        self.holders = collections.defaultdict(list)  # {name: units that hold it}
        for unit in range(len(cells)):
            for name in self._names(unit):
                self.holders[name].append(unit)

    def _names(self, unit):
        """The cells of a unit, and its domains and labels as (0, domain) and (1, label)."""
        return {*self.cells[unit], *((kind, cell[kind]) for cell in self.cells[unit] for kind in (0, 1))}

    def _excess(self, unit, split):
        """How many rows of the unit the split has no room for."""
        return sum(max(0, n - self.room[split][cell]) for cell, n in self.cells[unit].items())

    def _place(self, unit, split):
        self.split_of[unit] = split
        self.covered |= {(split, name) for name in self._names(unit)}
        for cell, n in self.cells[unit].items():
            self.room[split][cell] -= n

    def cover(self, split, name):
        """Gives the split a unit that holds the name, the one that fits best, if it has none and there is one."""
        free = [unit for unit in self.holders[name] if self.split_of[unit] is None]
        if free and (split, name) not in self.covered:
            self._place(min(free, key=lambda unit: (self._excess(unit, split), sum(self.cells[unit].values()))), split)

    def fill(self, stream):
        """Places the other units: at random where there is room, the more the likelier, else where the least is too much."""
        for unit in range(len(self.cells)):
            if self.split_of[unit] is None:
                room = [0 if self._excess(unit, split) else sum(self.room[split][cell] for cell in self.cells[unit]) for split in SPLITS]
                if any(room):
                    self._place(unit, SPLITS[np.searchsorted(np.cumsum(room), stream.integers(sum(room)), side="right")])
                else:
                    self._place(unit, min(self.open, key=lambda split: self._excess(unit, split)))


def check_splits(task, splits):
    """Refuses splits of which one has no example of some domain or label: no stage takes such."""
    for split, rows in splits.items():
        for kind, names in (("label", task.labels), ("domain", task.domains)):
            found = {getattr(row, kind) for row in rows}
            missing = [name for name in names if name not in found]
            if missing:
                raise UserError(f"{split}: found no row for the {kind} {', '.join(map(repr, missing))[:300]}, expected some of each {kind} in each "
                                "split: add rows, take larger portions, or leave rare ones out with --min_examples N --drop_rare.")


# --------------------------------------------------------------------------------------- the report


def count_lines(task, splits):
    """The number of rows per split, domain and label: a table, or with many labels a line for each domain and label."""
    if len(task.labels) <= WIDEST_TABLE:
        table = count_table(task, {split: _task_rows(rows) for split, rows in splits.items()})
        return list(dict.fromkeys(table.splitlines()))  # the one domain "all" is its own sum
    lines = [f"{'':<30}{''.join(f'{split:>9}' for split in splits)}"]
    for kind, names in (("domain", task.domains), ("label", task.labels)):
        counts = [collections.Counter(getattr(row, kind) for row in rows) for rows in splits.values()]
        lines += [f"{kind:<7}{name[:22]:<23}{''.join(f'{of[name]:>9}' for of in counts)}" for name in names]
    return lines


def _task_rows(rows):
    return [(*row.texts, row.domain, row.label) for row in rows]


def length_lines(splits, tokenizer, seq_length):
    """How long the texts of each split are, in words, and in tokens where there is a tokenizer."""
    lines = []
    for split, rows in splits.items():
        lines.append(f"{split}: words a row: {_spread([sum(len(text.split()) for text in row.texts) for row in rows])}")
        if tokenizer:
            tokens = [1 + sum(1 + sum(1 for _ in tokenizer.ids(text)) for text in row.texts) for row in rows]
            cut = 100 * np.mean(np.array(tokens) > seq_length)
            lines.append(f"{split}: tokens a row: {_spread(tokens)}; {cut:.1f}% of the rows are cut at --seq_length {seq_length}")
    return lines


def _spread(lengths):
    return f"{np.mean(lengths):.1f} on average, 95% have at most {np.percentile(lengths, 95):.0f}, the longest {max(lengths)}"


def repeat_lines(rows):
    """Which texts stand in more than one row, and which of them have more than one label."""
    copies = collections.defaultdict(list)
    for row in rows:
        copies[row.texts].append(row)
    torn = [same for same in copies.values() if len({row.label for row in same}) > 1]
    lines = [f"rows that repeat the text of a row before: {len(rows) - len(copies)}", f"texts with contradicting labels: {len(torn)}"]
    lines[1] += "".join(f"; {same[0].where} '{same[0].label}' but {other.where} '{other.label}'" for same in torn[:3]
                        for other in [next(row for row in same if row.label != same[0].label)])
    quoted = sum(text[0] == text[-1] == '"' for row in rows for text in row.texts if len(text) > 1)
    if 2 * quoted > len(rows):
        lines.append(f"texts in double quotes: {quoted}; if these are not part of the texts, say --format csv --delimiter tab")
    return lines


def leak_lines(splits):
    """How many texts stand on both sides of each pair of splits."""
    texts = {split: {row.texts for row in rows} for split, rows in splits.items()}
    return [f"texts of {a} that stand in {b} as well: {len(texts[a] & texts[b])}" for a, b in itertools.combinations(SPLITS, 2)]


def next_command(args):
    """The command of stage 1 for what was written."""
    beside = pathlib.Path(args.vocab_file).parent if args.vocab_file else pathlib.Path("models/MiniLM")
    model = beside if (beside / "config.json").is_file() else "models/MiniLM"
    words = ["python3", "preprocess.py", "--task_name", args.task_name, "--data_dir", args.data_dir, "--model_load_dir", model,
             "--seq_length", args.seq_length, "--seed", args.seed, "--resave_ofrecord"]
    return " ".join(shlex.quote(str(word)) for word in words)


# --------------------------------------------------------------------------------------- the command


def flags():
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--source", required=True, nargs="+", metavar="FILE", help="the table, or several with the same columns")
    add("--dev", metavar="FILE", help="the table of dev, where the data is split already")
    add("--test", metavar="FILE", help="the table of test, where the data is split already")
    add("--format", choices=("csv", "tsv", "jsonl"), help="what the files are (default: as their suffixes say)")
    add("--delimiter", choices=tuple(DELIMITERS), default="comma", help="what parts the fields of a CSV (default: %(default)s)")
    add("--data_dir", required=True, help="the folder for train.tsv, dev.tsv, test.tsv and task.json")
    add("--task_name", required=True, help="a new name for the task: letters, digits, '_', '.' and '-'")
    add("--text", required=True, nargs="+", metavar="COLUMN", help="the column of the text, or the two of a pair of texts")
    add("--label", required=True, metavar="COLUMN", help="the column of the label")
    add("--labels", nargs="+", metavar="LABEL", help="their order (default: by number if all are numbers, else alphabetical)")
    add("--domain", metavar="COLUMN", help="the column of the domain (default: one domain, 'all')")
    add("--group", metavar="COLUMN", help="rows with the same value in it stay in one split, as those of one author; an empty value ties nothing")
    for split in SPLITS[1:]:
        add(f"--{split}_portion", type=number(float, 0.0, 1.0, open_low=True), default=0.1,
            help=f"share of the rows that goes to {split}, without --{split} (default: %(default)s)")
    add("--seed", type=natural, default=42, help="the split is a function of it (default: %(default)s)")
    add("--dedup", action="store_true", help="keep the first row of each text alone; without it, those of a text stay in one split")
    add("--min_examples", type=count, default=3, help="labels and domains with fewer rows are refused (default: %(default)s, one for each split)")
    add("--drop_rare", action="store_true", help="drop the rows of such labels and domains instead")
    add("--vocab_file", help="the vocab.txt of a model: lengths are told in its tokens too")
    add("--seq_length", type=number(int, 3), default=128, help="longest text in tokens, for the report (default: %(default)s)")
    return parser


def check_flags(args, columns):
    """Refuses flags that do not go together before anything is read."""
    if not re.fullmatch(r"[\w.-]{1,100}", args.task_name) or args.task_name in BUILT_IN:
        raise UserError(f"--task_name {args.task_name:.100}: expected letters, digits, '_', '.' and '-' alone, and none of the built-in tasks "
                        f"({', '.join(BUILT_IN)}).")
    if len(columns.text) > 2 or len({*columns.text, columns.label, columns.domain}) < len(columns.text) + 2:
        raise UserError(f"--text {' '.join(columns.text)} --label {columns.label} --domain {columns.domain}: expected one or two columns of text, "
                        "and another column for each flag.")
    for name in columns.wanted:
        if not 0 < len(name) <= 100:
            raise UserError(f"column '{name:.100}': expected a name of up to 100 characters.")
    if args.group and (args.dev or args.test):
        raise UserError("--group: expected neither --dev nor --test beside it: what is split already cannot be kept together.")
    if sum(portions_of(args).values()) >= 1:
        raise UserError(f"--dev_portion {args.dev_portion} --test_portion {args.test_portion}: expected less than 1 together, "
                        "for train has the rest.")
    outputs = {split_path(args.data_dir, split).resolve() for split in SPLITS}
    for path in filter(None, (*args.source, args.dev, args.test)):
        if pathlib.Path(path).resolve() in outputs:
            raise UserError(f"{path}: would be overwritten, expected tables outside --data_dir: name another --data_dir.")


def portions_of(args):
    """{"dev": share, "test": share} that the rows of --source are split by; 0 for what has a file of its own."""
    return {"dev": 0 if args.dev else args.dev_portion, "test": 0 if args.test else args.test_portion}


def read_tables(args, columns):
    """{split: rows} of the files named: --source as train, to be split, and dev and test where they have files. Says what is in them."""
    tables, empty = {}, []
    for split, paths in (("train", args.source), ("dev", [args.dev]), ("test", [args.test])):
        if paths[0]:
            tables[split], left_out = read_rows(paths, columns, args.format, args.delimiter)
            empty += left_out
    rows = rows_of(tables)
    print(f"rows read: {len(rows) + len(empty)}")
    if empty:
        print(f"rows dropped for an empty text: {len(empty)} ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})")
    print(*repeat_lines(rows), sep="\n")
    return tables


def rows_of(tables):
    """The rows of all tables, one after the other."""
    return list(itertools.chain(*tables.values()))


def without_rare(args, tables):
    """The tables without rare labels and domains, and the names of the labels dropped; refused unless --drop_rare says so."""
    if (rare := find_rare(tables, args.min_examples)) and not args.drop_rare:
        raise UserError(f"{args.source[0]}: found fewer than {args.min_examples} rows of {_told(rare)}, expected more: add rows, name a lower "
                        "--min_examples, or drop them with --drop_rare.")
    tables, dropped = drop_rare(tables, args.min_examples)
    if dropped:
        print(f"dropped by --drop_rare: {_told(dropped)}")
    return tables, {name for kind, name in dropped if kind == "label"}


def _told(rare):
    return ", ".join(f"{kind} {name!r} ({n})" for (kind, name), n in rare.items())[:1000]


@entry
def main():
    args = flags().parse_args()
    columns = Columns(tuple(map(clean, args.text)), clean(args.label), args.domain and clean(args.domain), args.group and clean(args.group))
    check_flags(args, columns)
    tokenizer = tokenizer_for(pathlib.Path(args.vocab_file).parent, args.vocab_file) if args.vocab_file else None

    # ------------ the tables
    tables = read_tables(args, columns)
    if args.dedup:
        before, tables = len(rows_of(tables)), deduplicate(tables)
        print(f"rows dropped by --dedup: {before - len(rows_of(tables))}")
    for kind in ("label", "domain"):
        check_column(rows_of(tables), kind, getattr(columns, kind))
    tables, gone = without_rare(args, tables)
    labels = args.labels and [name for name in map(clean, args.labels) if name not in gone]
    task = make_task(args.task_name, columns, rows_of(tables), labels)

    # ------------ the split
    splits = {**split_rows(tables["train"], portions_of(args), args.seed), **{split: tables[split] for split in tables if split != "train"}}
    check_splits(task, splits)
    write_task(task, args.data_dir, {split: _task_rows(rows) for split, rows in splits.items()})
    print(*count_lines(task, splits), *length_lines(splits, tokenizer, args.seq_length), *leak_lines(splits), sep="\n")
    print(f"written to {args.data_dir}: train.tsv, dev.tsv, test.tsv, task.json; go on with\n{next_command(args)}")


if __name__ == "__main__":
    main()
