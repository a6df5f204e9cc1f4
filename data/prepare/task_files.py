"""The files of a task's folder, task.json and a TSV file for each split: they change together or not at all.

The new files are written into a folder of their own, synced, which then takes the name REPLACEMENT: from here
on they count. One after the other, the old files are put aside in it and the new ones take their names; last,
the folder goes. Where a step fails, all old files get their names back. After a kill in between the folder is
still there: every stage refuses the data with a sentence, and the next import gives the rest of the files
their names before it begins.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib

from data.lines import open_text, split_fields
from data.store.files import atomic_file, make_folder, remove_folder, sync_folder, write_json
from data.store.temporary import NO_LOCKS, create_folder, discard, remove_partial_writes
from data.tasks import BUILT_IN, REPLACEMENT, SPLITS, Task, clean, read_task, split_path
from util import UserError

OLD = "old"  # the folder in the folder that the old files are put into

# --------------------------------------------------------------------------------------- one file


def write_tsv(task: Task, path, rows) -> None:
    """Writes the TSV file `path`, whole or not at all.

    Args:
        rows: iterable of (texts..., domain name, label name), as task.columns; the texts are cleaned.
    """
    with atomic_file(path, "w") as file:
        _write_rows(task, file, rows)


def _write_rows(task, file, rows):
    file.write("\t".join(task.columns) + "\n")
    file.writelines("\t".join([*map(clean, row[:-2]), *row[-2:]]) + "\n" for row in rows)


# --------------------------------------------------------------------------------------- all of them


def write_task(task: Task, data_dir, splits) -> None:
    """Writes the TSV files of all splits, and task.json unless the task is built in.

    Args:
        splits: {name of the split: rows as those of write_tsv}.
    Raises:
        UserError: the folder holds the data of another task, another import writes there, or a folder stands
            where a file is to be.
    """
    folder = pathlib.Path(data_dir)
    make_folder(folder)
    remove_partial_writes(folder)
    temporary, handle = create_folder(folder)  # the handle holds its lock, under any name
    try:
        _write_new(task, temporary, splits, folder)
        _claim(temporary, folder)
        _replace_all(task, folder)
    finally:
        os.close(handle)
        discard(temporary)


def _write_new(task, temporary, splits, folder):
    """Writes the new files into the folder `temporary`. Args: folder: where they will stand."""
    (temporary / OLD).mkdir()
    if task.name not in BUILT_IN:
        with _naming(folder / "task.json"):
            write_json(temporary / "task.json", dataclasses.asdict(task))
    for split, rows in splits.items():
        path = split_path(temporary, split)
        with _naming(folder / path.name), atomic_file(path, "w") as file:
            _write_rows(task, file, rows)
    sync_folder(temporary)


@contextlib.contextmanager
def _naming(path):
    """Has an error of the disk tell of the file at `path`, not of the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def _claim(temporary, folder):
    """Gives the folder of the new files the name REPLACEMENT, which one import can have at a time."""
    while True:
        try:
            os.rename(temporary, folder / REPLACEMENT)
            sync_folder(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _finish_killed(folder)


def _finish_killed(folder):
    """Gives the files of an import that was killed, if there was one, the rest of their names.

    Raises:
        UserError: it is still at work.
    """
    replacement = folder / REPLACEMENT
    try:
        handle = os.open(replacement, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # there is none
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"{folder}: another import is writing here: wait for it, or name another --data_dir."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(handle)
            raise
    try:
        _take_names(folder, _new_names(replacement))
        remove_folder(replacement)
    finally:
        os.close(handle)


def _new_names(replacement):
    """The names of the new files that have not taken them yet."""
    known = {"task.json", *(split_path("", split).name for split in SPLITS)}
    return sorted(known.intersection(os.listdir(replacement)))


def _replace_all(task, folder):
    """Gives the new files their names, and removes the old ones; where that fails these get theirs back."""
    replacement = folder / REPLACEMENT
    names = _new_names(replacement)
    try:
        _check_replaceable(task, folder, names)
        _take_names(folder, names)
    except BaseException:
        _give_back(folder, names)  # where this fails too, the folder stays, and tells of the mixture
        remove_folder(replacement)
        raise
    remove_folder(replacement)


def _take_names(folder, names):
    replacement = folder / REPLACEMENT
    for name in names:
        if os.path.lexists(folder / name):
            os.rename(folder / name, replacement / OLD / name)
        os.rename(replacement / name, folder / name)
    sync_folder(folder)


def _give_back(folder, names):
    """What `_take_names` has done is undone, wherever it stopped."""
    replacement = folder / REPLACEMENT
    for name in names:
        if not os.path.lexists(replacement / name):
            os.rename(folder / name, replacement / name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(replacement / OLD / name, folder / name)
    sync_folder(folder)


def _check_replaceable(task, folder, names):
    """Refuses a folder with the data of another task, and one with a folder that has one of the `names`."""
    for name in names:
        if (folder / name).is_dir():
            raise UserError(
                f"{folder / name}: found a folder, expected a file or nothing: remove it, or name another "
                "--data_dir."
            )
    if not split_path(folder, "train").exists():
        return
    description = folder / "task.json"
    held = read_task(description) if description.exists() else _built_in_task(split_path(folder, "train"))
    if held is None or held.name != task.name:
        name = f"task '{held.name}'" if held else "a task that is not described"
        raise UserError(
            f"{folder}: holds the data of {name}, expected '{task.name}' or none: name another --data_dir."
        )
    if task.name in BUILT_IN and held != task:
        raise UserError(
            f"{description}: describes '{task.name}' otherwise than the built-in task, expected no such "
            "file: name another --data_dir."
        )


def _built_in_task(path):
    """The built-in task that has the columns of the TSV file `path`, or None."""
    with open_text(path, "a TSV file: check --data_dir") as file:
        header = split_fields(path, 1, file.readline())
    return next((each for each in BUILT_IN.values() if sorted(each.columns) == sorted(header)), None)


# --------------------------------------------------------------------------------------- the report


def count_table(task: Task, splits: dict) -> str:
    """The number of examples per domain and class as lines of text.

    Args:
        splits: {name of the split: rows as those of write_tsv}.
    """
    cells = [f"{label[:8]:>9}" for label in task.labels]
    lines = [f"{'split':<6} {'domain':<14}{''.join(cells)}{'all':>9}"]
    for split, rows in splits.items():
        pairs = [tuple(row[-2:]) for row in rows]
        for domain in (*task.domains, None):  # None: all of them, as a domain may have the name "all"
            counts = [
                sum(pair[1] == label and domain in (pair[0], None) for pair in pairs) for label in task.labels
            ]
            cells = "".join(f"{n:>9}" for n in (*counts, sum(counts)))
            lines.append(f"{split:<6} {'all' if domain is None else domain:<14}{cells}")
    return "\n".join(lines)
