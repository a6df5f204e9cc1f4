"""Prediction: a snapshot alone labels raw texts, in order and a window at a time.

The labels are those of the run's own test, and those of transformers.
"""

import csv
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, best, call, lay_out, words
from fuzz import rehash_snapshot
from test_cli import refused
from tqdm import tqdm

import config
from data.rows import AnswerWriter, Row, Table
from modeling import predict as prediction
from modeling import predict_rows
from modeling.bert.model import init_weights
from modeling.meta_kd.classifier import DomainClassifier
from modeling.reports.acceptance import thresholds
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.snapshots.saving import save_snapshot
from tokenization import tokenizer_for

SCRIPT = {"teacher": "meta_teacher", "student": "meta_distill"}
PIPELINE = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, lines = sys.argv[1], open(sys.argv[2], encoding="utf-8")
texts = [tuple(line.rstrip("\\n").split("\\t")) for line in lines]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
logits = [model(**tokenizer(*text, return_tensors="pt")).logits[0].tolist() for text in texts]
answers = pipeline("text-classification", model=folder, tokenizer=folder)([text[0] for text in texts])
print(json.dumps({"labels": model.config.id2label, "logits": logits, "answers": answers}))
"""

ONNX = """
import importlib.util, json, sys
if not all(map(importlib.util.find_spec, ("optimum", "onnxruntime"))):
    sys.exit(77)
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer
folder, texts = sys.argv[1], open(sys.argv[2], encoding="utf-8").read().splitlines()
main_export(folder, "onnx", task="text-classification")
model = ORTModelForSequenceClassification.from_pretrained("onnx")
tokenizer = AutoTokenizer.from_pretrained(folder)
logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
print(json.dumps([each.softmax(-1).tolist() for each in logits]))
"""


def table(text):
    """A TSV as (header without idxs, labels, probabilities), float64 [N, M]; rows are numbered from 0."""
    header, *rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    assert header[0] == "idxs" and [row[0] for row in rows] == [*map(str, range(len(rows)))]
    return header[1:], [row[1] for row in rows], np.array([row[2:] for row in rows], float)


def of_the_run(folder, run):
    """Labels and probabilities of the test split in the predictions.tsv of a run."""
    rows = [line.split("\t") for line in (folder / run / "predictions.tsv").read_text().splitlines()]
    rows = [row for row in rows if row[0] == "test"]
    return [row[4] for row in rows], np.array([row[5:] for row in rows], float)


@pytest.fixture
def place(golden, tmp_path):
    """A folder with the best teacher, the best student and `texts` of the test split, nothing else."""
    for run in SCRIPT:
        shutil.copytree(best(golden / run), tmp_path / run)
    lines = (golden / "data" / "test.tsv").read_text().splitlines()[1:]
    (tmp_path / "texts").write_text("".join(line.split("\t")[0] + "\n" for line in lines))
    return tmp_path


def ask(folder, run="student", **flags):
    """Calls a script for the prediction of `texts` with the snapshot `run`."""
    return call(
        SCRIPT[run], folder, {"do_predict": True, "model_load_dir": run, "predict_file": "texts", **flags}
    )


def process(folder, stdin=None, **flags):
    """The same in a process, with bytes on its standard input."""
    flags = {"do_predict": True, "model_load_dir": "student", "predict_file": "texts", **flags}
    return subprocess.run(
        [sys.executable, str(ROOT / "meta_distill.py"), *words(flags)],
        cwd=folder,
        input=stdin,
        capture_output=True,
    )


def says(folder, *expected, run="student", **flags):
    """Asserts that a prediction is refused by one sentence with these words, and writes nothing."""
    before = sorted(folder.rglob("*"))
    outcome = ask(folder, run, **flags)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and outcome.err.startswith("error: "), outcome
    assert all(word in outcome.err for word in expected), outcome.err
    assert sorted(folder.rglob("*")) == before
    return outcome


# --------------------------------------------------------------------------------------- what is predicted


@pytest.mark.parametrize("run", SCRIPT)
def test_a_snapshot_alone_predicts_what_its_run_predicted(golden, place, run):
    """Without data, task or teacher the labels and probabilities are those of predictions.tsv.

    They come in the order of the texts.
    """
    outcome = ask(place, run)
    header, labels, found = table(outcome.out)
    expected_labels, expected = of_the_run(golden, run)
    assert (outcome.code, outcome.err, header) == (0, "", ["label", "positive", "negative"])
    assert labels == expected_labels and len(labels) == 16
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert len({*map(tuple, found)}) > 8  # an order that is lost would show


def test_window_and_batch_change_nothing(place, monkeypatch):
    """Texts that share a window or a batch with others get the probabilities that they get alone."""
    _, _, expected = table(ask(place).out)
    for window, batch in ((1, 1), (5, 3), (16, 7), (100, 100)):
        monkeypatch.setattr(predict_rows, "WINDOW", window)
        np.testing.assert_allclose(
            table(ask(place, eval_batch_size_per_device=batch).out)[2], expected, atol=1.1e-6
        )


def test_a_window_is_read_when_the_one_before_is_answered(place, monkeypatch):
    """Of an endless stream no more texts are taken than the windows that were answered."""
    taken, shapes = itertools.count(), []
    monkeypatch.setattr(predict_rows, "WINDOW", 20)
    texts = (b"good plot %d\n" % number for number in taken)
    table = Table("endless", texts, "lines", ("review",), ("a", "b"))

    class Enough(Exception):
        pass

    class Output:
        progress = {}

        def write(self, data, progress):
            shapes.append((data.count(b"\n"), progress["rows"]))
            if len(shapes) == 3:
                raise Enough

    def even(features):
        return np.full((len(features), 2), 0.5)

    tokenizer = tokenizer_for(read_model(place / "student").path)
    with pytest.raises(Enough):
        prediction.answer_rows(table, ["a", "b"], Output(), tokenizer, 32, even, None, tqdm(disable=True))
    assert shapes == [(21, 20), (20, 40), (20, 60)] and next(taken) == 60


def test_a_head_for_each_domain_gives_the_mean_of_those_that_were_trained(place):
    """Of a teacher with a head per domain, the prediction is the mean of the heads that were trained.

    Two trained heads lie around the shared head's weights, so their mean is that head; two others hold
    anything.
    """
    folder = read_model(place / "teacher")
    model = DomainClassifier(folder.config, 2, 4, class_heads="per_domain")
    init_weights(model, 0, 1.0)
    heads = {}
    for name in ("weight", "bias"):
        shared, shift = folder.arrays[f"classifier.{name}"], np.float32(0.5)
        heads[f"domain_classifiers.dense.{name}"] = np.concatenate(
            [shared + shift, shared * 99, shared - shift, shared * -99]
        )
    load_weights(model, folder._replace(arrays={**folder.arrays, **heads}), allow_missing=())
    save_snapshot(
        place / "several",
        model,
        tokenizer_for(folder.path),
        {**folder.meta, "seen_domains": [0, 2], "domain_head": False},
    )
    outcome = ask(place, "teacher", model_load_dir="several")
    np.testing.assert_allclose(table(outcome.out)[2], table(ask(place, "teacher").out)[2], atol=2e-6)


def of_pairs(place):
    """Makes a snapshot `pairs` of the student for a task of pairs, and `texts` with two columns."""
    folder = read_model(place / "student")
    model = DomainClassifier(folder.config, 3, 2)
    init_weights(model, 3, 0.5)
    meta = {
        **folder.meta,
        "text": ["premise", "hypothesis"],
        "labels": ["yes", "no", "perhaps"],
        "domains": ["one", "two"],
    }
    save_snapshot(place / "pairs", model, tokenizer_for(folder.path), meta)
    (place / "texts").write_text("good plot\tbad sound\nbad sound\tgood plot\nthe book is good\tthe book\n")


def test_pairs_are_two_columns(place):
    """A pair is two columns, and their order counts; one column or three are refused."""
    of_pairs(place)
    header, labels, found = table(ask(place, model_load_dir="pairs").out)
    assert (
        header == ["label", "yes", "no", "perhaps"]
        and len(labels) == 3
        and np.abs(found[0] - found[1]).max() > 1e-5
    )
    assert labels == [header[1 + row.argmax()] for row in found]
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=3e-6)
    for text in ("good plot\n", "a\tb\tc\n"):
        (place / "texts").write_text("good plot\tbad sound\n" + text)
        outcome = ask(place, model_load_dir="pairs")
        assert outcome.code == 1 and outcome.out.count("\n") == 2
        assert "texts:2: " in outcome.err and "column(s), expected 2 (premise, hypothesis)" in outcome.err


NEEDS_TORCH = pytest.mark.skipif(
    not os.environ.get("METAKD_TORCH_PYTHON"), reason="METAKD_TORCH_PYTHON names no Python with transformers"
)


def elsewhere(folder, program, *words):
    """Runs a program under $METAKD_TORCH_PYTHON in `folder`.

    Returns the JSON of its last line, or None where it exits with 77.
    """
    done = subprocess.run(
        [os.environ["METAKD_TORCH_PYTHON"], "-c", program, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode in (0, 77), done.stderr
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


@NEEDS_TORCH
def test_transformers_gives_the_same_answers(place):
    """transformers gives our answers, for texts and pairs.

    The logits of AutoModelForSequenceClassification are within 1e-4 of the log of ours; pipeline names the
    labels.
    """
    for snapshot in ("student", "pairs"):
        if snapshot == "pairs":
            of_pairs(place)
        header, labels, found = table(ask(place, model_load_dir=snapshot).out)
        theirs = elsewhere(place, PIPELINE, snapshot, "texts")
        assert list(theirs["labels"].values()) == header[1:]
        exact = np.exp(np.array(theirs["logits"]))
        np.testing.assert_allclose(found, exact / exact.sum(axis=1, keepdims=True), atol=1e-4)
        if snapshot == "student":
            assert [answer["label"] for answer in theirs["answers"]] == labels
            np.testing.assert_allclose(
                [answer["score"] for answer in theirs["answers"]], found.max(axis=1), atol=1e-4
            )


@NEEDS_TORCH
def test_onnx_runtime_gives_the_same_answers(place):
    """The snapshot as optimum exports it: the probabilities, within 1e-4."""
    theirs = elsewhere(place, ONNX, "student", "texts")
    if theirs is None:
        pytest.skip("$METAKD_TORCH_PYTHON has no optimum with onnxruntime")
    np.testing.assert_allclose(table(ask(place).out)[2], theirs, atol=1e-4)


# --------------------------------------------------------------------------------------- in and out


def test_standard_input_and_output_are_pipes(place):
    """`-` reads a pipe; standard output holds the TSV alone, and standard error nothing."""
    texts = (place / "texts").read_bytes()
    done = process(
        place, b"\xef\xbb\xbf" + texts.replace(b"\n", b"\r\n").removesuffix(b"\r\n"), predict_file="-"
    )
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.decode() == ask(place).out
    done = process(place, "good plot\n\nörk \u2028 plot".encode(), predict_file="-")
    assert done.returncode == 0 and done.stdout.count(b"\n") == 4
    assert (
        done.stdout.splitlines()[2] == b"1\t\t\t"
        and done.stderr == b"note: 1 of 3 texts are empty, and have no label\n"
    )


def test_a_reader_that_goes_ends_it_quietly(place):
    """As `| head` does: not a word on standard error."""
    script = (
        f"{sys.executable} {ROOT / 'meta_distill.py'} --do_predict --model_load_dir student "
        "--predict_file texts | true; echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=place, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_an_output_file_is_written_whole_or_not_at_all(place, monkeypatch):
    """The output file holds the lines of standard output.

    An older file is replaced, but stays as it was where a later window has a fault.
    """
    expected = ask(place).out
    (place / "out.tsv").write_text("old")
    assert ask(place, output_file="out.tsv")[:2] == (0, "") and (place / "out.tsv").read_text() == expected
    with gzip.open(place / "texts.gz", "wb") as file:
        file.write((place / "texts").read_bytes() * 50)
    (place / "half.gz").write_bytes((place / "texts.gz").read_bytes()[:-20])
    says(place, "half.gz: cannot be unpacked", predict_file="half.gz", output_file="out.tsv")
    assert (place / "out.tsv").read_text() == expected


def test_an_output_file_that_cannot_be_is_refused_before_the_model_is_read(place):
    """The texts themselves, under whatever name, a folder, a file in no folder."""
    texts = (place / "texts").read_bytes()
    (place / "alias").symlink_to("texts")
    for name in ("texts", "./texts", "alias"):
        says(
            place,
            f"--output_file {name.removeprefix('./')}",
            "would be overwritten",
            output_file=name,
            model_load_dir="nowhere",
        )
    says(place, "--output_file student", "this is a folder", output_file="student")
    says(place, "--output_file no/out.tsv", "there is no folder no", output_file="no/out.tsv")
    assert (place / "texts").read_bytes() == texts


@pytest.mark.parametrize("name", ["student/model.safetensors", "student/vocab.txt", "results.json"])
def test_no_file_of_the_model_or_its_run_is_overwritten(place, name):
    """A file of the model or its run is not overwritten: its sentence names it. A new name there is free."""
    (place / "results.json").write_text("{}")  # of the run that the snapshot lies in
    before = (place / name).read_bytes()
    says(place, f"--output_file {name}", "would be overwritten", output_file=name)
    assert (place / name).read_bytes() == before


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "content, expected", [(b"", "texts: found no text"), (b"", "texts.csv: the file is empty")]
)
def test_a_file_without_texts_is_refused(place, content, expected):
    """Nothing is answered, and no file is left."""
    name = expected.split(":")[0]
    (place / name).write_bytes(content)
    assert (
        says(
            place,
            expected,
            predict_file=name,
            output_file="out." + name.partition(".")[2] * bool("." in name) or None,
        ).out
        == ""
    )


def test_semicolons_are_told(place):
    """As many spreadsheets write a CSV."""
    (place / "semi.csv").write_bytes(b"text;more\na good book;1\n")
    says(place, "semi.csv:1: found 'text;more', expected", "parted by commas", predict_file="semi.csv")


@pytest.mark.parametrize(
    "line", [b"", b" ", b"\xe2\x80\x8b", b"\t \t".replace(b"\t", b"\r"), b"\xc2\xa0\xef\xb8\x8f", b"\x07"]
)
def test_an_empty_text_has_an_empty_label(place, line):
    """A text without tokens, whatever it is made of, has an empty answer and is counted and told.

    The other answers are as without it.
    """
    (place / "texts").write_bytes(b"good plot\n" + line + b"\nbad sound\n")
    outcome = ask(place)
    rows = [row.split("\t") for row in outcome.out.splitlines()]
    assert outcome.code == 0 and rows[2] == ["1", "", "", ""] and rows[1][1] and rows[3][1]
    assert outcome.err == "note: 1 of 3 texts are empty, and have no label\n"


@pytest.mark.parametrize(
    "line, expected",
    [
        (b"bad \xff", "texts:2: found byte 0xff"),
        (b"good\tbooks", "texts:2: found 2 column(s), expected 1 (review)"),
        (b"go\0od", "texts:2: found a NUL"),
    ],
)
def test_a_faulty_line_is_told_at_the_end(place, line, expected):
    """By file and line, with exit code 1; the file holds the other answers under their own numbers."""
    (place / "texts").write_bytes(b"good plot\n" + line + b"\nbad sound\n")
    outcome = ask(place, output_file="out.tsv")
    assert outcome.code == 1 and f"error: {expected}" in outcome.err
    assert outcome.err.endswith("error: texts: 1 of 3 lines have a fault; the answers hold the others.\n")
    assert [row.split("\t")[0] for row in (place / "out.tsv").read_text().splitlines()] == ["idxs", "0", "2"]


def test_twenty_faults_are_told_and_all_are_counted(place):
    """Memory and the terminal are not filled by them."""
    (place / "texts").write_bytes(b"bad \xff\n" * 30 + b"good plot\n")
    outcome = ask(place)
    assert outcome.code == 1 and outcome.err.count("found byte") == 20 and "30 of 31 lines" in outcome.err


def test_a_model_that_cannot_predict_is_refused(place, tiny_model, tiny_data):
    """Refused: a plain BERT, a missing folder, a snapshot without class head, a missing file of texts."""
    lay_out(place, tiny_model, tiny_data)
    says(place, "--model_load_dir bert", "not trained here", model_load_dir="bert")
    says(place, "--model_load_dir nowhere", "no such folder", model_load_dir="nowhere")
    says(place, "nowhere: cannot be read", "check --predict_file", predict_file="nowhere")
    (place / "run").mkdir()
    (place / "run" / "best.json").write_text('{"snapshot": "snapshot_best"}')
    says(place, "--model_load_dir run/snapshot_best", "no such folder", model_load_dir="run")
    folder = read_model(place / "student")
    model = DomainClassifier(folder.config, 2, 4)
    save_snapshot(
        place / "headless", model, tokenizer_for(folder.path), folder.meta, left_out=("classifier.",)
    )
    says(place, "--model_load_dir headless", "no class head", model_load_dir="headless")


@pytest.mark.parametrize("run", SCRIPT)
def test_a_prediction_is_a_run_of_its_own(place, golden, run):
    """It needs its two flags, is not combined with training, and its flags do not stand without it."""
    for name in ("model_load_dir", "predict_file"):
        says(place, f"--{name} is needed", run=run, **{name: None})
    for name in ("do_train", "do_eval"):
        says(place, f"--do_predict and --{name}", run=run, **{name: True})
    refused(golden, SCRIPT[run], "--predict_file", "--do_predict is not given", predict_file="texts")
    refused(golden, SCRIPT[run], "--predict_format", "--do_predict is not given", predict_format="csv")
    refused(golden, "meta_distill", "--model_load_dir", "--do_predict is not given", model_load_dir="bert")


def test_the_help_names_the_flags_that_count():
    """Each of PredictionOptions that is no flag of the prediction's own group, and no other."""
    parser = config.Parser("")
    config.prediction(parser)
    (group,) = [each for each in parser._action_groups if each.title == "prediction"]
    own = {action.dest for action in group._group_actions} | {"model_load_dir"}
    others = set(prediction.PredictionOptions._fields) - own
    assert {word.strip(",;") for word in group.description.split() if word.startswith("--")} == {
        f"--{name}" for name in others
    }


def test_task_and_data_are_needed_for_all_else():
    """The sentence is argparse's own."""
    groups = (config.task, config.model, config.prediction)
    with pytest.raises(
        config.UserError,
        match="following arguments are required: --task_name, --data_dir; '.*--help' lists the flags",
    ):
        config.parse("", *groups, argv=[])
    assert config.parse("", *groups, argv=["--do_predict"]).data_dir is None


# --------------------------------------------------------------------------------------- tables


TEXTS = ["good plot", "", 'a "bad" sound, so it was', "dull\tbook"]


def tables(folder):
    """Writes the TEXTS, with a key of their own and a column more, as t.csv, t.tsv, t.jsonl and packed."""
    rows = [(f"k{i}", text, f"ü {i}") for i, text in enumerate(TEXTS)]
    with open(folder / "t.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("key", "words", "more"), *rows])
    lines = [
        "\t".join(part.replace("\t", " ") for part in row) + "\n" for row in [("key", "words", "more"), *rows]
    ]
    (folder / "t.tsv").write_text("".join(lines), encoding="utf-8")
    objects = [{"key": key, "words": text or None, "more": more} for key, text, more in rows]
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    (folder / "t.jsonl").write_text(text, encoding="utf-8")
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))


def read_back(path):
    """The rows of an answered table, a list of dicts of texts, and of None as "" in JSON lines."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = raw.decode("utf-8")
    if ".jsonl" in path.name:
        rows = [json.loads(line) for line in text.splitlines()]
        return [
            {k: "" if v is None else f"{v:.6f}" if isinstance(v, float) else str(v) for k, v in row.items()}
            for row in rows
        ]
    return [*csv.DictReader(text.splitlines(), delimiter="," if ".csv" in path.name else "\t")]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.csv.gz", "t.tsv.gz", "t.jsonl.gz"])
def test_tables_are_answered_row_by_row(place, name):
    """Tables are answered row by row, and the answers are those of the lines.

    Named columns, quotes, marks at the start, packed files; other columns pass through.
    """
    tables(place)
    (place / "texts").write_text("".join(text.replace("\t", " ") + "\n" for text in TEXTS))
    expected = [line.split("\t") for line in ask(place).out.splitlines()]
    outcome = ask(place, predict_file=name, text_column="words", output_file=f"out.{name}")
    assert (
        outcome.code == 0
        and outcome.out == ""
        and outcome.err == "note: 1 of 4 texts are empty, and have no label\n"
    )
    rows = read_back(place / f"out.{name}")
    assert [*rows[0]] == ["idxs", "key", "more", "label", "positive", "negative"]
    assert [[row[name] for name in expected[0]] for row in rows] == expected[1:]
    assert [(row["key"], row["more"]) for row in rows] == [(f"k{i}", f"ü {i}") for i in range(4)]


def test_columns_of_our_names_stay_theirs(place):
    """idxs of the file are kept, and a column named label or as a class is passed through beside ours."""
    (place / "t.tsv").write_text("idxs\treview\tlabel\tnegative\n7\tgood plot\tgold\tn\n")
    header, row = [line.split("\t") for line in ask(place, predict_file="t.tsv").out.splitlines()]
    assert header == ["idxs", "label", "negative", "predicted_label", "positive", "predicted_negative"]
    assert row[:3] == ["7", "gold", "n"]


@pytest.mark.parametrize(
    "first, second, fault",
    [
        ({}, {"label": "mine"}, "found the key 'label', which"),
        ({}, {"other": 1, "negative": 5}, "found the key 'negative', which"),
        ({}, {"idxs": "77"}, "found the key 'idxs', which"),
        ({"other": 1}, {"idxs": "77"}, "found the key 'idxs', which"),
        ({"label": "mine"}, {"predicted_label": "theirs"}, "found the key 'predicted_label', which"),
        ({"idxs": 9}, {}, "found no key 'idxs', which"),
        ({"idxs": 9, "label": "mine"}, {"idxs": 10}, None),
        ({}, {"other": 5}, None),
    ],
)
def test_no_value_of_a_json_line_is_lost(place, first, second, fault):
    """A key that would be taken for ours is a fault of its line; what is answered has all that it had.

    A line that cannot be read does not settle which keys there are.
    """
    objects = [{"review": "good plot", **first}, {"review": "bad sound", **second}]
    (place / "t.jsonl").write_text("broken\n" + "".join(json.dumps(each) + "\n" for each in objects))
    outcome = ask(place, predict_file="t.jsonl")
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(answers) == 2 - bool(fault) and (fault is None or f"error: t.jsonl:3: {fault}" in outcome.err)
    for k, (answer, given) in enumerate(zip(answers, (first, second)), 1):
        assert answer == {**answer, "idxs": k, **given}
        assert {"positive", "negative"} <= {name.removeprefix("predicted_") for name in answer}


def test_pairs_have_two_columns(place):
    """In the order of the flag, wherever they stand; one name or three are refused."""
    of_pairs(place)
    expected = ask(place, model_load_dir="pairs").out.splitlines()[1].split("\t")
    (place / "t.csv").write_text("b,id,a\nbad sound,x,good plot\n")
    argv = ["--do_predict", "--model_load_dir", "pairs", "--predict_file", "t.csv", "--text_column"]
    for names in (["a", "b"], ["a"], ["a", "b", "id"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "meta_distill.py"), *argv, *names],
            cwd=place,
            capture_output=True,
            text=True,
        )
        if len(names) == 2:
            row = done.stdout.splitlines()[1].split(",")
            assert row[:3] == ["0", "x", expected[1]], done.stderr
            np.testing.assert_allclose(np.array(row[3:], float), np.array(expected[2:], float), atol=2e-6)
        else:
            assert done.returncode == 2 and "takes 2 text(s) (premise, hypothesis)" in done.stderr


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("t.csv", 'review\n"open\n', "t.csv:2: the row that starts here is no CSV"),
        ("t.csv", 'id,review\n1,good\n2,"a\nb",c\n3,bad\n', "t.csv:3: found 3 column(s), expected 2"),
        ("t.tsv", "id\treview\n1\tgood\nbad\n", "t.tsv:3: found 1 column(s), expected 2"),
        ("t.jsonl", '{"review": "good"}\n{"review": 3}\n', "t.jsonl:2: found a int under 'review'"),
        ("t.jsonl", '{"review": "good"}\n{"text": "a"}\n', "t.jsonl:2: found nothing under 'review'"),
        ("t.jsonl", '{"review": "good"}\n[1]\n', "t.jsonl:2: found a list"),
        ("t.jsonl", '{"review": "good"}\n{"review": NaN}\n', "t.jsonl:2: the line is not JSON"),
        ("t.jsonl", '{"review": "bad"}\n{"review": "good", "a": 1e400}\n', "t.jsonl:2: the line is not JSON"),
        ("t.jsonl", '{"review": "good", "a": "\\ud800"}\n', "t.jsonl:1: found half of a surrogate pair"),
        ("t.jsonl", "[" * 100_000 + "\n", "t.jsonl:1: the line is not JSON"),
    ],
)
def test_a_faulty_row_is_told_at_the_end(place, name, content, expected):
    """Whatever its fault, the rows around it are answered."""
    (place / name).write_text(content)
    outcome = ask(place, predict_file=name)
    assert outcome.code == 1 and f"error: {expected}" in outcome.err and "1 of " in outcome.err
    assert outcome.out.count("good") == 0


def test_a_header_without_the_text_is_refused(place):
    """By the names that are there and the one that is wanted."""
    (place / "t.csv").write_text("id;words\n1;good\n")
    says(place, "t.csv:1: found 'id;words'", "'review'", "--text_column", predict_file="t.csv")
    (place / "t.tsv").write_text("review\treview\ngood\tbad\n")
    says(place, "t.tsv:1: ", "each name once", predict_file="t.tsv")
    says(place, "answered in csv", predict_file="t.csv", output_file="out.jsonl")


def test_a_low_confidence_leaves_the_label_empty(place):
    """Below P, and no other; the probabilities stay, and the number is told."""
    header, labels, found = table(ask(place).out)
    limit = float(np.sort(found.max(axis=1))[len(found) // 2])
    outcome = ask(place, min_confidence=limit + 1e-9)
    _, kept, same = table(outcome.out)
    below = found.max(axis=1) <= limit
    assert kept == ["" if low else label for label, low in zip(labels, below)] and (same == found).all()
    assert f"note: {below.sum()} of 16 answers are below --min_confidence" in outcome.err


def test_a_limit_of_the_report_answers_what_the_report_says(tiny_model):
    """Whatever digits of a probability are not shown: what is at the limit, and what is rounded up to it."""
    stream, labels, tokenizer = np.random.default_rng(0), ("bad", "good"), tokenizer_for(tiny_model)
    sure = np.concatenate([np.full(40, 0.9999997), np.full(10, 0.9), stream.uniform(0.5, 1, 50)])  # [N]
    found = np.stack([1 - sure, sure], axis=1)  # [N, M]
    right = [True] * 40 + [False] * 10 + [True] * 50
    shown = [
        {"label": labels[good], "predicted": "good", ("p", "good"): f"{p:.6f}"}
        for good, p in zip(right, sure)
    ]
    for _, limit, share, _ in thresholds(shown, shown):
        assert answered(found, labels, tokenizer, limit) == pytest.approx(share)
    for limit in sorted({float(row["p", "good"]) for row in shown}):
        at_least = [float(row["p", "good"]) >= limit for row in shown]
        assert answered(found, labels, tokenizer, limit) == pytest.approx(np.mean(at_least))


def answered(found, labels, tokenizer, limit):
    """The share of texts that get a label where the model gives them the probabilities `found`, [N, M]."""
    rows = [Row(number, ("good plot",)) for number in range(len(found))]
    tally, writer = predict_rows.Tally({}), AnswerWriter("tsv", (), labels)
    lines = predict_rows.answer_window(
        rows, writer, labels, tally, tokenizer, 8, lambda features: found, limit
    )
    given = [line.split(b"\t")[1] != b"" for line in lines]
    assert tally.counts["uncertain"] == given.count(False)
    return np.mean(given)


# --------------------------------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("output", ["out.tsv", "out.tsv.gz"])
def test_a_prediction_goes_on_after_a_kill(place, monkeypatch, output):
    """Killed after any window, --resume ends with the bytes of a run that was never stopped.

    It asks the model for the rest alone.
    """
    monkeypatch.setattr(predict_rows, "WINDOW", 4)
    (place / "texts").write_bytes((place / "texts").read_bytes() + b"\n\nbad \xff\n")
    whole = ask(place, output_file=f"whole.{output}")
    expected, ask_model = (place / f"whole.{output}").read_bytes(), prediction.class_probabilities
    for windows in range(4):
        asked = []

        def killed(model, features, *more, asked=asked, windows=windows):
            if len(asked) == windows:
                raise KeyboardInterrupt
            asked.append(len(features))
            return ask_model(model, features, *more)

        monkeypatch.setattr(prediction, "class_probabilities", killed)
        stopped = ask(place, output_file=output)
        assert not (place / output).exists() and ("--resume" in stopped.err) == (windows > 0)

        def counted(model, features, *more, asked=asked):
            asked.append(len(features))
            return ask_model(model, features, *more)

        monkeypatch.setattr(prediction, "class_probabilities", counted)
        outcome = ask(place, output_file=output, resume=True)
        assert (outcome.code, outcome.err) == (1, whole.err) and sum(asked) == 16
        assert (place / output).read_bytes() == expected
        (place / output).unlink()
        assert not [*place.glob(".*")]


def edit_json(name, edit):
    """What takes a folder and changes the value of a JSON file in it by `edit`."""

    def change(folder):
        value = json.loads((folder / name).read_bytes())
        edit(value)
        (folder / name).write_text(json.dumps(value))

    return change


def keep_accents(folder):
    edit_json("tokenizer_config.json", lambda value: value.update(strip_accents=False))(folder)
    edit_json("tokenizer.json", lambda value: value["normalizer"].update(strip_accents=False))(folder)


OTHER_SNAPSHOTS = {  # {change: (what the sentence names, the edit)}, of snapshots with the same weights
    "accents": ("vocabulary", keep_accents),
    "shorter": ("seq_length", edit_json("meta.json", lambda value: value.update(seq_length=8))),
    "ends": ("truncate", edit_json("meta.json", lambda value: value.update(truncate="head_tail"))),
    "renamed": ("labels", edit_json("meta.json", lambda value: value.update(labels=["no", "yes"]))),
}


def test_what_was_begun_otherwise_is_not_gone_on_with(place, monkeypatch):
    """Another model, another threshold, other texts, and what makes other tokens or names of the same, are
    refused; without --resume it starts again.
    """
    monkeypatch.setattr(predict_rows, "WINDOW", 4)
    ask_model, calls = prediction.class_probabilities, []

    def killed(*values):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask_model(*values)

    monkeypatch.setattr(prediction, "class_probabilities", killed)
    ask(place, output_file="out.tsv")
    says(place, "another model", output_file="out.tsv", resume=True, model_load_dir="teacher")
    says(place, "another min_confidence", output_file="out.tsv", resume=True, min_confidence=0.5)
    says(place, "another do_lower_case (True", output_file="out.tsv", resume=True, do_lower_case="false")
    tokens = (place / "student" / "vocab.txt").read_text().splitlines()
    (place / "swapped.txt").write_text("\n".join([*tokens[:-2], tokens[-1], tokens[-2]]) + "\n")
    says(place, "another vocabulary", output_file="out.tsv", resume=True, vocab_file="swapped.txt")
    for change, (named, edit) in OTHER_SNAPSHOTS.items():
        shutil.copytree(place / "student", place / change)
        edit(place / change)
        rehash_snapshot(place / change)
        says(place, f"another {named} ", output_file="out.tsv", resume=True, model_load_dir=change)
    texts = (place / "texts").read_bytes()
    (place / "texts").write_bytes(b"dull " + texts)
    says(place, "not those that were answered", output_file="out.tsv", resume=True)
    (place / "texts").write_bytes(texts)
    assert ask(place, output_file="out.tsv").code == 0 and (place / "out.tsv").read_text() == ask(place).out


def test_devices_pipes_and_links_are_written_as_they_are(place):
    """/dev/null stays a device, a named pipe has the bytes, a link leads to the file as before."""
    expected = ask(place).out
    assert ask(place, output_file="/dev/null").code == 0 and not os.path.isfile("/dev/null")
    os.mkfifo(place / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], cwd=place, stdout=subprocess.PIPE, text=True)
    assert ask(place, output_file="pipe").code == 0 and reader.communicate()[0] == expected
    (place / "real").write_text("old")
    (place / "link").symlink_to("real")
    assert ask(place, output_file="link").code == 0 and os.readlink(place / "link") == "real"
    assert (place / "real").read_text() == expected


def test_standard_output_is_utf8_in_any_locale(place):
    """A column of umlauts under LC_ALL=C, as cron has it."""
    (place / "t.tsv").write_text("key\treview\nü €\tgood plot\n", encoding="utf-8")
    flags = {"do_predict": True, "model_load_dir": "student", "predict_file": "t.tsv"}
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "meta_distill.py"), *words(flags)],
        cwd=place,
        capture_output=True,
        env=environment,
    )
    assert done.returncode == 0 and "ü €\t" in done.stdout.decode("utf-8")
