"""The folder of a run: its lock, log, metrics and times; and the lines that a log begins with."""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time

from tqdm import tqdm

from data.store.files import LOCK, atomic_file, check_own, current_path, lock, naming, open_own
from data.store.temporary import is_at, remove_partial_writes
from modeling.distributed.collective import broadcast
from modeling.snapshots.best import RUN_FILES
from util import Signals, UserError, drop_output, get_rank, is_reader_gone

FIRST_WORDS = "run folder: "  # of a log.txt


class Run:
    """A run folder: its lock, `log.txt`, `metrics.jsonl` (no clock) and `timing.jsonl` (times and speeds).

    Args:
        folder: where the run writes; made if missing. None: no folder, messages go to the terminal alone.
            Of several ranks the first alone writes and speaks.
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
        """Makes sure that every folder that the run has locked is still at its name, lest half of its files
        are written elsewhere.

        Raises:
            UserError: one was removed, another disk was mounted there,
                or it was moved and is not the run's own.
        """
        for number, (path, file) in enumerate(self._locks):
            if is_at(path, file.fileno()):
                continue
            moved = current_path(file)
            if moved is None or path.parent != self._folder:
                now = f", and is {moved.parent} now" if moved else ""
                raise UserError(
                    f"{path.parent}: it was moved or removed while it was written to{now}: bring it back, "
                    "and run this again."
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
        """Drops the lines of metrics.jsonl that come after `step`:
        a run resumed from there writes them again.
        """
        path = self.folder / "metrics.jsonl"
        if self._writes and path.exists():
            kept = [
                line for line in path.read_text(encoding="utf-8").splitlines() if _line_step(line) <= step
            ]
            with atomic_file(path, "w") as file:
                file.writelines(line + "\n" for line in kept)


def _line_step(line):
    """The step of a line of metrics.jsonl; infinite for a line that a kill or a full disk cut short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def new_run_folder(now, parent="output"):
    """The name of a run that was given none,
    `now` being seconds since 1970: output/model_save-YYYY-MM-DD-HH:MM:SS.
    """
    return pathlib.Path(parent) / f"model_save-{datetime.datetime.fromtimestamp(now):%Y-%m-%d-%H:%M:%S}"


def choose_run_folder(model_save_dir, resume_from) -> pathlib.Path:
    """Where a run writes: the folder of the snapshot that it goes on from, or the named one, or a new one."""
    if not resume_from:
        return pathlib.Path(model_save_dir) if model_save_dir else new_run_folder(broadcast(time.time()))
    folder = pathlib.Path(resume_from).resolve().parent
    if model_save_dir and pathlib.Path(model_save_dir).resolve() != folder:
        raise UserError(
            f"--resume_from {resume_from}: that run goes on in its own folder, {folder}, and "
            f"--model_save_dir names {model_save_dir}: leave --model_save_dir out."
        )
    return folder


def check_same_run(folder, evaluated):
    """Refuses to write the results of a snapshot, the folder `evaluated`, over those of another run."""
    if evaluated is None or not (folder / "best.json").exists():
        return
    if evaluated.resolve().parent != folder.resolve():
        raise UserError(
            f"--model_save_dir {folder}: it holds another run, whose results this evaluation of {evaluated} "
            "would replace: name another folder."
        )


def check_own_run(folder):
    """Refuses a folder with files of the names that a run writes, where its log.txt does not say that a run
    has written them.
    """
    try:
        with open_own(folder / "log.txt", "r") as file:
            if file.readline().startswith(FIRST_WORDS):
                return
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        pass
    theirs = [name for name in RUN_FILES if os.path.lexists(folder / name) and (folder / name).stat().st_size]
    if theirs and get_rank() == 0:
        raise UserError(
            f"--model_save_dir {folder}: it holds {', '.join(theirs)}, which no run has written and this "
            "one would replace: name another folder."
        )


def version_and_flag_lines(changed: dict) -> list:
    """The first lines of a log: versions, the commit where this is a checkout, and the flags {name: value}
    that differ from their defaults.
    """
    names = ("oneflow", "numpy", "scikit-learn", "safetensors")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    flags = " ".join(
        f"--{name} {value}" if value is not True else f"--{name}" for name, value in changed.items()
    )
    commit = _describe_checkout()
    return [
        f"python {platform.python_version()}, {packages}" + (f", commit {commit}" if commit else ""),
        f"flags: {flags}",
    ]


def _describe_checkout():
    """The commit that this code is from, as git describes it; empty without git or outside a checkout."""
    if not shutil.which("git"):
        return ""
    root = str(pathlib.Path(__file__).resolve().parents[2])
    words = ["git", "-C", root, "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()
