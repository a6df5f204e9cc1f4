"""Long texts: --truncate head_tail keeps beginning and end, from the records to prediction and export."""

import json

import numpy as np
import pytest
from conftest import best, call, stage_flags
from fuzz import rehash_snapshot
from test_cli import refused
from test_predict import of_the_run
from test_tokenization import write_vocab

from modeling.export_gate import encode_ends
from tokenization import FullTokenizer, encode, head_and_tail, tokenizer_for

LONG = {"seq_length": 8, "truncate": "head_tail"}  # one token of the beginning, and five of the end


@pytest.mark.parametrize("room", [1, 3, 6, 7])
def test_a_quarter_of_the_beginning_and_the_rest_of_the_end_are_kept(room):
    """Of more tokens than there is room for; of others all."""
    for n in range(2 * room):
        ids = list(range(n))
        expected = ids if n <= room else ids[: room // 4] + ids[n - (room - room // 4) :]
        assert head_and_tail(iter(ids), room) == expected


def test_features_of_a_long_text_have_its_end(tmp_path):
    """[CLS], beginning, end, [SEP]; the text counts as cut; one that fits is as ever."""
    path = write_vocab(tmp_path)
    head, both = FullTokenizer(path), FullTokenizer(path, truncate="head_tail")
    text = "the plot was the best the plot plot was"
    ids, (cls, sep) = list(head.ids(text)), head.convert_tokens_to_ids(["[CLS]", "[SEP]"])
    found = encode(both, text, None, 8)
    assert found.was_cut and found.input_ids.tolist() == [cls, ids[0], *ids[-5:], sep]
    assert all(
        np.array_equal(a, b) for a, b in zip(encode(both, text, None, 32), encode(head, text, None, 32))
    )


def test_beginning_and_end_hold_from_records_to_prediction(sandbox):
    """The manifest and the snapshot say so; the snapshot alone predicts what its run found."""
    for stage in ("preprocess", "meta_teacher"):
        flags = (
            {"model_save_dir": "ends", "max_steps": 2, "vocab_file": None} if stage != "preprocess" else {}
        )
        outcome = call(stage, sandbox, {**stage_flags(sandbox)[stage], **LONG, **flags})
        assert outcome.code == 0, outcome.err
    manifest = json.loads((sandbox / "data" / "ofrecord" / "test" / "manifest.json").read_text())
    snapshot = best(sandbox / "ends")
    meta = json.loads((snapshot / "meta.json").read_text())
    assert manifest["truncate"] == meta["truncate"] == "head_tail" and manifest["cut"] > 0
    assert "three quarters are from its end" in (snapshot / "README.md").read_text()

    lines = (sandbox / "data" / "test.tsv").read_text().splitlines()[1:]
    (sandbox / "texts").write_text("".join(line.split("\t")[0] + "\n" for line in lines))
    flags = {"do_predict": True, "model_load_dir": "ends", "predict_file": "texts"}
    answers = {}
    for truncate in ("head_tail", "head"):
        (snapshot / "meta.json").write_text(json.dumps({**meta, "truncate": truncate}))
        rehash_snapshot(snapshot)
        rows = [line.split("\t") for line in call("meta_teacher", sandbox, flags).out.splitlines()[1:]]
        answers[truncate] = np.array([row[2:] for row in rows], float)
    _, expected = of_the_run(sandbox, "ends")
    np.testing.assert_allclose(answers["head_tail"], expected, atol=2e-6)
    assert np.abs(answers["head"] - expected).max() > 1e-4


def test_records_of_another_cut_are_refused(sandbox):
    """Records of beginnings are stale for --truncate head_tail."""
    refused(sandbox, "meta_teacher", "truncate 'head'", "'head_tail'", truncate="head_tail")


def test_pairs_are_refused_by_name(sandbox):
    """Two texts share their room, and the beginning of each is kept."""
    path = sandbox / "data" / "task.json"
    columns = (sandbox / "data" / "train.tsv").read_text().splitlines()[0].split("\t")
    task = {
        "name": "senti",
        "text": [columns[0], "second"],
        "domain": columns[1],
        "label": columns[2],
        "labels": ["positive", "negative"],
        "domains": ["books", "dvd", "electronics", "kitchen"],
    }
    path.write_text(json.dumps(task))
    refused(sandbox, "preprocess", "--truncate head_tail", "pairs", truncate="head_tail")


class Library:
    """What the export asks of transformers' tokenizer, by ours."""

    def __init__(self, tokenizer):
        self.ours = tokenizer

    def __call__(self, texts, **options):
        return {"input_ids": [list(self.ours.ids(text)) for text in texts]}

    def build_inputs_with_special_tokens(self, ids):
        return [self.ours.vocab["[CLS]"], *ids, self.ours.vocab["[SEP]"]]

    def pad(self, features, padding, return_tensors):
        return features


def test_the_export_cuts_as_the_records_do(tiny_model):
    """Token by token what the snapshot was tested on."""
    tokenizer = tokenizer_for(tiny_model, truncate="head_tail")
    texts = ["the plot was good", "a good book it is not , the plot is very bad and dull !"]
    found = encode_ends(Library(tokenizer), texts, 8, "np")["input_ids"]
    for text, ids in zip(texts, found):
        features = encode(tokenizer, text, None, 8)
        assert ids == features.input_ids[: features.input_mask.sum()].tolist()


def test_older_records_are_of_beginnings(sandbox):
    """A manifest that does not say what was kept of long texts: what every stage kept then."""
    for split in ("train", "dev", "test"):
        path = sandbox / "data" / "ofrecord" / split / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["truncate"]
        path.write_text(json.dumps(manifest))
    assert (
        call(
            "meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "again"}
        ).code
        == 0
    )
    refused(sandbox, "meta_teacher", "truncate 'head'", "'head_tail'", truncate="head_tail")
