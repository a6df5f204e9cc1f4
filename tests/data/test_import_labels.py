"""Labels of a table that are not what was meant: alike, standing for nothing, scores; --labels maps and drops
them.
"""

import shlex

import pytest

from data.prepare.import_flags import make_parser
from data.prepare.import_report import damage_lines, repeat_lines
from data.prepare.labels import apply_labels, domain_notes, label_notes, refuse_scores
from data.prepare.tables import Columns, Row, read_rows
from util import UserError


def rows(*labels):
    return [Row((f"text {k}",), "all", label, "", f"f:{k}") for k, label in enumerate(labels)]


@pytest.mark.parametrize(
    "labels, told",
    [
        (
            ("1", "1.0", "1"),
            "labels that look alike, each a class of its own: '1' (2), '1.0' (1); --labels 1.0=1 ",
        ),
        (("Positive", "positive", "positive"), "'Positive' (1), 'positive' (2); --labels Positive=positive "),
        (("-1", "-1.0", "-1"), "--labels ' -1.0=-1' makes one"),
        (
            ("-", "nan", "None", "up"),
            "for none, each a class of its own: '-' (1), 'None' (1), 'nan' (1); --labels ' -=' None= nan=",
        ),
        (
            ("up", "up", "\ufeffup", "up\u200b"),
            "alike, each a class of its own: 'up' (2), 'up\\u200b' (1), '\\ufeffup' (1)",
        ),
        (("caf\u00e9", "caf\u00e9", "cafe\u0301"), "--labels 'cafe\u0301=caf\u00e9' makes one"),
        (("3.5", "4", "2"), "look like scores, each a class of its own: '3.5' (1); regression"),
    ],
)
def test_odd_labels_are_named(labels, told):
    """In a note, with the flag that mends them where there is one, which the parser takes and which leaves no
    note.
    """
    (note,) = label_notes(rows(*labels), [])
    assert told in note and label_notes(rows(*labels), ["named"]) == []
    if "--labels" in note:
        words = shlex.split(
            note.partition("--labels ")[2].rpartition(" makes" if "makes" in note else " drops")[0]
        )
        required = "--source a --data_dir b --task_name c --text d --label e".split()
        entries = [
            word.strip() for word in make_parser("import").parse_args([*required, "--labels", *words]).labels
        ]
        tables, order = apply_labels({"train": rows(*labels)}, entries)
        assert label_notes(tables["train"], order) == [] and tables["train"]


def test_plain_labels_have_no_note():
    """Words, and whole numbers however far apart."""
    assert label_notes(rows("up", "down"), []) == label_notes(rows("1", "2", "10"), []) == []


def test_domains_that_look_alike_are_named():
    """They cannot be mapped: the table has to be mended."""
    alike = [
        row._replace(domain=name) for row, name in zip(rows(*"xyxy"), ("Books", "books", "dvd", "books"))
    ]
    assert domain_notes(alike) == [
        "note: domains that look alike, each one of its own: 'Books' (1), 'books' (2); mend the table if "
        "they are one"
    ]
    assert domain_notes(alike[1:]) == []


def test_texts_that_were_decoded_wrongly_are_named():
    """UTF-8 read as Windows-1252 and lost characters are named; other languages and signs are no damage."""
    right = [
        "caf\u00e9",
        "na\u00efve \U0001f44d",
        "\u597d\u8bc4",
        "\u00c3o",
        "5 \u00a3",
        "\u201cquoted\u201d \u2026",
    ]
    wrong = ["caf\u00e9".encode().decode("cp1252"), "\u201cquoted".encode().decode("cp1252"), "caf\ufffd"]
    table = [row._replace(texts=(text,)) for row, text in zip(rows(*"x" * 9), right + wrong)]
    told = damage_lines(table)
    assert told[0].startswith("note: texts with U+FFFD, where characters were lost: 1 (f:8)")
    assert "taken for Windows-1252 (as caf\u00c3\u00a9): 2 (f:6, f:7)" in told[1] and len(told) == 2
    assert damage_lines(table[:6]) == []


def test_labels_are_mapped_and_dropped(capsys):
    """OLD=NEW, OLD=, and names, which alone are the order; a label with a "=" of its own is a name; an
    unknown one is refused.
    """
    tables = {"train": rows("Up", "up", "nan", "a=b"), "test": rows("Up")}
    mapped, order = apply_labels(tables, ["up", "Up=up", "nan=", "a=b"])
    assert [row.label for row in mapped["train"]] == ["up", "up", "a=b"] and mapped["test"][0].label == "up"
    assert order == ["up", "a=b"] and capsys.readouterr().out == "rows dropped by --labels: 1\n"
    with pytest.raises(
        UserError, match="found no label 'down' in the rows, expected one of Up, a=b, nan, up"
    ):
        apply_labels(tables, ["down=up"])


def test_regression_is_refused_by_name():
    """Many different numbers with fractions; whole ones are classes, and so are those that --labels names."""
    scores = [str(k / 4) for k in range(20)] * 5
    with pytest.raises(
        UserError, match="--label stars: found 20 different numbers such as 0.25, .* regression"
    ):
        refuse_scores("stars", rows(*scores), [])
    refuse_scores("stars", rows(*scores), sorted(set(scores)))
    refuse_scores("stars", rows(*map(str, range(20))), [])


def test_a_tsv_that_is_quoted_as_csv_is_told(tmp_path):
    """By doubled quotes inside quotes in one text; read with the flags named, nothing is told."""
    path = tmp_path / "in.tsv"
    path.write_text('text\tstars\na\t1\n"he said ""no"" twice"\t2\n"b"\t1\n"" c\t1\n', encoding="utf-8")
    columns = Columns(("text",), "stars", None, None)
    told = repeat_lines(read_rows([path], columns)[0])[-1]
    assert told.startswith(f"texts quoted as in CSV, with doubled quotes inside: 1 ({path}:3)")
    assert told.endswith("--format csv --delimiter tab")
    path.write_text('text\tstars\na\t1\n"he said ""no"" twice"\t2\n', encoding="utf-8")
    found = read_rows([path], columns, "csv", "tab")[0]
    assert found[1].texts == ('he said "no" twice',) and len(repeat_lines(found)) == 2


def test_a_quoted_line_end_in_a_tsv_is_told(tmp_path):
    """The row is cut there: the sentence names the flags that read it."""
    path = tmp_path / "in.tsv"
    path.write_text('stars\ttext\tid\n1\t"two\nlines"\t1\n', encoding="utf-8")
    with pytest.raises(UserError, match=":2: found 2 field.*say --format csv --delimiter tab"):
        read_rows([path], Columns(("text",), "stars", None, None))
