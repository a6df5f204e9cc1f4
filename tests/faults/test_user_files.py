"""The user's own files: none is removed, replaced or written through but what a flag names for that."""

import os

import pytest
from conftest import call, stage_flags
from test_cli import refused

from data.store.files import atomic_file, atomic_folder, lock, remove_folder
from data.store.parts import PartsFolder
from data.store.temporary import create_file, create_folder, is_temporary, new_path, remove_partial_writes
from util import UserError

THEIRS = (".env.tmpl", ".cache.tmpfiles", ".notes.txt.tmp", ".old.tmp.old", ".meta-kd-1.tmp", "x.tmp", ".tmp")


def put(folder):
    """Makes files and a folder of the user, named like half-written ones; returns what is there."""
    folder.mkdir(exist_ok=True)
    for name in THEIRS:
        if name == ".cache.tmpfiles":
            (folder / name).mkdir()
            (folder / name / "inner").write_text("theirs")
        else:
            (folder / name).write_text("theirs")
    theirs = [path for name in THEIRS for path in (folder / name, folder / name / "inner") if path.is_file()]
    return {path: path.read_text() for path in theirs}


def assert_kept(before):
    for path, text in before.items():
        assert path.read_text() == text


def test_only_names_of_ours_are_removed_as_half_written(tmp_path):
    """Files, folders and links that a killed writer left are removed.

    All else stays, also what such a link leads to.
    """
    before = put(tmp_path)
    (tmp_path / "target").mkdir()
    link, file, folder = (new_path(tmp_path) for _ in range(3))
    link.symlink_to("target")
    file.write_text("half")
    folder.mkdir()
    (folder / "half").write_text("half")
    remove_partial_writes(tmp_path)
    assert_kept(before)
    assert not file.exists() and not folder.exists() and not link.is_symlink()
    assert (tmp_path / "target").is_dir()


def test_names_cannot_be_guessed_and_are_recognised(tmp_path):
    """A name is used once, is told from all others, and has room for a target's name of 255 bytes."""
    names = {new_path(tmp_path).name for _ in range(100)}
    assert len(names) == 100 and all(map(is_temporary, names)) and not any(map(is_temporary, THEIRS))
    long = "\u8bc4" * 85
    with atomic_file(tmp_path / long) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == [long]


def test_what_a_living_writer_writes_is_not_removed(tmp_path):
    """Neither its file nor its folder, while it holds them; both once it has let them go."""
    made = [create_file(tmp_path), create_folder(tmp_path)]
    remove_partial_writes(tmp_path)
    assert all(path.exists() for path, _ in made)
    for _, handle in made:
        os.close(handle)
    remove_partial_writes(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_put_aside_gets_its_name_back_where_there_is_no_other(tmp_path):
    """A kill between two renames leaves the old folder under a hidden name: it comes back.

    Where its successor is there already, that one stays.
    """
    for successor in (False, True):
        aside, handle = create_folder(tmp_path, "old")
        os.close(handle)
        (aside / "snapshot").mkdir()
        (aside / "snapshot" / "file").write_text("old")
        if successor:
            (tmp_path / "snapshot" / "file").write_text("new")
        remove_partial_writes(tmp_path)
        assert os.listdir(tmp_path) == ["snapshot"]
        assert (tmp_path / "snapshot" / "file").read_text() == ("new" if successor else "old")


@pytest.mark.parametrize("stage, folder", [("meta_teacher", "teacher"), ("preprocess", "data/ofrecord")])
def test_a_stage_keeps_the_users_files(sandbox, stage, folder):
    """A whole run in a folder with files of the user's: they are as they were."""
    flags = stage_flags(sandbox)[stage]
    if stage == "meta_teacher":
        (sandbox / folder).rename(sandbox / "done")
        flags = {**flags, "do_eval": False}
    before = put(sandbox / folder)
    assert call(stage, sandbox, flags).code == 0
    assert_kept(before)


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "results.json", "flags.json", "report.html"])
def test_a_folder_with_files_that_a_run_would_replace_is_refused(sandbox, name):
    """--model_save_dir . with a user's file where a run would write: a sentence names it, and it stays."""
    (sandbox / name).write_text("theirs")
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "."}
    refused(sandbox, "meta_teacher", name, "another folder", flags=flags)
    assert (sandbox / name).read_text() == "theirs"


def test_a_report_of_the_users_beside_the_records_is_not_replaced(sandbox):
    """--ofrecord_dir names a folder that has a report.html and no records."""
    (sandbox / "mine").mkdir()
    (sandbox / "mine" / "report.html").write_text("theirs")
    flags = {**stage_flags(sandbox)["preprocess"], "ofrecord_dir": "mine"}
    refused(sandbox, "preprocess", "report.html", flags=flags)
    assert (sandbox / "mine" / "report.html").read_text() == "theirs"


def test_a_copy_of_a_snapshot_is_no_snapshot_of_the_run(sandbox):
    """A folder of the user beside the best snapshots, named like them, stays when a better one comes."""
    (sandbox / "teacher").rename(sandbox / "done")
    theirs = [
        sandbox / "teacher" / f"snapshot_best_mft_model_{name}" for name in ("senti_dev_0.1_copy", "mine")
    ]
    for path in theirs:
        path.mkdir(parents=True)
        (path / "file").write_text("theirs")
    assert call("meta_teacher", sandbox, stage_flags(sandbox)["meta_teacher"]).code == 0
    assert all((path / "file").read_text() == "theirs" for path in theirs)


def test_parts_are_not_made_in_a_folder_of_the_users(tmp_path):
    """A folder with anything else in it, or a file or link in its place, is refused and stays."""
    parts, place = PartsFolder(tmp_path / "parts", "train", {}), tmp_path / "parts"
    place.mkdir()
    for name in ("notes.txt", "train.of_record-0.bak", ".train.of_record-x.json"):
        (place / name).write_text("theirs")
        with pytest.raises(UserError, match="something else in it"):
            parts.begin()
        parts.discard()
        assert (place / name).read_text() == "theirs"
        (place / name).unlink()
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("theirs")
    place.symlink_to("elsewhere")
    with pytest.raises(UserError, match="found a link"):
        parts.begin()
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


# --------------------------------------------------------------------------------------- planted links


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    """Nor a FIFO waited for: a sentence names it, and the file that the link leads to stays."""
    (tmp_path / "victim").write_text("theirs")
    place = tmp_path / "run" / ".meta-kd.lock"
    place.parent.mkdir()
    for plant in (lambda: place.symlink_to(tmp_path / "victim"), lambda: os.mkfifo(place), place.mkdir):
        plant()
        with pytest.raises(UserError, match="meta-kd.lock: found a link or something else"):
            lock(place.parent)
        assert (tmp_path / "victim").read_text() == "theirs"
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize(
    "plant", [lambda path: path.symlink_to("/dev/null"), os.mkfifo], ids=["link", "fifo"]
)
def test_files_that_a_run_adds_to_are_its_own(sandbox, name, plant):
    """A link or a FIFO in their place is told; the run does not wait for a reader that never comes."""
    (sandbox / "new").mkdir()
    plant(sandbox / "new" / name)
    refused(
        sandbox, "meta_teacher", name, flags={**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new"}
    )


def test_links_in_the_place_of_what_is_written_whole_are_not_followed(tmp_path):
    """A file replaces a link to a file; a folder in the place of a link is refused with a sentence."""
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "file").symlink_to("victim")
    with atomic_file(tmp_path / "file", "w") as file:
        file.write("ours")
    assert (tmp_path / "victim").read_text() == "theirs" and (tmp_path / "file").read_text() == "ours"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("elsewhere")
    with pytest.raises(UserError, match="found a link"), atomic_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "elsewhere").is_dir() and (tmp_path / "folder").is_symlink()


def test_a_folder_that_is_removed_leaves_the_temporary_names_of_others(tmp_path):
    """remove_folder takes a name of its own, whatever else is there."""
    before = put(tmp_path)
    (tmp_path / "snapshot").mkdir()
    remove_folder(tmp_path / "snapshot")
    assert_kept(before)
    assert not (tmp_path / "snapshot").exists() and sorted(os.listdir(tmp_path)) == sorted(THEIRS)


def test_an_evaluation_does_not_replace_the_results_of_another_run(sandbox):
    """--do_eval of a student into the teacher's run folder: a sentence, and the teacher's results stay."""
    before = (sandbox / "teacher" / "results.json").read_bytes()
    flags = {
        **stage_flags(sandbox)["meta_distill"],
        "do_train": False,
        "student_model": "student",
        "student_layers": None,
        "teacher_model": None,
        "model_save_dir": "teacher",
    }
    refused(sandbox, "meta_distill", "it holds another run", flags=flags)
    assert (sandbox / "teacher" / "results.json").read_bytes() == before
    assert call("meta_distill", sandbox, {**flags, "model_save_dir": "student"}).code == 0
