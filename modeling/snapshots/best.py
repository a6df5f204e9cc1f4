"""Which snapshot of a run is its best: best.json names it, and `best`, a relative link, leads to it."""

import os
import pathlib

from data.store.files import remove_folder, sync_folder, write_json
from data.store.temporary import new_path
from util import UserError, read_json

LINK = "best"
# What a run, and modeling.speed, write into its folder, beside its snapshots:
RUN_FILES = (
    "log.txt metrics.jsonl timing.jsonl flags.json best.json results.json predictions.tsv report.html "
    "speed.json speed.html"
).split()


def name_best(folder, best):
    """Writes best.json, and the link `best` to the snapshot that it names.

    Args:
        best: {"snapshot": its name in the run folder `folder`, "step", ...}.
    Raises:
        UserError: something of the link's name is there that is neither a link nor the copy of a snapshot.
    """
    write_json(folder / "best.json", best)
    link, temporary = folder / LINK, new_path(folder)
    if link.is_dir() and not link.is_symlink() and (link / "manifest.json").is_file():
        # a copy of the run that followed the link has a whole snapshot there, of another time
        remove_folder(link)
    elif link.exists() and not link.is_symlink():
        raise UserError(
            f"{link}: found something that is no link, expected the link to the best snapshot: move it away."
        )
    try:
        os.symlink(best["snapshot"], temporary)
    except OSError:  # a file system without links: best.json says the same
        return
    os.replace(temporary, link)
    sync_folder(folder)


def best_snapshot_path(folder):
    """The folder of the best snapshot of the run in `folder`.

    Raises:
        UserError: best.json does not name a snapshot in this folder.
    """
    path = pathlib.Path(folder, "best.json")
    name = read_json(path, "the name of the best snapshot").get("snapshot")
    if not is_snapshot_name(name):
        raise UserError(
            f"{path}: found {name!r:.60} as 'snapshot', expected the name of a snapshot in this folder."
        )
    return path.with_name(name)


def find_snapshot(path):
    """The folder that `path` stands for.

    That is the best snapshot of a run, what the link `best` leads to, and else `path` itself.
    """
    path = pathlib.Path(path)
    if (path / "best.json").is_file():
        return best_snapshot_path(path)
    if path.name == LINK and path.is_symlink() and is_snapshot_name(target := os.readlink(path)):
        return path.with_name(target)
    return path


def is_snapshot_name(value):
    """Whether a value of a JSON file is the name of a snapshot, which leads to no other folder."""
    return isinstance(value, str) and value.startswith("snapshot_") and pathlib.Path(value).name == value
