"""What every run needs: whole files and folders, the lock, keyed randomness, errors as sentences."""

import ctypes
import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from data.store.files import atomic_file, atomic_folder, lock, make_folder, write_json
from modeling.training.run import Run
from util import UserError, entry, random_stream, read_json


class Broken(Exception):
    pass


def python(code, *words, **options):
    """A process that runs Python code from the repository's root."""
    return subprocess.Popen(
        [sys.executable, *words, "-c", code],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE,
        **options,
    )


# --------------------------------------------------------------------------------------- whole files


def test_a_file_keeps_its_old_content_when_writing_fails(tmp_path):
    """After an exception in the block, even after a write, the old bytes stay and nothing lies beside."""
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    for fault in (Broken, KeyboardInterrupt):
        with pytest.raises(fault), atomic_file(path) as file:
            file.write(b"new and long enough to be flushed" * 10000)
            raise fault
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.json"]
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"  # until the block ends
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file.json"]


def test_text_files_have_the_same_bytes_everywhere(tmp_path):
    """UTF-8 and "\\n", whatever the locale."""
    write_json(tmp_path / "a.json", {"b": ["\xe9"], "a": 1.5})
    assert (tmp_path / "a.json").read_bytes() == '{\n "b": [\n  "\xe9"\n ],\n "a": 1.5\n}\n'.encode()
    assert read_json(tmp_path / "a.json", "it") == {"b": ["\xe9"], "a": 1.5}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_keeps_its_old_content_when_writing_fails(tmp_path, exists):
    """A failed write leaves the old files, or nothing where nothing was.

    The next one then replaces all old files.
    """
    path = tmp_path / "outer" / "snapshot"
    if exists:
        path.mkdir(parents=True)
        (path / "old").write_text("old")
    for fault in (Broken, KeyboardInterrupt):
        with pytest.raises(fault), atomic_folder(path) as folder:
            (folder / "new").write_text("new")
            raise fault
        assert os.listdir(path.parent) == (["snapshot"] if exists else [])
        assert not exists or os.listdir(path) == ["old"]
    with atomic_folder(path) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(path) == ["new"] and os.listdir(path.parent) == ["snapshot"]


def test_a_folder_is_exchanged_without_the_system_call_too(tmp_path, monkeypatch):
    """A file system that cannot exchange two names gets renames: the new folder is there, not the old."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "snapshot") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "snapshot" / "file").read_text() == "new" and os.listdir(tmp_path) == ["snapshot"]


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_cleans_up(tmp_path):
    """SIGKILL in the block leaves the old folder whole.

    What the dead writer left is not mixed into the next one's folder.
    """
    code = (
        "import os, sys\n"
        "from data.store import files\n"
        "with files.atomic_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'half').write_text('x')\n"
        "    if sys.argv[2:]:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    (folder / 'whole').write_text('y')"
    )
    path = tmp_path / "snapshot"
    for more in ([], ["die"], []):
        process = subprocess.run([sys.executable, "-c", code, path, *more], cwd=ROOT)
        assert process.returncode == (-signal.SIGKILL if more else 0)
        assert sorted(os.listdir(path)) == ["half", "whole"]
    assert os.listdir(tmp_path) == ["snapshot"]


@pytest.mark.parametrize(
    "content, words",
    [(None, "is missing"), ("{", "not valid JSON"), ("[1]", "holds a list"), (b"\xff", "not valid JSON")],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, words):
    """read_json names the file, what it is, and the fault."""
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: the manifest .*{words}"):
        read_json(path, "the manifest")


# -------------------------------------------------------------------------------- the lock and the run folder


def test_the_lock_refuses_a_second_holder_and_dies_with_the_first(tmp_path):
    """The sentence names the process that holds the folder.

    A killed holder leaves nothing that must be removed by hand.
    """
    holder = python(
        "from data.store import files\n"
        f"held = files.lock({str(tmp_path)!r})\n"
        "print('held', flush=True)\n"
        "input()"
    )
    assert holder.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(UserError, match=f"process {holder.pid} is writing here"):
            lock(tmp_path)
    holder.kill()
    holder.communicate()
    with lock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} is"):
            Run(tmp_path)
        lock(tmp_path, ".other.lock").close()
    Run(tmp_path)


def test_metrics_have_no_clock_and_forget_what_is_written_again(tmp_path):
    """metrics.jsonl holds what it was given; forget_after drops later steps and a line cut short."""
    run = Run(tmp_path)
    for step in range(1, 5):
        run.metric(step=step, loss=step / 3)
        run.timing(step=step)
    run.metric(step=4, dev={"accuracy": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.startswith('{"step": 1, "loss": 0.3333333333333333}\n') and all(
        "seconds" in line for line in open(tmp_path / "timing.jsonl")
    )
    (tmp_path / "metrics.jsonl").write_text(
        text[:-2]
    )  # '... "dev": {"accuracy": 0.5}' looks whole by its last character
    run.forget_after(4)
    assert [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    run.forget_after(2)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(text.splitlines(True)[:2])


# --------------------------------------------------------------------------------------- seeds


def test_a_stream_is_a_function_of_its_arguments():
    """The same arguments give the same values, whatever was drawn before; others give others."""
    first = random_stream(1, "dropout", 2, 3).random(4)
    random_stream(1, "order", 2).random(100)
    np.random.seed(0)
    assert np.array_equal(random_stream(1, "dropout", 2, 3).random(4), first)
    others = [
        (2, "dropout", 2, 3),
        (1, "order", 2, 3),
        (1, "dropout", 3, 2),
        (1, "dropout", 2),
        (1, "dropout", 2, 3, 1),
        (1, "dropout", 2, 3, 0),
    ]
    assert not any(np.array_equal(random_stream(*key).random(4), first) for key in others)
    assert random_stream(np.int64(1), "dropout", np.int32(2), 3).random(4).tolist() == first.tolist()


# --------------------------------------------------------------------------------------- errors


@pytest.fixture
def ended(capsys):
    """Runs a function as a program and returns (exit code, standard error)."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(function):
        with pytest.raises(SystemExit) as end:
            entry(function)()
        return end.value.code, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, handler)


def raising(error):
    def main():
        raise error

    return main


def test_a_user_error_is_one_sentence_and_code_2(ended):
    """The sentence on standard error, nothing else."""
    assert ended(raising(UserError("a.tsv:3: found x, expected y: mend it."))) == (
        2,
        "error: a.tsv:3: found x, expected y: mend it.\n",
    )


@pytest.mark.parametrize(
    "number, words", [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
def test_a_full_disk_and_a_missing_permission_are_sentences(ended, number, words):
    """With the file's name where the system tells it."""
    assert ended(raising(OSError(number, words, "out/file"))) == (2, f"error: out/file: {words}.\n")
    assert ended(raising(OSError(number, words))) == (2, f"error: output: {words}.\n")


def test_a_full_disk_is_a_sentence_in_real_life(ended):
    """/dev/full takes no byte."""

    def main():
        with open("/dev/full", "w") as file:
            file.write("x")

    if not pathlib.Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code, err = ended(main)
    assert code == 2 and "No space left on device" in err and err.count("\n") == 1


def test_faults_of_ours_keep_their_traceback():
    """Anything else passes: hiding it would hide a fault."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        entry(raising(ZeroDivisionError()))()
    with pytest.raises(OSError):
        entry(raising(OSError(errno.EBADF, "bad file")))()
    signal.signal(signal.SIGTERM, handler)


def test_a_fault_of_a_launched_rank_ends_it_at_once(tmp_path):
    """A fault of a launched rank ends it at once and leaves the traceback to the launcher.

    Any exception does, a system call's error too; OneFlow's farewell, which waits, is left out.
    """
    for fault in ("ZeroDivisionError()", "OSError(errno.EBADF, 'bad file')"):
        code = (
            f"import atexit, errno, time; from util import entry\natexit.register(time.sleep, 60)\n"
            f"@entry\ndef main():\n    raise {fault}\nmain()"
        )
        launched = {**os.environ, "METAKD_EXIT_REPORT_DIR": str(tmp_path), "RANK": "0"}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, env=launched)
        words = json.loads((tmp_path / "0.json").read_text())
        assert done.returncode == words["code"] == 1 and fault.split("(")[0] in words["sentence"]


def test_a_file_in_the_place_of_a_folder_is_a_sentence(tmp_path):
    """Of the folder itself, or of one above it."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(UserError, match="a file has the name of this folder"):
            make_folder(path)
        with pytest.raises(UserError, match="a file has the name of this folder"):
            lock(path)


def test_an_interrupt_is_no_error_of_the_user(ended):
    """Ctrl-C and SIGTERM end with 130 and a few words, after the blocks that clean up have run."""
    cleaned = []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    assert ended(main) == (130, "stopped by SIGTERM.\n") and cleaned
    assert ended(raising(KeyboardInterrupt("stopped here."))) == (130, "stopped here.\n")


@pytest.mark.parametrize(
    "command",
    [
        ["preprocess.py"],
        ["meta_teacher.py"],
        ["meta_teacher_eval.py"],
        ["meta_distill.py"],
        ["-m", "data.prepare.fetch"],
        ["-m", "data.prepare.amazon"],
    ],
)
def test_a_python_without_the_libraries_gets_a_sentence(command):
    """With -S, as where nothing is installed, a sentence says what to install."""
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: numpy is not installed") and "scripts/setup.sh" in done.stderr


NO_LIBRARY = """
import importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "oneflow":
            raise ImportError("libcudnn.so.8: cannot open shared object file")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "setting, words",
    [
        ("sys.version_info = (3, 11, 2)", "needs 3.9 or 3.10"),
        ("engine.np.__version__ = '2.1.0'", "cannot exchange arrays with numpy 2"),
        (NO_LIBRARY, "oneflow does not load (libcudnn.so.8"),
        ("engine.ONEFLOW_VERSION = '0.8.0'", "0.8.0 is needed"),
    ],
)
def test_a_wrong_python_numpy_or_engine_gets_a_sentence(setting, words):
    """load_oneflow ends the process with code 2 and says what to install, before anything aborts in C++."""
    process = python(f"import sys\nfrom data import engine\n{setting}\nengine.load_oneflow()")
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1 and err.startswith("error: ") and words in err
    assert "requirements.txt" in err or "setup.sh" in err
