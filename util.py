"""What every run needs: the engine, user errors, whole files, hashes, seeds, the run folder with its log, metrics and lock."""

import contextlib
import ctypes
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import re
import resource
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback


def _blas_kernel():
    """The OpenBLAS kernel for this CPU by its flags; None where OpenBLAS does better to choose for itself."""
    try:
        flags = set(
            re.search(r"^flags\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M).group(1).split()
        )
    except (OSError, AttributeError):
        return None
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= flags else None


# The OpenBLAS in OneFlow's wheel and the one in numpy's pick their kernel when they are loaded, and fall back to one that is up to
# five times slower on a CPU that is newer than they are. So it is named here, before either. Each gets one thread: modeling/cpu has
# threads of its own, which multiply at the same time, and OpenBLAS's would spin beside them.
if "OPENBLAS_CORETYPE" not in os.environ and _blas_kernel():
    os.environ["OPENBLAS_CORETYPE"] = _blas_kernel()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# --------------------------------------------------------------------------------------- before anything else

EXIT_REPORT_DIR = "METAKD_EXIT_REPORT_DIR"  # the folder where a rank that modeling/distributed/launch.py has launched tells why it ends
LAUNCHER = "METAKD_LAUNCHER"  # the process number of a rank's launcher
STOPPED = 128 + signal.SIGINT  # exit code of a process that was told to stop
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal was closed
CLOSED = set()  # the standard streams that were closed when the process started


def _open_streams():
    """Standard streams that are closed lead nowhere, lest a file of ours gets their number, and with it what C++ prints."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            CLOSED.add(name)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


def end_at_once_on_signals():
    """While modules are imported there is nothing to save: who is told to stop says so and ends. A rank leaves the word to its launcher."""

    def end(number, frame):
        if EXIT_REPORT_DIR not in os.environ:
            os.write(
                2,
                f"stopped by {'the user' if number == signal.SIGINT else signal.Signals(number).name}.\n".encode(),
            )
        os._exit(STOPPED)

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)


def _is_program():
    """Whether a script or a command of ours was started, and not a test or a notebook that imports this file."""
    path = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or os.sep)
    inside = os.path.relpath(path, os.path.dirname(os.path.abspath(__file__)))
    return inside.endswith(".py") and not inside.startswith("..") and "site-packages" not in inside


def stop_with_parent(signum, parent):
    """Has the kernel send `signum` to this process when its parent dies (prctl of Linux), or sends it where that process has died already."""
    ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _take_place():
    """In a launched rank: rank 0 alone has the terminal, what C++ has to say is kept in a file, and the rank stops with its launcher."""
    stop_with_parent(signal.SIGTERM, int(os.environ.get(LAUNCHER, os.getppid())))
    report = pathlib.Path(os.environ[EXIT_REPORT_DIR], os.environ["RANK"])
    with contextlib.suppress(OSError):
        report.with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
    if report.name == "0":
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    else:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(report.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)


_open_streams()
if _is_program():
    end_at_once_on_signals()
if EXIT_REPORT_DIR in os.environ:
    _take_place()

try:
    import numpy as np
    from tqdm import tqdm
except ImportError as error:  # nothing of ours is imported before this file
    print(
        f"error: {error.name} is not installed for this Python ({sys.executable}): run 'bash scripts/setup.sh' and use "
        ".venv/bin/python, or 'pip install -r requirements.txt' with Python 3.9 or 3.10.",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

# --------------------------------------------------------------------------------------- user errors


class UserError(Exception):
    """A mistake that the user can mend: one sentence with file (and line), what was found, what was expected, what to do."""


def entry(main):
    """Runs `main()` as a program: a UserError, a full disk or a missing permission becomes one sentence and exit code 2."""

    @functools.wraps(main)
    def run():
        Signals.take()
        _escape_output()
        try:
            main()
            _await_the_others()
            sys.stdout.flush()
        except UserError as error:
            stop("error: " + " ".join(str(error).splitlines()), 2)
        except KeyboardInterrupt as error:
            stop(str(error) or f"{Signals.words()}.", STOPPED)
        except MemoryError as error:
            stop(
                f"error: there is not enough memory ({str(error) or 'for what is in hand'}): {LESS_MEMORY}.",
                2,
            )
        except Exception as error:
            if is_reader_gone(error):  # as in `... | head`
                drop_output()
                stop("", 128 + signal.SIGPIPE)
            if isinstance(error, OSError) and error.errno in _SENTENCES:
                stop(f"error: {error.filename or _SENTENCES[error.errno]}: {os.strerror(error.errno)}.", 2)
            if EXIT_REPORT_DIR not in os.environ:
                raise
            stop(traceback.format_exc().rstrip(), 1)
        Signals.forget()

    return run


def _escape_output():
    """From now on a terminal, or a log, whose encoding lacks a character gets it escaped, such as \\u597d."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


LESS_MEMORY = (
    "smaller batches (--batch_size_per_device, --eval_batch_size_per_device) or a smaller model need less"
)
_OUTPUT = "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS ENOENT ENOTDIR EISDIR ENAMETOOLONG ELOOP EIO".split()
_SENTENCES = {  # {number of an error that is none of ours: what the sentence names where the system names no file}
    **{getattr(errno, name): "output" for name in _OUTPUT},
    errno.EMFILE: "open files of this process (ulimit -n)",
    errno.ENFILE: "open files of this machine",
    errno.EAGAIN: "processes and threads (ulimit -u)",
    errno.ENOMEM: "memory",
}


def is_reader_gone(error):
    """Whether an error says that nobody reads standard output any more: a pipe or a terminal that was closed."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.EIO)


def drop_output():
    """What is printed from now on, and what waits to be, goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class Signals:
    """SIGTERM, SIGINT (Ctrl-C) and SIGHUP: they stop the process at once, or where the process said so at the next good point.

    A second one never waits, but in a launched rank, whose launcher decides when it is enough. A reader who has gone counts as one.
    """

    asked, _patient = None, False
    WORDS = {
        None: "by another rank",
        signal.SIGINT: "by the user",
        signal.SIGPIPE: "since nobody reads its output",
    }

    @classmethod
    def take(cls):
        """Handles them from now on, but one that is ignored, as SIGHUP is under nohup; OneFlow's own handler of SIGINT says no word."""
        cls.asked, cls._patient = None, False
        cls._set(cls._handle)

    @classmethod
    def leave(cls):
        """The process is about to end: nothing shall disturb it any more."""
        cls._set(signal.SIG_IGN)

    @classmethod
    def forget(cls):
        """The process has done its work: whatever comes may end it."""
        cls._set(signal.SIG_DFL)

    @staticmethod
    def _set(handler):
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:
                signal.signal(number, handler)

    @classmethod
    def _handle(cls, number, frame):
        if not cls.ask(signal.Signals(number)):
            raise KeyboardInterrupt(f"{cls.words()}.")

    @classmethod
    def ask(cls, number):
        """Notes that the process is to stop; False where it has to do so at once."""
        again, cls.asked = cls.asked is not None, cls.asked or number
        return EXIT_REPORT_DIR in os.environ and again or cls._patient and not again

    @classmethod
    def words(cls):
        """Who has asked, as a sentence begins."""
        return f"stopped {cls.WORDS.get(cls.asked) or f'by {cls.asked.name}'}"

    @classmethod
    @contextlib.contextmanager
    def patience(cls):
        """For the time of a block a first signal does no more than set `asked`; whoever is in the block looks at it and ends."""
        cls._patient = True
        try:
            yield
        finally:
            cls._patient = False
        if cls.asked:
            raise KeyboardInterrupt(f"{cls.words()}.")


def stop(sentence, code):
    """Prints one sentence to standard error and ends the process with `code`.

    A launched rank leaves the sentence to its launcher, and ends without OneFlow's farewell, which would wait for the other ranks.
    """
    Signals.leave()
    launched = EXIT_REPORT_DIR in os.environ
    if launched:
        report = pathlib.Path(os.environ[EXIT_REPORT_DIR], f"{get_rank()}.json")
        try:
            report.write_text(json.dumps({"sentence": sentence, "code": code}), encoding="utf-8")
        except OSError:  # no room for a word in the temporary folder
            launched = False
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    if sentence and not launched:
        with contextlib.suppress(OSError):  # the terminal was closed
            print(sentence, file=sys.stderr, flush=True)
    if EXIT_REPORT_DIR in os.environ:
        os._exit(code)
    raise SystemExit(code)


# --------------------------------------------------------------------------------------- ranks


def get_rank():
    """The number of this process among those that run the same script together, from 0; rank 0 alone writes and speaks."""
    return max(0, int(os.environ.get("RANK", 0)))  # OneFlow sets -1 in a process that is alone


def get_world_size():
    """How many processes run the script together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _await_the_others():
    """A rank that leaves early would take down those that are still at work."""
    if get_world_size() > 1:
        load_oneflow().comm.barrier()


# --------------------------------------------------------------------------------------- the engine

ONEFLOW_VERSION = "0.9.0"


def load_oneflow():
    """Returns the module `oneflow`, imported in the environment that it needs; every entry passes here.

    glog prints CUDA and libibverbs warnings on machines without them: a variable that it reads when it is loaded keeps them back.
    """
    if "oneflow" not in sys.modules:
        _check_python()
        os.environ.setdefault("GLOG_minloglevel", "2")  # 2: errors and worse
        if get_world_size() > 1 and os.environ["MASTER_ADDR"].startswith(("127.", "localhost")):
            os.environ["LOCAL_RANK"] = os.environ[
                "RANK"
            ]  # "machines" of one address are one to OneFlow, which numbers their ranks through
        _await_the_first()
        _check_machine()
        try:
            _keep_memory()
            with _held_signals(), _quiet_stderr():
                import oneflow
        except (
            Exception
        ) as error:  # the wheel raises ImportError, OSError or RuntimeError, by what is missing
            stop(
                f"error: oneflow does not load ({str(error).splitlines()[0] if str(error) else type(error).__name__}): "
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
    """Has glibc keep the memory of large arrays for the next ones instead of giving it back: fewer page faults by three quarters."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, bytes
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _await_the_first(patience=600):
    """Waits, seconds at most, until rank 0 listens: OneFlow itself would try once and then sleep for ten seconds."""
    address, until = (
        (os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT", 0))),
        time.monotonic() + patience,
    )
    while get_rank() > 0 and time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=1).close()
            return
        time.sleep(0.01)


def _check_python():
    if sys.version_info[:2] not in ((3, 9), (3, 10)):
        stop(
            f"error: this is Python {platform.python_version()}, and oneflow {ONEFLOW_VERSION} with numpy 1.26 needs 3.9 or 3.10: "
            "run 'bash scripts/setup.sh', which finds or fetches one.",
            2,
        )
    if int(np.__version__.split(".")[0]) != 1:
        stop(
            f"error: numpy {np.__version__} is installed, and oneflow {ONEFLOW_VERSION} cannot exchange arrays with numpy 2: "
            "run 'pip install -r requirements.txt'.",
            2,
        )


THREADS = 16  # that the engine starts at most, while it is loaded and at work
FILES = {True: 24, False: 64}  # that it and we have open in a process that is alone, and in one of several


def _check_machine():
    """Ends the process with a sentence where the engine would abort: without /proc, or with too few threads or open files."""
    if not os.path.exists("/proc/self/status"):
        stop(
            "error: /proc is missing here, and oneflow cannot do without: mount it ('mount -t proc proc /proc').",
            2,
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES[get_world_size() == 1]
    if -1 < soft < files and (hard == resource.RLIM_INFINITY or files <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    elif -1 < soft < files:  # -1: no limit
        stop(
            f"error: this process may have {soft} files open, and oneflow needs up to {files}: raise it by 'ulimit -n'.",
            2,
        )
    release, threads = threading.Event(), []
    try:
        for _ in range(THREADS):
            threads.append(threading.Thread(target=release.wait, daemon=True))
            threads[-1].start()
    except RuntimeError:
        stop(
            f"error: only {len(threads) - 1} more threads can be started here, and oneflow needs up to {THREADS}: raise the limit of "
            "processes ('ulimit -u', or that of the container).",
            2,
        )
    finally:
        release.set()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _held_signals():
    """Signals that come in the block are handled at its end, as before it: OneFlow puts a handler of its own in place, without a word.

    One of several ranks may wait there for the others, for ever if they have died: a signal ends it, and its launcher has the word.
    """
    alone, before = get_world_size() == 1, {number: signal.getsignal(number) for number in STOPPING}
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
    """Hides what C++ prints to standard error while it holds ("libibverbs not available"); Python exceptions still pass."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


# --------------------------------------------------------------------------------------- temporary names
#
# For what is not whole yet, or no more: nobody else would choose such a name, and nothing else is ever removed as
# half-written. Whoever writes under one holds a lock of the kernel (flock) on it, which dies with the process: what
# can be locked was left behind.

TEMPORARY = re.compile(
    r"\.meta-kd-[0-9a-f]{32}\.(tmp|old)"
)  # 46 characters, so that what it stands for may have 255
_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # of file systems that cannot lock


def is_temporary(name):
    """Whether the name of a file or folder is one that `new_path` has made."""
    return TEMPORARY.fullmatch(name) is not None


def new_path(folder, kind="tmp"):
    """A path in `folder` that nothing has. Args: kind: tmp, or old for what an older folder is put into."""
    return pathlib.Path(folder, f".meta-kd-{secrets.token_hex(16)}.{kind}")


def create_file(folder):
    """Makes an empty file under a temporary name; returns its path and a handle, which holds its lock."""
    return _create(folder, lambda path: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, 0o666))


def create_folder(folder, kind="tmp"):
    """Makes an empty folder under a temporary name; returns its path and a handle, which holds its lock."""

    def make(path):
        os.mkdir(path)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _SAFE)

    return _create(folder, make, kind)


def _create(folder, make, kind="tmp"):
    while True:
        path = new_path(folder, kind)
        handle = make(path)
        if _try_lock(handle) is not False and is_at(path, handle):
            return path, handle
        os.close(handle)  # who cleans up came between making and locking


def _try_lock(handle):
    """Locks an open file; False where another process has, None where this file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def is_at(path, handle):
    """Whether the name `path` still leads to the open file."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    return False


def discard(path):
    """Removes a file, a link or a folder, as far as it can be."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def remove_partial_writes(folder):
    """Removes what writers that were killed have left half-written in `folder`, and nothing else.

    A folder that was put aside for a new one, and has no successor, gets its name back.
    """
    for path in [path for path in pathlib.Path(folder).iterdir() if is_temporary(path.name)]:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _SAFE)
        except (FileNotFoundError, PermissionError):  # gone meanwhile, or another user's
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            path.unlink(missing_ok=True)  # half a link: it goes, and what it leads to stays
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if _try_lock(handle):
                _remove(path, stat.S_ISDIR(os.fstat(handle).st_mode))
        os.close(handle)


def _remove(path, is_folder):
    if is_folder and path.suffix == ".old":
        for old in path.iterdir():
            if not os.path.lexists(path.with_name(old.name)):
                os.rename(old, path.with_name(old.name))
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()


# --------------------------------------------------------------------------------------- whole files


def make_folder(path):
    """Makes a folder and those that it is in, where they are missing; UserError where a file has one of their names."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{path}: a file has the name of this folder or of one that it is in: remove it, or name another folder."
        ) from None


@contextlib.contextmanager
def atomic_file(path, mode="wb"):
    """Opens `path` for writing under a temporary name; it gets its own name, synced to disk, only when the block ends well.

    Each writer has a name of its own: of two, the last to end replaces the other's file whole. What stands at `path`, a link too, is
    replaced and never written through.
    """
    path = pathlib.Path(path)
    temporary, handle = create_file(path.parent)
    try:
        with naming(path), open(handle, mode, **({} if "b" in mode else TEXT)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    sync_folder(path.parent)


TEXT = {"encoding": "utf-8", "newline": "\n"}


@contextlib.contextmanager
def naming(path):
    """Has an error of a disk that is full, or takes no more of this file, tell which file it was."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            error.filename = os.fspath(path)
        raise


def open_own(path, mode):
    """Opens a text file that a run of ours keeps, made if missing.

    Raises:
        UserError: a link, a FIFO or anything else stands there that would lead the text elsewhere or keep the run waiting.
    """
    flags = {
        "a": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
        "a+": os.O_RDWR | os.O_APPEND | os.O_CREAT,
        "r": os.O_RDONLY,
    }[mode]
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        handle = None
    if handle is None or not stat.S_ISREG(os.fstat(handle).st_mode):
        if handle is not None:
            os.close(handle)
        raise UserError(f"{path}: {NO_FILE}")
    return open(handle, mode, buffering=1, errors="backslashreplace", **TEXT)


def check_own(path):
    """Refuses what `open_own` would, before there is anything to write."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise UserError(f"{path}: {NO_FILE}")


NO_FILE = "found a link or something else that is no file, expected a file or nothing: remove it, or name another folder."


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a temporary folder that takes the name `path`, synced, when the block ends well; what stood there is replaced at once."""
    path = pathlib.Path(path)
    if path.is_symlink():
        raise UserError(
            f"{path}: found a link, expected a folder or nothing: remove it, or name another folder."
        )
    make_folder(path.parent)
    remove_partial_writes(path.parent)
    temporary, handle = create_folder(path.parent)
    try:
        yield temporary
        place_folder(temporary, path)
    finally:
        os.close(handle)
        discard(temporary)


def place_folder(temporary, path):
    """Gives the folder `temporary`, its files synced, the name `path` in one step; what stood there before is removed."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
    sync_folder(temporary)
    if os.path.lexists(path):
        _exchange(temporary, path)
    else:
        os.rename(temporary, path)
    sync_folder(path.parent)
    discard(temporary)


def remove_folder(path):
    """Removes a folder under a hidden name, so that a kill in the middle leaves no half of it under its own."""
    temporary = new_path(path.parent)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def _exchange(one, other):
    """Makes two folders change names in one step, so that each name always leads to a whole folder (renameat2 of Linux).

    File systems without it, as NFS is, get two renames, between which a kill leaves the old folder under a hidden name; who cleans up
    brings it back.
    """
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None or renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange):
        number = ctypes.get_errno()
        if renameat2 and number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), os.fspath(other))
        aside, handle = create_folder(other.parent, "old")
        os.rename(other, aside / other.name)
        os.rename(one, other)
        os.close(handle)
        discard(aside)


def sync_folder(path):
    """Makes the names in folder `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, value):
    """Writes `value` as JSON, whole or not at all, with the same bytes for the same value."""
    with atomic_file(path, "w") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(path):
    """Raises a UserError where the file is a Git LFS pointer, which stands in its place until it is fetched."""
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path}: this is a Git LFS pointer, not the file itself: run 'git lfs pull' in its folder, or download "
                "the file."
            )


def read_json(path, what):
    """The JSON object in file `path`; `what` names it in the sentence of the UserError ("the manifest of the records")."""
    try:
        check_not_pointer(path)
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
        json.dumps(
            value, ensure_ascii=False, allow_nan=False
        ).encode()  # no NaN, nothing infinite as 1e400 is, no half of a surrogate pair
    except FileNotFoundError:
        raise UserError(f"{path}: {what} is missing.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} holds a {type(value).__name__}, expected a JSON object.")
    return value


def read_version():
    """The version of this suite, as [project] of pyproject.toml has it."""
    text = pathlib.Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.*)"$', text, re.M)[1]


def sha256(path):
    """SHA-256 of a file, as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------- seeds

STREAMS = {
    name: number
    for number, name in enumerate(
        ("init", "order", "corruption", "dropout", "portion", "split", "augmentation", "noise")
    )
}


def random_stream(seed, stream, *key):
    """A numpy Generator that is a function of (seed, name of the stream, key) alone, key being integers >= 0 such as epoch,
    step, rank and number of ranks. Nothing is remembered between calls, so that a resumed run draws what the first would have."""
    return np.random.Generator(
        np.random.SFC64(np.random.SeedSequence([int(seed), STREAMS[stream], *map(int, key)]))
    )


# --------------------------------------------------------------------------------------- the run folder


LOCK = ".meta-kd.lock"


class Run:
    """A run folder: its lock, `log.txt`, `metrics.jsonl` (no clock) and `timing.jsonl` (times and speeds).

    Args:
        folder: where the run writes; made if missing. None: no folder, messages go to the terminal alone. Of several ranks the
            first alone writes and speaks.
    Raises:
        UserError: another process holds the folder.
    """

    def __init__(self, folder=None):
        self._folder, self.started, self._locks = folder and pathlib.Path(folder), time.monotonic(), []
        self._speaks, self.board = get_rank() == 0, None
        self._writes = self._speaks and folder is not None
        if self._writes:
            self._locks.append((self._folder / LOCK, lock(folder)))
            for name in ("metrics.jsonl", "timing.jsonl"):
                check_own(self._folder / name)
            self._log = open_own(self._folder / "log.txt", "a")

    @property
    def folder(self):
        """Where the run writes: its folder is followed when it is moved. UserError: it is gone."""
        self.check_held()
        return self._folder

    def check_held(self):
        """Makes sure that every folder that the run has locked is still at its name, lest half of its files are written elsewhere.

        Raises:
            UserError: one was removed, another disk was mounted there, or it was moved and is not the run's own.
        """
        for number, (path, file) in enumerate(self._locks):
            if is_at(path, file.fileno()):
                continue
            moved = _current_path(file)
            if moved is None or path.parent != self._folder:
                now = f", and is {moved.parent} now" if moved else ""
                raise UserError(
                    f"{path.parent}: it was moved or removed while it was written to{now}: bring it back, and run this again."
                )
            self._folder, self._locks[number] = moved.parent, (moved, file)
            self.log(f"note: the run folder was moved, and the run goes on in {moved.parent}")

    def hold(self, folder, name=LOCK):
        """Locks another folder for the time of the run, by the file `name` in it; see `lock`."""
        if self._speaks:
            self._locks.append((pathlib.Path(folder, name), lock(folder, name)))

    def log(self, message):
        """Prints a line, under the progress bar if there is one, and keeps it in log.txt."""
        if self._writes:
            with naming(self._folder / "log.txt"):
                self._log.write(message + "\n")
        if self._speaks:
            self._print(message)

    @staticmethod
    def _print(message):
        """Prints a line; where nobody reads any more, a run that saves before it ends is told to."""
        try:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            if not is_reader_gone(error) or not Signals.ask(signal.SIGPIPE):
                raise
            drop_output()

    def metric(self, **values):
        """Appends one JSON line to metrics.jsonl, and hands it to the `board` if there is one."""
        self._append("metrics.jsonl", values)
        if self.board:
            self.board.add(**values)

    def timing(self, **values):
        """Appends one JSON line to timing.jsonl, with the seconds since the run started."""
        self._append("timing.jsonl", {**values, "seconds": round(time.monotonic() - self.started, 3)})

    def _append(self, name, values):
        if self._writes:
            path = self.folder / name
            with naming(path), open_own(path, "a") as file:
                file.write(json.dumps(values) + "\n")

    def clean(self):
        """Removes what a run that was killed has left half-written in the folder."""
        if self._writes:
            remove_partial_writes(self.folder)

    def forget_after(self, step):
        """Drops the lines of metrics.jsonl that come after `step`: a run resumed from there writes them again."""
        path = self.folder / "metrics.jsonl"
        if self._writes and path.exists():
            kept = [
                line for line in path.read_text(encoding="utf-8").splitlines() if _line_step(line) <= step
            ]
            with atomic_file(path, "w") as file:
                file.writelines(line + "\n" for line in kept)


def _current_path(file):
    """The path of an open file that was moved; None where it was removed or the system does not tell."""
    with contextlib.suppress(OSError):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        return path if is_at(path, file.fileno()) else None
    return None


def _line_step(line):
    """The step of a line of metrics.jsonl; infinite for a line that a kill or a full disk cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def lock(folder, name=LOCK):
    """Locks `folder`, made if missing, by the file `name` in it until the returned file is closed or the process dies.

    Raises:
        UserError: it is locked; the sentence names the process that holds it.
    """
    make_folder(folder)
    path = pathlib.Path(folder) / name
    file = open_own(path, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise UserError(f"{folder}: {holder} is writing here: wait for it, or name another folder.") from None
    except OSError as error:
        raise UserError(
            f"{path}: this disk knows no locks ({error.strerror}): name a folder on another."
        ) from None
    with naming(path):
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
    return file


def new_run_folder(now, parent="output"):
    """The name of a run that was given none, `now` being seconds since 1970: output/model_save-YYYY-MM-DD-HH:MM:SS."""
    return pathlib.Path(parent) / f"model_save-{datetime.datetime.fromtimestamp(now):%Y-%m-%d-%H:%M:%S}"


def version_and_flag_lines(args):
    """The first lines of a log: versions, the commit where this is a checkout, and the flags that differ from their defaults."""
    names = ("oneflow", "numpy", "scikit-learn", "safetensors")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    commit = (
        subprocess.run(
            ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        if shutil.which("git")
        else ""
    )
    flags = " ".join(
        f"--{name} {value}" if value is not True else f"--{name}" for name, value in args.changed.items()
    )
    return [
        f"python {platform.python_version()}, {packages}" + (f", commit {commit}" if commit else ""),
        f"flags: {flags}",
    ]


class _Terminal:
    """Standard error for a progress bar: where the terminal was closed, it draws on into nothing."""

    def write(self, text):
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self):
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


def progress(iterable=None, **options):
    """A tqdm bar with an ETA; silent where standard error is not a terminal, and in all ranks but the first."""
    return tqdm(
        iterable,
        file=_Terminal(),
        disable=get_rank() > 0 or not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
        **options,
    )
