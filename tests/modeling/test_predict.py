"""Prediction: a snapshot alone labels raw texts, as the test of its run did and as transformers does, in order and a window at a time."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, best, call, lay_out, words
from test_cli import refused

import config
from modeling import predict as prediction
from modeling.bert.model import init_weights
from modeling.meta_kd.classifier import DomainClassifier
from modeling.snapshots.folder import load_weights, read_model, save_snapshot
from tokenization import tokenizer_for

SCRIPT = {"teacher": "meta_teacher", "student": "meta_distill"}
PIPELINE = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, texts = sys.argv[1], [tuple(line.rstrip("\\n").split("\\t")) for line in open(sys.argv[2], encoding="utf-8")]
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
logits = [model(**AutoTokenizer.from_pretrained(folder)(*text, return_tensors="pt")).logits[0].tolist() for text in texts]
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
model, tokenizer = ORTModelForSequenceClassification.from_pretrained("onnx"), AutoTokenizer.from_pretrained(folder)
print(json.dumps([model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist() for text in texts]))
"""


def table(text):
    """A TSV as its header, the labels and the probabilities, float64 [N, M]."""
    header, *rows = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows], float)


def of_the_run(folder, run):
    """Labels and probabilities of the test split in the predictions.tsv of a run."""
    rows = [line.split("\t") for line in (folder / run / "predictions.tsv").read_text().splitlines()]
    rows = [row for row in rows if row[0] == "test"]
    return [row[4] for row in rows], np.array([row[5:] for row in rows], float)


@pytest.fixture
def place(golden, tmp_path):
    """A folder with copies of the best teacher and the best student, and nothing but them and `texts`, those of the test split."""
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
    """Without data, task or teacher: the labels and probabilities of the run's predictions.tsv, in the order of the texts."""
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
        monkeypatch.setattr(prediction.probabilities, "__defaults__", (window,))
        np.testing.assert_allclose(
            table(ask(place, eval_batch_size_per_device=batch).out)[2], expected, atol=1.1e-6
        )


def test_a_window_is_read_when_the_one_before_is_done(place):
    """Of an endless stream no more texts are taken than the windows that were asked for."""
    folder, taken = read_model(place / "student"), itertools.count()
    task, seq_length, domains = prediction.task_from_meta(folder)
    model = DomainClassifier(folder.config, 2, 4)
    load_weights(model, folder, allow_missing=())
    lines = (b"good plot %d\n" % number for number in taken)
    texts = prediction.encode_lines(task, "endless", lines, tokenizer_for(folder.path), seq_length)
    stream = prediction.probabilities(model, texts, 8, domains, prediction.select_device("cpu"), 20)
    assert next(taken) == 0
    shapes = [next(stream).shape for _ in range(3)]
    assert shapes == [(20, 2)] * 3 and next(taken) == 61


def test_a_head_for_each_domain_gives_the_mean_of_those_that_were_trained(place):
    """Heads of two seen domains, around the shared head's weights, and of two unseen ones, of anything: the shared head's probabilities."""
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
    """Three labels; the second text is read, and which one is the first counts. One column is too few, three are too many."""
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
        says(place, "texts:2: ", "column(s), expected 2 (premise, hypothesis)", model_load_dir="pairs")


NEEDS_TORCH = pytest.mark.skipif(
    not os.environ.get("METAKD_TORCH_PYTHON"), reason="METAKD_TORCH_PYTHON names no Python with transformers"
)


def elsewhere(folder, program, *words):
    """Runs a program under $METAKD_TORCH_PYTHON in `folder`; what its last line of output says in JSON, or None where it exits with 77."""
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
    """AutoModelForSequenceClassification: the logits, within 1e-4 of the log of ours; pipeline: the labels by name; pairs too."""
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
    done = process(place, b"good plot\n\n", predict_file="-")
    assert (done.returncode, done.stdout) == (
        2,
        b"",
    ) and b"error: standard input:2: found an empty 'review'" in done.stderr


def test_a_reader_that_goes_ends_it_quietly(place):
    """As `| head` does: not a word on standard error."""
    script = f"{sys.executable} {ROOT / 'meta_distill.py'} --do_predict --model_load_dir student --predict_file texts | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=place, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_an_output_file_is_written_whole_or_not_at_all(place, monkeypatch):
    """The lines of standard output; one that is there is replaced, and stays as it was where a later window has a fault."""
    expected = ask(place).out
    (place / "out.tsv").write_text("old")
    assert ask(place, output_file="out.tsv")[:2] == (0, "") and (place / "out.tsv").read_text() == expected
    with open(place / "texts", "a") as file:
        file.write("\n")
    monkeypatch.setattr(prediction.probabilities, "__defaults__", (4,))
    says(place, "texts:17: ", output_file="out.tsv")
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


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "texts: found no text"),
        (b"good\n\nbad\n", "texts:2: found an empty 'review'"),
        (b"good\n \n", "texts:2: found an empty"),
        (b"good\nbad \xff\n", "texts:2: found byte 0xff"),
        (b"good\tbooks\n", "texts:1: found 2 column(s), expected 1 (review)"),
        (b"good\n\xe2\x80\x8b\n", "texts:2: found no token"),
        (b"go\0od\n", "texts:1: found a NUL"),
    ],
)
def test_a_text_that_is_none_is_refused(place, content, expected):
    """By file and line; standard output stays empty, as the fault is in the first window."""
    (place / "texts").write_bytes(content)
    assert says(place, expected).out == ""


def test_a_model_that_cannot_predict_is_refused(place, tiny_model, tiny_data):
    """A plain BERT, a folder that is not there, a snapshot without class head, and a file of texts that is not there."""
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
    refused(golden, "meta_distill", "--model_load_dir", "--do_predict is not given", model_load_dir="bert")


def test_task_and_data_are_needed_for_all_else():
    """The sentence is argparse's own."""
    groups = (config.task, config.model, config.prediction)
    with pytest.raises(
        config.UserError,
        match="following arguments are required: --task_name, --data_dir; '.*--help' lists the flags",
    ):
        config.parse("", *groups, argv=[])
    assert config.parse("", *groups, argv=["--do_predict"]).data_dir is None
