"""Tables of the user's own: every format gives the same rows, a split keeps shares and ties, each fault is
one sentence.
"""

import collections
import csv
import gzip
import itertools
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, Outcome, call

from data.prepare import import_tsv
from data.prepare.import_report import count_lines, length_lines
from data.prepare.import_tsv import drop_rare, in_order, make_task
from data.prepare.readers import DELIMITERS
from data.prepare.splitting import deduplicate, quotas, split_rows
from data.prepare.tables import Columns, Row, read_rows
from data.tasks import SPLITS, load_task, read_examples, split_path
from util import UserError

COLUMNS = Columns(("text",), "stars", "category", None)
# (text, stars, category) as they stand in a file, and as they are read
NASTY = [
    ('he said "no", twice', "1", "books"),
    ("two\nlines, and\r\nmore", "2", "dvd"),
    ("tab\there  ", "1", "books"),
    ("naïve 👍", "2", "dvd"),
    ('"', "10", "books"),
    ("a \x0b b\u2028c", "10", "dvd"),
]
FLAGS = "--source in.csv --data_dir out --task_name mine --text text --label stars --domain category"


def write_csv(path, rows, header=("text", "stars", "category"), **options):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([header, *rows])


def write_json(path, rows):
    path.write_text(
        "".join(json.dumps(dict(zip(("text", "stars", "category"), row))) + "\n" for row in rows),
        encoding="utf-8",
    )


def table(rows=60):
    """Rows of two domains and two labels with distinct texts; the words are those of the tiny vocabulary."""
    words = "good great fine bad awful dull book plot film".split()
    texts = map(" ".join, itertools.product(words, repeat=3))
    return [
        (text, ("up", "down")[k % 2], ("books", "dvd")[k // 2 % 2]) for k, text in zip(range(rows), texts)
    ]


def as_rows(triples, groups=None):
    groups = groups or [""] * len(triples)
    return [
        Row((text,), domain, label, group, f"f:{k}")
        for k, ((text, label, domain), group) in enumerate(zip(triples, groups))
    ]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: the words of its line -> Outcome."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        monkeypatch.setattr(sys, "argv", ["import_tsv.py", *shlex.split(line)])
        try:
            import_tsv.main()
        except SystemExit as end:
            return Outcome(end.code, *capsys.readouterr())
        return Outcome(0, *capsys.readouterr())

    return run


def read_all(folder, name="mine"):
    """Task and examples of a folder, {split: examples}, as the stages read them."""
    task = load_task(name, folder)
    return task, {split: list(read_examples(task, split_path(folder, split))) for split in SPLITS}


# ---------------------------------------------------------------------------------------- reading


def test_all_formats_give_the_same_rows(tmp_path):
    """Quotes, commas, tabs and line ends inside quotes, in CSV by any delimiter and as JSON: cleaned texts,
    names as they are.
    """
    expected = [
        ('he said "no", twice', "1", "books"),
        ("two lines, and more", "2", "dvd"),
        ("tab here", "1", "books"),
        ("naïve 👍", "2", "dvd"),
        ('"', "10", "books"),
        ("a b c", "10", "dvd"),
    ]
    write_json(tmp_path / "in.jsonl", NASTY)
    write_json(tmp_path / "numbers.jsonl", [(text, int(stars), category) for text, stars, category in NASTY])
    (tmp_path / "in.tsv").write_text(
        "\n".join("\t".join(row) for row in [("text", "stars", "category"), *expected]), encoding="utf-8"
    )
    found = [read_rows([tmp_path / name], COLUMNS) for name in ("in.jsonl", "numbers.jsonl", "in.tsv")]
    for delimiter, char in DELIMITERS.items():
        write_csv(tmp_path / "in.csv", NASTY, delimiter=char)
        found.append(read_rows([tmp_path / "in.csv"], COLUMNS, "csv", delimiter))
    for rows, empty in found:
        assert [(*row.texts, row.label, row.domain) for row in rows] == expected and empty == []


def test_lines_are_those_of_the_file(tmp_path):
    """A row of several lines is named by its first; blank lines count and are passed over; a byte-order mark
    is no part of a name.
    """
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbf"text",stars\r\n\r\n"a\n\nb",1\r\n c , "2"\r\n\r\n')
    rows, _ = read_rows([tmp_path / "in.csv"], COLUMNS._replace(domain=None))
    assert [(row.where.rpartition(":")[2], row.texts, row.label, row.domain) for row in rows] == [
        ("3", ("a b",), "1", "all"),
        ("6", ("c",), "2", "all"),
    ]


def test_columns_are_found_by_name_in_each_file(tmp_path):
    """Others are passed over, the order is free, files follow each other, and a pair has two texts."""
    (tmp_path / "a.csv").write_text("id,stars,text,answer\n7,1,why,because\n")
    (tmp_path / "b.tsv").write_text('answer\ttext\tstars\n"no"\twho\t2\n')
    rows, _ = read_rows(
        [tmp_path / "a.csv", tmp_path / "b.tsv"], Columns(("text", "answer"), "stars", None, None)
    )
    assert [(row.texts, row.label) for row in rows] == [(("why", "because"), "1"), (("who", '"no"'), "2")]


def test_values_of_json_become_their_text(tmp_path):
    """Numbers as they are written, however long, true and false in JSON's spelling."""
    values = ("true", "false", "1", "1.0", "-1e5", "1" * 90)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "a", "stars": {value}}}\n\n' for value in values))
    rows, _ = read_rows([tmp_path / "in.jsonl"], COLUMNS._replace(domain=None))
    assert tuple(row.label for row in rows) == values


def test_columns_by_number(tmp_path):
    """From 1, where no column has the number for its name; one that is not there is told."""
    (tmp_path / "in.csv").write_text("text,1,stars\na,b,c\n")
    (row,), _ = read_rows([tmp_path / "in.csv"], Columns(("1",), "3", None, None))
    assert (row.texts, row.label) == (("b",), "c")
    for name in ("0", "4", "9" * 20):
        with pytest.raises(UserError, match=f"no column '{name}' among"):
            read_rows([tmp_path / "in.csv"], Columns((name,), "3", None, None))


def test_packed_files_of_a_domain_each(command, tmp_path):
    """gzip by the suffix, the domain by the name of the file, so many rows of each; a damaged one is told."""
    for name in ("books", "dvd"):
        rows = [(f"{name} {text}", label, "x") for text, label, _ in table()]
        write_csv(tmp_path / "in.csv", rows)
        (tmp_path / f"{name}.csv.gz").write_bytes(gzip.compress((tmp_path / "in.csv").read_bytes()))
    flags = "--source books.csv.gz dvd.csv.gz --data_dir out --task_name mine --text text --label stars"
    outcome = command(f"{flags} --domain_from_file --max_rows 30")
    assert outcome.code == 0 and "rows read: 60\n" in outcome.out, outcome.err
    task, examples = read_all(tmp_path / "out")
    assert task.domains == ("books", "dvd")
    assert all(task.domains[e.domain] in e.text_a for part in examples.values() for e in part)
    assert (
        "--domain_from_file: expected none of --domain"
        in command(f"{flags} --domain_from_file --dev in.csv").err
    )
    (tmp_path / "dvd.csv.gz").write_bytes((tmp_path / "dvd.csv.gz").read_bytes()[:-20])
    assert "dvd.csv.gz: cannot be unpacked" in command(flags).err


def test_a_text_of_any_length_is_read(tmp_path):
    """Python's csv module has a limit of 128 kB a field."""
    write_csv(tmp_path / "in.csv", [("word " * 100_000, "1", "books")])
    assert len(read_rows([tmp_path / "in.csv"], COLUMNS)[0][0].texts[0]) == 499_999


def test_empty_texts_are_left_out_and_named(tmp_path):
    """Whitespace and control characters are no text; of a pair neither may be empty."""
    write_csv(tmp_path / "in.csv", [("a", "1", "x"), (" \t", "1", "x"), ("\x1a", "1", "x"), ("b", "2", "x")])
    rows, empty = read_rows([tmp_path / "in.csv"], COLUMNS)
    assert [row.texts for row in rows] == [("a",), ("b",)] and empty == [
        f"{tmp_path / 'in.csv'}:{line}" for line in (3, 4)
    ]
    rows, empty = read_rows(
        [tmp_path / "in.csv"], COLUMNS._replace(text=("stars", "text"), label="category", domain=None)
    )
    assert len(rows) == len(empty) == 2


def test_texts_without_a_visible_character_are_empty(tmp_path):
    """What the stages refuse is not imported: format characters, selectors, accents on nothing."""
    texts = ("\u200b", "\u00ad", "\ufe0f\u200d", "\u0301", "\ufffd \ue000", "\u200bgood", "👍\ufe0f")
    write_csv(tmp_path / "in.csv", [(text, "1", "x") for text in texts])
    rows, empty = read_rows([tmp_path / "in.csv"], COLUMNS)
    assert len(rows) == 2 and len(empty) == 5


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("in.csv", b"", ": found no rows"),
        ("in.csv", b"text,stars,category\n", ": found no rows"),
        ("in.jsonl", b"\n", ": found no rows"),
        ("in.csv", b"text;stars;category\na;1;x\n", ":1: found no column 'text' among 'text;stars;category'"),
        ("in.csv", b"text,stars,text,category\n", ":1: found more than one column 'text'"),
        ("in.csv", b"text,stars,category\na,1,x\nb,2\n", ":3: found 2 field(s), expected 3"),
        ("in.tsv", b'text\tstars\tcategory\n"a\nb"\t1\tx\n', ":2: found 1 field(s), expected 3"),
        (
            "in.csv",
            b'text,stars,category\na,1,x\n"b,2,x\nc,3,x\n',
            ":3: the row that starts here is no CSV (unexpected end of data)",
        ),
        (
            "in.csv",
            b'text,stars,category\n"a"b,1,x\n',
            ":2: the row that starts here is no CSV (',' expected after '\"')",
        ),
        (
            "in.csv",
            b"text,stars,category\rb,2,x\r",
            ":1: the row that starts here is no CSV (new-line character",
        ),
        ("in.csv", b"text,stars,category\ncaf\xe9,1,x\n", ":2: found byte 0xe9 at position 3"),
        ("in.csv", "text,stars,category\n".encode("utf-16-le"), ":1: found a NUL character"),
        ("in.csv", b"text,stars,category\na,,x\n", ":2: found nothing in 'stars'"),
        ("in.csv", "text,stars,category\na,\u200b,x\n".encode(), ":2: found nothing in 'stars'"),
        (
            "in.csv",
            b"text,stars,category\na,1," + b"x" * 101 + b"\n",
            ":2: found a name of 101 characters in 'category'",
        ),
        (
            "in.jsonl",
            b'{"text": "a", "stars": 1, "category": "x"}\n{"text": "a", "stars": 1}\n',
            ":2: found no column 'category' among 'text', 'stars'",
        ),
        ("in.jsonl", b"{}\n", ":1: found no column 'text' among none at all"),
        ("in.jsonl", b'{"text": "a", "stars": null, "category": "x"}\n', ":1: found null in 'stars'"),
        ("in.jsonl", b'{"text": ["a"], "stars": 1, "category": "x"}\n', ":1: found a list in 'text'"),
        (
            "in.jsonl",
            b'{"text": "\\ud800", "stars": 1, "category": "x"}\n',
            ":1: found half of a surrogate pair in 'text'",
        ),
        (
            "in.jsonl",
            b'{"text": "a", "stars": NaN, "category": "x"}\n',
            ":1: the line is not JSON (NaN is no value",
        ),
        ("in.jsonl", b'[{"text": "a"}]\n', ":1: found a list, expected a JSON object"),
        ("in.jsonl", b"{\n", ":1: the line is not JSON"),
        ("in.jsonl", b"[" * 100_000 + b"\n", ":1: the line is not JSON"),
        ("in.xlsx", b"", ": found the suffix 'xlsx', expected csv, tsv or jsonl"),
    ],
)
def test_faults_of_a_file_are_told_with_their_line(tmp_path, name, content, sentence):
    """One short sentence that names the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_rows([tmp_path / name], COLUMNS)
    assert f"{tmp_path / name}{sentence}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    """Neither a missing file nor a folder ends in an OSError."""
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_rows([path], COLUMNS, "csv")


# ---------------------------------------------------------------------------------------- labels and domains


def test_the_order_of_labels():
    """By number where all are numbers, else alphabetical; as named where they are named, and then they must
    be those of the rows.
    """
    assert in_order(["10", "2", "1", "2"]) == ("1", "2", "10") and in_order(["1e1", "-.5", "3"]) == (
        "-.5",
        "3",
        "1e1",
    )
    assert in_order(["10", "2", "nan"]) == ("10", "2", "nan") and in_order(["b", "a"]) == ("a", "b")
    rows = as_rows(table())
    assert make_task("t", COLUMNS, rows).labels == ("down", "up") and make_task(
        "t", COLUMNS, rows, ["up", "down"]
    ).labels == ("up", "down")
    for labels in (["up"], ["up", "down", "down"], ["up", "sideways"]):
        with pytest.raises(UserError, match="found the labels down, up in the rows, expected the same"):
            make_task("t", COLUMNS, rows, labels)


def test_rare_names_go_until_none_is_left():
    """A domain that is rare only once a rare label has gone goes as well."""
    rows = as_rows(
        [("a", "odd", "x"), ("b", "up", "x"), *[(str(k), ("up", "down")[k % 2], "y") for k in range(8)]]
    )
    tables, dropped = drop_rare({"train": rows}, 2)
    assert (
        dropped == {("label", "odd"): 1, ("domain", "x"): 1}
        and [row.domain for row in tables["train"]] == ["y"] * 8
    )


def test_deduplicated_tables_hold_each_text_once():
    """The first of each text stays, a given test's before a given dev's before the rest's."""
    tables = {
        split: as_rows([(text, "up", "x") for text in texts])
        for split, texts in (("train", "abcad"), ("dev", "be"), ("test", "ecc"))
    }
    kept = {split: "".join(row.texts[0] for row in rows) for split, rows in deduplicate(tables).items()}
    assert kept == {"train": "ad", "dev": "b", "test": "ec"}
    assert [
        row.where for row in deduplicate({"train": as_rows([("a", "up", "x"), ("a", "down", "x")])})["train"]
    ] == ["f:0"]


# ---------------------------------------------------------------------------------------- splitting


def random_rows(stream, texts=None, groups=None):
    """Up to 400 rows in cells of very different sizes; texts and groups of so many, or all different."""
    domains, labels, n = stream.integers(1, 5), stream.integers(2, 6), stream.integers(20, 400)
    shares = stream.dirichlet(np.full(domains * labels, 0.5))
    cells = [divmod(cell, labels) for cell in stream.choice(domains * labels, n, p=shares)]
    return [
        Row(
            (str(stream.integers(texts)) if texts else str(k),),
            f"d{domain}",
            f"l{label}",
            str(stream.integers(groups)) if groups else "",
            "f:1",
        )
        for k, (domain, label) in enumerate(cells)
    ]


def by_cell(rows):
    return collections.Counter((row.domain, row.label) for row in rows)


@pytest.mark.parametrize("seed", range(30))
def test_shares_of_a_random_table(seed):
    """Every row is in one split, each cell of dev and test is within one of its share, train has some of
    each; so is the whole nearly.
    """
    stream = np.random.default_rng(seed)
    rows, portions = (
        random_rows(stream),
        {"dev": stream.uniform(0.02, 0.4), "test": stream.uniform(0.02, 0.4)},
    )
    splits = split_rows(rows, portions, seed)
    assert sorted(itertools.chain(*splits.values())) == sorted(rows)
    cells = by_cell(rows)
    assert by_cell(splits["train"]).keys() == cells.keys()
    for split, portion in portions.items():
        found = by_cell(splits[split])
        assert all(abs(found[cell] - n * portion) <= 1 + 1e-9 for cell, n in cells.items())
        for kind in ("domain", "label"):  # no name is left out that can spare a row for each split
            spare = {getattr(row, kind) for row in rows if cells[row.domain, row.label] >= 3}
            assert spare <= {getattr(row, kind) for row in splits[split]}


@pytest.mark.parametrize("seed", range(30))
def test_ties_of_a_random_table(seed):
    """Rows of a text or of a group are in one split, whatever else they tie together, and train has some of
    each cell.
    """
    stream = np.random.default_rng(seed)
    rows = random_rows(stream, texts=300, groups=100 if seed % 2 else None)
    splits = split_rows(rows, {"dev": 0.2, "test": 0.2}, seed)
    assert sorted(itertools.chain(*splits.values())) == sorted(rows)
    assert by_cell(splits["train"]).keys() == by_cell(rows).keys()
    for one, other in itertools.combinations(SPLITS, 2):
        assert not {row.texts for row in splits[one]} & {row.texts for row in splits[other]}
        assert not {row.group for row in splits[one] if row.group} & {
            row.group for row in splits[other] if row.group
        }


def test_groups_of_moderate_size_leave_the_shares_nearly_whole():
    """1,200 rows of 240 authors: dev and test are within a group of their share."""
    rows = as_rows(
        [(str(k), ("up", "down")[k % 2], "xy"[k % 3 == 0]) for k in range(1200)],
        [str(k // 5) for k in range(1200)],
    )
    splits = split_rows(rows, {"dev": 0.1, "test": 0.1}, 0)
    assert all(abs(len(splits[split]) - 120) <= 10 for split in ("dev", "test"))


def test_ties_leave_no_label_out():
    """Each text twice, room for one row of a label in dev and in test: both have a text of each label all the
    same.
    """
    rows = as_rows([(str(k // 2), ("up", "down")[k // 2 % 2], "x") for k in range(40)])
    for seed in range(10):
        splits = split_rows(rows, {"dev": 0.05, "test": 0.05}, seed)
        assert by_cell(splits["dev"]) == by_cell(splits["test"]) == {("x", "up"): 2, ("x", "down"): 2}


def test_repeated_texts_are_spread_as_the_others_are():
    """Dev and test are no heap of repeated texts: half of all rows are such, and about half of theirs."""
    rows = as_rows(
        [
            (str(min(k, 4000 - k)) if k % 2 else f"one {k}", ("up", "down")[k // 2 % 2], "x")
            for k in range(4000)
        ]
    )
    times = collections.Counter(row.texts for row in rows)
    splits = split_rows(rows, {"dev": 0.1, "test": 0.1}, 3)
    for split in SPLITS:
        assert 0.4 < np.mean([times[row.texts] > 1 for row in splits[split]]) < 0.6


def test_quotas_of_small_cells_add_up():
    """Forty cells of 4 rows at a tenth: none is a whole row, all together are 16, and one more for each label
    that went without.
    """
    cells = {(f"d{k // 10}", f"l{k % 10}"): 4 for k in range(40)}
    room = quotas(cells, {"dev": 0.1, "test": 0})
    found = collections.Counter(label for (_, label), n in room["dev"].items() if n)
    assert len(found) == 10 and max(room["dev"].values()) == 1 and sum(room["test"].values()) == 0
    assert 16 <= sum(room["dev"].values()) <= 16 + sum(n == 1 for n in found.values())


def test_the_split_is_a_function_of_rows_and_seed():
    """Another seed is another split, as large; the splits are shuffled."""
    rows = as_rows(table(200))
    one, same, other = (split_rows(rows, {"dev": 0.1, "test": 0.1}, seed) for seed in (1, 1, 2))
    assert one == same != other and {split: len(part) for split, part in one.items()} == {
        split: len(part) for split, part in other.items()
    }
    assert one["train"] != sorted(one["train"], key=rows.index)


# ---------------------------------------------------------------------------------------- the report


def test_counts_of_many_labels_are_lines():
    """Over ten labels each has a line; sums agree with the rows."""
    rows = as_rows([(str(k), f"label {k % 12:02}", "x") for k in range(36)])
    task = make_task("t", COLUMNS, rows)
    lines = [line.split() for line in count_lines(task, {"train": rows, "dev": rows[:12], "test": rows[:1]})]
    assert lines[0] == ["train", "dev", "test"] and lines[1] == ["domain", "x", "36", "12", "1"]
    assert (
        lines[2] == ["label", "label", "00", "3", "1", "1"]
        and lines[3] == ["label", "label", "01", "3", "1", "0"]
        and len(lines) == 14
    )


def test_lengths_in_words_and_tokens(tiny_model):
    """Tokens count [CLS] and [SEP], and a row is cut when it has more than seq_length of them."""
    from tokenization import tokenizer_for

    rows = as_rows([("good plot", "up", "x"), ("good plot , film", "up", "x")])
    assert length_lines({"dev": rows}, tokenizer_for(tiny_model), 5) == [
        "dev: words a row: 3.0 on average, 95% have at most 4, the longest 4",
        "dev: tokens a row: 5.0 on average, 95% have at most 6, the longest 6; 50.0% of the rows are cut at "
        "--seq_length 5",
    ]


def test_the_report_tells_of_repeats_contradictions_and_quotes(command, tmp_path):
    """How many, where the first of them are, and what --dedup leaves."""
    rows = table()
    write_csv(tmp_path / "in.csv", [*rows, rows[0], (rows[1][0], "up", "books"), ("  ", "up", "books")])
    out = command(FLAGS).out
    assert "rows read: 63\n" in out and "rows dropped for an empty text: 1 (in.csv:64)\n" in out
    assert (
        "repeat the text of a row before: 2\n" in out
        and "contradicting labels: 1; in.csv:3 'down' but in.csv:63 'up'\n" in out
    )
    assert "texts of train that stand in test as well: 0" in out and "double quotes" not in out
    assert "rows dropped by --dedup: 2\n" in command(f"{FLAGS} --dedup").out
    assert sum(map(len, read_all(tmp_path / "out")[1].values())) == 60
    (tmp_path / "in.tsv").write_text(
        "text\tstars\tcategory\n"
        + "".join(f'"{text}"\t{stars}\t{category}\n' for text, stars, category in rows)
    )
    assert "texts in double quotes: 60; if these" in command(FLAGS.replace("in.csv", "in.tsv")).out


# ---------------------------------------------------------------------------------------- the command


def test_the_command_ends_in_a_folder_that_stage_1_takes(command, tmp_path, tiny_model):
    """task.json and the three TSV files are read by load_task and read_examples; stage 1 makes records of
    them by the command printed.
    """
    write_csv(tmp_path / "in.csv", table())
    outcome = command(
        f"{FLAGS} --vocab_file {shlex.quote(str(tiny_model / 'vocab.txt'))} --seq_length 32 --seed 3"
    )
    assert outcome.code == 0, outcome.err
    task, examples = read_all(tmp_path / "out")
    assert (task.text, task.domain, task.label) == (("text",), "category", "stars")
    assert (task.labels, task.domains) == (("down", "up"), ("books", "dvd"))
    found = [
        (e.text_a, task.labels[e.label], task.domains[e.domain]) for part in examples.values() for e in part
    ]
    assert sorted(found) == sorted(table()) and [len(part) for part in examples.values()] == [48, 6, 6]
    start, *words = shlex.split(outcome.out.splitlines()[-1])[1:]
    flags = dict(zip(words[:-1:2], words[1::2]))
    assert (
        start == "preprocess.py"
        and words[-1] == "--resave_ofrecord"
        and flags["--model_load_dir"] == str(tiny_model)
    )
    outcome = call(
        "preprocess",
        tmp_path,
        {**{name[2:]: value for name, value in flags.items()}, "resave_ofrecord": True, "cpu_processes": 1},
    )
    assert outcome.code == 0, outcome.err
    assert "train: 48 scores" in outcome.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_escapes(tmp_path, encoding):
    """Labels that it cannot show are escaped in the report, and UTF-8 in the files."""
    names = {"up": "好评", "down": "差评"}
    write_csv(tmp_path / "in.csv", [(text, names[label], domain) for text, label, domain in table()])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "data.prepare.import_tsv",
            *FLAGS.split(),
            "--drop_rare",
            "--min_examples",
            "4",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"") and b"\\u597d\\u8bc4" in done.stdout
    assert read_all(tmp_path / "out")[0].labels == ("好评", "差评")


def test_formats_and_repetition_give_the_same_bytes(command, tmp_path):
    """The files do not depend on the format, nor on what stood in the folder before."""
    write_csv(tmp_path / "in.csv", table())
    write_json(tmp_path / "in.jsonl", table())
    (tmp_path / "in.tsv").write_text(
        "".join("\t".join(row) + "\n" for row in [("text", "stars", "category"), *table()])
    )
    made = []
    for suffix in ("csv", "csv", "jsonl", "tsv"):
        assert command(FLAGS.replace("in.csv", f"in.{suffix}")).code == 0
        made.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert made[0].keys() == {"task.json", "train.tsv", "dev.tsv", "test.tsv"} and all(
        files == made[0] for files in made
    )


def test_pairs_without_a_domain(command, tmp_path):
    """Two texts, one domain named all; its column takes another name where that is a text's."""
    write_csv(
        tmp_path / "in.csv",
        [(f"q{k}", f"a{k}", "yn"[k % 2]) for k in range(40)],
        ("domain", "answer", "same"),
    )
    outcome = command("--source in.csv --data_dir out --task_name mine --text domain answer --label same")
    task, examples = read_all(tmp_path / "out")
    assert (task.text, task.domain, task.domains) == (("domain", "answer"), "domain_", ("all",)) and len(
        examples["dev"]
    ) == 4
    assert all(example.text_b == example.text_a.replace("q", "a") for example in examples["train"])
    assert outcome.out.count("train  all") == 1


def test_data_that_is_split_already_stays_so(command, tmp_path):
    """Given tables keep their rows and their order; without --test, test is taken out of the source; leaks
    are counted, or dropped.
    """
    rows = table(72)
    for name, part in (("in", rows[:60]), ("d", [*rows[60:], rows[0]]), ("t", rows[60:72])):
        write_csv(tmp_path / f"{name}.csv", part)
    outcome = command(f"{FLAGS} --dev d.csv --test t.csv")
    _, examples = read_all(tmp_path / "out")
    assert [len(part) for part in examples.values()] == [60, 13, 12]
    assert [example.text_a for example in examples["dev"]] == [text for text, *_ in [*rows[60:], rows[0]]]
    assert (
        "texts of train that stand in dev as well: 1\n" in outcome.out
        and "texts of dev that stand in test as well: 12\n" in outcome.out
    )
    assert command(f"{FLAGS} --dev d.csv --dev_portion 0.9").code == 0
    assert [len(part) for part in read_all(tmp_path / "out")[1].values()] == [54, 13, 6]
    write_csv(tmp_path / "d.csv", [*rows[56:60], rows[70]])
    command(f"{FLAGS} --dev d.csv --test t.csv --dedup")
    assert [len(part) for part in read_all(tmp_path / "out")[1].values()] == [56, 4, 12]


def test_rare_labels_are_refused_or_dropped(command, tmp_path):
    """By name and count; a label of --labels that is dropped is left out of the order."""
    write_csv(tmp_path / "in.csv", [*table(), ("x", "odd", "books"), ("y", "odd", "books")])
    outcome = command(FLAGS)
    assert (
        outcome.code == 2
        and "found fewer than 3 rows of label 'odd' (2)" in outcome.err
        and not (tmp_path / "out").exists()
    )
    outcome = command(f"{FLAGS} --drop_rare --labels up odd down")
    assert outcome.code == 0 and "dropped by --drop_rare: label 'odd' (2)" in outcome.out
    assert load_task("mine", tmp_path / "out").labels == ("up", "down")


def test_only_train_must_have_all_names(command, tmp_path):
    """A label that dev and test have none of is a note, and the files are read; one that train has none of is
    refused, nothing written.
    """
    odd = [("x", "odd", "a"), ("y", "odd", "b"), ("z", "odd", "c")]
    write_csv(tmp_path / "in.csv", [*table(), *odd])
    outcome = command(f"{FLAGS} --min_examples 1")
    assert outcome.code == 0, outcome.err
    assert all(
        f"\n{split}: note: none of domain a, b, c; class odd\n" in outcome.out for split in ("dev", "test")
    )
    task, examples = read_all(tmp_path / "out")
    assert "odd" in task.labels and [len(part) for part in examples.values()] == [51, 6, 6]
    write_csv(tmp_path / "in.csv", table())
    write_csv(tmp_path / "d.csv", odd)
    outcome = command(f"{FLAGS} --min_examples 1 --dev d.csv --data_dir other")
    assert (
        outcome.code == 2 and "train: found no row for the domain a, b, c; class odd, expected" in outcome.err
    )
    assert "--source" in outcome.err and "--dev" in outcome.err and "--drop_rare" not in outcome.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "rows, more, sentence",
    [
        ([(str(k), "up", "x") for k in range(9)], "", "--label stars: found the one label 'up'"),
        ([(str(k), str(k), "x") for k in range(9)], "", "--label stars: found 9 different values in 9 rows"),
        (
            [(str(k), str(k % 1001), "x") for k in range(4004)],
            "",
            "--label stars: found 1001 different values in 4004 rows, expected at most 1000",
        ),
        (
            [(str(k), "ud"[k % 2], str(k)) for k in range(9)],
            "",
            "--domain category: found 9 different values",
        ),
        (
            table(8),
            "--min_examples 5",
            "in.csv: found fewer than 5 rows of domain 'books' (4), domain 'dvd' (4), label 'down' (4), "
            "label 'up' (4)",
        ),
        (table(8), "--min_examples 5 --drop_rare", "found no rows left"),
        (table(), "--task_name ../up", "--task_name ../up: expected letters"),
        (table(), "--task_name senti", "none of the built-in tasks"),
        (
            table(),
            "--text text text",
            "expected one or two columns of text, and another column for each flag",
        ),
        (table(), "--label text", "expected one or two columns of text, and another column for each flag"),
        (table(), "--text a b c", "expected one or two columns of text"),
        (table(), "--label ' '", "expected a name of up to 100 characters"),
        (
            table(),
            "--label sentiment",
            "in.csv:1: found no column 'sentiment' among 'text', 'stars', 'category'",
        ),
        (table(), "--dev_portion 0.5 --test_portion 0.5", "expected less than 1 together"),
        (table(), "--dev_portion 0", "0 is not above 0.0"),
        (table(), "--dev in.csv --group category", "--group: expected neither --dev nor --test"),
        (table(), "--source out/train.tsv", "out/train.tsv: would be overwritten"),
        (table(), "--labels up", "found the labels down, up in the rows, expected the same"),
        (table(), "--vocab_file absent.txt", "absent.txt: no such file"),
        (
            table(),
            "--group category",
            "dev: found no row for the domain books, dvd; class down, up, expected",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(command, tmp_path, rows, more, sentence):
    """Exit code 2, the sentence on standard error, and nothing written; of a flag given twice the last
    counts.
    """
    write_csv(tmp_path / "in.csv", rows)
    outcome = command(f"{FLAGS} {more}")
    assert outcome.code == 2 and sentence in outcome.err and not (tmp_path / "out").exists()
    assert len(outcome.err.splitlines()) == 1 or outcome.err.startswith("usage:")


def test_the_data_of_another_task_is_kept(command, tmp_path):
    """A folder that holds another task is refused, and its files are as they were."""
    write_csv(tmp_path / "in.csv", table())
    assert command(FLAGS).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    outcome = command(f"{FLAGS} --task_name other --seed 9")
    assert outcome.code == 2 and "holds the data of task 'mine'" in outcome.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
