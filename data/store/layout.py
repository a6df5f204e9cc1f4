"""The bytes of many records at once, in numpy: what protobuf makes of them one by one, and nothing else.

A frame is 8 bytes, the little-endian length of the message, and the message, a map in the order of its keys.
An entry of the map nests four lengths, each a varint: `0a L1  0a K key  12 L2  tag L3  0a L4  values`, where
`tag` names the kind of the list. Whole numbers are varints of 64 bits, floats 4 bytes. What is decoded is
what this module would encode, byte for byte: a message that protobuf reads to the same values but that is
written otherwise, a length in more bytes than it needs say, is refused.

n records, W bytes of the longest frame.
"""

import struct

import numpy as np

FRAME = struct.Struct("<Q")  # the length before each message
TAGS = {"int32": b'"', "float32": b"\x12"}  # of int32_list and float_list in a Feature


class NotCanonical(ValueError):
    """Bytes that `encode_block` does not write."""


# --------------------------------------------------------------------------------------- encoding


def encode_block(arrays, schema):
    """Records as the bytes of their frames, and where each frame starts.

    Args:
        arrays: {key: [n, length], or [n] where the length is 1}, the keys of the schema.
    Returns:
        bytes, int64 [n + 1]: the starts, and after them the end of the last.
    """
    n = len(arrays["idxs"])
    columns = []  # pairs (uint8 [n or 1, w], bool [n or 1, w]): bytes, and which of them a record has
    total = np.zeros(n, np.int64)
    for key in sorted(schema):
        entry, size = _entry(key, arrays[key].reshape(n, schema[key][1]), schema[key][0])
        columns += entry
        total += size
    columns.insert(0, _always(total.astype("<u8")[:, None].view(np.uint8)))
    bytes_ = np.concatenate(
        [np.broadcast_to(each, (n, each.shape[1])) for each, _ in columns], axis=1
    )  # [n, W]
    used = np.concatenate([np.broadcast_to(each, (n, each.shape[1])) for _, each in columns], axis=1)
    return bytes_[used].tobytes(), np.concatenate([[0], np.cumsum(total + FRAME.size)])


def _entry(key, values, kind):
    """An entry of the map as columns, and its size in bytes, int64 [n]."""
    packed, used = _varints(values) if kind == "int32" else _always(values.astype("<f4").view(np.uint8))
    size = np.broadcast_to(used.sum(axis=1), len(values)).astype(np.int64)
    columns = [(packed, used)]
    name = key.encode()
    for before in (b"\n", TAGS[kind], b"\n" + bytes([len(name)]) + name + b"\x12", b"\n"):  # from inside out
        length = _varints(size[:, None])
        columns = [_constant(before), length, *columns]
        size = size + len(before) + length[1].sum(axis=1)
    return columns, size


def _constant(text):
    return _always(np.frombuffer(text, np.uint8)[None])


def _always(array):
    return array, np.ones(array.shape, bool)


def _varints(values):
    """Whole numbers [n, m] as varints: uint8 [n, m * w], and which of these bytes are in use."""
    left = values.astype(np.int64).view(np.uint64)  # a negative number takes ten bytes
    pieces, used = [], []
    while not pieces or left.any():
        used.append((left > 0) if pieces else np.ones(left.shape, bool))
        more = left >> np.uint64(7)
        pieces.append((left & np.uint64(127)).astype(np.uint8) | ((more > 0).astype(np.uint8) << 7))
        left = more
    shape = (len(values), -1)
    return np.stack(pieces, axis=2).reshape(shape), np.stack(used, axis=2).reshape(shape)


# --------------------------------------------------------------------------------------- decoding


def frame_starts(data):
    """Where each frame of a part starts, and the end of the last, int64 [n + 1].
    NotCanonical: it ends inside a frame.
    """
    starts, offset, size = [0], 0, len(data)
    while offset < size:
        if size - offset < FRAME.size:
            raise NotCanonical
        offset += FRAME.size + FRAME.unpack_from(data, offset)[0]
        starts.append(offset)
    if offset != size:
        raise NotCanonical
    return np.array(starts, np.int64)


def decode_block(data, starts, schema):
    """The records of frames that lie one after the other, {key: [n, length]}.

    Args:
        data: their bytes; starts: int64 [n + 1], rising.
    Raises:
        NotCanonical: they are not, byte for byte, what `encode_block` writes.
    """
    reader = _Reader(np.frombuffer(data, np.uint8), starts)
    arrays = {}
    for key in sorted(schema):
        kind, length = schema[key]
        reader.enter(key, kind)
        arrays[key] = reader.varints(length) if kind == "int32" else reader.floats(length)
    reader.check(reader.at == starts[1:])
    return arrays


class _Reader:
    """A place in each of n frames, moved on in all of them at once."""

    def __init__(self, data, starts):
        self.data, self.last = data, len(data) - 1
        self.stop = starts[1:]
        self.check(self.stop - starts[:-1] > FRAME.size)
        heads = self._bytes(starts[:-1], FRAME.size).view("<u8")[:, 0]
        self.check(heads == (self.stop - starts[:-1] - FRAME.size).astype(np.uint64))
        self.at = starts[:-1] + FRAME.size  # [n]

    @staticmethod
    def check(holds):
        if not holds.all():
            raise NotCanonical

    def _bytes(self, at, count):
        """`count` bytes of each frame, uint8 [n, count]; those behind the end of the data are its last."""
        return self.data[np.minimum(at[:, None] + np.arange(count), self.last)]

    def expect(self, text):
        self.check(self._bytes(self.at, len(text)) == np.frombuffer(text, np.uint8))
        self.at = self.at + len(text)

    def length(self):
        """The varint here, of at most 4 bytes and no more than it needs, int64 [n]."""
        bytes_ = self._bytes(self.at, 4).astype(np.int64)
        width = 1 + (bytes_ < 128).argmax(axis=1)
        inside = np.arange(4) < width[:, None]
        value = (((bytes_ & 127) << (7 * np.arange(4))) * inside).sum(axis=1)
        final = bytes_[np.arange(len(bytes_)), width - 1]
        self.check((final < 128) & ((width == 1) | (final > 0)))
        self.at = self.at + width
        return value

    def enter(self, key, kind):
        """Goes on to the values of the next entry, whose end is `self.end`."""
        name = key.encode()
        self.end = None
        for before in (b"\n", b"\n" + bytes([len(name)]) + name + b"\x12", TAGS[kind], b"\n"):
            self.expect(before)
            length = self.length()
            if self.end is None:
                self.end = self.at + length
                self.check(self.end <= self.stop)
            self.check(self.at + length == self.end)
        self.check(self.end > self.at)

    def floats(self, length):
        self.check(self.end - self.at == 4 * length)
        values = self._bytes(self.at, 4 * length).view("<f4")
        self.at = self.end
        return values

    def varints(self, length):
        """Exactly `length` varints that fill the entry, as int32 [n, length]."""
        sizes = self.end - self.at
        if (sizes == length).all():  # a byte each
            values = self._bytes(self.at, length)
            self.check(values < 128)
            self.at = self.end
            return values.astype(np.int32)
        first = np.cumsum(sizes) - sizes  # of each frame among all bytes of this entry
        bytes_ = self.data[np.repeat(self.at - first, sizes) + np.arange(sizes.sum())]
        last = bytes_ < 128  # of its varint
        self.check(last[first + sizes - 1])
        self.check(np.add.reduceat(last, first, dtype=np.int64) == length)
        self.at = self.end
        return _join_varints(bytes_, np.flatnonzero(last)).reshape(-1, length)


def _join_varints(bytes_, last):
    """The int32 values of varints that follow each other; `last` says where each ends."""
    begin = np.concatenate([[0], last[:-1] + 1])
    width = last - begin + 1
    if width.max() > 10:
        raise NotCanonical
    _Reader.check((width == 1) | (bytes_[last] > 0))
    values = (bytes_[begin] & 127).astype(np.uint64)
    for k in range(1, int(width.max())):
        longer = np.flatnonzero(width > k)
        piece = bytes_[begin[longer] + k]
        if k == 9:
            _Reader.check(piece == 1)  # the 64th bit, and none beyond it
        values[longer] |= (piece & 127).astype(np.uint64) << np.uint64(7 * k)
    signed = values.view(np.int64)
    _Reader.check((signed >= -(2**31)) & (signed < 2**31))
    return signed.astype(np.int32)
