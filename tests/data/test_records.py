"""Records of a split: a TSV becomes records, and faults are told before any array is used."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from fuzz import WRONG, with_value
from protobuf_parts import read_part, write_parts

from data.engine import load_oneflow
from data.store import records as module
from data.store import writing
from data.store.files import write_json
from data.store.records import (
    CONTENT,
    STAGE_1,
    ContentHash,
    Records,
    record_schema,
)
from data.store.writing import (
    check_fits,
    encode_split,
    resave,
    source_facts,
    with_scores,
    write_records,
)
from data.tasks import Task, split_path
from tokenization import FullTokenizer
from util import UserError, sha256

T, WORDS = 8, "good bad book film a very . phone".split()
TASK = Task("tiny", ("text",), "domain", "label", ("up", "down"), ("books", "films", "phones"))
PAIRS = Task("pairs", ("text", "other"), "domain", "label", ("up", "down"), ("books", "films", "phones"))
ROWS = [
    ("good book", 0, 0),
    ("a very very very bad film .", 1, 1),
    ("phone", 2, 0),
    ("a good film unknownword", 1, 0),
    ("bad phone .", 2, 1),
]


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "vocab.txt", WORDS)


def make_tokenizer(path, words):
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]) + "\n", encoding="utf-8")
    return FullTokenizer(path)


def save(task, data_dir, folder, split, tokenizer, seq_length, part_size=4096):
    """Writes the records of a split from its TSV, without scores, and returns them opened."""
    facts = source_facts(task, split_path(data_dir, split), split, tokenizer, seq_length)
    blocks = encode_split(task, data_dir, split, tokenizer, seq_length, part_size)
    return write_records(folder, split, blocks, facts)


def write_rows(folder, rows=ROWS, task=TASK, split="train", end="\n"):
    lines = [
        "\t".join(task.columns),
        *("\t".join((*texts, task.domains[k], task.labels[m])) for *texts, k, m in rows),
    ]
    (folder / f"{split}.tsv").write_bytes((end.join(lines) + end).encode())


@pytest.fixture
def made(tmp_path, tokenizer):
    """(data folder, records folder, the arguments from task to seq_length): records of ROWS in parts of two,
    with scores.
    """
    write_rows(tmp_path)
    arguments = (TASK, tmp_path, tmp_path / "ofrecord" / "train", "train", tokenizer, T)
    with_scores(save(*arguments, part_size=2), np.linspace(0, 1, 5), {"encoder": "e"})
    return tmp_path, arguments[2], arguments


def everything(folder):
    """{name: bytes} of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_row_becomes_a_record(made):
    """The records hold the tokens, domain, label and number of each row, and the manifest counts them."""
    records = Records(made[1], "train")
    arrays, vocab = records.arrays(), dict(zip(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS], range(12)))
    expected = [
        ["[CLS]", *text.replace("unknownword", "[UNK]").split()[: T - 2], "[SEP]"] for text, _, _ in ROWS
    ]
    for i, (words, (_, domain, label)) in enumerate(zip(expected, ROWS)):
        assert arrays["input_ids"][i].tolist() == [vocab[word] for word in words] + [0] * (T - len(words))
        assert arrays["input_mask"][i].tolist() == [1] * len(words) + [0] * (T - len(words))
        assert (arrays["domain"][i], arrays["label"][i], arrays["idxs"][i]) == (domain, label, i)
    assert arrays["weights"].tolist() == [0, 0.25, 0.5, 0.75, 1] and not arrays["segment_ids"].any()
    assert (
        arrays["input_ids"].dtype == np.int32
        and arrays["weights"].dtype == np.float32
        and arrays["weights"].shape == (5,)
    )
    assert (len(records), records.cut, records.scores, records.seq_length) == (5, 1, {"encoder": "e"}, T)
    assert records.counts == {
        "books": {"up": 1, "down": 0},
        "films": {"up": 1, "down": 1},
        "phones": {"up": 1, "down": 1},
    }
    assert records.tsv_sha256 == sha256(made[0] / "train.tsv") and records.vocab_size == 12


def test_pairs_have_two_segments(tmp_path, tokenizer):
    """Of a pair, the second text is segment 1, and a cut is counted."""
    write_rows(tmp_path, [("good", "bad", 0, 0), ("a a a a", "book book book", 1, 1)], PAIRS)
    records = save(PAIRS, tmp_path, tmp_path / "records", "train", tokenizer, T)
    assert records.arrays()["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert records.cut == 1


def test_oneflow_reads_records(made):
    """OneFlow's own reader and decoder read every key of the records to the same values."""
    flow, records = load_oneflow(), Records(made[1], "train")
    reader = flow.nn.OFRecordReader(
        str(made[1]), batch_size=5, data_part_num=3, part_name_prefix="train.of_record-"
    )
    batch, arrays = reader(), records.arrays()
    for key, (kind, length) in record_schema(T).items():
        found = flow.nn.OFRecordRawDecoder(key, shape=(length,), dtype=getattr(flow, kind))(batch).numpy()
        assert found.dtype == arrays[key].dtype and np.array_equal(
            found.reshape(arrays[key].shape), arrays[key]
        )


def test_twice_the_same_bytes(made, tmp_path):
    """Written again from the same TSV with the same scores, every file is the same, byte for byte."""
    first = everything(made[1])
    with_scores(save(*made[2], part_size=2), np.linspace(0, 1, 5), {"encoder": "e"})
    assert everything(made[1]) == first


def test_the_content_hash_knows_no_parts_and_no_scores(made):
    """content_sha256 is that of what the TSV gives, whatever the parts and the scores; any other value
    changes it.
    """
    hashes, (_, _, arguments) = set(), made
    (block,) = encode_split(*arguments[:2], *arguments[3:])
    rows = [{key: block[key][i] for key in CONTENT} for i in range(5)]
    for part_size, scored in ((1, True), (3, False), (100, True)):
        records = save(*arguments, part_size=part_size)
        hashes.add((with_scores(records, np.ones(5), {}) if scored else records).content_sha256)
    assert hashes == {content_hash(rows)}
    for key in CONTENT:
        changed = [dict(row) for row in rows]
        changed[2][key] = changed[2][key] + np.int32(1 << 16)
        assert content_hash(changed) not in hashes
    assert content_hash(rows[::-1]) not in hashes and content_hash(rows[:-1]) not in hashes


def content_hash(rows):
    content = ContentHash()
    for row in rows:
        content.update({key: np.asarray(value)[None] for key, value in row.items()})
    return content.hexdigest()


def test_a_text_without_tokens_is_refused(tmp_path, tokenizer):
    """Control characters alone are a text without a token: told by file and line."""
    write_rows(tmp_path, [*ROWS, ("\u200b\u200d", 0, 0)])
    with pytest.raises(UserError, match="train.tsv:7: found no token in the text"):
        save(TASK, tmp_path, tmp_path / "records", "train", tokenizer, T)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.tsv", "vocab.txt"]


def test_all_texts_without_tokens_are_told_at_once(tmp_path, tokenizer):
    """Blank ones and invisible ones in one sentence; a fault behind them comes after they are mended."""
    write_rows(tmp_path, [("\u200b", 0, 0), *ROWS, (" ", 0, 0), ("\ufe0f\u200d", 0, 0)])
    with open(tmp_path / "train.tsv", "a") as file:
        file.write("a\tnowhere\tnothing\n")
    with pytest.raises(UserError) as caught:
        save(TASK, tmp_path, tmp_path / "records", "train", tokenizer, T)
    last = len(ROWS) + 4
    assert "train.tsv:2: found no token in the text" in str(caught.value)
    assert f"the same in 2 more line(s): {last - 1}, {last}." in str(caught.value)


def test_limits(made):
    """The first `limit` records, block by block or stacked; more than there are is refused."""
    records = Records(made[1], "train")
    whole = records.arrays()
    assert list(records.part_rows()) == [range(2), range(2, 4), range(4, 5)]
    for limit in range(1, 6):
        assert all(
            np.array_equal(values, whole[key][:limit]) for key, values in records.arrays(limit).items()
        )
    with pytest.raises(UserError, match="found 5 records, expected at least 6"):
        records.arrays(6)


def test_scores(made):
    """Without scores the weights are NaN and `require_scores` names stage 1; scores must be finite and as
    many as records.
    """
    records = save(*made[2])
    assert records.scores is None and np.isnan(records.arrays()["weights"]).all()
    with pytest.raises(UserError, match=f"found no scores.*{STAGE_1}"):
        records.require_scores()
    before = everything(made[1])
    for scores, kind in (([1] * 4, ValueError), ([1] * 6, ValueError), ([1, 2, np.nan, 4, 5], UserError)):
        with pytest.raises(kind):
            with_scores(records, scores, {})
        assert everything(made[1]) == before
    with_scores(records, iter([1, 2, 3, 4, 5]), {"by": 1}).require_scores()


# --------------------------------------------------------------------------------------- damage


def test_every_flipped_bit_of_a_part_is_told(tmp_path, tokenizer):
    """Each single bit of a part, flipped, is told when the records are opened and when the part is parsed."""
    write_rows(tmp_path, ROWS[:1])
    opened = save(TASK, tmp_path, tmp_path / "train", "train", tokenizer, 4)
    path = tmp_path / "train" / "train.of_record-0"
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        for use in (lambda: Records(tmp_path / "train", "train"), opened.arrays):
            with pytest.raises(UserError, match=f"train.of_record-0: found SHA-256 .*{STAGE_1}"):
                use()
    path.write_bytes(data)
    assert Records(tmp_path / "train", "train").manifest == opened.manifest


def test_a_changed_manifest_never_crashes(made):
    """A manifest with a flipped bit is told, or says something else of the same kind; the arrays are the
    same, or told.
    """
    path, whole = made[1] / "manifest.json", Records(made[1], "train").arrays()
    data, told = path.read_bytes(), 0
    for position in range(0, len(data), 2):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 7
        path.write_bytes(changed)
        try:
            arrays = Records(made[1], "train").arrays()
            assert all(np.array_equal(arrays[key], whole[key]) for key in whole)
        except UserError as error:
            told += 1
            assert STAGE_1 in str(error)
    assert told > len(data) / 4


def test_parts_cut_swapped_missing_and_linked(made):
    """A part that is cut at a record's end, swapped, missing, empty or a link is told; so is one too many."""
    _, folder, _ = made
    whole = everything(folder)
    first, second = whole["train.of_record-0"], whole["train.of_record-1"]
    length = 8 + int.from_bytes(first[:8], "little")
    faults = [
        {"train.of_record-0": first[:length]},
        {"train.of_record-0": first + first[:length]},
        {"train.of_record-1": b""},
        {"train.of_record-0": second, "train.of_record-1": first},
        {"train.of_record-2": None},
        {"train.of_record-3": first},
    ]
    for fault in faults:
        for name, data in fault.items():
            (folder / name).unlink(missing_ok=True)
            if data is not None:
                (folder / name).write_bytes(data)
        with pytest.raises(UserError, match=STAGE_1):
            Records(folder, "train")
        for name in fault:
            (folder / name).unlink(missing_ok=True)
            if name in whole:
                (folder / name).write_bytes(whole[name])
    Records(folder, "train")
    (folder / "train.of_record-0").rename(folder.parent / "elsewhere")
    (folder / "train.of_record-0").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(UserError, match=f"found a symbolic link.*{STAGE_1}"):
        Records(folder, "train")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format": "meta-kd-records-2"}, "found format 'meta-kd-records-2', expected 'meta-kd-records-1'"),
        ({"split": "dev"}, "found split 'dev', expected 'train'"),
        ({"seq_length": "8"}, "as 'seq_length', expected a count"),
        ({"labels": ["up", "up"]}, "as 'labels', expected a list of different names"),
        ({"labels": ["up"]}, "counts per domain and class"),
        ({"domains": []}, "as 'domains'"),
        ({"counts": {}}, "counts per domain and class"),
        (
            {"counts": {"books": {"up": 5, "down": 0}, "films": {}, "phones": 3}},
            "counts per domain and class",
        ),
        ({"do_lower_case": 1}, "as 'do_lower_case', expected true or false"),
        ({"vocab_sha256": "abc"}, "as 'vocab_sha256', expected a SHA-256"),
        ({"scores": []}, "as 'scores', expected an object or null"),
    ],
)
def test_manifest_of_other_kinds(made, change, words):
    """A manifest of another version, or with a key of another kind, is told with what was expected."""
    manifest = json.loads((made[1] / "manifest.json").read_text())
    write_json(made[1] / "manifest.json", {**manifest, **change})
    with pytest.raises(UserError, match=f"{words}.*{STAGE_1}"):
        Records(made[1], "train")


def test_wrong_values_of_every_key_of_the_manifest(made):
    """Each key, in parts and counts too, with each kind of wrong value, or lacking: told on one line, or the
    same arrays.
    """
    path, whole = made[1] / "manifest.json", Records(made[1], "train").arrays()
    manifest = json.loads(path.read_text())
    places = [
        *((key,) for key in manifest),
        *(("parts", 1, key) for key in manifest["parts"][1]),
        ("counts", "films"),
        ("counts", "films", "up"),
        ("labels", 0),
        ("parts", 0),
    ]
    for place in places:
        for wrong in (*WRONG, KeyError):
            path.write_text(json.dumps(with_value(manifest, place, wrong)))
            try:
                arrays = Records(made[1], "train").arrays()
            except UserError as error:
                assert STAGE_1 in str(error) and len(str(error).splitlines()) == 1
            else:
                assert all(np.array_equal(arrays[key], whole[key]) for key in whole)


def test_200_flipped_bits_of_a_large_part_are_told(tmp_path, tokenizer):
    """Random bits of a part of 2000 records, whose hash is made to fit: told, or values that the engine can
    take.
    """
    write_rows(tmp_path, ROWS * 400)
    records = save(TASK, tmp_path, tmp_path / "train", "train", tokenizer, T)
    path, stream = tmp_path / "train" / "train.of_record-0", np.random.default_rng(0)
    data, told = bytearray(path.read_bytes()), 0
    for bit in stream.integers(8 * len(data), size=200).tolist():
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match="found SHA-256"):
            Records(tmp_path / "train", "train")
    for bit in stream.integers(8 * len(data), size=20).tolist():
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        part = {**records.parts[0], "sha256": hashlib.sha256(data).hexdigest()}
        data[bit // 8] ^= 1 << bit % 8
        write_json(tmp_path / "train" / "manifest.json", {**records.manifest, "parts": [part]})
        try:
            arrays = Records(tmp_path / "train", "train").arrays()
            assert 0 <= arrays["input_ids"].min() <= arrays["input_ids"].max() < 12 and set(
                np.unique(arrays["label"])
            ) <= {0, 1}
        except UserError as error:
            told += STAGE_1 in str(error)
    assert told


def test_parts_of_another_split_are_told(made):
    """The parts of dev under the names of train's, and its whole folder under the name of train's."""
    data_dir, folder, arguments = made
    write_rows(data_dir, [(f"{text} phone", k, m) for text, k, m in ROWS], split="dev")
    save(*arguments[:2], folder.with_name("dev"), "dev", *arguments[4:], part_size=2)
    dev = everything(folder.with_name("dev"))
    for name in [name for name in dev if name.startswith("dev")]:
        (folder / name.replace("dev", "train")).write_bytes(dev[name])
    with pytest.raises(UserError, match=f"train.of_record-0: found .*{STAGE_1}"):
        Records(folder, "train")
    for name in dev:
        (folder / name.replace("dev", "train")).write_bytes(
            dev[name].replace(b"dev.of_record", b"train.of_record")
        )
    with pytest.raises(UserError, match=f"found split 'dev', expected 'train': {STAGE_1}"):
        Records(folder, "train")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("idxs", 7, "idxs that do not count up from 0"),
        ("domain", 3, "a domain that is not in 0..2"),
        ("label", -1, "a label that is not in 0..1"),
        ("input_ids", [2, 12, 3, 0, 0, 0, 0, 0], "a token that is not in 0..11"),
        ("input_mask", [1, 1, 0, 1, 0, 0, 0, 0], "a mask that is not ones and then zeros"),
        ("input_mask", [1, 1, 0, 0, 0, 0, 0, 0], "a record of fewer than 3 tokens"),
        ("segment_ids", [0, 0, 2, 0, 0, 0, 0, 0], "a segment that is neither 0 nor 1"),
        ("weights", np.inf, "a score that is not finite"),
    ],
)
def test_values_that_would_break_the_engine(made, key, value, words):
    """Whole files whose values are out of range are told before any array is handed out."""
    _, folder, _ = made
    records = Records(folder, "train")
    rows = [
        row for part in records.parts for row in read_part(folder / part["file"], record_schema(T), "", part)
    ]
    rows[1][key] = value
    parts = write_parts(folder, "train", rows, record_schema(T), 2)
    write_json(folder / "manifest.json", {**records.manifest, "parts": parts})
    with pytest.raises(UserError, match=f"train.of_record-0: found {words}"):
        Records(folder, "train").arrays()


def test_a_failed_writer_leaves_what_was_there(made):
    """An error in the middle of writing leaves the previous records, and nothing beside them."""
    _, folder, arguments = made
    before, source = everything(folder), source_facts(TASK, made[0] / "train.tsv", "train", arguments[4], T)

    def failing():
        yield from encode_split(*arguments[:2], *arguments[3:])
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        write_records(folder, "train", failing(), source)
    assert everything(folder) == before and os.listdir(folder.parent) == ["train"]
    with pytest.raises(UserError, match="found no example for the train split"):
        write_records(folder, "train", [], source)
    assert everything(folder) == before


def test_a_killed_writer_leaves_what_was_there(made):
    """SIGKILL in the middle of writing leaves the previous records, and the next writer is not disturbed."""
    _, folder, arguments = made
    before = everything(folder)
    program = (
        "import os, signal, sys; from data.store.records import Records; from data.store.writing import "
        "write_records\nrecords = Records(sys.argv[1], 'train')\n"
        "def rows():\n"
        "    block = records.arrays()\n"
        "    yield block\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_records(sys.argv[1], 'train', rows(), records.manifest)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert everything(folder) == before and len(os.listdir(folder.parent)) == 2
    Records(folder, "train")
    save(*arguments)
    assert os.listdir(folder.parent) == ["train"]


# --------------------------------------------------------------------------------------- stale records


def test_resave_keeps_what_did_not_change(made):
    """Nothing changed: no file is written, and the scores stay."""
    before = {path.name: path.stat().st_mtime_ns for path in made[1].iterdir()}
    assert resave(*made[2]).scores == {"encoder": "e"}
    assert {path.name: path.stat().st_mtime_ns for path in made[1].iterdir()} == before


def test_resave_follows_a_tsv_that_gives_the_same_records(made, tokenizer):
    """Other line ends, other names of labels in the same places: the manifest follows, the parts and scores
    stay.
    """
    data_dir, folder, arguments = made
    task = replace(TASK, labels=("yes", "no"))
    before = everything(folder)
    write_rows(data_dir, task=task, end="\r\n")
    with pytest.raises(
        UserError, match="found records made with labels .*up.*expected .*yes.*--resave_ofrecord"
    ):
        check_fits(Records(folder, "train"), task, T, tokenizer, data_dir / "train.tsv")
    records = resave(task, *arguments[1:])
    check_fits(records, task, T, tokenizer, data_dir / "train.tsv")
    assert records.scores == {"encoder": "e"} and records.counts["films"] == {"yes": 1, "no": 1}
    after = everything(folder)
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}


def test_resave_of_changed_content_names_stage_1(made):
    """Changed texts, no scores, no records or damaged ones: stage 1 is named, and nothing is touched."""
    data_dir, folder, arguments = made
    write_rows(data_dir, [("bad book", 0, 0), *ROWS[1:]])
    with pytest.raises(UserError, match=f"made with tsv_sha256 .*{STAGE_1}"):
        resave(*arguments)
    with pytest.raises(
        UserError,
        match=f"seq_length 8, expected 7: give every stage --seq_length 8, or {STAGE_1} for this one",
    ):
        resave(*arguments[:-1], 7)
    write_rows(data_dir)
    resave(*arguments)
    save(*arguments)
    with pytest.raises(UserError, match=f"found no scores.*{STAGE_1}"):
        resave(*arguments)
    (folder / "train.of_record-0").write_bytes(b"")
    with pytest.raises(UserError, match=STAGE_1):
        resave(*arguments)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"manifest of the records is missing: {STAGE_1}"):
        resave(*arguments)


def test_scores_that_are_missing_are_told_before_a_text_is_tokenised(made, monkeypatch):
    """No records, records without scores, records of another length: the TSV is not read for that."""
    _, folder, arguments = made

    def tokenise(*_):
        raise AssertionError("a text was tokenised")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "encode_split", tokenise)
        with pytest.raises(UserError, match=f"seq_length 8, expected 7: give .* or {STAGE_1}"):
            resave(*arguments[:-1], 7)
    save(*arguments)
    monkeypatch.setattr(writing, "encode_split", tokenise)
    with pytest.raises(UserError, match=f"found no scores.*{STAGE_1}"):
        resave(*arguments)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=f"is missing: {STAGE_1}"):
        resave(*arguments)


def test_resave_without_need_of_scores_writes(made):
    """scored=False, as in stage 1: what is missing, damaged or other is written anew; what is the same keeps
    its scores.
    """
    data_dir, folder, arguments = made
    assert resave(*arguments, scored=False).scores == {"encoder": "e"}
    (folder / "train.of_record-0").write_bytes(b"")
    assert (
        resave(*arguments, scored=False, part_size=1).scores is None
        and len(Records(folder, "train").parts) == 5
    )
    write_rows(data_dir, ROWS[:3])
    assert len(resave(*arguments, scored=False)) == 3


def test_stale_records_are_told(made, tmp_path):
    """Records of another seq_length, vocabulary, case, task, labels, domains or TSV: found and expected, and
    the flag.
    """
    data_dir, folder, (_, _, _, _, tokenizer, _) = made
    records, tsv = Records(folder, "train"), data_dir / "train.tsv"
    check_fits(records, TASK, T, tokenizer, tsv)
    other_case = FullTokenizer(tmp_path / "vocab.txt", do_lower_case=False)
    other_words = make_tokenizer(tmp_path / "other.txt", WORDS[::-1])
    faults = [
        (TASK, 16, tokenizer, "seq_length 8, expected 16"),
        (TASK, T, other_words, "vocab_sha256 .{12}[.]{3}, expected"),
        (TASK, T, other_case, "do_lower_case True, expected False"),
        (replace(TASK, name="other"), T, tokenizer, "task 'tiny', expected 'other'"),
        (replace(TASK, labels=("down", "up")), T, tokenizer, "labels"),
        (replace(TASK, domains=("books", "films")), T, tokenizer, "domains"),
    ]
    for task, seq_length, wordpieces, words in faults:
        with pytest.raises(
            UserError, match=f"found records made with {words}.*run preprocess.py with --resave_ofrecord"
        ):
            check_fits(records, task, seq_length, wordpieces, tsv)
    write_rows(data_dir, ROWS[:-1])
    with pytest.raises(UserError, match="found records made with tsv_sha256"):
        check_fits(records, TASK, T, tokenizer, tsv)
    tsv.unlink()
    with pytest.raises(UserError, match="train.tsv: found nothing, expected the train split"):
        check_fits(records, TASK, T, tokenizer, tsv)


def test_the_facts_of_the_source(made):
    """`source_facts` holds exactly the keys that the manifest promises of where records come from."""
    facts = source_facts(TASK, made[0] / "train.tsv", "train", made[2][4], T)
    assert (
        facts.keys() == module.SOURCE_TYPES.keys()
        and facts.items() <= Records(made[1], "train").manifest.items()
    )


# --------------------------------------------------------------------------------------- by offset


def test_the_bytes_are_those_of_protobuf(made):
    """Every part is what protobuf's own deterministic writer makes of the same records, byte for byte."""
    _, folder, _ = made
    records, whole = Records(folder, "train"), everything(folder)
    rows = [
        row for part in records.parts for row in read_part(folder / part["file"], record_schema(T), "", part)
    ]
    assert (
        write_parts(folder, "train", rows, record_schema(T), 2) == records.parts
        and everything(folder) == whole
    )


def test_records_are_read_by_offset_in_any_order(made):
    """Rows of several parts, in any order and twice: what the whole arrays hold at these places."""
    records = Records(made[1], "train")
    whole, rows = records.arrays(), np.array([4, 0, 3, 3, 1])
    records.prefetch(rows)
    for name, array in records.read(rows).items():
        assert np.array_equal(array, whole[name][rows])
    for name in ("domain", "label", "weights"):
        assert np.array_equal(getattr(records, name), whole[name])
    assert np.array_equal(records.lengths, whole["input_mask"].sum(axis=1))


def test_a_record_that_changes_after_the_check_is_told(made):
    """Any bit of a record, flipped behind the back of open Records: told when that record is read, and no
    other is refused.
    """
    records = Records(made[1], "train")
    path = made[1] / "train.of_record-1"
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    for bit in range(0, 8 * end, 5):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(UserError, match=f"changed since they were checked: {STAGE_1}"):
            records.read(np.array([0, 2]))
        records.read(np.array([0, 3]))


def test_what_is_small_of_a_record_takes_less_than_40_bytes(tmp_path, tokenizer):
    """What Records keep of 4,000 examples in memory."""
    write_rows(tmp_path, ROWS * 800)
    records = save(TASK, tmp_path, tmp_path / "train", "train", tokenizer, T)
    kept = [value for value in vars(records).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in kept) < 40 * 4000


def test_many_processes_write_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    """Tokenised by one process or by three: the same files; the fault of the first faulty line is told,
    whoever comes first.
    """
    write_rows(tmp_path, ROWS * 40)
    folders = []
    for cores in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        save(TASK, tmp_path, tmp_path / f"by{cores}", "train", tokenizer, T, part_size=7)
        folders.append(everything(tmp_path / f"by{cores}"))
    assert folders[0] == folders[1] and len(folders[0]) == 30
    write_rows(tmp_path, [*ROWS * 20, ("\u200b", 0, 0), *ROWS * 5, ("\u200b", 0, 0), *ROWS * 5])
    with pytest.raises(UserError, match="train.tsv:102: found no token"):
        save(TASK, tmp_path, tmp_path / "faulty", "train", tokenizer, T, part_size=7)
    assert not (tmp_path / "faulty").exists()


def test_more_parts_than_files_may_be_open(tmp_path, tokenizer):
    """200 parts where 150 files may be open and the system allows more: all are opened, and there is room for
    others.
    """
    write_rows(tmp_path, ROWS * 40)
    save(TASK, tmp_path, tmp_path / "train", "train", tokenizer, T, part_size=1)
    program = (
        "import resource, sys; from data.store.records import Records\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (150, {}))\n"
        "print(len(Records(sys.argv[1], 'train').arrays()['label']), file=open(sys.argv[2], 'w'))\n"
    )
    command = [sys.executable, "-c", program.format(1000), str(tmp_path / "train"), str(tmp_path / "count")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "count").read_text() == "200\n", done.stderr
    command[2] = program.format(150)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "may have 150 files open, and that is not enough: raise it by 'ulimit -n'" in done.stderr
