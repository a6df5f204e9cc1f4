"""OFRecord files: how records become bytes, parts and a manifest, and how they are checked on the way back.

A part `<prefix>.of_record-<k>` (k from 0) is a sequence of frames: 8 bytes, the little-endian length of a
message, then the message, a protobuf OFRecord (a map from key to a list of values). There is no checksum in
it, and OneFlow's own reader aborts on a fault or returns other values; so the manifest beside the parts holds
their sizes, counts and SHA-256.

A schema says what a record is: {key: (kind, length)}, kind one of int32, float32, bytes; length None for any
number of bytes.
"""

import errno
import hashlib
import os
import resource
import warnings

import numpy as np

from data.engine import load_oneflow
from data.store.layout import FRAME, NotCanonical, decode_block, frame_starts
from util import UserError

# of messages that decode_record refuses itself
warnings.filterwarnings("ignore", "Unexpected end-group tag", RuntimeWarning)
load_oneflow()
from google.protobuf.message import DecodeError  # noqa: E402
from oneflow.core.record.record_pb2 import OFRecord  # noqa: E402

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


def decode_frames(path, data, schema, remedy, part=None):
    """Yields the records in the bytes of a part one by one, as protobuf reads them.

    Args:
        remedy: the end of the sentence that a fault is told in: what to do.
        part: what the manifest says of it, if there is one.
    Raises:
        UserError: a broken frame or record, with its byte offset; another count than the manifest's.
    """
    offset = count = 0
    while offset < len(data):
        left = len(data) - offset - FRAME.size
        length = FRAME.unpack_from(data, offset)[0] if left >= 0 else 0
        if not 0 < length <= left:
            found = f"a record of {length} bytes where {left} are left"
            found = found if left >= 0 else "less than the length of a record"
            raise UserError(f"{path}: byte {offset}: found {found}: {remedy}.")
        start, offset = offset, offset + FRAME.size + length
        try:
            yield decode_record(data[start + FRAME.size : offset], schema)
        except ValueError as error:
            raise UserError(f"{path}: byte {start}: found {error}: {remedy}.") from None
        count += 1
    if part is not None and count != part["count"]:
        raise UserError(f"{path}: found {count} records, expected {part['count']}: {remedy}.")


def decode_part(path, data, schema, remedy, part):
    """The records of a whole part, {key: [n, length]}, and where each begins, int64 [n + 1];
    its hash was checked before.

    Raises:
        UserError: a fault, with its byte offset; protobuf is asked for it.
    """
    try:
        starts = frame_starts(data)
        if len(starts) - 1 == part["count"]:
            return decode_block(data, starts, schema), starts
    except NotCanonical:
        pass
    for _ in decode_frames(path, data, schema, remedy, part):
        pass
    raise UserError(
        f"{path}: found records that are written otherwise than here, as by another program: {remedy}."
    )


def open_part(path, remedy, part=None):
    """Opens a part to read it unbuffered: a regular file of the size
    that the manifest's `part` says, and no link.
    """
    if os.path.islink(path) or not os.path.isfile(path):
        found = (
            "a symbolic link"
            if os.path.islink(path)
            else "something else"
            if os.path.exists(path)
            else "nothing"
        )
        raise UserError(f"{path}: found {found}, expected a file of records: {remedy}.")
    file = _open(path)
    size = os.fstat(file.fileno()).st_size
    if part is not None and size != part["bytes"]:
        file.close()
        raise UserError(f"{path}: found {size} bytes, expected {part['bytes']}: {remedy}.")
    return file


SPARE = 64  # files that a process may want to open beside those of records and knowledge


def _open(path):
    """Opens a file that stays open; the limit of open files is raised where it comes near."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise UserError(
            f"{path}: this process may have {soft} files open, and that is not enough: "
            "raise it by 'ulimit -n'."
        ) from None
    if file.fileno() + SPARE > soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return file


def check_part(file, part, remedy):
    """Hashes an open part in pieces of 1 MiB; UserError where the hash is not the manifest's."""
    digest, piece = hashlib.sha256(), bytearray(min(part["bytes"], 1 << 20))
    while n := file.readinto(piece):
        digest.update(memoryview(piece)[:n])
    _same_hash(file.name, digest.hexdigest(), part, remedy)


def read_whole(file, part, remedy):
    """The bytes of an open part, from its beginning; UserError where its hash is not the manifest's."""
    size = os.fstat(file.fileno()).st_size
    data = os.pread(file.fileno(), size, 0)
    while len(data) < size:  # Linux reads 2 GB at once and no more
        data += os.pread(file.fileno(), size - len(data), len(data))
    if part is not None:
        _same_hash(file.name, hashlib.sha256(data).hexdigest(), part, remedy)
    return data


def _same_hash(path, found, part, remedy):
    if found != part["sha256"]:
        raise UserError(
            f"{path}: found SHA-256 {found[:12]}..., expected {part['sha256'][:12]}..., it was changed: "
            f"{remedy}."
        )
