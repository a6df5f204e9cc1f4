"""A few seconds of each fuzzer, and broken files through the command line.

Whatever is in the files, the command ends with exit code 2 and one line.
"""

import json
import struct

import fuzz
import numpy as np
import pytest
from conftest import best, stage_flags
from fuzz import READERS, Fuzzer, rehash_snapshot
from safetensors.numpy import load_file, save_file
from test_cli import refused


@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")
@pytest.mark.parametrize("name", READERS)
def test_a_fuzzed_reader_gives_a_result_or_a_sentence(tmp_path, name):
    """200 cases of a fixed seed give a valid result or a UserError of one line, and some of each.

    They take little time and memory.
    """
    fuzzer = Fuzzer(name, tmp_path)
    fuzzer.read(fuzzer.valid)
    refused_cases = sum(fuzzer.run(1, number) for number in range(200))
    assert 100 < refused_cases < 200


def test_a_case_can_be_repeated(tmp_path):
    """A case is a function of fuzzer, seed and number: the same bytes, whatever ran before."""
    for name in READERS:
        (tmp_path / name).mkdir()
        fuzzer = Fuzzer(name, tmp_path / name)

        def case(number, fuzzer=fuzzer):
            fuzzer.make(3, number)
            return {
                path.relative_to(fuzzer.folder): path.read_bytes()
                for path in fuzzer.folder.rglob("*")
                if path.is_file()
            }

        first = case(5)
        assert case(6) != first and case(5) == first


def test_a_fuzzer_finds_what_it_looks_for(tmp_path, monkeypatch):
    """The fuzzers can fail: they report a reader that breaks the rules.

    One fails otherwise, one hangs, one needs much memory, one has a sentence of two lines.
    """
    fuzzer, room = Fuzzer("tsv", tmp_path), []
    monkeypatch.setattr(fuzz, "LIMIT", 0.5)

    def endless(folder):
        while True:
            pass

    def greedy(folder):
        room.append(np.ones(1 << 26, np.uint8))

    def talkative(folder):
        raise fuzz.UserError("one\ntwo")

    for read, kind in (
        (lambda folder: {}["key"], KeyError),
        (endless, TimeoutError),
        (greedy, AssertionError),
        (talkative, AssertionError),
    ):
        fuzzer.read = read
        with pytest.raises(kind):
            fuzzer.run(0, 0)


def test_a_forged_snapshot_is_told_by_the_stages(sandbox):
    """Snapshots with right hashes and wrong content are refused.

    NaN, a line end in a tensor's name, a head that promises terabytes, endless layers, meta of other types.
    """
    path, flags = best(sandbox / "teacher"), stage_flags(sandbox)["meta_teacher_eval"]
    whole = {name: (path / name).read_bytes() for name in ("model.safetensors", "config.json", "meta.json")}
    arrays, config, meta = (
        load_file(path / "model.safetensors"),
        json.loads(whole["config.json"]),
        json.loads(whole["meta.json"]),
    )

    def summarise(*words):
        rehash_snapshot(path)
        refused(sandbox, "meta_teacher_eval", *words, flags={**flags, "hidden_states": True})
        for name, data in whole.items():
            (path / name).write_bytes(data)

    for name, value in (
        ("classifier.bias", np.array([0, np.nan], np.float32)),
        ("new\nline.weight", np.array([0, 1])),
        ("pooler.dense.bias", np.ones(16)),
    ):
        save_file({**arrays, name: value}, path / "model.safetensors")
        summarise("model.safetensors", "expected")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + whole["model.safetensors"][8:])
    summarise("model.safetensors", "not a readable safetensors file")
    for key, value in (
        ("num_hidden_layers", 10**30),
        ("hidden_size", 10**12),
        ("vocab_size", 2**40),
        ("max_position_embeddings", []),
    ):
        (path / "config.json").write_text(json.dumps({**config, key: value}))
        summarise(path.name)
    for key, value in (
        ("domain_head", "yes"),
        ("seen_domains", [4]),
        ("seen_domains", None),
        ("labels", {}),
        ("kind", "x"),
        ("step", -1),
    ):
        (path / "meta.json").write_text(json.dumps({**meta, key: value}))
        summarise(path.name)


def test_forged_progress_and_moments_are_told_by_the_stage_that_resumes(sandbox):
    """Right hashes, wrong progress: the stage that resumes says so and makes no step.

    meta.json lacks flags or names a best snapshot elsewhere; moments are whole numbers.
    """
    path, flags = (
        sandbox / "teacher" / "snapshot_last",
        {"model_save_dir": None, "resume_from": "teacher/snapshot_last"},
    )
    whole = (path / "meta.json").read_bytes()
    meta = json.loads(whole)
    for key, value in (
        ("flags", []),
        ("best", "x"),
        ("best", {**meta["best"], "snapshot": "../x"}),
        ("step", "7"),
        ("domains", [["a"]]),
    ):
        (path / "meta.json").write_text(json.dumps({**meta, key: value}))
        rehash_snapshot(path)
        refused(sandbox, "meta_teacher", "meta.json", **flags)
    (path / "meta.json").write_bytes(whole)
