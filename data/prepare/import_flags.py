"""The flags of data.prepare.import_tsv."""

import pathlib
import re

from config import Parser, case, count, module_parser, natural, number
from data.prepare.readers import DELIMITERS, FORMS, detect_form
from data.prepare.tables import Columns
from data.tasks import BUILT_IN, SPLITS, split_path
from util import UserError


def make_parser(description: str) -> Parser:
    """The parser of the command line. Args: description: the docstring of the command."""
    parser = module_parser(description, "data.prepare.import_tsv")
    _add_files(parser.add_argument)
    _add_columns(parser.add_argument)
    _add_splits(parser.add_argument)
    parser.add_argument("--vocab_file", help="the vocab.txt of a model: lengths are told in its tokens too")
    case(parser)
    parser.add_argument(
        "--seq_length",
        type=number(int, 3),
        default=128,
        help="longest text in tokens, for the report (default: %(default)s)",
    )
    return parser


def _add_files(add):
    add(
        "--source",
        required=True,
        nargs="+",
        metavar="FILE",
        help="the table, or several with the same columns",
    )
    add("--dev", metavar="FILE", help="the table of dev, where the data is split already")
    add("--test", metavar="FILE", help="the table of test, where the data is split already")
    add("--format", choices=FORMS, help="what the files are (default: as their suffixes say)")
    add(
        "--delimiter",
        choices=tuple(DELIMITERS),
        default="comma",
        help="what parts the fields of a CSV (default: %(default)s)",
    )
    add(
        "--no_header",
        action="store_true",
        help="no file begins with the names of columns: all are numbered, from 1",
    )
    add(
        "--max_rows", type=count, help="read so many rows of each file at most, the first ones (default: all)"
    )
    add("--data_dir", required=True, help="the folder for train.tsv, dev.tsv, test.tsv and task.json")
    add("--task_name", required=True, help="a new name for the task: letters, digits, '_', '.' and '-'")


def _add_columns(add):
    add(
        "--text",
        required=True,
        nargs="+",
        metavar="COLUMN",
        help="the column of the text, or the two of a pair of texts: a name, or a number from 1",
    )
    add("--label", required=True, metavar="COLUMN", help="the column of the label")
    add(
        "--labels",
        nargs="+",
        metavar="LABEL",
        help="their order (default: by number if all are numbers, else alphabetical); OLD=NEW takes one "
        "label for another, and OLD= drops its rows",
    )
    add("--domain", metavar="COLUMN", help="the column of the domain (default: one domain, 'all')")
    add(
        "--domain_from_file",
        action="store_true",
        help="the domain of a row is the name of its file, without suffixes",
    )
    add(
        "--group",
        metavar="COLUMN",
        help="rows with the same value in it, as of one author, stay in one split; an empty one ties nothing",
    )


def _add_splits(add):
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


def check_flags(args, columns: Columns) -> None:
    """Refuses flags that do not go together before anything is read."""
    if not re.fullmatch(r"[\w.-]{1,100}", args.task_name) or args.task_name in BUILT_IN:
        raise UserError(
            f"--task_name {args.task_name:.100}: expected letters, digits, '_', '.' and '-' alone, and none "
            f"of the built-in tasks ({', '.join(BUILT_IN)})."
        )
    if sum(read_portions(args).values()) >= 1:
        raise UserError(
            f"--dev_portion {args.dev_portion} --test_portion {args.test_portion}: expected less than 1 "
            "together, for train has the rest."
        )
    _check_columns(args, columns)
    _check_files(args)


def _check_columns(args, columns):
    if len(columns.text) > 2 or len({*columns.text, columns.label, columns.domain}) < len(columns.text) + 2:
        raise UserError(
            f"--text {' '.join(columns.text)} --label {columns.label} --domain {columns.domain}: expected "
            "one or two columns of text, and another column for each flag."
        )
    for name in columns.wanted:
        if not 0 < len(name) <= 100:
            raise UserError(f"column '{name:.100}': expected a name of up to 100 characters.")
        if args.no_header and not name.isdecimal():
            raise UserError(
                f"--no_header: found the column '{name}', expected numbers from 1 in place of names."
            )
    if args.domain_from_file and (args.domain or args.dev or args.test):
        raise UserError(
            "--domain_from_file: expected none of --domain, --dev and --test beside it: the files of "
            "--source are the domains."
        )
    if args.group and (args.dev or args.test):
        raise UserError(
            "--group: expected neither --dev nor --test beside it: what is split already cannot be kept "
            "together."
        )


def _check_files(args):
    outputs = {split_path(args.data_dir, split).resolve() for split in SPLITS}
    for path in source_files(args):
        if pathlib.Path(path).resolve() in outputs:
            raise UserError(
                f"{path}: would be overwritten, expected tables outside --data_dir: name another --data_dir."
            )
        if args.no_header and (form := args.format or detect_form(path)) in ("jsonl", "parquet"):
            raise UserError(
                f"{path}: --no_header: found {form}, whose columns have names, expected csv or tsv."
            )


def source_files(args) -> list[str]:
    """The tables that are read: those of --source, --dev and --test."""
    return [path for path in (*args.source, args.dev, args.test) if path]


def read_portions(args) -> dict[str, float]:
    """{"dev": share, "test": share} of the rows of --source; 0 for what has a file of its own."""
    return {"dev": 0 if args.dev else args.dev_portion, "test": 0 if args.test else args.test_portion}
