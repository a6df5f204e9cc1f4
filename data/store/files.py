"""Files and folders that are there whole or not at all, and locks of folders."""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pathlib
import shutil
import stat

from data.store.temporary import create_file, create_folder, discard, is_at, new_path, remove_partial_writes
from util import UserError

# --------------------------------------------------------------------------------------- whole files


def make_folder(path):
    """Makes a folder and those that it is in, where they are missing; UserError: a file is in the way."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{path}: a file has the name of this folder or of one that it is in: remove it, "
            "or name another folder."
        ) from None


@contextlib.contextmanager
def atomic_file(path, mode="wb"):
    """Opens `path` for writing under a temporary name; it gets its own, synced, when the block ends well.

    Each writer has a name of its own: of two, the last to end replaces the other's file whole. What stands at
    `path`, a link too, is replaced and never written through.
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
        UserError: a link, a FIFO or anything else stands there that would lead the text elsewhere
            or keep the run waiting.
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


NO_FILE = (
    "found a link or something else that is no file, expected a file or nothing: "
    "remove it, or name another folder."
)


@contextlib.contextmanager
def atomic_folder(path):
    """Yields a temporary folder that takes the name `path`, synced, when the block ends well.

    What stood there is replaced at once.
    """
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
    """Gives the folder `temporary`, its files synced, the name `path` in one step.

    What stood there before is removed.
    """
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
    """Removes a folder under a hidden name: a kill in the middle leaves no half of it under its own."""
    temporary = new_path(path.parent)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def _exchange(one, other):
    """Makes two folders change names in one step, so that each name always leads to a whole folder.

    This is renameat2 of Linux.

    File systems without it, as NFS is, get two renames, between which a kill leaves the old folder under a
    hidden name; who cleans up brings it back.
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


# --------------------------------------------------------------------------------------- locks

LOCK = ".meta-kd.lock"


def lock(folder, name=LOCK):
    """Locks `folder`, made if missing, by the file `name` in it.

    The lock holds until the returned file is closed or the process dies.

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


def current_path(file):
    """The path of an open file that was moved; None where it was removed or the system does not tell."""
    with contextlib.suppress(OSError):
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        return path if is_at(path, file.fileno()) else None
    return None
