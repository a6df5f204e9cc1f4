"""Tables as programs write them: by Excel, pandas and Hugging Face's datasets, packed, without a header, or
something else.
"""

import gzip
import json
import sys

import pytest

from data.prepare.import_flags import check_flags, make_parser
from data.prepare.labels import refuse_lists
from data.prepare.tables import Columns, Row, read_rows
from data.tasks import BUILT_IN, example_parser
from util import UserError

COLUMNS = Columns(("text",), "label", None, None)
TABLE = "text,label\na b,x\nc,y\n"


def read(path, content, columns=COLUMNS, **options):
    """(text, label) of the rows of a file with that content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, _ = read_rows([path], columns, **options)
    return [(row.texts[0], row.label) for row in rows]


def refused(path, content, columns=COLUMNS, **options):
    with pytest.raises(UserError) as caught:
        read(path, content, columns, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


ROWS = [("a b", "x"), ("c", "y")]

# ---------------------------------------------------------------------------------------- CSV and TSV


def test_a_packed_file_is_told_by_its_content(tmp_path):
    """Whatever its name says of gzip: browsers unpack, and servers forget the suffix."""
    packed = gzip.compress(TABLE.encode())
    for name, content in (("a.csv", packed), ("a.csv.gz", packed), ("b.csv.gz", TABLE), ("b.CSV.GZ", packed)):
        assert read(tmp_path / name, content) == ROWS


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"'])
def test_the_line_of_excel_that_names_the_delimiter_is_followed(tmp_path, line):
    """It is no header; the numbers of lines stay those of the file."""
    content = f"{line}\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")
    assert read(tmp_path / "in.csv", content) == ROWS
    assert "in.csv:5: found 1 field" in refused(tmp_path / "in.csv", content + "d\r\n")


def test_files_without_a_header(tmp_path):
    """The first row is one like the others, and columns are numbers."""
    columns = Columns(("1",), "2", None, None)
    body = TABLE.partition("\n")[2]
    assert read(tmp_path / "in.csv", body, columns, has_header=False) == ROWS
    assert read(tmp_path / "in.tsv", body.replace(",", "\t"), columns, has_header=False) == ROWS
    assert read(tmp_path / "in.csv", body, columns) == ROWS[1:]
    sentence = refused(tmp_path / "in.csv", body, columns._replace(label="3"), has_header=False)
    assert "no column '3' among '1', '2'" in sentence
    assert "as in the first row" in refused(tmp_path / "in.csv", body + "d\n", columns, has_header=False)


def test_no_header_goes_with_numbers_and_with_tables_alone(tmp_path):
    """Before anything is read."""
    flags = "--data_dir out --task_name t --label 2 --no_header".split()
    for words, sentence in (
        (["--source", "in.csv", "--text", "text"], "found the column 'text', expected numbers from 1"),
        (["--source", "in.jsonl", "--text", "1"], "in.jsonl: --no_header: found jsonl"),
    ):
        args = make_parser("").parse_args([*words, *flags])
        with pytest.raises(UserError, match=sentence):
            check_flags(args, Columns(tuple(args.text), args.label, None, None))


@pytest.mark.parametrize(
    "char, words",
    [
        (";", "it is parted by semicolons, so say --format csv --delimiter semicolon"),
        ("|", "it is parted by pipes, so say --format csv --delimiter pipe"),
        ("\t", "it is parted by tabs, so say --format csv --delimiter tab"),
    ],
)
def test_another_delimiter_is_named(tmp_path, char, words):
    """With the flag that reads the file."""
    content = TABLE.replace(",", char)
    assert words in refused(tmp_path / "in.csv", content)
    assert read(tmp_path / "in.csv", content, form="csv", delimiter=words.split()[-1]) == ROWS


def test_a_column_in_other_letters_is_named(tmp_path):
    """Names are not guessed."""
    assert "there is 'Text', in other letters" in refused(tmp_path / "in.csv", "Text,label\na,x\n")


def test_line_ends_of_old_macs_are_named(tmp_path):
    """Excel for Mac still has them under 'CSV (Macintosh)'."""
    assert "these are of old Macs" in refused(tmp_path / "in.csv", TABLE.replace("\n", "\r"))


# ---------------------------------------------------------------------------------------- no UTF-8


@pytest.mark.parametrize(
    "content, words",
    [
        (
            TABLE.encode("utf-16"),
            "expected UTF-8: this is UTF-16: convert it (iconv -f UTF-16 -t UTF-8), or save",
        ),
        (b"\xfe\xff" + TABLE.encode("utf-16-be"), "this is UTF-16"),
        (TABLE.encode("utf-32"), "this is UTF-32"),
        (
            b"PK\x03\x04xl/workbook.xml",
            "this is a zip archive, as .xlsx is too: unpack it, or save the table",
        ),
        (b"PK\x03\x04\x14\0\x08\0xl", "this is a zip archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "this is an old Office file"),
        (b"PAR1\x15\x04", "this is a Parquet file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "this is a Git LFS pointer"),
        ("text,label\nna\xefve,x\n".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
    ],
)
def test_what_a_file_is_instead_is_named(tmp_path, content, words):
    """By import, and by the stages where it is a TSV file of theirs."""
    assert words in refused(tmp_path / "in.csv", content)
    if content.partition(b"\n")[0] != b"text,label":
        with pytest.raises(UserError) as caught:
            example_parser(BUILT_IN["senti"], tmp_path / "in.csv")
        assert words in str(caught.value)


def test_a_packed_tsv_is_named_by_the_stages(tmp_path):
    """They read none."""
    (tmp_path / "train.tsv").write_bytes(gzip.compress(b"review\tdomain\tsentiment\n"))
    with pytest.raises(UserError, match="this is packed by gzip: unpack it"):
        example_parser(BUILT_IN["senti"], tmp_path / "train.tsv")


# ---------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "content, words",
    [
        ('[\n{"text": "a", "label": "x"}\n]\n', "a JSON array is taken apart by jq -c '.[]'"),
        ('[{"text": "a", "label": "x"}]', "a JSON array is taken apart by jq -c '.[]'"),
        ('{\n "text": "a",\n "label": "x"\n}\n', "objects over several lines are put on one each by jq -c ."),
    ],
)
def test_json_that_is_not_json_lines_is_named(tmp_path, content, words):
    """With what makes JSON lines of it."""
    assert words in refused(tmp_path / "in.jsonl", content)


# ---------------------------------------------------------------------------------------- labels


def test_several_labels_a_text_are_refused_by_name():
    """Lists that pandas wrote as text; --labels may name each; brackets of a few labels are names."""

    def rows(*labels):
        return [Row((f"text {k}",), "all", label, "", f"f:{k}") for k, label in enumerate(labels)]

    lists = rows("['a']", "['a', 'b']", "[]")
    with pytest.raises(
        UserError, match=r"--label tags: found lists such as .\['a', 'b'\]., and several labels"
    ):
        refuse_lists("tags", sorted(lists, key=lambda row: -len(row.label)), [])
    refuse_lists("tags", lists, ["[]", "['a']", "['a', 'b']"])
    refuse_lists("tags", rows("[deleted]", "spam", "ham"), [])


# ---------------------------------------------------------------------------------------- Parquet


def test_without_pyarrow_parquet_is_a_sentence(tmp_path, monkeypatch):
    """That says what to install, or what to do without it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow, or save the table as CSV" in refused(tmp_path / "in.parquet", b"PAR1")


@pytest.fixture
def parquet():
    """Writes columns, {name: values}, as a Parquet file. Args of it: features: of a Hugging Face dataset."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    def write(path, columns, features=None):
        table = pyarrow.table(columns)
        if features:
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        write_table(table, path)
        return path

    return write


def test_parquet_gives_the_rows_of_the_others(tmp_path, parquet):
    """Texts are cleaned, numbers and truth are written as in JSON, rows are numbered from 1, no value is an
    empty text.
    """
    path = parquet(
        tmp_path / "in.parquet",
        {
            "text": ["a\nb", None, "c", "d"],
            "label": [1, 2, 3, 1],
            "is": [True, False, True, None],
            "f": [0.5] * 4,
        },
    )
    rows, empty = read_rows([path], COLUMNS)
    assert [(row.texts, row.label, row.where) for row in rows] == [
        (("a b",), "1", f"{path}:1"),
        (("c",), "3", f"{path}:3"),
        (("d",), "1", f"{path}:4"),
    ]
    assert empty == [f"{path}:2"]
    assert read_rows([path], Columns(("f",), "text", None, None), max_rows=1)[0][0].texts == ("0.5",)
    with pytest.raises(UserError, match="in.parquet:4: found nothing in 'is'"):
        read_rows([path], COLUMNS._replace(label="is"))


def test_names_of_classes_that_a_parquet_file_holds_are_the_labels(tmp_path, parquet):
    """As Hugging Face's datasets write them; a number without a name is refused."""
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    path = parquet(tmp_path / "in.parquet", {"text": ["a", "b"], "label": [1, 0]}, features)
    assert [row.label for row in read_rows([path], COLUMNS)[0]] == ["pos", "neg"]
    path = parquet(tmp_path / "in.parquet", {"text": ["a", "b"], "label": [1, -1]}, features)
    with pytest.raises(UserError, match="in.parquet:2: found the class -1 in 'label', expected one of the 2"):
        read_rows([path], COLUMNS)


def test_faults_of_parquet_are_told(tmp_path, parquet):
    """Another file, a cut one, a missing column, a list."""
    path = parquet(tmp_path / "in.parquet", {"text": ["a"], "label": [["x"]]})
    for columns, words in (
        (COLUMNS, "in.parquet:1: found a list in 'label'"),
        (COLUMNS._replace(label="no"), "found no column 'no' among 'text', 'label'"),
    ):
        with pytest.raises(UserError, match=words):
            read_rows([path], columns)
    for content in (b"", b"text", path.read_bytes()[:-20]):
        assert "cannot be read" in refused(path, content)
