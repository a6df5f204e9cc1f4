"""Folders that are moved, removed or replaced under a run: it makes nothing under the old name."""

import os
import shutil

import pytest

from modeling.training.run import Run
from util import UserError


def test_a_run_folder_that_is_moved_is_followed(tmp_path):
    """Log, metrics and later files go into the moved folder.

    The old name is not made again, and the log tells of the move.
    """
    run = Run(tmp_path / "run")
    run.metric(step=1)
    (tmp_path / "run").rename(tmp_path / "moved")
    run.metric(step=2)
    run.log("after")
    assert run.folder == tmp_path / "moved" and os.listdir(tmp_path) == ["moved"]
    assert (tmp_path / "moved" / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert "was moved" in (tmp_path / "moved" / "log.txt").read_text()


@pytest.mark.parametrize("other", [False, True])
def test_a_run_folder_that_is_gone_ends_the_run(tmp_path, other):
    """Removed, and perhaps another folder made under its name: a sentence, and nothing is written there."""
    run = Run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    if other:
        (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="moved or removed"):
        run.metric(step=1)
    assert not other or os.listdir(tmp_path / "run") == []


def test_a_held_folder_that_is_moved_ends_the_run(tmp_path):
    """The folder of the records or of the knowledge: the sentence says where it is now."""
    run = Run()
    run.hold(tmp_path / "records")
    run.check_held()
    (tmp_path / "records").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="moved now: bring it back"):
        run.check_held()
    (tmp_path / "moved").rename(tmp_path / "records")
    run.check_held()
