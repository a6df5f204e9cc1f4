"""What every run needs: user errors, signals, its rank, reading of files, hashes, seeds, progress bars."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import re
import signal
import sys
import traceback


def _blas_kernel():
    """The OpenBLAS kernel for this CPU by its flags; None where OpenBLAS does better to choose for itself."""
    try:
        lines = re.findall(r"^flags\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return None
    flags = set(lines[0].split() if lines else ())
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        return "SkylakeX"
    return "Haswell" if {"avx2", "fma"} <= flags else None


# The OpenBLAS in OneFlow's wheel and the one in numpy's pick their kernel when they are loaded. On a CPU that
# is newer than they are, they fall back to one that is up to five times slower. So the kernel is named here,
# before either is loaded. Each gets one thread: modeling/cpu has threads of its own, which multiply at once,
# and OpenBLAS's would spin beside them.
if "OPENBLAS_CORETYPE" not in os.environ and _blas_kernel():
    os.environ["OPENBLAS_CORETYPE"] = _blas_kernel()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# --------------------------------------------------------------------------------------- before anything else

# Variables that modeling/distributed/launch.py sets in the ranks that it launches:
EXIT_REPORT_DIR = "METAKD_EXIT_REPORT_DIR"  # the folder where a rank tells why it ends
LAUNCHER = "METAKD_LAUNCHER"  # the process number of the launcher
STOPPED = 128 + signal.SIGINT  # exit code of a process that was told to stop
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal was closed
CLOSED = set()  # the standard streams that were closed when the process started


def _open_streams():
    """Opens /dev/null as each closed standard stream: a file of ours would get its number and C++'s words."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            CLOSED.add(name)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))


def end_at_once_on_signals():
    """Has a signal end the process with one sentence: while modules are imported there is nothing to save.

    A launched rank says nothing: its launcher does.
    """

    def end(number, frame):
        if EXIT_REPORT_DIR not in os.environ:
            who = "the user" if number == signal.SIGINT else signal.Signals(number).name
            os.write(2, f"stopped by {who}.\n".encode())
        os._exit(STOPPED)

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)


def _is_program():
    """Whether a script or a command of ours was started, not a test or a notebook that imports this file."""
    path = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or os.sep)
    inside = os.path.relpath(path, os.path.dirname(os.path.abspath(__file__)))
    return inside.endswith(".py") and not inside.startswith("..") and "site-packages" not in inside


def stop_with_parent(signum, parent):
    """Has the kernel send `signum` to this process when its parent dies; sends it where that has happened."""
    ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _take_place():
    """Prepares a launched rank: it stops with its launcher, and what C++ prints is kept in a file.

    Rank 0 alone has the terminal.
    """
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
        f"error: {error.name} is not installed for this Python ({sys.executable}): "
        "run 'bash scripts/setup.sh' and use .venv/bin/python, "
        "or 'pip install -r requirements.txt' with Python 3.9 or 3.10.",
        file=sys.stderr,
    )
    raise SystemExit(2) from None

# --------------------------------------------------------------------------------------- user errors


class UserError(Exception):
    """A mistake that the user can mend: one sentence with file and line, found, expected, what to do."""


def entry(main):
    """Runs `main()` as a program: a UserError, a full disk and their like become one sentence and code 2."""

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
            wanted = str(error) or "for what is in hand"
            stop(f"error: there is not enough memory ({wanted}): {_LESS}.", 2)
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


_LESS = "smaller batches (--batch_size_per_device, --eval_batch_size_per_device) or a smaller model need less"
_OUTPUT = "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS ENOENT ENOTDIR EISDIR ENAMETOOLONG ELOOP EIO".split()
# {number of an error that is none of ours: what the sentence names where the system names no file}
_SENTENCES = {
    **{getattr(errno, name): "output" for name in _OUTPUT},
    errno.EMFILE: "open files of this process (ulimit -n)",
    errno.ENFILE: "open files of this machine",
    errno.EAGAIN: "processes and threads (ulimit -u)",
    errno.ENOMEM: "memory",
}


def is_reader_gone(error):
    """Whether an error says that nobody reads standard output any more: a closed pipe or terminal."""
    return isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.EIO)


def drop_output():
    """What is printed from now on, and what waits to be, goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class Signals:
    """SIGTERM, SIGINT (Ctrl-C) and SIGHUP: they stop the process at once, or at a good point (`patience`).

    A second one never waits, but in a launched rank, whose launcher decides when it is enough. A reader who
    has gone counts as one.
    """

    asked, _patient = None, False
    WORDS = {
        None: "by another rank",
        signal.SIGINT: "by the user",
        signal.SIGPIPE: "since nobody reads its output",
    }

    @classmethod
    def take(cls):
        """Handles them from now on, but not a SIGHUP that is ignored, as it is under nohup.

        It also replaces OneFlow's own handler of SIGINT, which ends without a word.
        """
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
        """Within the block a first signal does no more than set `asked`: the block looks at it and ends."""
        cls._patient = True
        try:
            yield
        finally:
            cls._patient = False
        if cls.asked:
            raise KeyboardInterrupt(f"{cls.words()}.")


def stop(sentence, code):
    """Prints one sentence to standard error and ends the process with `code`.

    A launched rank leaves the sentence to its launcher. It ends without OneFlow's farewell, which would
    wait for the other ranks.
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
    """The number of this process, from 0, among those of one run; rank 0 alone writes and speaks."""
    return max(0, int(os.environ.get("RANK", 0)))  # OneFlow sets -1 in a process that is alone


def get_world_size():
    """How many processes run the script together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _await_the_others():
    """A rank that leaves early would take down those that are still at work."""
    if get_world_size() > 1 and "oneflow" in sys.modules:
        sys.modules["oneflow"].comm.barrier()


# --------------------------------------------------------------------------------------- reading files


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_not_pointer(path):
    """Raises a UserError where a Git LFS pointer stands in the place of a file that is not yet fetched."""
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path}: this is a Git LFS pointer, not the file itself: run 'git lfs pull' in its folder, "
                "or download the file."
            )


def read_json(path, what):
    """The JSON object in file `path`; `what` names it in a UserError ("the manifest of the records")."""
    try:
        check_not_pointer(path)
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
        # No NaN, nothing infinite as 1e400 is, no half of a surrogate pair:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
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

_NAMES = ("init", "order", "corruption", "dropout", "portion", "split", "augmentation", "noise")
STREAMS = {name: number for number, name in enumerate(_NAMES)}


def random_stream(seed, stream, *key):
    """A numpy Generator that is a function of (seed, name of the stream, key) alone.

    The key is integers >= 0, such as epoch, step, rank and number of ranks. Nothing is remembered between
    calls, so that a resumed run draws what the first would have.
    """
    sequence = np.random.SeedSequence([int(seed), STREAMS[stream], *map(int, key)])
    return np.random.Generator(np.random.SFC64(sequence))


# --------------------------------------------------------------------------------------- progress


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
    """A tqdm bar with an ETA; silent in all ranks but the first, and where standard error is no terminal."""
    silent = get_rank() > 0 or not sys.stderr.isatty()
    return tqdm(iterable, file=_Terminal(), disable=silent, dynamic_ncols=True, leave=False, **options)
