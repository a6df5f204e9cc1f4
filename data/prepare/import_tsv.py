"""Tables of your own, CSV, TSV or JSON lines -> train.tsv, dev.tsv, test.tsv and task.json, split by domain and label.

    python3 -m data.prepare.import_tsv --source reviews.csv --data_dir data/REVIEWS --task_name reviews --text text --label stars \\
        [--domain category] [--group customer] [--dedup] [--vocab_file vocab.txt]

CSV has a header, and quotes around what holds commas or line ends. TSV is the suite's own: a header, tabs, and quotes are text like
any other; for a quoted one say --format csv --delimiter tab. JSON lines have an object a line, whose numbers, true and false are
taken as the text they are written in. All are UTF-8.
"""

import collections
import itertools
import pathlib
import re
import shlex

import numpy as np

from config import case, count, module_parser, natural, number
from data.prepare.labels import apply_labels, label_notes, refuse_scores
from data.prepare.splitting import deduplicate, split_rows
from data.prepare.tables import DELIMITERS, Columns, is_quoted, read_rows
from data.prepare.task_files import count_table, write_task
from data.tasks import BUILT_IN, SPLITS, Task, clean, missing_names, split_path
from tokenization import describe_tokenizer, tokenizer_for
from util import UserError, entry

MOST_NAMES = 1000  # labels or domains; more are taken for a wrong column
WIDEST_TABLE = 10  # labels

# --------------------------------------------------------------------------------------- labels and domains


def check_column(rows, kind, column):
    """Refuses a column that can hold no labels (or domains): too many different values for the rows that there are."""
    names = {getattr(row, kind) for row in rows}
    if len(names) > MOST_NAMES or len(names) > max(len(rows) / 2, 2):
        raise UserError(
            f"--{kind} {column}: found {len(names)} different values in {len(rows)} rows, expected at most {MOST_NAMES} and two "
            "rows or more for each: is this the right column?"
        )


def drop_rare(tables, least):
    """The tables without the rows of labels and domains that have fewer than `least` rows in all, and {(kind, name): rows dropped}.

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


def find_rare(tables, least):
    """{(kind, name): rows} of the labels and domains that have fewer than `least` rows in all."""
    counts = collections.Counter(
        key
        for rows in tables.values()
        for row in rows
        for key in (("label", row.label), ("domain", row.domain))
    )
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
        raise UserError(
            f"--label {columns.label}: found {'the one label ' + repr(found[0]) if found else 'no rows left'}, expected two labels "
            "or more: check the column, or lower --min_examples."
        )
    if labels and sorted(labels) != sorted(found):
        raise UserError(
            f"--labels {' '.join(labels)[:300]}: found the labels {', '.join(found)[:300]} in the rows, expected the same, each once."
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


def check_splits(task, splits):
    """Refuses a train without some domain or label, and a split without rows: no stage takes such; notes what dev and test have none of."""
    for split, rows in splits.items():
        cells = collections.Counter((row.domain, row.label) for row in rows)
        missing = missing_names(
            task.domains,
            task.labels,
            [[cells[domain, label] for label in task.labels] for domain in task.domains],
        )
        if not rows or missing and split == "train":
            raise UserError(
                f"{split}: found no row for the {missing}, expected some of each domain and class in train and some rows in dev and "
                "test: add rows, take larger portions, or leave rare ones out with --min_examples N --drop_rare."
            )
        if missing:
            print(f"{split}: note: none of {missing}")


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
        lines.append(
            f"{split}: words a row: {_spread([sum(len(text.split()) for text in row.texts) for row in rows])}"
        )
        if tokenizer:
            tokens = [1 + sum(1 + sum(1 for _ in tokenizer.ids(text)) for text in row.texts) for row in rows]
            cut = 100 * np.mean(np.array(tokens) > seq_length)
            lines.append(
                f"{split}: tokens a row: {_spread(tokens)}; {cut:.1f}% of the rows are cut at --seq_length {seq_length}"
            )
    return lines


def _spread(lengths):
    return f"{np.mean(lengths):.1f} on average, 95% have at most {np.percentile(lengths, 95):.0f}, the longest {max(lengths)}"


def repeat_lines(rows):
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
            f"{', ...' * (len(surely) > 3)}); their quotes stay in the texts unless you say --format csv --delimiter tab"
        )
    elif 2 * quoted > len(rows):
        lines.append(
            f"texts in double quotes: {quoted}; if these are not part of the texts, say --format csv --delimiter tab"
        )
    return lines


def leak_lines(splits):
    """How many texts stand on both sides of each pair of splits."""
    texts = {split: {row.texts for row in rows} for split, rows in splits.items()}
    return [
        f"texts of {a} that stand in {b} as well: {len(texts[a] & texts[b])}"
        for a, b in itertools.combinations(SPLITS, 2)
    ]


def next_command(args):
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


# --------------------------------------------------------------------------------------- the command


def flags():
    """The parser of the command line."""
    parser = module_parser(__doc__, "data.prepare.import_tsv")
    add = parser.add_argument
    add(
        "--source",
        required=True,
        nargs="+",
        metavar="FILE",
        help="the table, or several with the same columns",
    )
    add("--dev", metavar="FILE", help="the table of dev, where the data is split already")
    add("--test", metavar="FILE", help="the table of test, where the data is split already")
    add(
        "--format",
        choices=("csv", "tsv", "jsonl"),
        help="what the files are (default: as their suffixes say)",
    )
    add(
        "--delimiter",
        choices=tuple(DELIMITERS),
        default="comma",
        help="what parts the fields of a CSV (default: %(default)s)",
    )
    add("--data_dir", required=True, help="the folder for train.tsv, dev.tsv, test.tsv and task.json")
    add("--task_name", required=True, help="a new name for the task: letters, digits, '_', '.' and '-'")
    add(
        "--text",
        required=True,
        nargs="+",
        metavar="COLUMN",
        help="the column of the text, or the two of a pair of texts",
    )
    add("--label", required=True, metavar="COLUMN", help="the column of the label")
    add(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="their order (default: by number if all are numbers, else alphabetical); OLD=NEW takes one label for another, and "
        "OLD= drops its rows",
    )
    add("--domain", metavar="COLUMN", help="the column of the domain (default: one domain, 'all')")
    add(
        "--domain_from_file",
        action="store_true",
        help="the domain of a row is the name of its file, without suffixes",
    )
    add(
        "--max_rows", type=count, help="read so many rows of each file at most, the first ones (default: all)"
    )
    add(
        "--group",
        metavar="COLUMN",
        help="rows with the same value in it stay in one split, as those of one author; an empty value ties nothing",
    )
    for split in SPLITS[1:]:
        add(
            f"--{split}_portion",
            type=number(float, 0.0, 1.0, open_low=True),
            default=0.1,
            help=f"share of the rows that goes to {split}, without --{split} (default: %(default)s)",
        )
    add("--seed", type=natural, default=42, help="the split is a function of it (default: %(default)s)")
    add(
        "--dedup",
        action="store_true",
        help="keep the first row of each text alone; without it, those of a text stay in one split",
    )
    add(
        "--min_examples",
        type=count,
        default=3,
        help="labels and domains with fewer rows are refused (default: %(default)s, one for each split)",
    )
    add("--drop_rare", action="store_true", help="drop the rows of such labels and domains instead")
    add("--vocab_file", help="the vocab.txt of a model: lengths are told in its tokens too")
    case(parser)
    add(
        "--seq_length",
        type=number(int, 3),
        default=128,
        help="longest text in tokens, for the report (default: %(default)s)",
    )
    return parser


def check_flags(args, columns):
    """Refuses flags that do not go together before anything is read."""
    if not re.fullmatch(r"[\w.-]{1,100}", args.task_name) or args.task_name in BUILT_IN:
        raise UserError(
            f"--task_name {args.task_name:.100}: expected letters, digits, '_', '.' and '-' alone, and none of the built-in tasks "
            f"({', '.join(BUILT_IN)})."
        )
    if len(columns.text) > 2 or len({*columns.text, columns.label, columns.domain}) < len(columns.text) + 2:
        raise UserError(
            f"--text {' '.join(columns.text)} --label {columns.label} --domain {columns.domain}: expected one or two columns of text, "
            "and another column for each flag."
        )
    for name in columns.wanted:
        if not 0 < len(name) <= 100:
            raise UserError(f"column '{name:.100}': expected a name of up to 100 characters.")
    if args.domain_from_file and (args.domain or args.dev or args.test):
        raise UserError(
            "--domain_from_file: expected none of --domain, --dev and --test beside it: the files of --source are the domains."
        )
    if args.group and (args.dev or args.test):
        raise UserError(
            "--group: expected neither --dev nor --test beside it: what is split already cannot be kept together."
        )
    if sum(read_portions(args).values()) >= 1:
        raise UserError(
            f"--dev_portion {args.dev_portion} --test_portion {args.test_portion}: expected less than 1 together, "
            "for train has the rest."
        )
    outputs = {split_path(args.data_dir, split).resolve() for split in SPLITS}
    for path in filter(None, (*args.source, args.dev, args.test)):
        if pathlib.Path(path).resolve() in outputs:
            raise UserError(
                f"{path}: would be overwritten, expected tables outside --data_dir: name another --data_dir."
            )


def read_portions(args):
    """{"dev": share, "test": share} that the rows of --source are split by; 0 for what has a file of its own."""
    return {"dev": 0 if args.dev else args.dev_portion, "test": 0 if args.test else args.test_portion}


def read_tables(args, columns):
    """{split: rows} of the files named: --source as train, to be split, and dev and test where they have files. Says what is in them."""
    tables, empty = {}, []
    for split, paths in (("train", args.source), ("dev", [args.dev]), ("test", [args.test])):
        if paths[0]:
            tables[split], left_out = read_rows(
                paths, columns, args.format, args.delimiter, args.max_rows, args.domain_from_file
            )
            empty += left_out
    rows = iterate_rows(tables)
    print(f"rows read: {len(rows) + len(empty)}")
    if empty:
        print(
            f"rows dropped for an empty text: {len(empty)} ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})"
        )
    print(*repeat_lines(rows), sep="\n")
    return tables


def iterate_rows(tables):
    """The rows of all tables, one after the other."""
    return list(itertools.chain(*tables.values()))


def without_rare(args, tables):
    """The tables without rare labels and domains, and the names of the labels dropped; refused unless --drop_rare says so."""
    if (rare := find_rare(tables, args.min_examples)) and not args.drop_rare:
        raise UserError(
            f"{args.source[0]}: found fewer than {args.min_examples} rows of {_rare_summary(rare)}, expected more: add rows, name a lower "
            "--min_examples, or drop them with --drop_rare."
        )
    tables, dropped = drop_rare(tables, args.min_examples)
    if dropped:
        print(f"dropped by --drop_rare: {_rare_summary(dropped)}")
    return tables, {name for kind, name in dropped if kind == "label"}


def _rare_summary(rare):
    return ", ".join(f"{kind} {name!r} ({n})" for (kind, name), n in rare.items())[:1000]


@entry
def main():
    args = flags().parse_args()
    columns = Columns(
        tuple(map(clean, args.text)),
        clean(args.label),
        args.domain and clean(args.domain),
        args.group and clean(args.group),
    )
    check_flags(args, columns)
    tokenizer = (
        tokenizer_for(pathlib.Path(args.vocab_file).parent, args.vocab_file, args.do_lower_case)
        if args.vocab_file
        else None
    )
    if tokenizer:
        print(describe_tokenizer(tokenizer))

    # ------------ the tables
    tables = read_tables(args, columns)
    if args.dedup:
        before, tables = len(iterate_rows(tables)), deduplicate(tables)
        print(f"rows dropped by --dedup: {before - len(iterate_rows(tables))}")
    tables, order = apply_labels(tables, [clean(name) for name in args.labels or ()])
    refuse_scores(columns.label, iterate_rows(tables), order)
    for note in label_notes(iterate_rows(tables), order):
        print(note)
    for kind in ("label", "domain"):
        check_column(iterate_rows(tables), kind, getattr(columns, kind))
    tables, gone = without_rare(args, tables)
    labels = order and [name for name in order if name not in gone]
    task = make_task(args.task_name, columns, iterate_rows(tables), labels)

    # ------------ the split
    splits = {
        **split_rows(tables["train"], read_portions(args), args.seed),
        **{split: tables[split] for split in tables if split != "train"},
    }
    check_splits(task, splits)
    write_task(task, args.data_dir, {split: _task_rows(rows) for split, rows in splits.items()})
    print(
        *count_lines(task, splits),
        *length_lines(splits, tokenizer, args.seq_length),
        *leak_lines(splits),
        sep="\n",
    )
    print(
        f"written to {args.data_dir}: train.tsv, dev.tsv, test.tsv, task.json; go on with\n{next_command(args)}"
    )


if __name__ == "__main__":
    main()
