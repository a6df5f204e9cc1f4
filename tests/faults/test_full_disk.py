"""A disk that is really full, a small tmpfs: each command ends with a sentence and leaves nothing half-made.

With room the same command ends as if nothing had been.

It takes root, to mount; skipped with its reason where that is not given.
"""

import csv
import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import STAGES, Outcome, best, call, stage_flags
from test_export import NEEDS_TORCH, ask
from test_faults import SLOW, TRAINING, assert_a_sentence, assert_whole, half_written
from test_stages import tree

from modeling import export
from modeling.export_gate import Figures, LabelledTexts
from util import UserError

SIZE, PAGE = 32 << 20, 4096  # bytes of the disk; it gives them by the page
SHARES = (0, 0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9) if SLOW else (0.4,)  # of the room that is needed
KEPT = ".embeddings"  # of stage 1, for the same command to go on with
OUTPUT = {
    "preprocess": "data/ofrecord",
    "meta_teacher": "teacher",
    "meta_teacher_eval": "data/ofrecord/knowledge-*",
    "meta_distill": "student",
}


@pytest.fixture
def disk(tmp_path):
    """The folder of a tmpfs of SIZE bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = shutil.which("mount") and subprocess.run(command, capture_output=True, text=True)
    if not done or done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip() if done else 'there is no mount'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, room):
    """Fills a disk but for `room` bytes. Returns the file that does."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    state = os.statvfs(disk)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - room)
    return ballast


def pages(folder):
    """Bytes that the files below a folder take on such a disk."""
    sizes = [path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def assert_refused(outcome, folder):
    """One sentence that tells of the disk, exit code 2, and nothing half-made below `folder`."""
    assert_a_sentence(outcome)
    assert "No space left on device" in outcome.err or "free on this disk" in outcome.err, outcome.err
    assert_whole(folder)
    assert [name for name in half_written(folder) if KEPT not in name] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_goes_on_when_there_is_room(golden, disk, stage):
    """With room for none of what it writes and for parts of it."""
    flags = {**stage_flags(golden)[stage], **({"resume": True} if stage in TRAINING else {})}
    folder, (written,) = disk / "sandbox", golden.glob(OUTPUT[stage])
    later = "knowledge-" if stage == "preprocess" else "flags.json"  # --resume is among the flags
    whole = {name: sha for name, sha in tree(golden).items() if later not in name}
    for share in SHARES:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(golden, folder, symlinks=True)
        shutil.rmtree(folder / written.relative_to(golden))
        ballast = fill(disk, int(share * pages(written)))
        assert_refused(call(stage, folder, flags), folder)
        ballast.unlink()
        outcome = call(stage, folder, flags)
        assert outcome.code == 0, (share, outcome.err)
        found = {name: sha for name, sha in tree(folder).items() if later not in name}
        assert found == whole and half_written(folder) == [], share


def test_an_import_goes_on_when_there_is_room(disk, tmp_path):
    """Into a new folder, and over the data of an earlier import, which stay as they are."""
    for name, count in (("few.csv", 60), ("many.csv", 600)):
        with open(tmp_path / name, "w", newline="") as file:
            rows = [(f"text {i} of many", "ab"[i % 2], "xy"[i // 2 % 2]) for i in range(count)]
            csv.writer(file).writerows([("text", "label", "domain"), *rows])
    flags = {"text": "text", "label": "label", "domain": "domain", "task_name": "mine", "data_dir": "data"}

    def bring(name):
        return call("data.prepare.import_tsv", disk, {"source": str(tmp_path / name), **flags})

    assert bring("many.csv").code == 0
    whole, need = tree(disk / "data"), pages(disk / "data")
    for share in SHARES:
        for earlier in (False, True):
            shutil.rmtree(disk / "data")
            assert not earlier or bring("few.csv").code == 0
            before = tree(disk)
            ballast = fill(disk, int(share * need))
            assert_refused(bring("many.csv"), disk)
            ballast.unlink()
            assert tree(disk) == before
            assert bring("many.csv").code == 0
            assert tree(disk / "data") == whole


def test_an_export_is_kept_whole_or_not_at_all(golden, disk, tmp_path):
    """The last step of an export, for which no library is needed."""
    model, snapshot, target = tmp_path / "model.onnx", best(golden / "student"), disk / "target"
    model.write_bytes(bytes(50_000))
    figures, texts = Figures(1.0, ["a"], 1.0, 1.0, 1.0), LabelledTexts([("t",)], ["a"], ["a"])

    def keep():
        export.keep(model, snapshot, target, figures, texts, "float32")

    keep()
    whole, need = tree(target), pages(target)
    for share in SHARES:
        shutil.rmtree(target)
        ballast = fill(disk, int(share * need))
        with pytest.raises((UserError, OSError), match="No space left on device"):
            keep()
        assert sorted(os.listdir(disk)) == ["ballast"]
        ballast.unlink()
        keep()
        assert tree(target) == whole


@NEEDS_TORCH
@pytest.mark.slow  # half a minute
def test_a_whole_export_on_a_full_disk_is_a_sentence(golden, disk, monkeypatch):
    """Where the target is, and where the libraries put what they make on the way."""
    folder = shutil.copytree(golden, disk / "sandbox", symlinks=True)
    (disk / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(disk / "temporary"))
    for room in (20_000, 100_000):
        ballast = fill(disk, room)
        done = ask(folder, "--target", "onnx")
        assert_refused(Outcome(done.returncode, done.stdout, done.stderr.splitlines(True)[-1]), folder)
        assert not any((disk / "temporary").glob("tmp*")) and not (folder / "onnx").exists()
        ballast.unlink()
    assert ask(folder, "--target", "onnx").returncode == 0
