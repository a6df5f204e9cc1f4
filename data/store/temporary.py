"""Temporary names, for what is not whole yet or no more, and the removal of what was left behind under them.

Nobody else would choose such a name, and nothing else is ever removed as half-written. Whoever writes under
one holds a lock of the kernel (flock) on it, which dies with the process: what can be locked was left behind.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import stat

# 46 characters, so that what it stands for may have 255
TEMPORARY = re.compile(r"\.meta-kd-[0-9a-f]{32}\.(tmp|old)")
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
    """Removes what was left behind; a folder that was put aside there gets its name back first."""
    if is_folder and path.suffix == ".old":
        for old in path.iterdir():
            if not os.path.lexists(path.with_name(old.name)):
                os.rename(old, path.with_name(old.name))
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()
