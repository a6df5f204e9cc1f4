"""A snapshot that serves: tokenizer.json, the trained length, the card.

Also the names by which it is found.
"""

import json
import os
import shutil

import pytest
from conftest import best, call, stage_flags
from test_tokenization import SPECIAL, WORDS, hard_texts, reference, write_vocab

from data.store.temporary import new_path, remove_partial_writes
from modeling.snapshots import best as best_names
from modeling.snapshots.base_model import base_facts
from modeling.snapshots.best import find_snapshot, name_best
from modeling.snapshots.folder import ModelFolder, read_model, read_snapshot_facts
from modeling.snapshots.tokenizer_file import tokenizer_json
from tokenization import BasicTokenizer, FullTokenizer, encode
from util import UserError

# --------------------------------------------------------------------------------------- tokenizer.json


def loaded(tokenizer, seq_length):
    """Our tokenizer.json as the library `tokenizers` reads it.

    It does not cut, and special tokens in a text are text.
    """
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer, seq_length)))
    made.encode_special_tokens = True
    return made


@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_json_gives_the_ids_of_the_library_and_ours(tmp_path, lower):
    """On the hard corpus, ids are the same three ways.

    The library with our file, its own BERT tokenizer, and ours.
    """
    texts = list(hard_texts(800, seed=3))
    chars = sorted({char for text in texts for word in BasicTokenizer(lower).tokenize(text) for char in word})
    vocab = write_vocab(tmp_path, dict.fromkeys([*WORDS, *chars[::2], *("##" + char for char in chars[::3])]))
    ours = FullTokenizer(vocab, lower)
    made, theirs = loaded(ours, 512), reference(vocab, lower)
    made.no_truncation()
    for text in texts:
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids == list(ours.ids(text))


def test_tokenizer_json_is_what_the_library_saves_itself(tmp_path):
    """Key for key, but for the cut and the template of pairs, which BertProcessing states otherwise."""
    implementations = pytest.importorskip("tokenizers.implementations")
    vocab = write_vocab(tmp_path)
    ours = FullTokenizer(vocab)
    made = implementations.BertWordPieceTokenizer(vocab=ours.vocab)
    made.enable_truncation(16)
    theirs, mine = json.loads(made.to_str()), tokenizer_json(ours, 16)
    assert {**theirs, "post_processor": None} == {**mine, "post_processor": None}


def test_tokenizer_json_cuts_and_joins_as_in_training(tmp_path):
    """[CLS] a [SEP] and [CLS] a [SEP] b [SEP], with segments 0 and 1.

    Long texts are cut at the trained length without being asked.
    """
    ours = FullTokenizer(write_vocab(tmp_path))
    made = loaded(ours, 9)
    for a, b in (
        ("the plot", None),
        ("the plot " * 9, None),
        ("the", "un want"),
        ("the plot " * 9, "un want b a"),
    ):
        features = encode(ours, a, b, 9)
        read = made.encode(a, b) if b else made.encode(a)
        n = int(features.input_mask.sum())
        assert (read.ids, read.type_ids) == (
            features.input_ids[:n].tolist(),
            features.segment_ids[:n].tolist(),
        )


def test_a_vocabulary_without_mask_is_served(tmp_path):
    """What the vocabulary lacks is no added token."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL[:4], "a"]) + "\n")
    made = loaded(FullTokenizer(path), 8)
    assert made.encode("a b").ids == [2, 4, 1, 3] and made.get_vocab_size() == 5


def test_every_snapshot_has_the_trained_length(golden):
    """model_max_length is --seq_length in best and last snapshots; the manifest names tokenizer.json."""
    for path in (best(golden / "teacher"), best(golden / "student"), golden / "student" / "snapshot_last"):
        assert json.loads((path / "tokenizer_config.json").read_text())["model_max_length"] == 32
        assert json.loads((path / "tokenizer.json").read_text())["truncation"]["max_length"] == 32
        assert "tokenizer.json" in json.loads((path / "manifest.json").read_text())["sha256"]


# --------------------------------------------------------------------------------------- the best of a run


def test_best_is_a_relative_link_to_what_best_json_names(golden):
    """In both run folders; it is read like the snapshot itself, by its own name."""
    for run in ("teacher", "student"):
        assert os.readlink(golden / run / "best") == best(golden / run).name
        folder = read_model(golden / run / "best")
        assert folder.path == best(golden / run) and folder.sha256 == read_model(best(golden / run)).sha256


def test_a_run_folder_stands_for_its_best_snapshot(golden, tmp_path):
    """Read as a model and as a description; a best.json that names nothing of the folder is refused."""
    assert read_model(golden / "student").path == best(golden / "student")
    assert read_snapshot_facts(golden / "teacher") == read_snapshot_facts(best(golden / "teacher"))
    for name in ("../elsewhere", "elsewhere", 3):
        (tmp_path / "best.json").write_text(json.dumps({"snapshot": name}))
        with pytest.raises(UserError, match="expected the name of a snapshot in this folder"):
            find_snapshot(tmp_path)


@pytest.mark.parametrize("name", ["teacher", "teacher/best"])
def test_stages_3_and_4_take_a_run_folder_or_its_link(sandbox, name):
    """A run folder or its link gives what the snapshot's own name gives.

    Stage 3 finds its knowledge, and the student has the same bytes.
    """
    flags = stage_flags(sandbox)
    outcome = call("meta_teacher_eval", sandbox, {**flags["meta_teacher_eval"], "model_load_dir": name})
    assert (outcome.code, outcome.err) == (0, "") and "nothing to do" in outcome.out
    flags = {**flags["meta_distill"], "teacher_model": name, "model_save_dir": "again"}
    assert call("meta_distill", sandbox, flags).code == 0
    weights = [best(sandbox / run) / "model.safetensors" for run in ("student", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    pages = [(sandbox / run / "report.html").read_text() for run in ("student", "again")]
    assert pages[0] == pages[1]


def test_a_run_folder_is_resumed(sandbox):
    """--resume_from RUN goes on from its snapshot_last, as --resume_from RUN/snapshot_last does."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": None, "resume_from": "teacher"}
    outcome = call("meta_teacher", sandbox, flags)
    assert (outcome.code, outcome.err) == (0, "") and "snapshot_last: " in outcome.out


def test_the_link_follows_and_a_copy_of_it_is_replaced(tmp_path):
    """A new best moves the link.

    A whole snapshot in its place, as a copied run has, is removed; any other file stays and is told.
    """
    for name in ("snapshot_a", "snapshot_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    for name in ("snapshot_a", "snapshot_b"):
        name_best(tmp_path, {"snapshot": name})
        assert os.readlink(tmp_path / "best") == name and find_snapshot(tmp_path / "best") == tmp_path / name
    (tmp_path / "best").unlink()
    shutil.copytree(tmp_path / "snapshot_a", tmp_path / "best")
    name_best(tmp_path, {"snapshot": "snapshot_b"})
    assert os.readlink(tmp_path / "best") == "snapshot_b"
    (tmp_path / "best").unlink()
    (tmp_path / "best").write_text("mine")
    with pytest.raises(UserError, match="move it away"):
        name_best(tmp_path, {"snapshot": "snapshot_b"})
    assert (tmp_path / "best").read_text() == "mine"


def test_a_file_system_without_links_has_best_json(tmp_path, monkeypatch):
    """As FAT is; nothing fails, and the run folder stands for the snapshot."""

    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(best_names.os, "symlink", refuse)
    (tmp_path / "snapshot_a").mkdir()
    name_best(tmp_path, {"snapshot": "snapshot_a"})
    assert find_snapshot(tmp_path) == tmp_path / "snapshot_a" and not (tmp_path / "best").exists()


def test_half_a_link_is_removed(tmp_path):
    """A kill between the two steps leaves a hidden link, which goes like any other half."""
    (tmp_path / "snapshot_a").mkdir()
    new_path(tmp_path).symlink_to("snapshot_a")
    remove_partial_writes(tmp_path)
    assert os.listdir(tmp_path) == ["snapshot_a"]


# --------------------------------------------------------------------------------- the base model in the card


class Flags:
    """The flags of the card, none given."""

    card_base_model = card_license = card_language = None


@pytest.mark.parametrize(
    "head, expected",
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x", ("apache-2.0", "en")),
        ("---\r\nlicense: 'mit'\r\nlanguage:\r\n- de\r\n- en\r\n---\r\n", ("mit", "de")),
        ("# no head\nlicense: mit\n", ("unknown", None)),
        (None, ("unknown", None)),
    ],
)
def test_license_and_language_are_those_of_the_base_models_card(tmp_path, head, expected):
    """As its front matter says, in one line or as a list; unknown where it says nothing."""
    path = tmp_path / "MiniLM"
    path.mkdir()
    if head is not None:
        (path / "README.md").write_bytes(head.encode())
    facts = base_facts(ModelFolder(path, None, {}, None, ""), Flags)
    assert (facts["name"], facts["license"], facts["language"]) == ("MiniLM", *expected)


def test_flags_say_what_the_card_is_to_say(tmp_path):
    """Before the folder's own card, and before what a snapshot has inherited."""
    flags = type("Given", (Flags,), {"card_license": "mit", "card_base_model": "org/model"})
    inherited = {"base": {"name": "MiniLM", "license": "apache-2.0", "language": "en"}}
    facts = base_facts(ModelFolder(tmp_path, None, {}, inherited, ""), flags)
    assert facts == {"name": "org/model", "license": "mit", "language": "en"}
    assert base_facts(ModelFolder(tmp_path, None, {}, {}, ""), Flags)["license"] == "unknown"


def test_the_hub_reads_the_card(golden):
    """huggingface_hub finds base model, metrics, and accuracy and macro-F1 as results of the model."""
    hub = pytest.importorskip("huggingface_hub")
    meta = json.loads((best(golden / "student") / "meta.json").read_text())
    data = hub.ModelCard.load(best(golden / "student") / "README.md").data
    assert (data.base_model, data.license, data.metrics) == ("bert", "unknown", ["accuracy", "f1"])
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": meta["dev"]["accuracy"], "f1": meta["dev"]["macro_f1"]}
