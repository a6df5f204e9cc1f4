"""The manifest beside the parts of records or knowledge: what is in it, and whether the folder fits to it."""

import json
import os
import pathlib
import re

from data.store.ofrecord import part_name
from data.store.temporary import is_temporary
from util import UserError, read_json

MANIFEST, OFFSETS = "manifest.json", "offsets.npy"
OURS = (MANIFEST, OFFSETS)  # beside the parts


def is_count(value):
    """Whether a value of a manifest is a whole number that counts something."""
    return type(value) is int and value >= 0


def _is_hash(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_names(value):
    return (
        isinstance(value, list)
        and value
        and all(TYPES["a text"](name) for name in value)
        and len(value) == len({*value})
    )


def _is_parts(value):
    keys = {
        "file": TYPES["a text"],
        "count": lambda count: is_count(count) and count,
        "bytes": is_count,
        "sha256": _is_hash,
    }
    return (
        isinstance(value, list)
        and value
        and all(
            isinstance(part, dict)
            and part.keys() == keys.keys()
            and all(keys[key](part[key]) for key in keys)
            for part in value
        )
    )


TYPES = {
    # one line, and not empty
    "a text": lambda value: isinstance(value, str) and value.splitlines() == [value],
    "a count": is_count,
    "true or false": lambda value: isinstance(value, bool),
    "a SHA-256": _is_hash,
    "a list of different names": _is_names,
    "a list of parts": _is_parts,
    "a list of counts": lambda value: (
        isinstance(value, list) and all(map(is_count, value)) and len(value) == len({*value})
    ),
    "a list": lambda value: isinstance(value, list),
    "an object": lambda value: isinstance(value, dict),
    "an object or null": lambda value: value is None or isinstance(value, dict),
}


def read_manifest(folder, version, types, prefix, what, remedy, absent_in_old=None):
    """The manifest of a folder of parts, checked: its format, the types of its keys,
    and the names of its parts.

    Args:
        version: what its key `format` must say.
        types: {key: a key of TYPES}; it may have more keys.
        prefix: of the parts; a file of that prefix which the manifest does not name is a fault as well.
        what: the manifest's name in a sentence; remedy: the end of the sentence.
        absent_in_old: {key: what it stands for where an older manifest does not say it}.
    Raises:
        UserError: it is missing, no JSON, or anything above does not hold.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        raise UserError(f"{path}: {what} is missing: {remedy}.")
    try:
        manifest = {**(absent_in_old or {}), **read_json(path, what)}
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}: {remedy}.") from None
    if manifest.get("format") != version:
        raise UserError(
            f"{path}: found format {manifest.get('format')!r:.60}, expected {version!r}: {remedy}."
        )
    for key, kind in {**types, "count": "a count", "parts": "a list of parts"}.items():
        if key not in manifest or not TYPES[kind](manifest[key]):
            found = f"{json.dumps(manifest[key]):.60}" if key in manifest else "nothing"
            raise UserError(f"{path}: found {found} as {key!r}, expected {kind}: {remedy}.")
    _check_names(path, manifest, folder, prefix, remedy)
    return manifest


def _check_names(path, manifest, folder, prefix, remedy):
    """The parts are <prefix>.of_record-0, -1, ... in this order, hold `count` records, and no other file
    looks like one.
    """
    named = [part["file"] for part in manifest["parts"]]
    for number, name in enumerate(named):
        if name != part_name(prefix, number):
            raise UserError(
                f"{path}: found the part {name!r:.80}, expected {part_name(prefix, number)!r}: {remedy}."
            )
    stray = sorted(
        name for name in os.listdir(folder) if name.startswith(part_name(prefix, "")) and name not in named
    )
    if stray:
        raise UserError(
            f"{os.path.join(folder, stray[0])}: found a part that the manifest does not name: {remedy}."
        )
    total = sum(part["count"] for part in manifest["parts"])
    if total != manifest["count"]:
        raise UserError(
            f"{path}: found parts of {total} records in all, expected {manifest['count']}: {remedy}."
        )


def check_replaceable(folder, prefix, flag="", more=()):
    """Raises a UserError where `folder`, which new parts will take the place of, is a link or a file, or
    holds files that are not ours.

    Args:
        flag: what named the folder; more: patterns of further names that are ours.
    """
    folder = pathlib.Path(folder)
    place = f"{flag} {folder}".strip()
    if folder.is_symlink():
        raise UserError(f"{place}: found a link, expected a folder or nothing: name what it leads to.")
    part = rf"{re.escape(part_name(prefix, ''))}\d+"
    ours = re.compile("|".join([part, *map(re.escape, OURS), *more]))
    names = os.listdir(folder) if folder.is_dir() else [folder.name] * folder.exists()
    others = sorted(name for name in names if not ours.fullmatch(name) and not is_temporary(name))
    if others:
        raise UserError(
            f"{place}: there is something else in it, {others[0]}, which would be lost: name another folder."
        )
