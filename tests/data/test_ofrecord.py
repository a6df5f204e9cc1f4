"""Framed files of OFRecords: what is written comes back, OneFlow reads the same, and what is broken is told
with its place.
"""

import hashlib
import struct

import numpy as np
import pytest
from protobuf_parts import read_part, write_parts

from data.engine import load_oneflow
from data.store.files import write_json
from data.store.layout import FRAME
from data.store.manifest import read_manifest
from data.store.ofrecord import (
    OFRecord,
    encode_record,
    open_part,
)
from util import UserError

T = 5
SCHEMA = {
    "input_ids": ("int32", T),
    "label": ("int32", 1),
    "weights": ("float32", 1),
    "attention": ("bytes", None),
}
NUMBERS = {key: kind for key, kind in SCHEMA.items() if kind[0] != "bytes"}
REMEDY = "write it again"
GROUP = "ignore:Unexpected end-group tag"  # protobuf's warning of some broken messages, which it reads half


def make_records(count, seed=0):
    """Records of every kind, with the extremes of int32 and float32 among them."""
    stream = np.random.default_rng(seed)
    records = [
        {
            "input_ids": stream.integers(-(2**31), 2**31, T).astype(np.int32),
            "label": np.array([i], np.int32),
            "weights": stream.normal(size=1).astype(np.float32),
            "attention": stream.bytes(int(stream.integers(0, 9))),
        }
        for i in range(count)
    ]
    records[0]["input_ids"][:4] = -(2**31), 2**31 - 1, -1, 0
    records[-1]["weights"][0] = np.finfo(np.float32).tiny / 4  # a denormal number
    return records


def assert_same(found, expected):
    """Two lists of records are equal, bit for bit."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for key in a:
            assert np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes() and np.shape(
                a[key]
            ) == np.shape(b[key])


def read_all(folder, parts, schema=SCHEMA):
    return [record for part in parts for record in read_part(folder / part["file"], schema, REMEDY, part)]


@pytest.mark.parametrize("part_size", [1, 3, 7, 100])
def test_round_trip(tmp_path, part_size):
    """What is written comes back, in order, whatever the size of the parts, and the list of parts tells the
    truth.
    """
    records = make_records(7)
    parts = write_parts(tmp_path, "train", records, SCHEMA, part_size)
    assert_same(read_all(tmp_path, parts), records)
    assert [part["file"] for part in parts] == [f"train.of_record-{k}" for k in range(-(-7 // part_size))]
    assert sum(part["count"] for part in parts) == 7 and max(part["count"] for part in parts) == min(
        part_size, 7
    )
    for part in parts:
        data = (tmp_path / part["file"]).read_bytes()
        assert (part["bytes"], part["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_same_values_are_the_same_bytes():
    """The bytes of a record do not depend on the order of its keys or on the types that hold its values."""
    record = make_records(1)[0]
    turned = {
        key: value if key == "attention" else value.tolist() for key, value in reversed(list(record.items()))
    }
    assert encode_record(record, SCHEMA) == encode_record(turned, dict(reversed(list(SCHEMA.items()))))


def test_oneflow_reads_the_same(tmp_path):
    """OneFlow's own OFRecordReader and OFRecordRawDecoder read the same parts to the same values, int32 and
    float32.
    """
    flow, records = load_oneflow(), make_records(6)
    parts = write_parts(tmp_path, "train", records, SCHEMA, 2)
    reader = flow.nn.OFRecordReader(
        str(tmp_path),
        batch_size=6,
        data_part_num=len(parts),
        part_name_prefix="train.of_record-",
        random_shuffle=False,
        shuffle_after_epoch=False,
    )
    batch = reader()
    for key, (kind, length) in NUMBERS.items():
        found = flow.nn.OFRecordRawDecoder(key, shape=(length,), dtype=getattr(flow, kind))(batch).numpy()
        assert (
            found.dtype == kind and found.tobytes() == np.stack([record[key] for record in records]).tobytes()
        )


def test_wrong_records_are_not_written(tmp_path):
    """A record with other keys or lengths than the schema's is refused before it is written."""
    record = make_records(1)[0]
    lacking = {key: value for key, value in record.items() if key != "label"}
    for wrong in (
        lacking,
        {**record, "more": [1]},
        {**record, "input_ids": [1] * (T + 1)},
        {**record, "weights": []},
    ):
        with pytest.raises(ValueError):
            encode_record(wrong, SCHEMA)


@pytest.mark.filterwarnings(GROUP)
def test_wrong_records_are_not_read(tmp_path):
    """Other keys, kinds and lengths than the schema's are told by the file and the byte at which the record
    begins.
    """
    good, path = encode_record(make_records(1)[0], SCHEMA), tmp_path / "x.of_record-0"

    def changed(change):
        record = OFRecord.FromString(good)
        change(record.feature)
        return record.SerializeToString()

    faults = {
        changed(lambda feature: feature.pop("label")): "keys attention, input_ids, weights",
        changed(
            lambda feature: feature["more"].int32_list.value.append(1)
        ): "keys attention, input_ids, label, more, weights",
        changed(
            lambda feature: feature["label"].float_list.value.append(1)
        ): "'label' as float_list, expected int32_list",
        changed(lambda feature: feature["label"].Clear()): "'label' as nothing, expected int32_list",
        changed(
            lambda feature: feature["input_ids"].int32_list.value.pop()
        ): f"'input_ids' with {T - 1} values, expected {T}",
        changed(
            lambda feature: feature["weights"].float_list.value.append(1)
        ): "'weights' with 2 values, expected 1",
        changed(
            lambda feature: feature["attention"].bytes_list.value.append(b"")
        ): "'attention' with 2 strings",
        b"\xff" * 9: "something that is no OFRecord",
        good + b"\x0c" + good: "something that is no OFRecord",  # the end of a group that never began
    }
    for message, words in faults.items():
        path.write_bytes(FRAME.pack(len(good)) + good + FRAME.pack(len(message)) + message)
        with pytest.raises(
            UserError, match=f"x.of_record-0: byte {8 + len(good)}: found .*{words}.*: write it again"
        ):
            list(read_part(path, SCHEMA, REMEDY))


def test_every_cut_is_told(tmp_path):
    """A part cut anywhere: inside a record by the framing alone, at its end by what the manifest says of the
    part.
    """
    (part,) = write_parts(tmp_path, "x", make_records(3), SCHEMA)
    path, ends, offset = tmp_path / part["file"], [0], 0
    data = path.read_bytes()
    while offset < len(data):
        offset += 8 + FRAME.unpack_from(data, offset)[0]
        ends.append(offset)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=f"found {cut} bytes, expected {len(data)}"):
            list(read_part(path, SCHEMA, REMEDY, part))
        if cut in ends:
            assert len(list(read_part(path, SCHEMA, REMEDY))) == ends.index(cut)
        else:
            start = max(end for end in ends if end <= cut)
            with pytest.raises(UserError, match=f"byte {start}: found"):
                list(read_part(path, SCHEMA, REMEDY))


def test_a_lost_record_is_told_though_size_and_hash_fit(tmp_path):
    """The manifest's count is checked for itself."""
    (part,) = write_parts(tmp_path, "x", make_records(3), SCHEMA)
    with pytest.raises(UserError, match="found 3 records, expected 4"):
        list(read_part(tmp_path / part["file"], SCHEMA, REMEDY, {**part, "count": 4}))


@pytest.mark.filterwarnings(GROUP)
def test_every_flipped_bit_is_told(tmp_path):
    """Each bit of a part, flipped: a UserError with the manifest; without it a UserError or other values,
    never a crash.
    """
    (part,) = write_parts(tmp_path, "x", make_records(2), SCHEMA)
    path = tmp_path / part["file"]
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match="found SHA-256"):
            list(read_part(path, SCHEMA, REMEDY, part))
        try:
            list(read_part(path, SCHEMA, REMEDY))
        except UserError as error:
            assert "x.of_record-0: byte " in str(error)


@pytest.mark.parametrize("length", [0, 10, 2**40, 2**63, 2**64 - 1])
def test_absurd_lengths_are_told(tmp_path, length):
    """A length of 0, or of more than is left, is a fault and takes no memory."""
    path = tmp_path / "x.of_record-0"
    path.write_bytes(struct.pack("<Q", length) + b"123")
    with pytest.raises(UserError, match=f"byte 0: found a record of {length} bytes where 3 are left"):
        list(read_part(path, SCHEMA, REMEDY))


def test_what_is_no_file_is_not_opened(tmp_path):
    """A missing part, a folder and a symbolic link in its place are told, though the link leads to a good
    part.
    """
    (part,) = write_parts(tmp_path, "x", make_records(2), SCHEMA)
    (tmp_path / "link").symlink_to(tmp_path / part["file"])
    (tmp_path / "folder").mkdir()
    for name, words in (("none", "nothing"), ("link", "a symbolic link"), ("folder", "something else")):
        with pytest.raises(
            UserError, match=f"{name}: found {words}, expected a file of records: write it again"
        ):
            open_part(tmp_path / name, REMEDY, part)


def manifest_of(parts, **more):
    return {
        "format": "one",
        "task": "t",
        "count": sum(part["count"] for part in parts),
        "parts": parts,
        **more,
    }


def open_manifest(folder):
    return read_manifest(folder, "one", {"task": "a text"}, "x", "the manifest of the test", REMEDY)


def test_the_manifest_is_checked(tmp_path):
    """Another format, wrong types, part names that are not those of the parts in order, and counts that do
    not add up.
    """
    parts = write_parts(tmp_path, "x", make_records(4), SCHEMA, 2)
    good = manifest_of(parts)
    write_json(tmp_path / "manifest.json", good)
    assert open_manifest(tmp_path) == good
    first, second = parts
    faults = [
        ({"format": "two"}, "found format 'two', expected 'one'"),
        ({"format": None}, "found format None"),
        ({"task": 1}, "found 1 as 'task', expected a text"),
        ({"task": ""}, "found \"\" as 'task'"),
        ({"count": -1}, "found -1 as 'count', expected a count"),
        ({"count": True}, "found true as 'count'"),
        ({"count": 4.0}, "found 4.0 as 'count'"),
        ({"count": 5}, "parts of 4 records in all, expected 5"),
        ({"parts": []}, "as 'parts', expected a list of parts"),
        ({"parts": {}}, "as 'parts'"),
        ({"parts": [None]}, "as 'parts'"),
        ({"parts": [second, first]}, "found the part 'x.of_record-1', expected 'x.of_record-0'"),
        ({"parts": [first, first]}, "expected 'x.of_record-1'"),
    ]
    for name in (
        "../x.of_record-0",
        "/etc/passwd",
        "x.of_record-00",
        "./x.of_record-0",
        "y.of_record-0",
        "x.of_record-0\0",
    ):
        faults.append(
            ({"parts": [{**first, "file": name}, second]}, "expected 'x.of_record-0': write it again")
        )
    for wrong in (
        {"count": 0},
        {"count": "2"},
        {"bytes": -1},
        {"bytes": 1.5},
        {"sha256": "0" * 63},
        {"file": 3},
        {"y": 1},
    ):
        faults.append(({"parts": [{**first, **wrong}, second]}, "as 'parts', expected a list of parts"))
    for change, words in faults:
        write_json(tmp_path / "manifest.json", {**good, **change})
        with pytest.raises(UserError) as error:
            open_manifest(tmp_path)
        assert words in str(error.value) and str(error.value).endswith(": write it again.")
    for text in ("", "[]", "{", '{"a": NaN', "\xff"):
        (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="write it again"):
            open_manifest(tmp_path)


def test_missing_and_stray(tmp_path):
    """A missing manifest, a key that it lacks, and a part that it does not name are told; other files are no
    concern of it.
    """
    with pytest.raises(UserError, match="manifest.json: the manifest of the test is missing: write it again"):
        open_manifest(tmp_path)
    parts = write_parts(tmp_path, "x", make_records(2), SCHEMA)
    write_json(tmp_path / "manifest.json", manifest_of(parts))
    (tmp_path / "notes.txt").write_text("mine")
    open_manifest(tmp_path)
    (tmp_path / "x.of_record-1").write_bytes((tmp_path / "x.of_record-0").read_bytes())
    with pytest.raises(UserError, match="x.of_record-1: found a part that the manifest does not name"):
        open_manifest(tmp_path)
    (tmp_path / "x.of_record-1").unlink()
    write_json(
        tmp_path / "manifest.json", {key: value for key, value in manifest_of(parts).items() if key != "task"}
    )
    with pytest.raises(UserError, match="found nothing as 'task'"):
        open_manifest(tmp_path)


def test_a_key_with_a_line_end_is_told_on_one_line(tmp_path):
    """Whatever the keys of a strange record are called, the sentence has one line and an end."""
    for key in ("a\nb", "x" * 100_000, "\u2028"):
        record, path = OFRecord(), tmp_path / "x.of_record-0"
        record.feature[key].int32_list.value.append(1)
        message = record.SerializeToString()
        path.write_bytes(FRAME.pack(len(message)) + message)
        with pytest.raises(UserError) as error:
            list(read_part(path, SCHEMA, REMEDY))
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000
