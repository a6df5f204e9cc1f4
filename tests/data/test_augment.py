"""data.prepare.augment: its texts are made of the chosen training texts alone, and are a function of the
seed.
"""

import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import call, lay_out
from safetensors.numpy import load_file

from data.prepare.augment import Neighbours, Rates, alter_words, augment, recombine, replace_word
from data.tasks import Example, load_task, read_examples, split_path
from data.unlabelled import text_parser
from util import random_stream

TOKENS = ["[PAD]", "[UNK]", "good", "great", "fine", "bad", "awful", "##ing", "a", "2x", "film"]
VECTORS = np.array(
    [[0, 0], [0, 0], [1, 0], [0.9, 0.1], [0.8, 0.3], [-1, 0], [-0.9, 0.1], [1, 0], [1, 0], [1, 0], [0, 1]],
    np.float32,
)
NEIGHBOURS = Neighbours(VECTORS, TOKENS)
EXAMPLES = [
    Example("a good film. it was great!", None, 0, 0, 2),
    Example("a fine film. so good.", None, 0, 0, 3),
    Example("a bad film. it was awful!", None, 0, 1, 4),
]


def test_neighbours_are_whole_words_in_the_order_of_their_cosines():
    """No [PAD], no continuation, no letter alone, nothing with a digit; a word is no neighbour of its own."""
    assert NEIGHBOURS.find("good") == ["great", "fine", "film", "awful", "bad"]
    assert NEIGHBOURS.find("##ing") == NEIGHBOURS.find("a") == NEIGHBOURS.find("unheard") == []


def test_a_replaced_word_keeps_its_punctuation():
    stream = random_stream(1, "augmentation")
    word = replace_word('"good,', NEIGHBOURS, True, stream)
    assert word[0] == '"' and word[-1] == "," and word[1:-1] in NEIGHBOURS.find("good")
    assert replace_word("GOOD", NEIGHBOURS, False, stream) == "GOOD"  # of a cased model another word
    assert replace_word("GOOD", NEIGHBOURS, True, stream) in NEIGHBOURS.find("good")
    assert replace_word("...", NEIGHBOURS, True, stream) == "..."


def test_rates_are_what_happens():
    """At 0 the text stays, at 1 every word with neighbours is another; no text loses all its words."""
    stream = random_stream(1, "augmentation")
    text = "a good film it was great"
    assert alter_words(text, Rates(0, 0, 0), NEIGHBOURS, True, stream) == text
    changed = alter_words(text, Rates(1, 0, 0), NEIGHBOURS, True, stream).split()
    assert [a == b for a, b in zip(changed, text.split())] == [True, False, False, True, True, False]
    assert alter_words(text, Rates(0, 1, 0), NEIGHBOURS, True, stream) == text
    many = " ".join(["film"] * 4000)
    left = len(alter_words(many, Rates(0, 0.25, 0), NEIGHBOURS, True, stream).split())
    assert 0.72 < left / 4000 < 0.78


def test_recombined_texts_hold_sentences_of_both_alone():
    stream = random_stream(3, "augmentation")
    sentences = {"A one.", "B two!", "C three?", "D four."}
    made = {recombine("A one. B two!", "C three? D four.", stream) for _ in range(50)}
    assert all(set(re.findall(r"\w+ \w+[.!?]", text)) <= sentences for text in made)
    assert len(made) > 3


def test_versions_are_a_function_of_the_seed_and_none_is_a_training_text():
    def make(seed, copies=3):
        return list(augment(EXAMPLES, copies, Rates(0.5, 0.1, 0.5), NEIGHBOURS, True, seed))

    assert make(1) == make(1) != make(2)
    assert make(1)[: len(make(1, 2))] == make(1, 2)  # more copies add to those of fewer
    texts = [texts for texts, _ in make(1)]
    assert len(set(texts)) == len(texts) and not {(each.text_a,) for each in EXAMPLES} & set(texts)


def test_sentences_are_recombined_within_domain_and_class():
    """The lone negative text has no partner: its versions hold its own sentences alone."""
    rows = augment(EXAMPLES, 20, Rates(0, 0, 1), NEIGHBOURS, True, 1)
    words = [set(texts[0].replace(".", "").replace("!", "").split()) for texts, _ in rows]
    assert words and all(not ({"bad", "awful"} & each and {"good", "great", "fine"} & each) for each in words)


def test_what_has_lost_its_visible_words_is_no_text():
    """Stage 3 would refuse the file for it."""
    example = Example("good \u200b", None, 0, 0, 2)
    texts = [texts for texts, _ in augment([example], 50, Rates(0, 0.5, 0), NEIGHBOURS, True, 1)]
    assert texts == [("good",)]


def test_both_texts_of_a_pair_are_altered_and_stay_a_pair():
    pair = Example("good film", "great film", 1, 0, 2)
    for texts, domain in augment([pair], 5, Rates(1, 0, 1), NEIGHBOURS, True, 1):
        assert len(texts) == 2 and domain == 1
        assert texts[0].split()[0] != "good" and texts[1].split()[0] != "great"


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_data):
    return lay_out(tmp_path, tiny_model, tiny_data)


def test_the_command_writes_a_file_for_unlabelled_file(folder):
    """Stages 3 and 4 read it; the same command gives the same bytes; dev and test need not be there."""
    task = load_task("senti", folder / "data")
    for split in ("dev", "test"):
        split_path(folder / "data", split).unlink()
    flags = {
        "task_name": "senti",
        "data_dir": "data",
        "model_load_dir": "bert",
        "copies": 2,
        "domain": "books",
    }
    outcomes = [
        call("data.prepare.augment", folder, {**flags, "output_file": name}) for name in ("a.tsv", "b.tsv")
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert (folder / "a.tsv").read_bytes() == (folder / "b.tsv").read_bytes()
    parse = text_parser(task, folder / "a.tsv")
    lines = (folder / "a.tsv").read_bytes().splitlines()[1:]
    rows = [parse(number, line) for number, line in enumerate(lines, 2)]
    books = [each for each in read_examples(task, split_path(folder / "data", "train")) if each.domain == 0]
    assert 0 < len(rows) <= 2 * len(books) and {domain for _, _, domain, _ in rows} == {0}
    assert f"{len(rows)} texts made of {len(books)} training texts" in outcomes[0].out


def augment_folder(folder, **more):
    flags = {"task_name": "senti", "data_dir": "data", "model_load_dir": "bert", "output_file": "a.tsv"}
    return call("data.prepare.augment", folder, {**flags, **more})


def test_a_model_may_be_in_shards_or_of_bfloat16_and_a_run_stands_for_its_best_snapshot(folder):
    """As in the stages; the texts are those of the same vectors in one file."""
    assert augment_folder(folder).code == 0
    arrays = load_file(folder / "bert" / "model.safetensors")
    shutil.copytree(folder / "bert", folder / "run" / "snapshot_best")
    (folder / "run" / "best.json").write_text('{"snapshot": "snapshot_best"}')
    shutil.copytree(folder / "bert", folder / "shards")
    os.rename(folder / "shards" / "model.safetensors", folder / "shards" / "one.safetensors")
    index = {"weight_map": dict.fromkeys(arrays, "one.safetensors")}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("run", "shards"):
        outcome = augment_folder(folder, model_load_dir=name, output_file="b.tsv")
        assert outcome.code == 0, outcome.err
        assert (folder / "a.tsv").read_bytes() == (folder / "b.tsv").read_bytes()
    write_bfloat16(folder / "bert" / "model.safetensors", arrays)
    assert augment_folder(folder).code == 0


def write_bfloat16(path, arrays):
    """A safetensors file of the upper halves of float32 arrays."""
    header, data = {}, b""
    for name, array in arrays.items():
        half = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
        ends = [len(data), len(data) + len(half)]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": ends}
        data += half
    words = json.dumps(header).encode()
    path.write_bytes(len(words).to_bytes(8, "little") + words + data)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"output_file": "data/../data/train.tsv"}, "this is a split of the task"),
        ({"output_file": "none/a.tsv"}, "there is no folder none"),
        ({"replace": 0, "drop": 0, "recombine": 0}, "nothing to write"),
        ({"model_load_dir": "empty"}, "model.safetensors: missing"),
    ],
)
def test_mistakes_are_sentences_and_nothing_is_written(folder, more, words):
    (folder / "empty").mkdir()
    shutil.copy(folder / "bert" / "vocab.txt", folder / "empty")
    before = (folder / "data" / "train.tsv").read_bytes()
    outcome = augment_folder(folder, **more)
    assert outcome.code == 2 and words in outcome.err and len(outcome.err.splitlines()) == 1
    assert (folder / "data" / "train.tsv").read_bytes() == before and not (folder / "a.tsv").exists()
