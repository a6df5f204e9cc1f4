"""Running a command as a user does: how long it took, and the peak memory of its processes."""

import contextlib
import os
import pathlib
import re
import subprocess
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
INTERVAL = 0.1  # seconds between two looks at the memory


class Failed(Exception):
    """A command that did not end well, in a sentence."""


class Outcome(NamedTuple):
    """What a command printed, how many seconds it took from start to end, and its peak memory in MB."""

    out: str
    seconds: float
    megabytes: float


def run(command, threads=1, processes=1):
    """Runs a command to its end in the root of the repository, and returns its Outcome.

    Args:
        threads: of the numerical libraries in each process.
        processes: how many of the command's processes do the work. The peaks of that many, the largest,
            are added up; pages that they share, such as the libraries' code, count in each.
    """
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started, peaks = time.perf_counter(), {}
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            while process.poll() is None:
                peaks.update(peak_memory(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(INTERVAL)
        finally:
            process.terminate()
            process.wait()
        seconds = time.perf_counter() - started
        out, err = (_text(stream) for stream in (out, err))
    if process.returncode:
        raise Failed(
            f"'{' '.join(map(str, command))}' ended with {process.returncode}: {(err or out).strip()[-500:]}"
        )
    return Outcome(out, seconds, sum(sorted(peaks.values())[-processes:]))


def peak_memory(pid):
    """{process: the most memory it has held so far, in MB}, of a process and all that descend from it.

    By VmHWM of Linux: ru_maxrss of a process starts at what its parent held.
    """
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return {}
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    peaks = {pid: int(peak[1]) * 1024 / 1e6} if peak else {}
    for child in children:
        peaks.update(peak_memory(int(child)))
    return peaks


class Load:
    """The time since this was made, and how busy other processes kept the machine meanwhile.

    This process and its children do not count as others.
    """

    def __init__(self):
        self._before = self._clocks()

    @staticmethod
    def _clocks():
        """Seconds of a clock, of work on all cores, and of work by this process and its ended children."""
        user, nice, system, _, _, *interrupts = map(
            int, pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        )
        return (
            time.monotonic(),
            (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK"),
            sum(os.times()[:4]),
        )

    def line(self):
        """A sentence that says whether the figures can be trusted."""
        seconds, busy, own = (after - before for after, before in zip(self._clocks(), self._before))
        others = max(0.0, (busy - own) / seconds)
        return (
            f"The run took {seconds / 60:.1f} minutes, "
            f"in which other work took {others:.2f} cores of this machine."
        )


def _text(stream):
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
