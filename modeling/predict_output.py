"""Where the answers of a prediction go: standard output, a device or a pipe at once; a file under a hidden
name until it is whole.

Beside the hidden file another tells how far it is, so that --resume goes on after a kill without asking the
model again.
"""

import contextlib
import fcntl
import gzip
import os
import pathlib
import sys

from data.store.files import sync_folder, write_json
from modeling.snapshots.best import RUN_FILES
from util import CLOSED, UserError, read_json

PROGRESS_TYPES = {
    "facts": dict,
    "rows": int,
    "size": int,
    "content_sha256": str,
    "counts": dict,
    "faults": list,
}


class StreamOutput:
    """Standard output, or a file that is no regular one, such as a pipe: what is written is gone."""

    def __init__(self, file):
        self.file, self.progress = file, {}

    def write(self, data, progress):
        """Writes bytes; `progress` is of no use here."""
        self.file.write(data)
        self.file.flush()


class FileOutput:
    """A file that takes its name `path` when it is whole. Until then `.NAME.partial` has what is done,
    as `.NAME.partial.json` tells.

    Args:
        facts: what must be the same for a prediction that goes on:
            the model, how texts are split, the texts' form and columns, flags.
        resume: go on with what is there.
    Attributes:
        progress: how far it is, as `write` was given it; {} at the beginning, and always of a StreamOutput.
    Raises:
        UserError: another process writes it, or what is there was made otherwise.
    """

    def __init__(self, path, facts, resume):
        self.path, self.facts = path, facts
        self.partial = path.with_name(f".{path.name}.partial")
        self.state = path.with_name(f".{path.name}.partial.json")
        self.file = open(self.partial, "ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.close()
            raise UserError(
                f"--output_file {path}: another prediction is writing it: wait for it, or name another."
            ) from None
        self.progress = self._read_progress() if resume and self.state.exists() and self.file.tell() else {}
        self.file.truncate(self.progress.get("size", 0))

    def _read_progress(self):
        """The progress of a prediction that was stopped."""
        progress = read_json(self.state, "the progress of the prediction")
        for name, kind in PROGRESS_TYPES.items():
            if type(progress.get(name)) is not kind:
                raise UserError(
                    f"{self.state}: found {progress.get(name)!r:.60} as {name!r}: start again without "
                    "--resume."
                )
        for name, value in self.facts.items():
            if progress["facts"].get(name) != value:
                raise UserError(
                    f"--resume: {self.path} was begun with another {name} "
                    f"({progress['facts'].get(name)!r:.100}, now {value!r:.100}): give the same, or start "
                    "again without --resume."
                )
        if progress["size"] > self.file.tell():
            raise UserError(
                f"{self.partial}: it is shorter than {self.state.name} says: start again without --resume."
            )
        return progress

    def write(self, data, progress):
        """Adds bytes, and notes what was done with them: `progress` has the keys of PROGRESS_TYPES but
        facts and size.
        """
        self.file.write(gzip.compress(data, mtime=0) if self.path.suffix == ".gz" else data)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.progress = {"facts": self.facts, "size": self.file.tell(), **progress}
        write_json(self.state, self.progress)

    def finish(self):
        """Gives the file its name."""
        os.replace(self.partial, self.path)
        self.state.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def discard(self):
        """Removes what nothing was written to."""
        self.partial.unlink()


def check_output(name, texts, form):
    """Refuses an output file that is a folder, is in none, is the file of the texts, or has the suffix of
    another form than `form`.
    """
    path = pathlib.Path(name)
    if path.is_dir():
        raise UserError(f"--output_file {path}: this is a folder, expected the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"--output_file {path}: there is no folder {path.parent}: make it, or name another.")
    if path.exists() and texts != "-" and os.path.realpath(path) == os.path.realpath(texts):
        raise UserError(
            f"--output_file {path}: this is the file of the texts, which would be overwritten: name another."
        )
    suffixes = [suffix for suffix in path.suffixes if suffix in (".csv", ".tsv", ".jsonl")][-1:]
    if suffixes and suffixes != [f".{form}"]:
        raise UserError(
            f"--output_file {path}: the texts are answered in {form}, their own form: name it .{form}, or "
            f".{form}.gz."
        )


def check_no_model_file(name, snapshot, vocab_file=None):
    """Refuses an output file that is there already as a file of the snapshot in that folder, of its run, or
    as the vocabulary.
    """
    path, folder = pathlib.Path(os.path.realpath(name)), pathlib.Path(os.path.realpath(snapshot))
    of_run = path.parent == folder.parent and path.name in RUN_FILES
    is_vocab = vocab_file is not None and path == pathlib.Path(os.path.realpath(vocab_file))
    if path.is_file() and (path.parent == folder or of_run or is_vocab):
        raise UserError(
            f"--output_file {name}: this is a file of the model or of its run, which would be overwritten: "
            "name another."
        )


@contextlib.contextmanager
def open_output(name, facts, resume):
    """The output that --output_file names, or standard output for None; a file gets its name where the
    block ends well.

    What a stopped block has done stays for --resume; a block that has done nothing leaves nothing.
    """
    if name is None:
        if "stdout" in CLOSED:
            raise UserError("standard output is closed: open it, or name a file with --output_file.")
        yield StreamOutput(getattr(sys.stdout, "buffer", None) or TextBuffer(sys.stdout))
        return
    path = pathlib.Path(os.path.realpath(name))  # a link stays, and leads to the new file
    if pathlib.Path(name).exists() and not pathlib.Path(name).is_file():
        with open(name, "wb") as file:
            yield StreamOutput(file)
        return
    output = FileOutput(path, facts, resume)
    try:
        with output.file:
            yield output
            output.finish()
    except BaseException:
        if output.partial.exists() and not output.partial.stat().st_size:
            output.discard()
        raise


class TextBuffer:
    """Stands for the bytes of a standard output that takes text alone."""

    def __init__(self, file):
        self.file, self.flush = file, file.flush

    def write(self, data):
        self.file.write(data.decode("utf-8"))
