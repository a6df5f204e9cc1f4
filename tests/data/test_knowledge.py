"""The teacher's knowledge: float16 maps of real tokens on disk, read in any order, told apart by teacher and
records.
"""

import hashlib
import json
import math
import os
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
from fuzz import WRONG, with_value

from data.engine import load_oneflow
from data.selection import Selection
from data.store import knowledge_format as module
from data.store.files import write_json
from data.store.knowledge import Knowledge, knowledge_folder
from data.store.knowledge_format import check_space, expected_sizes
from data.store.knowledge_writer import KnowledgeWriter
from data.store.layout import FRAME
from data.store.ofrecord import OFRecord
from util import UserError

L, A, M, H = 3, 2, 2, 4
FACTS = {
    "teacher_sha256": "a" * 64,
    "content_sha256": "b" * 64,
    "layers": [2, 4, 6],
    "width": H,
    "attention_heads": "mean",
    "hidden_states": False,
    "domain_feature": True,
    "precision": "float16",
}
IDXS = [0, 2, 3, 7, 300, 301]  # not every example is among those chosen
KINDS = {
    "mean": {},
    "all heads": {"heads": A},
    "mean and hidden": {"hidden": True},
    "all of it": {"heads": A, "hidden": True},
}


def make_items(idxs=IDXS, heads=None, hidden=False, seed=0):
    """Knowledge of examples of 3 to 6 tokens, as the teacher would give it."""
    stream, items = np.random.default_rng(seed), []
    for number in idxs:
        n = int(stream.integers(3, 7))
        vectors = {
            key: stream.normal(size=size).astype(np.float32)
            for key, size in (("logits", M), ("representation", H), ("domain_feature", H))
        }
        shape = (L, n, n) if heads is None else (L, heads, n, n)
        items.append(
            {
                "idxs": number,
                **vectors,
                "attention": 5 * stream.normal(size=shape).astype(np.float32),
                "hidden": stream.normal(size=(L, n, H)).astype(np.float32) if hidden else None,
            }
        )
    return items


def write(folder, items, part_size=4):
    first = items[0] if items else {"attention": np.zeros((L, 1, 1)), "hidden": None}
    heads = "mean" if first["attention"].ndim == 3 else first["attention"].shape[1]
    writer = KnowledgeWriter(
        folder, {**FACTS, "attention_heads": heads, "hidden_states": first["hidden"] is not None}
    )
    writer.begin()
    starts = range(0, len(items), part_size)
    for number, start in enumerate(starts):
        writer.write(number, items[start : start + part_size])
    writer.finish(len(starts))
    return Knowledge(folder)


def assert_knows(found, item):
    """What is read is what was written: vectors bit for bit, maps rounded to float16."""
    assert found["idxs"] == item["idxs"]
    for key in ("logits", "representation", "domain_feature"):
        assert found[key].dtype == np.float32 and np.array_equal(found[key], item[key])
    for key in ("attention", "hidden"):
        assert (key in found) == (item[key] is not None)
        if key in found:
            assert found[key].dtype == np.float16 and np.array_equal(found[key], item[key].astype(np.float16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part_size", [1, 4, 100])
def test_round_trip_in_any_order(tmp_path, kind, part_size):
    """Every example, in any order and more than once, is what was written, with n read from the bytes."""
    items = make_items(**KINDS[kind])
    knowledge = write(tmp_path / "k", items, part_size)
    assert len(knowledge) == len(items) and knowledge.idxs.tolist() == IDXS
    for order in ([0, 1, 2, 3, 4, 5], [5, 0, 3], [4, 4], [2]):
        for found, row in zip(knowledge.read(np.array([IDXS[row] for row in order])), order):
            assert_knows(found, items[row])
    knowledge.close()


def test_the_files(tmp_path):
    """Parts, offsets and manifest say the same: each offset leads to the frame of its idxs, and the hash is
    the file's.
    """
    items, folder = make_items(), tmp_path / "k"
    write(folder, items)
    manifest, offsets = json.loads((folder / "manifest.json").read_text()), np.load(folder / "offsets.npy")
    assert offsets.dtype == np.int64 and offsets[:, 0].tolist() == IDXS
    for number, part, start in offsets:
        data = (folder / f"knowledge.of_record-{part}").read_bytes()[start:]
        record = OFRecord.FromString(data[FRAME.size : FRAME.size + FRAME.unpack_from(data)[0]]).feature
        assert record["idxs"].int32_list.value[:] == [number]
        item = items[IDXS.index(number)]
        assert record["attention"].bytes_list.value[0] == item["attention"].astype("<f2").tobytes()
    assert manifest["offsets_sha256"] == hashlib.sha256((folder / "offsets.npy").read_bytes()).hexdigest()
    assert (
        FACTS.items() <= manifest.items()
        and manifest["format"] == "meta-kd-knowledge-1"
        and manifest["count"] == len(IDXS)
    )


def test_twice_the_same_bytes(tmp_path):
    """The same knowledge written twice is the same files, byte for byte."""
    for name in "ab":
        write(tmp_path / name, make_items())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_oneflow_reads_knowledge(tmp_path):
    """OneFlow's own reader and decoder read the vectors of the knowledge to the same values."""
    flow, items = load_oneflow(), make_items()
    write(tmp_path / "k", items)
    reader = flow.nn.OFRecordReader(
        str(tmp_path / "k"), batch_size=6, data_part_num=2, part_name_prefix="knowledge.of_record-"
    )
    batch = reader()
    for key, length in (("logits", M), ("representation", H), ("domain_feature", H)):
        found = flow.nn.OFRecordRawDecoder(key, shape=(length,), dtype=flow.float32)(batch).numpy()
        assert np.array_equal(found, np.stack([item[key] for item in items]))


@pytest.mark.parametrize("kind", KINDS)
def test_expected_sizes_add_up(tmp_path, kind):
    """The size said beforehand is that of parts and offsets, or at most 64 bytes an example more."""
    items = make_items(range(40), **KINDS[kind])
    write(tmp_path / "k", items, 7)
    found = sum(path.stat().st_size for path in (tmp_path / "k").glob("*.of_record-*")) + 24 * len(items)
    expected = sum(
        expected_sizes([item["attention"].shape[-1] for item in items], L, M, H, **KINDS[kind]).values()
    )
    assert found <= expected <= found + 64 * len(items)


def test_the_default_fits_the_promise():
    """At most 120 KB an example of 128 tokens, with 3 layers, a mean over heads and vectors of 768."""
    assert sum(expected_sizes([128], 3, 2, 768).values()) < 120_000


def test_space(tmp_path, monkeypatch):
    """A disk with too little room is told before anything is written; the folder need not exist yet."""
    check_space(tmp_path / "a" / "b", 10)
    asked = []
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=3_000_000)
    )
    with pytest.raises(UserError, match="found 3 MB free on this disk, expected 4 MB"):
        check_space(tmp_path / "a" / "b", 4_000_000)
    assert asked == [tmp_path]


def test_where_it_lies(tmp_path):
    """The folder is that of the flag, or named by the start of the teacher's hash."""
    assert knowledge_folder("records", "0123456789abcdef") == pathlib.Path("records/knowledge-0123456789ab")
    assert knowledge_folder("records", "0123456789abcdef", "there") == pathlib.Path("there")


# --------------------------------------------------------------------------------------- what is refused


def test_another_teacher_or_other_records(tmp_path):
    """`require` passes what the manifest says, and tells another teacher, other records and anything else,
    found and expected.
    """
    knowledge = write(tmp_path / "k", make_items())
    knowledge.require(**FACTS)
    faults = [
        (
            {"teacher_sha256": "c" * 64},
            "of another teacher .teacher_sha256 a{12}[.]{3}., expected c{12}[.]{3}",
        ),
        ({"content_sha256": "c" * 64}, "of other records .content_sha256 b{12}[.]{3}"),
        ({"layers": [4, 6]}, r"made otherwise .layers \[2, 4, 6\]., expected \[4, 6\]"),
        ({"heads": "all"}, "made otherwise .heads None., expected 'all'"),
    ]
    for facts, words in faults:
        with pytest.raises(UserError, match=f"found knowledge {words}.*run meta_teacher_eval.py"):
            knowledge.require(**facts)


@pytest.mark.parametrize("idxs", [[1], [0, 302], [-1], [0, 2, 4]])
def test_an_example_without_knowledge(tmp_path, idxs):
    """Asking for an example that stage 3 did not see is told by its number, before anything is read.

    Every flag that decides which examples there are is named.
    """
    knowledge = write(tmp_path / "k", make_items())
    missing = next(number for number in idxs if number not in IDXS)
    with pytest.raises(
        UserError, match=f"no knowledge of 1 examples, the first being number {missing}: run meta_teacher"
    ) as caught:
        knowledge.read(np.array(idxs))
    told = set(re.findall(r"--(\w+)", str(caught.value)))
    assert told == set(Selection._fields) - {"eval_example_num"}  # of dev, which stage 3 does not read


@pytest.mark.parametrize("key", ["logits", "representation", "domain_feature", "attention", "hidden"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_written(tmp_path, key, value):
    """A teacher with infinite or undefined outputs is refused, and no folder appears."""
    items = make_items(hidden=True)
    items[2][key].flat[-1] = value
    with pytest.raises(UserError, match=f"in {key} of example 3, expected finite"):
        write(tmp_path / "k", items)
    assert not (tmp_path / "k").exists()


def test_scores_beyond_float16_are_not_written(tmp_path):
    """A score that float16 would turn into infinity is refused; the largest that it holds is kept."""
    items = make_items()
    items[0]["attention"].flat[0] = -65504
    assert write(tmp_path / "k", items).read([0])[0]["attention"].flat[0] == -65504
    items[1]["attention"].flat[0] = -70000
    with pytest.raises(
        UserError, match="found 70000.0 in attention of example 2, expected finite numbers up to 65504"
    ):
        write(tmp_path / "k", items)


def test_items_that_do_not_fit_together(tmp_path):
    """Other shapes than the first example's, an order that does not rise, and no example at all are
    programming errors.
    """
    good, other = make_items(), make_items(heads=A, hidden=True)[1]
    faults = [
        good[::-1],
        [good[0], good[0]],
        [good[0], other],
        [good[0], {**good[1], "logits": np.ones(M + 1, np.float32)}],
        [good[0], {**good[1], "attention": np.ones((L, 4, 5), np.float32)}],
        [],
    ]
    for items in faults:
        with pytest.raises(ValueError):
            write(tmp_path / "k", items)
        assert not (tmp_path / "k").exists()


def test_a_writer_that_is_stopped_leaves_what_was_there_and_is_gone_on_with(tmp_path):
    """The previous knowledge stays readable while another is written; a second writer of the same facts finds
    the parts that are done.
    """
    items, later = make_items(), make_items(seed=1)
    knowledge = write(tmp_path / "k", items)
    stopped = KnowledgeWriter(tmp_path / "k", FACTS)
    stopped.begin()
    stopped.write(1, later[4:])
    assert_knows(Knowledge(tmp_path / "k").read([7])[0], items[3])
    writer = KnowledgeWriter(tmp_path / "k", FACTS)
    writer.begin()
    assert writer.has(1) and not writer.has(0)
    with pytest.raises(UserError, match="part 0 is missing"):
        writer.finish(2)
    writer.write(0, later[:4])
    writer.finish(2)
    assert_knows(knowledge.read([7])[0], items[3])  # opened before: still what it was
    assert_knows(Knowledge(tmp_path / "k").read([7])[0], later[3])
    assert os.listdir(tmp_path) == ["k"] and not list((tmp_path / "k").glob(".*"))


@pytest.mark.parametrize("name", ["knowledge.of_record-0", "offsets.npy"])
def test_every_flipped_bit_is_told(tmp_path, name):
    """Each single bit of a part and of the offsets, flipped, is told when the knowledge is opened; so is a
    cut anywhere.
    """
    write(tmp_path / "k", make_items([0, 5]), part_size=1)
    path = tmp_path / "k" / name
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match=f"{name}: found .*run meta_teacher_eval.py"):
            Knowledge(tmp_path / "k")
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=f"{name}: found"):
            Knowledge(tmp_path / "k")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "meta-kd-knowledge-2"},
        {"count": 5},
        {"parts": []},
        {"offsets_sha256": "c" * 64},
        {"shapes": 1},
        {"shapes": {}},
        {
            "shapes": {
                "logits": [M],
                "representation": [H],
                "domain_feature": [H],
                "attention": [],
                "hidden": None,
            }
        },
        {
            "shapes": {
                "logits": [M],
                "representation": [H],
                "domain_feature": [H],
                "attention": [0],
                "hidden": None,
            }
        },
        {
            "shapes": {
                "logits": [M],
                "representation": [H],
                "domain_feature": [H],
                "attention": ["3"],
                "hidden": None,
            }
        },
        {
            "shapes": {
                "logits": 2,
                "representation": [H],
                "domain_feature": [H],
                "attention": [3],
                "hidden": None,
            }
        },
    ],
)
def test_a_changed_manifest_is_told(tmp_path, change):
    """Another version, counts that do not add up, shapes that no knowledge has, another hash."""
    manifest = write(tmp_path / "k", make_items()).manifest
    write_json(tmp_path / "k" / "manifest.json", {**manifest, **change})
    with pytest.raises(UserError, match="run meta_teacher_eval.py"):
        Knowledge(tmp_path / "k")


@pytest.mark.parametrize(
    "shapes, words",
    [
        ({"attention": [L + 4]}, "attention of .* values, expected .7. times a square"),
        ({"attention": [L, 5]}, "attention of .* values, expected .3, 5. times a square"),
        (
            {"hidden": [L, H]},
            "keys attention, domain_feature, idxs, logits, representation, expected .*hidden",
        ),
        ({"logits": [M + 1]}, "'logits' with 2 values, expected 3"),
    ],
)
def test_shapes_that_the_bytes_do_not_have(tmp_path, shapes, words):
    """A manifest whose shapes are possible but not those of the records is told when an example is read."""
    manifest = write(tmp_path / "k", make_items([0, 1])).manifest
    shapes = {**manifest["shapes"], **shapes}
    layers, *heads = shapes["attention"]
    write_json(
        tmp_path / "k" / "manifest.json",
        {
            **manifest,
            "shapes": shapes,
            "layers": list(range(1, layers + 1)),
            "attention_heads": (heads or ["mean"])[0],
            "hidden_states": bool(shapes["hidden"]),
        },
    )
    with pytest.raises(
        UserError, match=f"knowledge.of_record-0: byte 0: found .*{words}.*run meta_teacher_eval.py"
    ):
        Knowledge(tmp_path / "k").read([0])


def forged_offsets(change):
    """A rewriting of offsets.npy whose hash the manifest vouches for."""

    def forge(folder):
        offsets = np.load(folder / "offsets.npy")
        np.save(folder / "offsets.npy", change(offsets))
        manifest = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "offsets.npy").read_bytes()).hexdigest()
        write_json(folder / "manifest.json", {**manifest, "offsets_sha256": digest})

    return forge


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[::-1],
        lambda table: table[:-1],
        lambda table: table[:, :2],
        lambda table: table.astype(float),
        lambda table: table + [0, 1, 0],
        lambda table: table * [1, 0, 1],
        lambda table: table * [1, 1, -1],
        lambda table: table * 0,
        lambda table: table * [1, 1, 10**9],
        lambda table: table - [1, 0, 0],
        lambda table: table[0, 0],
        lambda table: table[:0],
        lambda table: table * [0, 1, 1],
        lambda table: table - [0, 0, 1],
        lambda table: table - [0, 0, 2**62],
    ],
)
def test_offsets_that_do_not_fit(tmp_path, change):
    """Offsets out of order, of other parts, beyond the file or of another kind are told, though their hash
    fits.
    """
    write(tmp_path / "k", make_items())
    forged_offsets(change)(tmp_path / "k")
    with pytest.raises(UserError, match="offsets.npy: found offsets that do not fit to the manifest"):
        Knowledge(tmp_path / "k")


def test_no_pickle_is_read(tmp_path):
    """A planted file of offsets with a pickle in it runs nothing."""

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "planted"),)

    write(tmp_path / "k", make_items())
    forged_offsets(lambda table: np.array([[Planted(), 0, 0]], object))(tmp_path / "k")
    with pytest.raises(UserError, match="offsets.npy: found offsets that do not fit"):
        Knowledge(tmp_path / "k")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "change, words",
    [([0, 0, 1], "byte 1: found a broken frame"), ([1, 0, 0], "byte 0: found example 0, expected 1")],
)
def test_offsets_of_other_frames_are_told_when_read(tmp_path, change, words):
    """Offsets that are possible but lead beside a frame, or to another example, are told by the byte."""
    write(tmp_path / "k", make_items([0, 1, 2]))
    forged_offsets(lambda table: table + change)(tmp_path / "k")
    with pytest.raises(UserError, match=f"knowledge.of_record-0: {words}"):
        Knowledge(tmp_path / "k").read([change[0]])


def test_a_part_cut_after_opening_is_told(tmp_path):
    """A file that shrinks while it is open gives a sentence, not a crash."""
    knowledge = write(tmp_path / "k", make_items())
    os.truncate(tmp_path / "k" / "knowledge.of_record-1", 20)
    with pytest.raises(UserError, match="knowledge.of_record-1: byte 0: found a broken frame"):
        knowledge.read([300])
    assert math.isfinite(knowledge.read([0])[0]["logits"].sum())


def test_wrong_values_of_every_key_of_the_manifest(tmp_path):
    """Each key, in shapes and parts too, with each kind of wrong value, or lacking: told on one line, or the
    same knowledge.
    """
    items = make_items([0, 3], heads=A, hidden=True)
    manifest, path = write(tmp_path / "k", items, part_size=1).manifest, tmp_path / "k" / "manifest.json"
    places = [
        *((key,) for key in manifest),
        *(("shapes", key) for key in manifest["shapes"]),
        *(("parts", 1, key) for key in manifest["parts"][1]),
        ("shapes", "attention", 0),
        ("shapes", "hidden", 0),
        ("shapes", "hidden", 1),
        ("shapes", "logits", 0),
        ("layers", 0),
    ]
    for place in places:
        for wrong in (*WRONG, KeyError):
            path.write_text(json.dumps(with_value(manifest, place, wrong)))
            try:
                knowledge = Knowledge(tmp_path / "k")
                found = knowledge.read([0, 3])
                knowledge.close()
            except UserError as error:
                assert "run meta_teacher_eval.py" in str(error) and len(str(error).splitlines()) == 1
            else:
                for one, item in zip(found, items):
                    assert_knows(one, item)


@pytest.mark.parametrize(
    "head",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000, 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 3), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (6, 3), }",
        "(" * 100,
        "{'descr': '<i8', 'fortran_order': True, 'shape': (6, 3), }",
    ],
)
def test_a_head_of_offsets_that_promises_something_else(tmp_path, head):
    """Terabytes, objects, dates, nonsense, and another order in the head of offsets.npy: told, and no room is
    made for it.
    """
    write(tmp_path / "k", make_items())
    path = tmp_path / "k" / "offsets.npy"
    data, head = path.read_bytes(), head.encode()
    path.write_bytes(data[:10] + head.ljust(117) + b"\n" + data[128:])
    manifest = json.loads((tmp_path / "k" / "manifest.json").read_text())
    write_json(
        tmp_path / "k" / "manifest.json",
        {**manifest, "offsets_sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )
    with pytest.raises(UserError, match="offsets.npy: found offsets that do not fit"):
        Knowledge(tmp_path / "k")


@pytest.mark.parametrize("key", ["logits", "domain_feature", "attention", "hidden"])
def test_values_that_are_not_finite_are_not_believed(tmp_path, monkeypatch, key):
    """Records of a writer that did not look, whole by their hashes: an infinite value or NaN in an example is
    told when it is read.
    """
    monkeypatch.setattr(KnowledgeWriter, "_check_values", lambda *_: None)
    for value in (np.nan, np.inf, -np.inf):
        items = make_items([0, 1], hidden=True)
        items[1][key].flat[-1] = value
        knowledge = write(tmp_path / "k", items)
        assert_knows(knowledge.read([0])[0], items[0])
        with pytest.raises(
            UserError, match="knowledge.of_record-0: byte .*: found values that are not finite"
        ):
            knowledge.read([1])


# --------------------------------------------------------------------------------------- less of it


def write_less(folder, items, layers, vectors):
    items = items if layers else [{**item, "attention": None, "hidden": None} for item in items]
    facts = {**FACTS, "layers": list(layers), "vectors": vectors}
    writer = KnowledgeWriter(folder, facts)
    writer.begin()
    writer.write(0, items)
    writer.finish(1)
    return Knowledge(folder), items


@pytest.mark.parametrize("layers, vectors", [((), "float32"), ((), "float16"), ((2, 4, 6), "float16")])
def test_answers_alone_and_short_vectors(tmp_path, layers, vectors):
    """Without layers there is no attention in it; vectors of float16 come back rounded, in float32; the size
    is what was said.
    """
    knowledge, items = write_less(tmp_path / "k", make_items(range(20)), layers, vectors)
    for found, item in zip(knowledge.read(np.arange(20)), items):
        assert found["logits"].tolist() == item["logits"].tolist() and ("attention" in found) == bool(layers)
        for key in ("representation", "domain_feature"):
            assert found[key].dtype == np.float32
            assert np.array_equal(found[key], item[key].astype(vectors).astype(np.float32))
    found = sum(path.stat().st_size for path in (tmp_path / "k").glob("*.of_record-*")) + 24 * 20
    lengths = [3 if item["attention"] is None else item["attention"].shape[-1] for item in items]
    expected = sum(expected_sizes(lengths, len(layers), M, H, vectors=vectors).values())
    assert found <= expected <= found + 64 * 20


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_read_alone(tmp_path, kind):
    """They are those of whole records, whatever else these hold."""
    knowledge = write(tmp_path / "k", make_items(**KINDS[kind]))
    idxs = np.array([300, 0, 7])
    assert knowledge.logits(idxs).tolist() == [item["logits"].tolist() for item in knowledge.read(idxs)]
    knowledge.prefetch(idxs)


def test_sizes_are_told_by_kind():
    """Attention grows with the length squared, hidden states with it; without layers, neither."""
    sizes = expected_sizes([10, 20], 2, 3, 8, heads=4, hidden=True)
    assert sizes["attention"] == 2 * 2 * 4 * (100 + 400) and sizes["hidden states"] == 2 * 2 * 8 * 30
    assert list(expected_sizes([10, 20], 0, 3, 8)) == ["logits and vectors"]
    short, long = (
        expected_sizes([10], 0, 3, 800, vectors=each)["logits and vectors"] for each in ("float16", "float32")
    )
    assert long - short == 2 * 2 * 800
