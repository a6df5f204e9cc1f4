"""Signals, closed terminals and readers that leave.

The command ends at once with a sentence before work begins, and with a save after that.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, stage_flags, words
from test_ranks import assert_none_left, family

SCRIPT = [sys.executable, str(ROOT / "meta_teacher.py")]
slow = pytest.mark.slow
LONG = {
    "model_save_dir": "long",
    "num_epochs": 20000,
    "save_every_step_num": 10000,
    "eval_every_step_num": 10000,
}


def start(folder, flags, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*SCRIPT, *words(flags)], cwd=folder, text=True, **options)


def await_steps(folder, process, steps=3):
    """Waits until the run in `folder` has logged some steps."""
    path, until = folder / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def saved_step(folder):
    return json.loads((folder / "snapshot_last" / "meta.json").read_text())["step"]


@pytest.fixture
def long_flags(sandbox):
    yield {**stage_flags(sandbox)["meta_teacher"], **LONG}
    for each in family(sandbox):
        os.kill(each, signal.SIGKILL)


DELAYS = (0.15, 0.4, 0.8, 1.3, 2.0)


@pytest.mark.parametrize(
    "delay", [pytest.param(delay, marks=slow if delay in (0.4, 1.3) else ()) for delay in DELAYS]
)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=slow)])  # each up to 3 s
def test_a_signal_while_modules_are_imported_is_a_sentence(sandbox, long_flags, delay, number):
    """A signal while anything is being loaded gives exit code 130 and one line."""
    process = start(sandbox, {**long_flags, "cpu_processes": 1})
    time.sleep(delay)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    who = "the user" if number == signal.SIGINT else "SIGHUP"
    assert process.returncode == 130 and err.splitlines()[0].startswith(f"stopped by {who}"), (delay, err)
    assert "Traceback" not in err and err.count("\n") <= 2  # the second line tells how to go on


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])  # two processes of the engine
def test_hanging_up_saves(sandbox, long_flags, ranks):
    """SIGHUP saves the step that was reached and says how to go on, as SIGTERM does."""
    heeds = {
        "preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    }  # also where the tests run under nohup
    process = start(sandbox, {**long_flags, "cpu_processes": ranks}, **heeds)
    await_steps(sandbox / "long", process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and f"after step {saved_step(sandbox / 'long')}, which is saved" in err
    ), err


def test_a_terminal_that_is_closed_costs_nothing(sandbox, long_flags):
    """A run with a progress bar in a terminal whose other end goes: it saves and ends."""
    ours, theirs = pty.openpty()
    streams = {name: theirs for name in ("stdin", "stdout", "stderr")}
    process = start(
        sandbox,
        long_flags,
        preexec_fn=lambda: (os.setsid(), os.open(os.ttyname(theirs), os.O_RDWR)),
        **streams,
    )
    os.close(theirs)
    await_steps_of_terminal(sandbox / "long", process, ours)
    os.close(ours)
    assert process.wait(timeout=60) == 130 and saved_step(sandbox / "long") >= 3


def await_steps_of_terminal(folder, process, terminal):
    """The same as await_steps, reading what the terminal shows."""
    os.set_blocking(terminal, False)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            return
    raise AssertionError("no step was made")


def test_under_nohup_it_goes_on(sandbox, long_flags):
    """Where SIGHUP is ignored at the start it stays so."""
    process = start(sandbox, long_flags, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    await_steps(sandbox / "long", process)
    process.send_signal(signal.SIGHUP)
    reached = (sandbox / "long" / "metrics.jsonl").read_bytes().count(b"\n")
    await_steps(sandbox / "long", process, reached + 3)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate(timeout=60)[1] and process.returncode == 130


def test_a_reader_who_leaves_costs_nothing(sandbox, long_flags):
    """`... | head -1`: the run saves the step that it was at, and ends."""
    process = start(sandbox, {**long_flags, "log_every_step_num": 1})
    process.stdout.readline()
    await_steps(sandbox / "long", process)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 130, err
    assert f"nobody reads its output after step {saved_step(sandbox / 'long')}, which is saved" in err


# ------------------------------------------------------------------------------------- ranks and their parent


@pytest.mark.parametrize(
    "delay", [1.0, 1.6, pytest.param(2.5, marks=slow), pytest.param(3.5, marks=slow)]
)  # 4 s each
def test_no_rank_outlives_a_parent_that_dies_while_they_start(sandbox, long_flags, delay):
    """kill -9 of the user's process, while the ranks import or meet, leaves no rank, and none writes."""
    process = start(sandbox, {**long_flags, "cpu_processes": 2})
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=60)
    assert_none_left(sandbox)


@slow  # two processes of the engine
def test_no_rank_outlives_its_parent_and_another_rank(sandbox, long_flags):
    """When the parent and one rank are killed at once, as for want of memory, the other rank ends too."""
    process = start(sandbox, {**long_flags, "cpu_processes": 2})
    await_steps(sandbox / "long", process)
    (rank,) = (each for each, place in family(sandbox).items() if place == 1)
    process.kill()
    os.kill(rank, signal.SIGKILL)
    process.communicate(timeout=60)
    assert_none_left(sandbox)
