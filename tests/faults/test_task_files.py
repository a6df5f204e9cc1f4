"""The files of a task change together or not at all: killed anywhere, refused any rename, two imports at
once.
"""

import dataclasses
import fcntl
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from test_faults import restore, state_of, watched

from data.prepare.task_files import write_task
from data.tasks import REPLACEMENT, SPLITS, Task, load_task, read_examples, split_path
from util import UserError

OLD = Task("tiny", ("text",), "domain", "label", ("down", "up"), ("books", "films"))
NEW = dataclasses.replace(OLD, labels=("bad", "good"), domains=("books", "music", "toys"))


def rows(task):
    """A row for each domain and label, with a text that names the task's labels."""
    return [(f"{task.labels} {domain}", domain, label) for domain in task.domains for label in task.labels]


def write(task, folder):
    write_task(task, folder, {split: rows(task) for split in SPLITS})


def read(folder):
    """The task in the folder, once all its files were found to be of it."""
    task = load_task("tiny", folder)
    for split in SPLITS:
        examples = list(read_examples(task, split_path(folder, split)))
        assert [example.text_a for example in examples] == [row[0] for row in rows(task)]
    return task


@pytest.fixture
def folder(tmp_path):
    """A folder with the old task, and a file of the user's beside it."""
    write(OLD, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("mine")
    return tmp_path / "data"


def states_of_import(folder):
    """What stands in the folder before each file event of an import of the new task."""
    states = []
    with watched(lambda event, args: states.append(state_of(folder))):
        write(NEW, folder)
    return [state for k, state in enumerate(states) if not k or state != states[k - 1]]


@pytest.mark.parametrize("before", [OLD, None], ids=["over another", "into a new folder"])
def test_an_import_killed_anywhere_leaves_one_task_or_says_so(before, folder, tmp_path):
    """A stage reads the old files, the new ones, or gets a sentence.

    The same import again ends as if nothing had been.
    """
    if before is None:
        for path in [folder / "task.json", *(split_path(folder, split) for split in SPLITS)]:
            path.unlink()
    states, found = states_of_import(folder), []
    after = state_of(folder)
    for state in states:
        restore(state, folder)
        try:
            found.append(read(folder).labels)
        except UserError as error:
            words = "import that was killed" if REPLACEMENT in state else "task.json: missing"
            assert words in str(error)
            found.append(words)
        write(NEW, folder)
        assert state_of(folder) == after
    assert {NEW.labels, "import that was killed"} < set(found) and len(states) > 15


def test_after_a_kill_another_task_is_still_refused(tmp_path):
    """What the killed import has left belongs to its task, whether or not train.tsv had its name."""
    folder = tmp_path / "data"
    folder.mkdir()
    for state in [state for state in states_of_import(folder) if REPLACEMENT in state]:
        restore(state, folder)
        with pytest.raises(UserError, match="holds the data of task 'tiny'"):
            write(dataclasses.replace(OLD, name="other"), folder)
        assert read(folder) == NEW


@pytest.mark.parametrize("number", range(9))  # the folder's, and two for each of four files
def test_a_rename_that_fails_leaves_every_file_as_it_was(number, folder, monkeypatch):
    """Whichever of the renames the disk refuses: the old files are back, and nothing else is left."""
    before, rename, calls = state_of(folder), os.rename, []

    def refuse(*paths):
        calls.append(paths)
        if len(calls) == number + 1:
            raise OSError(5, "Input/output error")
        rename(*paths)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError):
        write(NEW, folder)
    assert state_of(folder) == before and len(calls) > number


def test_where_the_old_files_cannot_be_given_back_the_mixture_is_told(folder, monkeypatch):
    """From the fourth rename on the disk refuses all."""
    rename, calls = os.rename, []

    def refuse(*paths):
        calls.append(paths)
        if len(calls) > 3:
            raise OSError(5, "Input/output error")
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "rename", refuse)
        write(NEW, folder)
    with pytest.raises(UserError, match="an import that was killed"):
        load_task("tiny", folder)
    write(NEW, folder)
    assert read(folder) == NEW


def test_a_folder_in_the_place_of_a_file_stops_the_import_before_anything_changes(folder):
    """It is not moved away with what is in it."""
    split_path(folder, "dev").unlink()
    (folder / "dev.tsv").mkdir()
    (folder / "dev.tsv" / "mine").write_text("mine")
    before = state_of(folder)
    with pytest.raises(UserError, match="dev.tsv: found a folder, expected a file or nothing"):
        write(NEW, folder)
    assert state_of(folder) == before


def test_while_one_import_gives_names_another_is_refused(folder):
    """The first holds the lock of its folder of new files."""
    (folder / REPLACEMENT).mkdir()
    (folder / REPLACEMENT / "old").mkdir()
    handle = os.open(folder / REPLACEMENT, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    before = state_of(folder)
    with pytest.raises(UserError, match="another import is writing here"):
        write(NEW, folder)
    assert state_of(folder) == before
    os.close(handle)
    write(NEW, folder)
    assert read(folder) == NEW


def test_imports_side_by_side_leave_the_files_of_one(tmp_path):
    """Of six at once each ends well or is refused, and what lies there is all of one of them."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/faults', 'tests/stages']\n"
        "from test_task_files import *\n"
        "for k in range(20): write((OLD, NEW)[int(sys.argv[1])], sys.argv[2])"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(k % 2), str(tmp_path / "data")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(6)
    ]
    for run in runs:
        errors = run.communicate()[1]
        assert run.returncode == 0 or "another import is writing here" in errors
    assert read(tmp_path / "data") in (OLD, NEW)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "task.json",
        "train.tsv",
        "dev.tsv",
        "test.tsv",
    }
