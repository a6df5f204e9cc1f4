"""Environments that lack something, a sentence each.

Missing are: streams, /proc, open files, processes, memory, room for temporary files, UTF-8.
"""

import os
import resource
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, best, stage_flags, words

slow = pytest.mark.slow  # real processes of the engine, 3 to 6 s each


def run(folder, stage, flags, python=(), shell="", limit=None):
    """Runs a stage as a process.

    Args: shell: redirections; limit: a function that sets limits before the start.
    """
    command = [sys.executable, *python, str(ROOT / f"{stage}.py"), *words(flags)]
    line = ["bash", "-c", f'"$@" {shell}', "bash", *command] if shell else command
    done = subprocess.run(line, cwd=folder, capture_output=True, timeout=120, preexec_fn=limit)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.fixture
def asking(sandbox):
    """A sandbox, and the flags of a prediction over two texts."""
    (sandbox / "texts.txt").write_text("good film\nbad film\n")
    model = best(sandbox / "student").relative_to(sandbox)
    return sandbox, {"do_predict": True, "model_load_dir": model, "predict_file": "texts.txt"}


def assert_sentence(outcome, *expected):
    code, out, err = outcome
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, outcome
    assert "Traceback" not in out and all(word in err for word in expected), outcome


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&-", pytest.param("<&- >&- 2>&-", marks=slow)])
def test_closed_streams_do_not_disturb_a_run(sandbox, shell):
    """With standard input, output or error closed a run ends well.

    None of its files holds what was meant for a stream.
    """
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "again"}
    code, _, err = run(sandbox, "meta_teacher", flags, shell=shell)
    assert code == 0, err
    for name in ("metrics.jsonl", "results.json", "predictions.tsv"):
        assert (sandbox / "again" / name).read_bytes() == (sandbox / "teacher" / name).read_bytes()


def test_a_closed_stream_that_is_needed_is_a_sentence(asking):
    """Texts from standard input, or answers to standard output, where these are closed."""
    folder, flags = asking
    assert_sentence(
        run(folder, "meta_distill", {**flags, "predict_file": "-"}, shell="<&-"), "standard input is closed"
    )
    assert_sentence(
        run(folder, "meta_distill", flags, shell=">&-"), "standard output is closed", "--output_file"
    )


def test_a_full_standard_output_is_a_sentence(asking):
    """/dev/full in its place, for answers and for the log."""
    folder, flags = asking
    assert_sentence(run(folder, "meta_distill", flags, shell=">/dev/full"), "No space left on device")


@pytest.mark.parametrize("python", ["-O", "-I", pytest.param("-OO", marks=slow)])
def test_flags_of_python_change_nothing(asking, python):
    """Without asserts or docstrings, and isolated: the same answers."""
    folder, flags = asking
    expected = run(folder, "meta_distill", flags)
    assert expected[0] == 0 and run(folder, "meta_distill", flags, python=[python])[:2] == expected[:2]


def test_a_name_that_is_not_utf_8_is_a_sentence(sandbox):
    """It could not be written into flags.json or a log."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": os.fsdecode(b"new\xff")}
    assert_sentence(run(sandbox, "meta_teacher", flags), r"new\udcff", "not UTF-8")


def test_a_folder_that_is_not_utf_8_is_a_run_folder_too(sandbox):
    """The name of the folder in which everything lies does not matter."""
    folder = sandbox.rename(sandbox.with_name(os.fsdecode(b"box\xff")))
    flags = {
        **stage_flags(folder)["meta_teacher"],
        "resume_from": "teacher/snapshot_last",
        "model_save_dir": None,
    }
    code, _, err = run(folder, "meta_teacher", flags)
    assert code == 0, err


@pytest.mark.parametrize("ranks, files", [(1, 14), (1, 18), (2, 32), pytest.param(2, 40, marks=slow)])
def test_too_few_open_files_are_a_sentence(sandbox, ranks, files):
    """No abort in C++, no rank that was killed for want of memory."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "cpu_processes": ranks}
    code, _, err = run(sandbox, "meta_teacher", flags, limit=limit)
    assert code in (1, 2) and err.startswith("error: ") and "files" in err and err.count("\n") == 1, err


def drop_to_few_processes(number):
    """For preexec_fn: another user, whom the limit binds, but who may read all as root (as setpriv does)."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NPROC, (number, number))

    return limit


@pytest.mark.parametrize("ranks, number", [(1, 8), pytest.param(2, 24, marks=slow)])
def test_too_few_processes_are_a_sentence(sandbox, ranks, number):
    """A limit that the engine's threads do not fit in: it is named, and no memory is blamed."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("another user is needed, whom the limit binds: root and setpriv")
    rights = "+dac_override,+dac_read_search"
    user = ["setpriv", "--reuid=65533", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "cpu_processes": ranks}
    command = [*user, sys.executable, str(ROOT / "meta_teacher.py"), *words(flags)]
    done = subprocess.run(
        command,
        cwd=sandbox,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=drop_to_few_processes(number),
    )
    if "Permission denied" in done.stderr:
        pytest.skip("this machine does not lend rights to another user")
    assert (
        done.returncode in (1, 2) and "Traceback" not in done.stderr and "want of memory" not in done.stderr
    )
    assert "processes" in done.stderr.splitlines()[-1] or "ulimit" in done.stderr, done.stderr


def in_a_namespace(sandbox, flags, before):
    """Runs stage 2 after shell commands in a mount namespace of its own; skips where there is none."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace takes root and unshare")
    command = [
        "unshare",
        "-m",
        "bash",
        "-c",
        f'{before}; "$@"',
        "bash",
        sys.executable,
        str(ROOT / "meta_teacher.py"),
        *words(flags),
    ]
    done = subprocess.run(command, cwd=sandbox, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_without_proc_there_is_a_sentence(sandbox):
    """OneFlow aborts there."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new"}
    assert_sentence(in_a_namespace(sandbox, flags, "umount -l /proc"), "/proc is missing")


@pytest.mark.parametrize("inodes", [2, 5])
def test_no_room_for_temporary_files_is_a_sentence(sandbox, inodes):
    """A TMPDIR without inodes, of which two ranks need a few: it is named."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "cpu_processes": 2}
    before = f"mount -t tmpfs -o nr_inodes={inodes} tmpfs /mnt; export TMPDIR=/mnt"
    assert_sentence(in_a_namespace(sandbox, flags, before), "/mnt", "No space left on device")


def test_a_line_without_end_is_a_fault(asking):
    """/dev/zero as the file of texts is refused for too long a line, before memory runs out."""
    folder, flags = asking

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    code, _, err = run(folder, "meta_distill", {**flags, "predict_file": "/dev/zero"}, limit=limit)
    assert code in (1, 2) and "/dev/zero" in err and "Traceback" not in err, err


def test_want_of_memory_is_a_sentence():
    """A MemoryError of Python's or numpy's: what was asked for, and what needs less."""
    program = "import util, numpy\n@util.entry\ndef main():\n    numpy.ones(1 << 50)\nmain()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert_sentence((done.returncode, done.stdout, done.stderr), "not enough memory", "Unable to allocate")
