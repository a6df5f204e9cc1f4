"""Tables of your own -> train.tsv, dev.tsv, test.tsv and task.json, split by domain and label.

    python3 -m data.prepare.import_tsv --source reviews.csv --data_dir data/REVIEWS --task_name reviews \\
        --text text --label stars [--domain category] [--group customer] [--dedup] [--vocab_file vocab.txt]

CSV has a header, and quotes around what holds commas or line ends. TSV is the suite's own: a header, tabs,
and quotes are text like any other; for a quoted one say --format csv --delimiter tab. JSON lines have an
object a line, whose numbers, true and false are taken as the text they are written in. All are UTF-8, packed
by gzip or not. Parquet is read where pyarrow is installed.
"""

import collections
import itertools
import pathlib
import re
import shlex

from data.prepare.import_flags import check_flags, make_parser, read_portions, source_files
from data.prepare.import_report import (
    count_lines,
    damage_lines,
    leak_lines,
    length_lines,
    plain_rows,
    repeat_lines,
)
from data.prepare.labels import apply_labels, domain_notes, label_notes, refuse_lists, refuse_scores
from data.prepare.splitting import deduplicate, split_rows
from data.prepare.tables import Columns, Row, read_rows
from data.prepare.task_files import write_task
from data.tasks import Task, clean, missing_names
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry

MOST_NAMES = 1000  # labels or domains; more are taken for a wrong column

# --------------------------------------------------------------------------------------- labels and domains


def check_column(rows: list[Row], kind: str, column: str) -> None:
    """Refuses a column that can hold no labels (or domains):
    too many different values for the rows that there are.
    """
    names = {getattr(row, kind) for row in rows}
    if len(names) > MOST_NAMES or len(names) > max(len(rows) / 2, 2):
        raise UserError(
            f"--{kind} {column}: found {len(names)} different values in {len(rows)} rows, expected at most "
            f"{MOST_NAMES} and two rows or more for each: is this the right column?"
        )


def drop_rare(tables: dict, least: int) -> tuple[dict, dict]:
    """The tables without the rows of labels and domains that have fewer than `least` rows in all, and {(kind,
    name): rows dropped}.

    What is left may be rare once others are dropped: so until nothing is rare.
    """
    dropped = {}
    while rare := find_rare(tables, least):
        dropped.update(rare)
        tables = {
            split: [row for row in rows if not {("label", row.label), ("domain", row.domain)} & rare.keys()]
            for split, rows in tables.items()
        }
    return tables, dropped


def find_rare(tables: dict, least: int) -> dict:
    """{(kind, name): rows} of the labels and domains that have fewer than `least` rows in all."""
    counts = collections.Counter(
        key
        for rows in tables.values()
        for row in rows
        for key in (("label", row.label), ("domain", row.domain))
    )
    return {key: n for key, n in sorted(counts.items()) if n < least}


def in_order(names) -> tuple[str, ...]:
    """Distinct names in the order of their numbers if all are numbers, else of the alphabet."""
    names = sorted(set(names))
    return tuple(sorted(names, key=float) if all(map(_is_number, names)) else names)


def _is_number(name):
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", name, re.ASCII) is not None


def make_task(name: str, columns: Columns, rows: list[Row], labels=None) -> Task:
    """The Task of the rows, the labels in the order of `labels` where they are named.

    Raises:
        UserError: there is one label only, or `labels` are not those of the rows.
    """
    found = in_order(row.label for row in rows)
    if len(found) < 2:
        raise UserError(
            f"--label {columns.label}: found "
            f"{'the one label ' + repr(found[0]) if found else 'no rows left'}, expected two labels or more: "
            "check the column, or lower --min_examples."
        )
    if labels and sorted(labels) != sorted(found):
        raise UserError(
            f"--labels {' '.join(labels)[:300]}: found the labels {', '.join(found)[:300]} in the rows, "
            "expected the same, each once."
        )
    domain = columns.domain or next(
        name for name in ("domain", "domain_", "domain__", "domain___") if name not in columns.wanted
    )
    return Task(
        name,
        columns.text,
        domain,
        columns.label,
        tuple(labels or found),
        in_order(row.domain for row in rows),
    )


def check_splits(task: Task, splits: dict, given: list[str]) -> None:
    """Refuses a train without some domain or label, and a split without rows: no stage takes such; notes what
    dev and test have none of. given: the flags that name files of their own for dev and test.
    """
    remedy = "add rows, take larger portions, or leave rare ones out with --min_examples N --drop_rare"
    if given:
        remedy = (
            f"add rows to --source, or take them out of {' and '.join(given)} (rows of a label go by "
            "--labels NAME=)"
        )
    for split, rows in splits.items():
        cells = collections.Counter((row.domain, row.label) for row in rows)
        missing = missing_names(
            task.domains,
            task.labels,
            [[cells[domain, label] for label in task.labels] for domain in task.domains],
        )
        if not rows or missing and split == "train":
            raise UserError(
                f"{split}: found no row for the {missing}, expected some of each domain and class in train "
                f"and some rows in dev and test: {remedy}."
            )
        if missing:
            print(f"{split}: note: none of {missing}")


# --------------------------------------------------------------------------------------- the command


def next_command(args) -> str:
    """The command of stage 1 for what was written."""
    beside = pathlib.Path(args.vocab_file).parent if args.vocab_file else pathlib.Path("models/MiniLM")
    model = beside if (beside / "config.json").is_file() else "models/MiniLM"
    words = [
        "python3",
        "preprocess.py",
        "--task_name",
        args.task_name,
        "--data_dir",
        args.data_dir,
        "--model_load_dir",
        model,
        "--seq_length",
        args.seq_length,
        "--seed",
        args.seed,
        "--resave_ofrecord",
    ]
    return " ".join(shlex.quote(str(word)) for word in words)


def read_tables(args, columns: Columns) -> dict[str, list[Row]]:
    """{split: rows} of the files named: --source as train, to be split, and dev and test where they have
    files. Says what is in them.
    """
    tables, empty = {}, []
    for split, paths in (("train", args.source), ("dev", [args.dev]), ("test", [args.test])):
        if paths[0]:
            tables[split], left_out = read_rows(
                paths,
                columns,
                args.format,
                args.delimiter,
                args.max_rows,
                args.domain_from_file,
                not args.no_header,
            )
            empty += left_out
    rows = iterate_rows(tables)
    print(f"rows read: {len(rows) + len(empty)}")
    if not args.no_header and any(name.isdecimal() for name in columns.wanted):
        print(
            "the first row of each file is taken for its header; say --no_header where it is a row as the "
            "others"
        )
    if empty:
        print(
            f"rows dropped for an empty text: {len(empty)} "
            f"({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})"
        )
    print(*repeat_lines(rows), *damage_lines(rows), sep="\n")
    return tables


def iterate_rows(tables: dict) -> list[Row]:
    """The rows of all tables, one after the other."""
    return list(itertools.chain(*tables.values()))


def without_rare(args, tables: dict) -> tuple[dict, set[str]]:
    """The tables without rare labels and domains, and the names of the labels dropped; refused unless
    --drop_rare says so.
    """
    if (rare := find_rare(tables, args.min_examples)) and not args.drop_rare:
        raise UserError(
            f"{', '.join(source_files(args))}: found fewer than {args.min_examples} rows of "
            f"{_rare_summary(rare)}, expected more: add rows, name a lower --min_examples, or drop them with "
            "--drop_rare."
        )
    tables, dropped = drop_rare(tables, args.min_examples)
    if dropped:
        print(f"dropped by --drop_rare: {_rare_summary(dropped)}")
    return tables, {name for kind, name in dropped if kind == "label"}


def _rare_summary(rare):
    return ", ".join(f"{kind} {name!r} ({n})" for (kind, name), n in rare.items())[:1000]


def arrange_labels(args, tables: dict) -> tuple[dict, list[str]]:
    """The tables with their labels as --labels says, and the names among its entries;
    scores and lists are refused.
    """
    tables, order = apply_labels(tables, [clean(name) for name in args.labels or ()])
    rows = iterate_rows(tables)
    refuse_scores(args.label, rows, order)
    refuse_lists(args.label, rows, order)
    for note in (*label_notes(rows, order), *domain_notes(rows)):
        print(note)
    check_column(rows, "label", args.label)
    check_column(rows, "domain", args.domain)
    return tables, order


@entry
def main():
    args = make_parser(__doc__).parse_args()
    columns = Columns(
        tuple(map(clean, args.text)),
        clean(args.label),
        args.domain and clean(args.domain),
        args.group and clean(args.group),
    )
    check_flags(args, columns)
    tokenizer = None
    if args.vocab_file:
        tokenizer = tokenizer_for(pathlib.Path(args.vocab_file).parent, args.vocab_file, args.do_lower_case)
        print(describe_tokenizer(tokenizer))

    # ------------ the tables
    tables = read_tables(args, columns)
    if args.dedup:
        before, tables = len(iterate_rows(tables)), deduplicate(tables)
        print(f"rows dropped by --dedup: {before - len(iterate_rows(tables))}")
    tables, order = arrange_labels(args, tables)
    tables, gone = without_rare(args, tables)
    labels = order and [name for name in order if name not in gone]
    task = make_task(args.task_name, columns, iterate_rows(tables), labels)

    # ------------ the split
    splits = {
        **split_rows(tables["train"], read_portions(args), args.seed),
        **{split: tables[split] for split in tables if split != "train"},
    }
    check_splits(task, splits, [f"--{split}" for split in ("dev", "test") if split in tables])
    write_task(task, args.data_dir, {split: plain_rows(rows) for split, rows in splits.items()})

    # ------------ the report
    print(*count_lines(task, splits), *length_lines(splits, tokenizer, args.seq_length), sep="\n")
    print(*leak_lines(splits), sep="\n")
    print(
        f"written to {args.data_dir}: train.tsv, dev.tsv, test.tsv, task.json; go on "
        f"with\n{next_command(args)}"
    )


if __name__ == "__main__":
    main()
