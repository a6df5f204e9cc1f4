"""Records in numpy: the bytes of protobuf and no others, decoded to the same values or refused."""

import numpy as np
import pytest

from data.store.layout import NotCanonical, decode_block, encode_block, frame_starts
from data.store.ofrecord import decode_record, encode_frame

SCHEMA = {"ids": ("int32", 5), "idxs": ("int32", 1), "weights": ("float32", 2)}


def make_arrays(n, low, high, seed=0):
    stream = np.random.default_rng(seed)
    ids = stream.integers(low, high, (n, 5)).astype(np.int32)
    return {
        "ids": ids,
        "idxs": np.arange(n, dtype=np.int32),
        "weights": stream.normal(size=(n, 2)).astype("<f4"),
    }


@pytest.mark.parametrize("low, high", [(0, 2), (0, 128), (0, 129), (0, 30522), (0, 2**31), (-(2**31), 2**31)])
def test_encoded_as_protobuf_does_and_decoded_to_the_same_values(low, high):
    """Small, large and negative numbers: the frames are those of protobuf in turn, and come back."""
    arrays = make_arrays(300, low, high)
    data, starts = encode_block(arrays, SCHEMA)
    frames = [encode_frame({key: array[i] for key, array in arrays.items()}, SCHEMA) for i in range(300)]
    assert data == b"".join(frames)
    assert (
        np.array_equal(starts, frame_starts(data))
        and starts[1:].tolist() == np.cumsum([*map(len, frames)]).tolist()
    )
    for key, array in decode_block(data, starts, SCHEMA).items():
        assert (
            array.dtype == arrays[key].dtype
            and array.tobytes() == np.ascontiguousarray(arrays[key]).tobytes()
        )


def test_what_is_decoded_would_be_encoded_to_the_same_bytes():
    """Each bit, flipped: refused, or the bytes of the values that come out. So no two files give the same
    records.
    """
    data, starts = encode_block(make_arrays(4, 0, 30522), SCHEMA)
    changed, read = bytearray(data), 0
    for bit in range(8 * len(data)):
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = decode_block(bytes(changed), frame_starts(changed), SCHEMA)
        except NotCanonical:
            pass
        else:
            read += 1
            assert encode_block(found, SCHEMA)[0] == bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8
    assert 0 < read < 8 * len(data)


def test_other_ways_to_write_the_same_values_are_refused():
    """protobuf reads them all: a number in more bytes than it needs, entries in another order, an unknown
    field.
    """
    (frame,) = [encode_frame({"ids": [1] * 5, "idxs": [3], "weights": [1, 2]}, SCHEMA)]
    message = frame[8:]
    assert message.count(b"\x01\x03") == 1
    longer = message.replace(b"\x01\x03", b"\x02\x83\x00").replace(
        b'\n\x0d\n\x04idxs\x12\x05"\x03\n\x02', b'\n\x0e\n\x04idxs\x12\x06"\x04\n\x02'
    )
    first = len(message) - len(message[message.index(b"\n\x0d\n\x04idxs") :])
    turned = message[first:] + message[:first]
    more = message + b"\x18\x01"
    for other in (longer, turned, more):
        decode_record(other, SCHEMA)
        data = len(other).to_bytes(8, "little") + other
        with pytest.raises(NotCanonical):
            decode_block(data, frame_starts(data), SCHEMA)
