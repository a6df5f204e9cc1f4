"""Tasks and their TSV files: what is written is read again, and every fault is told with file and line."""

import dataclasses
import json

import numpy as np
import pytest
from fuzz import WRONG, with_value

from data.prepare.task_files import count_table, write_task, write_tsv
from data.selection import records_line
from data.store.writing import resave
from data.tasks import (
    BUILT_IN,
    Example,
    Task,
    check_counts,
    clean,
    load_task,
    missing_names,
    read_examples,
    split_path,
)
from tokenization import tokenizer_for
from util import UserError

TASK = Task("tiny", ("text",), "domain", "label", ("up", "down"), ("books", "films"))
PAIRS = dataclasses.replace(TASK, text=("question", "answer"))
HEADER = b"text\tdomain\tlabel\n"


def read(folder, content, task=TASK):
    path = folder / "train.tsv"
    path.write_bytes(content)
    return list(read_examples(task, path))


def refused(folder, content, task=TASK):
    """The sentence of the UserError for a train.tsv of these bytes."""
    with pytest.raises(UserError) as caught:
        read(folder, content, task)
    assert str(folder / "train.tsv") in str(caught.value)
    return str(caught.value)


def describe(folder, **changes):
    (folder / "task.json").write_text(json.dumps({**dataclasses.asdict(TASK), **changes}), encoding="utf-8")


# ---------------------------------------------------------------------------------------- reading


def test_rows_become_examples_in_their_order(tmp_path):
    """Names become their positions in the task's lists; lines are counted from 1 with the header."""
    content = HEADER + "naïve 👍\tfilms\tdown\nso-so\tbooks\tup\n".encode()
    assert read(tmp_path, content) == [Example("naïve 👍", None, 1, 1, 2), Example("so-so", None, 0, 0, 3)]


def test_columns_may_come_in_any_order(tmp_path):
    """The header decides which column is which, for pairs too."""
    content = b"label\tanswer\tdomain\tquestion\nup\tbecause\tfilms\twhy\n"
    assert read(tmp_path, content, PAIRS) == [Example("why", "because", 1, 0, 2)]


def test_bytes_of_windows_and_missing_last_line_end_change_nothing(tmp_path):
    """A byte-order mark, CRLF and a last line without its end give the same examples."""
    plain = read(tmp_path, HEADER + b"a b\tbooks\tup\nc\tfilms\tdown\n")
    assert (
        read(tmp_path, b"\xef\xbb\xbf" + (HEADER + b"a b\tbooks\tup\nc\tfilms\tdown").replace(b"\n", b"\r\n"))
        == plain
    )


def test_fields_are_taken_as_they_stand(tmp_path):
    """Quotes, backslashes and line separators other than a newline are part of the text."""
    text = 'say "no", \\n " \u2028 \x85 \x0c end'
    assert read(tmp_path, HEADER + f"{text}\tbooks\tup\n".encode())[0].text_a == text


def test_rows_come_one_at_a_time(tmp_path):
    """A fault in the last row is met after the rows before it were given."""
    path = tmp_path / "train.tsv"
    path.write_bytes(HEADER + b"a\tbooks\tup\nb\tfilms\n")
    examples = read_examples(TASK, path)
    assert next(examples).text_a == "a"
    with pytest.raises(UserError, match=r"train.tsv:3: found 2 column"):
        next(examples)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "the file is empty"),
        (HEADER, "found a header and no examples"),
        (
            b"text\tlabel\n",
            ":1: found 'text', 'label', expected a header with the columns text, domain, label",
        ),
        (b"text\tdomain\tlabel\textra\n", ":1: found 'text', 'domain', 'label', 'extra'"),
        (b"text\ttext\tlabel\n", ":1: found 'text', 'text', 'label'"),
        (b"text,domain,label\n", ":1: found 'text,domain,label'"),
        (HEADER + b"a\tbooks\tup\nb\tbooks\n", ":3: found 2 column(s), expected 3"),
        (HEADER + b"a\tb\tbooks\tup\n", ":2: found 4 column(s), expected 3"),
        (HEADER + b"a\tbooks\tup\n\n", ":3: found 1 column(s), expected 3"),
        (HEADER + b"a\tbooks\tUp\n", ":2: found label 'Up', expected one of up, down"),
        (HEADER + b"a\tmusic\tup\n", ":2: found domain 'music', expected one of books, films"),
        (
            HEADER + b"ok\tbooks\tup\ncaf\xe9\tbooks\tup\n",
            ":3: found byte 0xe9 at position 3 of the line, expected UTF-8",
        ),
        (b"t\xe9xt\tdomain\tlabel\n", ":1: found byte 0xe9"),
        (HEADER + b"a\0b\tbooks\tup\n", ":2: found a NUL character"),
        (HEADER + b"\tbooks\tup\n", ":2: found an empty 'text'"),
        (HEADER + " \u00a0 \tbooks\tup\n".encode(), ":2: found an empty 'text'"),
    ],
)
def test_faults_of_a_file_are_told_with_their_line(tmp_path, content, sentence):
    """Each fault is a UserError that names file, line and what was expected."""
    assert sentence in refused(tmp_path, content)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"\xef\xbb\xbf", ":1: found '', expected a header"),
        (b"\n", ":1: found '', expected a header"),
        (b"a\tbooks\tup\nb\tfilms\tdown\n", ":1: found 'a', 'books', 'up', expected a header"),  # no header
        (HEADER.decode().encode("utf-16"), ":1: found byte 0xff at position 0"),
        (HEADER.decode().encode("utf-16-le"), ":1: found a NUL character"),
        (
            HEADER[:-1] + b"\r" + b"a\tbooks\tup\r",
            ":1: found 'text', 'domain', 'label\\ra'",
        ),  # line ends of a Mac of the last century
        (b'"text"\t"domain"\t"label"\n', ":1: found '\"text\"'"),
        (HEADER + b'"two\nlines"\tbooks\tup\n', ":2: found 1 column(s)"),
        (HEADER + b'a\tbooks\t"up"\n', ":2: found label '\"up\"'"),
        (HEADER + b"a\tbooks\t\xef\xbb\xbfup\n", ":2: found label '\\ufeffup'"),
        (HEADER + b"a\tbooks\tup \n", ":2: found label 'up '"),
        (HEADER + b"\xed\xa0\x80\tbooks\tup\n", ":2: found byte 0xed"),  # half a surrogate pair
        (HEADER + b"a\tbooks\tup\n\xf0\x9f\x91", ":3: found byte 0xf0"),  # cut inside a character
        (HEADER + b"a\tbooks\tup" + b"\t" * 10**6 + b"\n", ":2: found 1000003 column(s)"),
        (b"x" * 10**6 + b"\n", ":1: found 'xxx"),
        (HEADER + b"a\tbooks\t" + b"x" * 10**6 + b"\n", ":2: found label 'xxx"),
        (b"\0" * 10**6, ":1: found a NUL character"),
        (HEADER + b" " * 10**6 + b"\tbooks\tup\n", ":2: found an empty 'text'"),
    ],
)
def test_files_that_are_something_else_are_told_in_a_short_sentence(tmp_path, content, sentence):
    """Other encodings, line ends and quotings, no header, a line of a million characters: one line, and not a
    long one.
    """
    found = refused(tmp_path, content)
    assert sentence in found and len(found.splitlines()) == 1 and len(found) < 600


def test_a_line_of_a_million_characters_is_read(tmp_path):
    """Its length is no fault."""
    assert len(read(tmp_path, HEADER + b"word " * 200_000 + b"\tbooks\tup\n")[0].text_a) == 10**6


def test_the_second_text_of_a_pair_may_not_be_empty(tmp_path):
    """The sentence names the column."""
    assert ":2: found an empty 'answer'" in refused(
        tmp_path, b"question\tanswer\tdomain\tlabel\nwhy\t \tbooks\tup\n", PAIRS
    )


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    """Neither ends in an OSError."""
    for path in (tmp_path / "absent.tsv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            next(read_examples(TASK, path))


# ---------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_again(tmp_path):
    """Rows come back with their texts on one line, for one text and for two."""
    write_tsv(
        TASK, tmp_path / "dev.tsv", [("two\n lines\tand \x1acontrol", "films", "down"), ("b", "books", "up")]
    )
    assert [example[:4] for example in read_examples(TASK, tmp_path / "dev.tsv")] == [
        ("two lines and control", None, 1, 1),
        ("b", None, 0, 0),
    ]
    write_tsv(PAIRS, tmp_path / "dev.tsv", [(" q ", "a\r\nb", "films", "down")])
    assert [example[:4] for example in read_examples(PAIRS, tmp_path / "dev.tsv")] == [("q", "a b", 1, 1)]


def test_clean_leaves_one_line_and_is_idempotent():
    """No control character and no double space is left, and cleaning twice is cleaning once."""
    every = "x".join(map(chr, range(0x2100))) + " \x1a "
    once = clean(every)
    assert clean(once) == once and "  " not in once and once == once.strip()
    assert not [c for c in once if ord(c) < 32 or 127 <= ord(c) < 160] and len(once.splitlines()) == 1
    assert clean("a \x1a b") == "a b" and clean("don\x1at") == "dont" and clean("\u200bé") == "\u200bé"


def test_a_task_that_is_written_is_loaded_again(tmp_path):
    """write_task leaves the files of all splits, and a task.json that describes the task unless it is built
    in.
    """
    rows = [("a", "books", "up")]
    write_task(TASK, tmp_path / "new" / "tiny", {"train": rows, "dev": rows})
    assert load_task("tiny", tmp_path / "new" / "tiny") == TASK
    assert [
        example.text_a for example in read_examples(TASK, split_path(tmp_path / "new" / "tiny", "dev"))
    ] == ["a"]
    write_task(BUILT_IN["senti"], tmp_path / "senti", {"train": [("a", "books", "positive")]})
    assert (
        not (tmp_path / "senti" / "task.json").exists()
        and load_task("senti", tmp_path / "senti") == BUILT_IN["senti"]
    )


def test_a_write_that_fails_leaves_every_file_as_it_was(tmp_path):
    """No split is replaced when the last one cannot be made: old and new splits are never mixed."""
    write_task(TASK, tmp_path, {split: [("old", "books", "up")] for split in ("train", "dev", "test")})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError):
        write_task(
            TASK,
            tmp_path,
            {"train": [("new", "books", "up")], "dev": [("new", "books", "up")], "test": broken_rows()},
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def broken_rows():
    yield "new", "books", "up"
    raise RuntimeError


def test_the_data_of_another_task_is_not_overwritten(tmp_path):
    """A folder with TSV files of another task is refused, whichever of the two is the built-in one."""
    write_task(TASK, tmp_path / "tiny", {"train": [("a", "books", "up")]})
    write_task(BUILT_IN["senti"], tmp_path / "senti", {"train": [("a", "books", "positive")]})
    for task, folder in ((TASK, "senti"), (BUILT_IN["senti"], "tiny")):
        with pytest.raises(UserError, match="holds the data of task"):
            write_task(task, tmp_path / folder, {"train": []})


def test_a_folder_without_description_is_told_by_its_header(tmp_path):
    """Each built-in task is written again over its own files, in whatever order their columns stand, and not
    over those of another.
    """
    rows = {"senti": [("a", "books", "positive")], "mnli": [("a", "b", "slate", "neutral")]}
    for name, task in BUILT_IN.items():
        write_task(task, tmp_path / name, {"train": rows[name]})
        split_path(tmp_path / name, "train").write_bytes(
            b"\xef\xbb\xbf" + "\t".join(reversed(task.columns)).encode() + b"\r\n"
        )
    for name, task in BUILT_IN.items():
        for held in BUILT_IN:
            if held == name:
                write_task(task, tmp_path / held, {"dev": rows[name]})
            else:
                with pytest.raises(
                    UserError, match=f"holds the data of task '{held}', expected '{name}' or none"
                ):
                    write_task(task, tmp_path / held, {"train": rows[name]})
    (tmp_path / "senti" / "train.tsv").write_text("my\tcolumns\n")
    with pytest.raises(UserError, match="holds the data of a task that is not described"):
        write_task(BUILT_IN["senti"], tmp_path / "senti", {"train": rows["senti"]})


def test_a_built_in_task_is_not_written_beside_another_description_of_it(tmp_path):
    """task.json would decide what the files mean."""
    write_tsv(TASK, tmp_path / "train.tsv", [("a", "books", "up")])
    describe(tmp_path, name="senti")
    with pytest.raises(UserError, match="task.json: describes 'senti' otherwise than the built-in task"):
        write_task(BUILT_IN["senti"], tmp_path, {"train": [("a", "books", "positive")]})


def test_the_table_counts_every_domain_and_class():
    """Cells and sums agree with the rows."""
    table = count_table(TASK, {"dev": [("a", "books", "up"), ("b", "films", "up"), ("c", "films", "down")]})
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["dev", "books", "1", "0", "1"],
        ["dev", "films", "1", "1", "2"],
        ["dev", "all", "2", "1", "3"],
    ]


def test_a_domain_may_be_called_all():
    """Its line counts its own rows; the last one those of every domain."""
    task = dataclasses.replace(TASK, domains=("all", "books"))
    table = count_table(task, {"dev": [("a", "books", "up"), ("b", "all", "down")]})
    assert [line.split()[1:] for line in table.splitlines()[1:]] == [
        ["all", "0", "1", "1"],
        ["books", "1", "0", "1"],
        ["all", "1", "1", "2"],
    ]


# ---------------------------------------------------------------------------------------- the task


def test_a_described_task_overrides_the_built_in_one(tmp_path):
    """task.json decides where it is there; without it senti has the four domains of the paper."""
    assert load_task("senti", tmp_path).domains == ("books", "dvd", "electronics", "kitchen")
    describe(tmp_path, name="senti", domains=["toys"])
    assert load_task("senti", tmp_path).domains == ("toys",)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"name": "other"}, "describes task 'other', expected 'tiny'"),
        ({"name": "../up"}, "expected letters, digits"),
        ({"name": "\u8bc4" * 100}, "has 300 bytes in UTF-8, expected 150 at most"),
        ({"extra": 1}, "found the keys 'name', 'text', 'domain', 'label', 'labels', 'domains', 'extra'"),
        ({"text": "text"}, "'text' is 'text', expected a list of 1 or 2 names"),
        ({"text": ["a", "b", "c"]}, "expected a list of 1 or 2 names"),
        ({"labels": ["up"]}, "expected a list of 2 or more names"),
        ({"domains": []}, "expected a list of 1 or more names"),
        ({"labels": ["up", "up"]}, "'labels' names 'up' twice"),
        ({"labels": ["up", 2]}, "'labels' holds 2"),
        ({"domains": ["a\tb"]}, "'domains' holds 'a\\tb'"),
        ({"domains": [["a"]]}, "'domains' holds ['a']"),
        ({"domain": ""}, "'domain' holds ''"),
        ({"label": "text"}, "names 'text' twice"),
        ({"extra\nline": 1}, "'extra\\nline'"),
        ({"domains": ["books", "\ud800"]}, "not valid JSON"),
        ({"domains": ["books", "x" * 101]}, "expected a name of up to 100 characters"),
    ],
)
def test_faults_of_a_description_are_told(tmp_path, changes, sentence):
    """Every fault of task.json is a UserError that names the file."""
    describe(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_task("tiny", tmp_path)
    assert sentence in str(caught.value) and "task.json" in str(caught.value)


def test_what_is_not_there_is_told(tmp_path):
    """A missing folder, a task that nothing describes, a description that is no JSON object."""
    for folder, sentence in ((tmp_path / "absent", "no such folder"), (tmp_path, "not a built-in task")):
        with pytest.raises(UserError, match=sentence):
            load_task("tiny", folder)
    for content in ("{", "[]"):
        (tmp_path / "task.json").write_text(content)
        with pytest.raises(UserError, match=r"task.json: the description of the task"):
            load_task("tiny", tmp_path)


@pytest.mark.parametrize(
    "counts, sentence",
    [
        ([[1, 0], [2, 0]], "class down"),
        ([[0, 0], [1, 2]], "domain books"),
        (np.zeros((2, 2)), "domain books, films"),
    ],
)
def test_a_domain_or_class_without_examples_is_refused(counts, sentence):
    """A whole row or column of zeros is told by name; a single empty cell is no fault."""
    with pytest.raises(UserError, match=f"train.tsv: found no example of {sentence}"):
        check_counts(TASK, counts, "train.tsv")
    check_counts(TASK, [[0, 1], [1, 0]], "train.tsv")


def resaved(folder, split, rows):
    """The line of the log about the records of a split with these rows, as stage 1 writes them."""
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    write_tsv(TASK, folder / f"{split}.tsv", rows)
    return records_line(
        resave(TASK, folder, folder / "ofrecord" / split, split, tokenizer_for(folder), 8, scored=False)
    )


def test_train_alone_needs_every_domain_and_class(tmp_path):
    """Train without a class or a domain is refused and no record is written; dev and test are taken, and the
    log says what is missing.
    """
    for rows, missing in (
        ([("a", "books", "up"), ("b", "films", "up")], "class down"),
        ([("a", "films", "down")], "domain books; class up"),
    ):
        for split in ("dev", "test"):
            assert (
                resaved(tmp_path, split, rows)
                == f"{split}: {len(rows)} examples, 0 of them cut at 8 tokens; note: none of {missing}"
            )
        with pytest.raises(
            UserError, match=f"train.tsv: found no example of {missing}, expected some of each"
        ):
            resaved(tmp_path, "train", rows)
        assert not (tmp_path / "ofrecord" / "train").exists()
    whole = [("a", "books", "up"), ("b", "films", "down")]
    assert resaved(tmp_path, "train", whole) == "train: 2 examples, 0 of them cut at 8 tokens"


def test_the_sentence_about_many_missing_names_is_short():
    """A thousand classes without examples do not fill the screen."""
    names = missing_names(("one",), [f"class number {k}" for k in range(1000)], np.zeros((1, 1000)))
    assert names.startswith("domain one; class class number 0, class number 1, ") and len(names) < 400


def test_wrong_values_of_every_key_of_a_description(tmp_path):
    """Each key of task.json, and each name in its lists, with each kind of wrong value: told on one line, or
    a task of names that fit a TSV.
    """
    good, accepted = dataclasses.asdict(TASK), 0
    for place in (*((key,) for key in good), ("text", 0), ("labels", 1), ("domains", 0)):
        for wrong in (*WRONG, KeyError):
            (tmp_path / "task.json").write_text(json.dumps(with_value(good, place, wrong)))
            try:
                task = load_task("tiny", tmp_path)
            except UserError as error:
                assert (
                    "task.json" in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 800
                )
            else:
                accepted += 1
                assert all(
                    isinstance(name, str) and name == clean(name)
                    for name in (*task.columns, *task.labels, *task.domains)
                )
    assert accepted < 20
