"""OneFlow, the engine: imported once, in the environment that it needs.

`data.store` and `modeling` get it here; a command that does without it never imports this module.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import socket
import sys
import threading
import time

import numpy as np

from util import STOPPING, get_rank, get_world_size, stop

ONEFLOW_VERSION = "0.9.0"


def load_oneflow():
    """Returns the module `oneflow`, imported in the environment that it needs; every entry passes here.

    glog prints warnings on machines without CUDA and libibverbs. It reads a variable when it is loaded, which
    keeps them back.
    """
    if "oneflow" not in sys.modules:
        _check_python()
        os.environ.setdefault("GLOG_minloglevel", "2")  # 2: errors and worse
        if get_world_size() > 1 and os.environ["MASTER_ADDR"].startswith(("127.", "localhost")):
            # "Machines" of one address are one to OneFlow, which numbers their ranks through.
            os.environ["LOCAL_RANK"] = os.environ["RANK"]
        _await_the_first()
        _check_machine()
        try:
            _keep_memory()
            with _held_signals(), _quiet_stderr():
                import oneflow
        except Exception as error:  # an ImportError, OSError or RuntimeError, by what the wheel misses
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            stop(
                f"error: oneflow does not load ({reason}): "
                "run 'bash scripts/setup.sh', or 'pip install -r requirements.txt' with Python 3.9 or 3.10.",
                2,
            )
        if oneflow.__version__ != ONEFLOW_VERSION:
            stop(
                f"error: oneflow {oneflow.__version__} is installed, {ONEFLOW_VERSION} is needed: "
                "run 'pip install -r requirements.txt' with Python 3.9 or 3.10.",
                2,
            )
    return sys.modules["oneflow"]


def _keep_memory():
    """Has glibc keep the memory of large arrays for the next ones: fewer page faults by three quarters."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, bytes
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def release_memory():
    """Gives the memory that glibc keeps, see `_keep_memory`, back to the system, in every thread's arena.

    For a moment between steps that needs much memory of its own: what another thread's arrays left is of no
    use to it.
    """
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _await_the_first(patience=600):
    """Waits, `patience` seconds at most, until rank 0 listens: OneFlow would sleep 10 s after one try."""
    address = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", 0))
    until = time.monotonic() + patience
    while get_rank() > 0 and time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=1).close()
            return
        time.sleep(0.01)


def _check_python():
    if sys.version_info[:2] not in ((3, 9), (3, 10)):
        stop(
            f"error: this is Python {platform.python_version()}, and oneflow {ONEFLOW_VERSION} with numpy "
            "1.26 needs 3.9 or 3.10: run 'bash scripts/setup.sh', which finds or fetches one.",
            2,
        )
    if int(np.__version__.split(".")[0]) != 1:
        stop(
            f"error: numpy {np.__version__} is installed, and oneflow {ONEFLOW_VERSION} cannot exchange "
            "arrays with numpy 2: run 'pip install -r requirements.txt'.",
            2,
        )


THREADS = 16  # that the engine starts at most, while it is loaded and at work
FILES = {True: 24, False: 64}  # that it and we have open in a process that is alone, and in one of several


def _check_machine():
    """Ends the process with a sentence where the engine would abort."""
    if not os.path.exists("/proc/self/status"):
        stop(
            "error: /proc is missing here, and oneflow cannot do without: "
            "mount it ('mount -t proc proc /proc').",
            2,
        )
    _check_files()
    _check_threads()


def _check_files():
    """Allows this process as many open files as the engine needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES[get_world_size() == 1]
    if -1 < soft < files and (hard == resource.RLIM_INFINITY or files <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    elif -1 < soft < files:  # -1: no limit
        stop(
            f"error: this process may have {soft} files open, and oneflow needs up to {files}: "
            "raise it by 'ulimit -n'.",
            2,
        )


def _check_threads():
    """Starts and ends as many threads as the engine needs, to see whether they are allowed."""
    release, threads = threading.Event(), []
    try:
        for _ in range(THREADS):
            threads.append(threading.Thread(target=release.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        stop(
            f"error: only {len(threads) - 1} more threads can be started here, and oneflow needs up to "
            f"{THREADS}: raise the limit of processes ('ulimit -u', or that of the container).",
            2,
        )
    finally:
        release.set()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _held_signals():
    """Signals that come in the block are handled at its end, by the handlers from before it.

    OneFlow puts a handler of its own in place, without a word. One of several ranks may wait in the block
    for the others, for ever if they have died: there a signal ends it, and its launcher has the word.
    """
    alone = get_world_size() == 1
    before = {number: signal.getsignal(number) for number in STOPPING}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING if alone else ())
    for number in () if alone else STOPPING:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one of C
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _quiet_stderr():
    """Hides what C++ prints to standard error ("libibverbs not available"); Python exceptions still pass."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
