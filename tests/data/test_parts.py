"""Parts in the making: done or not, unchanged or not, of the same plan or not."""

import os

import numpy as np

from data.batches import Examples
from data.store.parts import PartsFolder, windows
from data.store.temporary import new_path


def begun(folder, plan=(1,)):
    parts = PartsFolder(folder / "making", "train", {"of": plan})
    parts.begin()
    return parts


def test_a_part_is_there_when_it_is_whole(tmp_path):
    """What was put is got, with its facts; a part that was cut, changed, or has no note, and one that was
    never put, are not there.
    """
    parts = begun(tmp_path)
    for number in range(4):
        parts.put(number, b"abcd" * number, count=number)
    assert (
        parts.get(3)[0] == b"abcdabcdabcd"
        and parts.get(3)[1]["count"] == 3
        and parts.get(0)[0] == b""
        and parts.get(4) is None
    )
    folder = parts.folder
    (folder / "train.of_record-3").write_bytes(b"abcdabcdabce")
    (folder / "train.of_record-2").write_bytes(b"abcd")
    (folder / ".train.of_record-1.json").write_text("{")
    assert [parts.get(number) is None for number in range(4)] == [False, True, True, True]


def test_a_later_run_goes_on_with_parts_of_its_own_plan_alone(tmp_path):
    """Begun again, the folder keeps what is done and drops halves; another plan, or none that can be read,
    empties it.
    """
    parts = begun(tmp_path)
    parts.put(0, b"x")
    new_path(parts.folder).write_bytes(b"half")
    assert begun(tmp_path).get(0)[0] == b"x" and not list(parts.folder.glob("*.tmp"))
    assert begun(tmp_path, plan=(2,)).get(0) is None
    parts.put(0, b"x")
    (parts.folder / ".plan.json").write_text("")
    assert begun(tmp_path).get(0) is None


def test_what_is_closed_or_removed_leaves_no_trace(tmp_path):
    """`close` leaves the parts alone, `remove` nothing."""
    parts = begun(tmp_path)
    parts.put(0, b"x")
    parts.close()
    assert os.listdir(parts.folder) == ["train.of_record-0"]
    parts.remove()
    assert os.listdir(tmp_path) == []


def test_windows_cut_blocks_and_lose_nothing():
    """Blocks of 5, 2 and 0 records in windows of 2: 2, 2, 1, 2, in order."""
    blocks = [examples(range(start, start + n)) for start, n in ((0, 5), (5, 2), (7, 0))]
    pieces = list(windows(blocks, 7, 2))
    assert [len(piece) for piece in pieces] == [2, 2, 1, 2]
    assert np.concatenate([piece["idxs"] for piece in pieces]).tolist() == list(range(7))


def test_many_examples_are_cut_into_larger_pieces():
    """Beyond 256 pieces they are four times as large: readers keep every part open."""
    block = examples(range(513))
    assert len(list(windows([block], 512, 2))) == 257 and len(list(windows([block], 513, 2))) == 65


def examples(numbers):
    idxs, tokens = np.array(numbers, int), np.ones((len(numbers), 3), np.int32)
    columns = dict.fromkeys(("domain", "label", "idxs", "weights"), idxs)
    return Examples.of_arrays(
        {**columns, **dict.fromkeys(("input_ids", "input_mask", "segment_ids"), tokens)}
    )
