"""Raw reviews to TSV files: bytes that are no XML are read, the split is the authors', no text leaks after
--dedup.
"""

import io
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from data.prepare import amazon
from data.prepare.amazon import TASK, deduplicate, leaks, parse_reviews, read_reviews, split_reviews
from data.tasks import SPLITS, read_examples, split_path
from util import UserError

FOLDERS = ("books", "dvd", "electronics", "kitchen_&_housewares")
PUBLISHED = os.environ.get("METAKD_AMAZON_DIR")


def review(text):
    return b"<review>\n<rating>\n5.0\n</rating>\n<review_text>\n" + text + b"\n</review_text>\n</review>\n"


def content(folder, label):
    """A file of 1,000 reviews, the first six of them one text."""
    return b"".join(
        review(f"{label} {folder} {max(k, 5)} <b> & more".encode()) for k in range(amazon.REVIEWS)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder that contains sorted_data_acl, with a file of unlabelled reviews among the eight."""
    root = tmp_path_factory.mktemp("raw")
    for folder in FOLDERS:
        path = root / "sorted_data_acl" / folder
        path.mkdir(parents=True)
        for label in TASK.labels:
            (path / f"{label}.review").write_bytes(content(folder, label))
        (path / "unlabeled.review").write_bytes(review(b"no label"))
    return root


@pytest.fixture(scope="module")
def archive(source, tmp_path_factory):
    """The same as a .tar.gz, with a link and a path that leads outside, both named like wanted files."""
    path = tmp_path_factory.mktemp("archive") / "domain_sentiment_data.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("other/books/positive.review")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        outside = tarfile.TarInfo("../../outside.review")
        outside.size = 1
        tar.addfile(outside, io.BytesIO(b"x"))
        tar.add(source / "sorted_data_acl", "sorted_data_acl")
    return path


def run(*arguments):
    command = [sys.executable, "-m", "data.prepare.amazon", *map(str, arguments)]
    return subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True)


# ---------------------------------------------------------------------------------------- reading


def test_texts_are_found_in_bytes_that_are_no_xml():
    """Bare & and <, control characters, blank lines and a foreign root element do no harm; a text is one
    line.
    """
    data = (
        b"<data>\n"
        + review(b"a < b & c\n\n\tnext\x1a line  ")
        + review(b'"q" <i>caf\xc3\xa9</i>')
        + b"</data>\n"
    )
    data += b"".join(review(b"x") for _ in range(amazon.REVIEWS - 2))
    assert parse_reviews(data, "f")[:3] == ["a < b & c next line", '"q" <i>café</i>', "x"]


def test_rows_come_in_the_order_of_the_files(source):
    """Domain by domain, positive before negative: the shuffle of the split depends on it."""
    rows = read_reviews(source)
    assert [row[1:] for row in rows[:: amazon.REVIEWS]] == [
        (domain, label) for domain in TASK.domains for label in TASK.labels
    ]
    assert rows[1999] == ("negative books 999 <b> & more", "books", "negative")


def test_folder_inner_folder_and_archive_give_the_same_rows(source, archive):
    """Links and paths outside the archive are passed over, and so are the unlabelled reviews."""
    rows = read_reviews(source)
    assert read_reviews(source / "sorted_data_acl") == rows and read_reviews(archive) == rows


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"".join(review(b"x") for _ in range(999)), "found 999 reviews, expected 1000"),
        (review(b"x") + review(b" \n\x1a "), "review 2 has no text"),
        (b"<review>\n</review>", "review 1 has no text"),
        (review(b"caf\xe9"), "review 1 is not UTF-8"),
    ],
)
def test_faults_of_a_file_are_told(data, sentence):
    """A cut file, an empty text and another encoding are UserErrors that name the file."""
    with pytest.raises(UserError, match=f"^books/positive.review: {sentence}"):
        parse_reviews(data, "books/positive.review")


def test_faults_of_the_source_are_told(tmp_path, archive):
    """No such folder, an empty one, a file that is no archive, one that is cut, one without the files: no
    traceback.
    """
    (tmp_path / "text.tar.gz").write_bytes(b"no archive")
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:2000])
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "text.tar.gz", "sorted_data_acl/books/readme")
    for name, sentence in (
        ("absent", "no such folder or archive"),
        (".", "books/positive.review is missing"),
        ("text.tar.gz", "cannot be read as a tar archive"),
        ("cut.tar.gz", "cannot be read as a tar archive"),
        ("other.tar.gz", "books/positive.review is missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_reviews(tmp_path / name)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_of_three_gigabytes_is_refused_by_its_header(kind, tmp_path):
    """Neither a file nor a long name nor an extended header is held in memory first: here nothing follows
    them.
    """
    member = tarfile.TarInfo("sorted_data_acl/books/positive.review")
    member.type, member.size = kind, 3 << 30
    (tmp_path / "large.tar").write_bytes(member.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(UserError, match="found 3,221,225,472 bytes, expected 33,554,432 at most"):
        read_reviews(tmp_path / "large.tar")


def test_a_review_file_of_three_gigabytes_is_refused_by_its_size(tmp_path):
    """In a folder as in an archive; the file is sparse."""
    (tmp_path / "books").mkdir()
    with open(tmp_path / "books" / "positive.review", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(UserError, match="books/positive.review: found 3,221,225,472 bytes"):
        read_reviews(tmp_path)


def test_a_damaged_archive_of_any_packing_is_a_sentence(archive, tmp_path):
    """gzip, bzip2 and xz, cut in the middle or overwritten there: tarfile takes some damage for the end."""
    with tarfile.open(archive) as tar:
        members = [(member, tar.extractfile(member)) for member in tar if member.isreg()]
        for packing in ("gz", "bz2", "xz"):
            with tarfile.open(tmp_path / f"whole.tar.{packing}", f"w:{packing}") as target:
                for member, content in members:
                    content.seek(0)
                    target.addfile(member, content)
            whole = (tmp_path / f"whole.tar.{packing}").read_bytes()
            middle = len(whole) // 2
            for broken in (whole[:middle], whole[:middle] + bytes(64) + whole[middle + 64 :]):
                (tmp_path / "broken.tar").write_bytes(broken)
                with pytest.raises(
                    UserError, match="cannot be read as a tar archive|is missing, expected 8 files"
                ):
                    read_reviews(tmp_path / "broken.tar")


# ---------------------------------------------------------------------------------------- splitting


def test_the_split_has_the_authors_sizes_and_every_review_once(source):
    """6,480, 720 and 800 rows, as many positive as negative, and in each domain as many as the authors
    report.
    """
    rows = [(str(k), *row[1:]) for k, row in enumerate(read_reviews(source))]
    splits = split_reviews(rows)
    assert {split: len(part) for split, part in splits.items()} == {"train": 6480, "dev": 720, "test": 800}
    assert sorted(row for part in splits.values() for row in part) == sorted(rows)
    counts = {
        split: [sum(row[1] == domain for row in part) for domain in TASK.domains]
        for split, part in splits.items()
    }
    assert counts == {
        "train": [1631, 1621, 1615, 1613],
        "dev": [170, 194, 172, 184],
        "test": [199, 185, 213, 203],
    }
    assert {sum(row[2] == "positive" for row in part) / len(part) for part in splits.values()} == {0.5}


def test_deduplicated_splits_share_no_text():
    """One copy of a text stays, in test before dev before train; a text with two labels stays nowhere."""
    p, n = ("books", "positive"), ("books", "negative")
    splits = {
        "train": [("a", *p), ("b", *p), ("b", *p), ("c", *p), ("d", *n)],
        "dev": [("a", *p), ("e", *n), ("d", *n)],
        "test": [("e", *n), ("d", *p), ("f", *p), ("f", *p)],
    }
    kept, dropped = deduplicate(splits)
    assert kept == {"train": [("b", *p), ("c", *p)], "dev": [("a", *p)], "test": [("e", *n), ("f", *p)]}
    assert {split: len(splits[split]) - len(kept[split]) for split in SPLITS} == {
        split: sum(dropped[split]) for split in SPLITS
    }
    assert dropped["train"] == [2, 1]
    assert [line.rsplit(" ", 1)[1] for line in leaks(splits)] == ["1", "2", "2"]
    assert [line.rsplit(" ", 1)[1] for line in leaks(kept)] == ["0", "0", "0"]


# ---------------------------------------------------------------------------------------- the command


def test_the_command_writes_what_the_task_reads(source, tmp_path):
    """All splits are read without a fault, twice the same bytes; --dedup leaves no text twice; a fault is
    exit code 2.
    """
    assert run("--source", source, "--data_dir", tmp_path).returncode == 0
    first = {split: split_path(tmp_path, split).read_bytes() for split in SPLITS}
    assert sum(len(list(read_examples(TASK, split_path(tmp_path, split)))) for split in SPLITS) == 8000
    again = run("--source", source, "--data_dir", tmp_path)
    assert {split: split_path(tmp_path, split).read_bytes() for split in SPLITS} == first
    assert "texts of train that stand in test as well" in again.stdout
    assert run("--source", source, "--data_dir", tmp_path, "--dedup").returncode == 0
    texts = [
        example.text_a for split in SPLITS for example in read_examples(TASK, split_path(tmp_path, split))
    ]
    assert len(set(texts)) == len(texts) == 8000 - 8 * 5
    wrong = run("--source", tmp_path, "--data_dir", tmp_path / "new")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.skipif(
    not PUBLISHED, reason="METAKD_AMAZON_DIR does not name the folder of the published reviews"
)
def test_the_published_reviews_leak_as_the_paper_split_does():
    """24 texts of train stand in test and 23 in dev; without them 6,338, 714 and 800 reviews are left."""
    splits = split_reviews(read_reviews(PUBLISHED))
    assert [line.rsplit(" ", 1)[1] for line in leaks(splits)] == ["24", "23", "2"]
    kept, _ = deduplicate(splits)
    assert [len(kept[split]) for split in SPLITS] == [6338, 714, 800]
    assert kept["test"] == splits["test"]
