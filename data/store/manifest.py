"""The manifest beside the parts of records or knowledge: what is in it, and whether the folder fits to it."""

import json
import os
import pathlib
import re

from data.store.ofrecord import part_name
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
    "a text": lambda value: (
        isinstance(value, str) and value.splitlines() == [value]
    ),  # one line, and not empty
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


def read_manifest(folder, version, types, prefix, what, remedy):
    """The manifest of a folder of parts, checked: its format, the types of its keys, and the names of its
    parts.

    Args:
        version: what its key `format` must say.
        types: {key: a key of TYPES}; it may have more keys.
        prefix: of the parts; a file of that prefix which the manifest does not name is a fault as well.
        what: the manifest's name in a sentence; remedy: the end of the sentence.
    Raises:
        UserError: it is missing, no JSON, or anything above does not hold.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        raise UserError(f"{path}: {what} is missing: {remedy}.")
    try:
        manifest = read_json(path, what)
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


def check_replaceable(folder, prefix, flag):
    """Raises a UserError where `folder`, which new parts will take the place of, holds files that are not
    ours; `flag` named it.
    """
    folder = pathlib.Path(folder)
    names = (
        [path.name for path in folder.iterdir()]
        if folder.is_dir()
        else [folder.name]
        if folder.exists()
        else []
    )
    ours = (part_name(prefix, ""), *(f".{name}.tmp" for name in OURS))
    others = sorted(name for name in names if name not in OURS and not name.startswith(ours))
    if others:
        raise UserError(
            f"{flag} {folder}: there is something else in it, {others[0]}, which would be lost: name another "
            "folder."
        )
