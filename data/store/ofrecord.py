"""OFRecord files: how records become bytes, parts and a manifest, and how they are checked on the way back.

A part `<prefix>.of_record-<k>` (k from 0) is a sequence of frames: 8 bytes, the little-endian length of a message, then the
message, a protobuf OFRecord (a map from key to a list of values). There is no checksum in it, and OneFlow's own reader
aborts on a fault or returns other values; so the manifest beside the parts holds their sizes, counts and SHA-256.

A schema says what a record is: {key: (kind, length)}, kind one of int32, float32, bytes; length None for any number of bytes.
"""

import hashlib
import json
import os
import pathlib
import re
import struct
import warnings

import numpy as np

from util import UserError, load_oneflow, read_json

warnings.filterwarnings(
    "ignore", "Unexpected end-group tag", RuntimeWarning
)  # of messages that decode_record refuses itself
load_oneflow()
from google.protobuf.message import DecodeError  # noqa: E402
from oneflow.core.record.record_pb2 import OFRecord  # noqa: E402

MANIFEST, OFFSETS = "manifest.json", "offsets.npy"
OURS = (MANIFEST, OFFSETS)  # beside the parts
FRAME = struct.Struct("<Q")  # the length before each message
LISTS = {"int32": "int32_list", "float32": "float_list", "bytes": "bytes_list"}  # kind -> field of a Feature

# --------------------------------------------------------------------------------------- one record


def encode_record(record, schema):
    """A record as the bytes of its message, the same bytes for the same values.

    Args:
        record: {key: array, list or bytes}, the keys of the schema and no others.
    Raises:
        ValueError: keys or lengths that the schema does not have.
    """
    if record.keys() != schema.keys():
        raise ValueError(f"the record has the keys {sorted(record)}, expected {sorted(schema)}")
    message = OFRecord()
    for key, (kind, length) in schema.items():
        values = [record[key]] if kind == "bytes" else np.asarray(record[key], kind).reshape(-1).tolist()
        size = len(record[key]) if kind == "bytes" else len(values)
        if length is not None and size != length:
            raise ValueError(f"'{key}' has {size} values, expected {length}")
        getattr(message.feature[key], LISTS[kind]).value.extend(values)
    return message.SerializeToString(deterministic=True)


def encode_frame(record, schema):
    """A record as it stands in a part: the length of its message, and the message."""
    message = encode_record(record, schema)
    return FRAME.pack(len(message)) + message


def decode_record(message, schema):
    """The bytes of a message as a record, {key: array [length] or bytes}.

    Raises:
        ValueError: it is no OFRecord, or its keys, kinds or lengths are not those of the schema.
    """
    record = OFRecord()
    try:
        whole = record.ParseFromString(message) == len(message)
    except DecodeError:
        whole = False
    if not whole:
        raise ValueError("something that is no OFRecord")
    if set(record.feature) != set(schema):
        raise ValueError(f"a record with the keys {_names(record.feature)}, expected {_names(schema)}")
    return {key: _decode_values(key, record.feature[key], *wanted) for key, wanted in schema.items()}


def _decode_values(key, feature, kind, length):
    found = feature.WhichOneof("kind")
    if found != LISTS[kind]:
        raise ValueError(f"'{key}' as {found or 'nothing'}, expected {LISTS[kind]}")
    values = getattr(feature, found).value
    if kind == "bytes":
        if len(values) != 1:
            raise ValueError(f"'{key}' with {len(values)} strings of bytes, expected 1")
        values = values[0]
    if length is not None and len(values) != length:
        raise ValueError(f"'{key}' with {len(values)} values, expected {length}")
    if (
        kind == "float32"
    ):  # packed: the values are the tail of the message, and need not pass through Python one by one
        packed = feature.float_list.SerializeToString()
        return np.frombuffer(packed, "<f4", len(values), len(packed) - 4 * len(values))
    return values if kind == "bytes" else np.fromiter(values, kind, len(values))


def _names(keys):
    names = ", ".join(sorted(map(str, keys))) or "none"  # a key that is not UTF-8 comes as bytes
    return names.encode("unicode_escape").decode()[:200]


# --------------------------------------------------------------------------------------- parts


def part_name(prefix, number):
    """`train.of_record-0` for the first part of `train`."""
    return f"{prefix}.of_record-{number}"


def check_replaceable(folder, prefix, flag):
    """Raises a UserError where `folder`, which new parts will take the place of, holds files that are not ours; `flag` named it."""
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
            f"{flag} {folder}: there is something else in it, {others[0]}, which would be lost: name another folder."
        )


class PartWriter:
    """Writes records one by one into the parts of a folder, and keeps what the manifest says of each part.

    Args:
        folder, prefix: where, and what the names of the parts begin with.
        schema: what a record is.
        part_size: records to a part.
    """

    def __init__(self, folder, prefix, schema, part_size=4096):
        self.folder, self.prefix, self.schema, self.part_size = folder, prefix, schema, part_size
        self.parts, self._file = [], None  # [{"file", "count", "bytes", "sha256"}]

    def append(self, record):
        """Writes one record and returns where: (number of the part, offset of the frame in bytes)."""
        frame = encode_frame(record, self.schema)
        if self._file is None or self.parts[-1]["count"] == self.part_size:
            self._next_part()
        part = self.parts[-1]
        self._file.write(frame)
        self._digest.update(frame)
        offset = part["bytes"]
        part.update(count=part["count"] + 1, bytes=offset + len(frame))
        return len(self.parts) - 1, offset

    def _next_part(self):
        self.close()
        name = part_name(self.prefix, len(self.parts))
        self._file, self._digest = open(os.path.join(self.folder, name), "wb"), hashlib.sha256()
        self.parts.append({"file": name, "count": 0, "bytes": 0, "sha256": None})

    def close(self):
        """Ends the last part and returns the list of all."""
        if self._file is not None:
            self._file.close()
            self._file, self.parts[-1]["sha256"] = None, self._digest.hexdigest()
        return self.parts


def write_parts(folder, prefix, records, schema, part_size=4096):
    """Writes an iterable of records, holding one at a time. Returns the manifest's list of parts."""
    writer = PartWriter(folder, prefix, schema, part_size)
    try:
        for record in records:
            writer.append(record)
    finally:
        writer.close()
    return writer.parts


def read_part(path, schema, remedy, part=None):
    """Yields the records of a part; what is hashed is what is parsed, and one part is in memory.

    Args:
        remedy: the end of the sentence that a fault is told in: what to do.
        part: what the manifest says of it, if there is one.
    Raises:
        UserError: another size, hash or count than the manifest's; a broken frame or record, with its byte offset.
    """
    with open_part(path, remedy, part) as file:
        data = file.read()
    if part is not None:
        _same_hash(path, hashlib.sha256(data).hexdigest(), part, remedy)
    offset = count = 0
    while offset < len(data):
        left = len(data) - offset - FRAME.size
        length = FRAME.unpack_from(data, offset)[0] if left >= 0 else 0
        if not 0 < length <= left:
            found = (
                f"a record of {length} bytes where {left} are left"
                if left >= 0
                else "less than the length of a record"
            )
            raise UserError(f"{path}: byte {offset}: found {found}: {remedy}.")
        start, offset = offset, offset + FRAME.size + length
        try:
            yield decode_record(data[start + FRAME.size : offset], schema)
        except ValueError as error:
            raise UserError(f"{path}: byte {start}: found {error}: {remedy}.") from None
        count += 1
    if part is not None and count != part["count"]:
        raise UserError(f"{path}: found {count} records, expected {part['count']}: {remedy}.")


def open_part(path, remedy, part=None):
    """Opens a part to read it unbuffered: a regular file of the size that the manifest's `part` says, and no link."""
    if os.path.islink(path) or not os.path.isfile(path):
        found = (
            "a symbolic link"
            if os.path.islink(path)
            else "something else"
            if os.path.exists(path)
            else "nothing"
        )
        raise UserError(f"{path}: found {found}, expected a file of records: {remedy}.")
    file = open(path, "rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    if part is not None and size != part["bytes"]:
        file.close()
        raise UserError(f"{path}: found {size} bytes, expected {part['bytes']}: {remedy}.")
    return file


def check_part(file, part, remedy):
    """Hashes an open part in pieces of 1 MiB; UserError where the hash is not the manifest's."""
    digest, piece = hashlib.sha256(), bytearray(min(part["bytes"], 1 << 20))
    while n := file.readinto(piece):
        digest.update(memoryview(piece)[:n])
    _same_hash(file.name, digest.hexdigest(), part, remedy)


def _same_hash(path, found, part, remedy):
    if found != part["sha256"]:
        raise UserError(
            f"{path}: found SHA-256 {found[:12]}..., expected {part['sha256'][:12]}..., it was changed: {remedy}."
        )


# --------------------------------------------------------------------------------------- the manifest


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
    """The manifest of a folder of parts, checked: its format, the types of its keys, and the names of its parts.

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
    """The parts are <prefix>.of_record-0, -1, ... in this order, hold `count` records, and no other file looks like one."""
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
