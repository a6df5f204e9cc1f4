"""The export to ONNX: what answers otherwise than the snapshot is not kept, and is told."""

import errno
import json
import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT, best

from modeling import export
from modeling.export_gate import Figures, LabelledTexts, gate
from util import UserError

NEEDS_TORCH = pytest.mark.skipif(
    not os.environ.get("METAKD_TORCH_PYTHON"), reason="METAKD_TORCH_PYTHON names no Python with optimum"
)


def judge(texts, labels, precision, max_changed=None, max_loss=0.005):
    return gate(Figures(1.0, labels, 1.0, 1.0, 1.0), texts, precision, max_changed, max_loss)


def test_the_gate_counts_changed_labels_and_lost_accuracy():
    """Of 200 labels, one may change in float32 and four in int8.

    A change that costs more than half a point of accuracy is refused by itself.
    """
    texts = LabelledTexts([("t",)] * 200, ["a"] * 100 + ["b"] * 100, ["a"] * 200)
    right, wrong = [["b"] * n + ["a"] * (200 - n) for n in (0, 2)]
    assert judge(texts, right, "float32") == []
    assert len(judge(texts, wrong, "float32")) == 2
    assert len(judge(texts, wrong, "int8")) == 1
    better = ["a"] * 196 + ["b"] * 4
    assert judge(texts, better, "int8") == []
    assert "2.00% of the labels change" in judge(texts, better, "float32")[0]
    assert judge(texts, wrong, "int8", 0.5, 0.5) == []


def test_what_is_just_allowed_passes_the_gate():
    """As many texts as the limit says pass and one more does not, however many were right before."""
    for limit, N, allowed in ((0.005, 800, 4), (0.01, 700, 7), (0.02, 150, 3), (0.29, 100, 29)):
        for right in range(allowed + 1, N + 1, N // 40):
            texts = LabelledTexts([("t",)] * N, ["a"] * N, ["a"] * right + ["b"] * (N - right))
            at, above = (["a"] * (right - n) + ["b"] * (N - right + n) for n in (allowed, allowed + 1))
            assert judge(texts, at, "float32", limit, limit) == []
            assert len(judge(texts, above, "float32", limit, limit)) == 2


def test_the_stored_answers_must_be_of_the_snapshot_and_the_texts(golden, sandbox):
    """Those of its run, for the test split that is named; another snapshot or other data are refused."""
    snapshot = best(sandbox / "student")
    meta = json.loads((snapshot / "meta.json").read_text())
    texts = export.read_texts(snapshot, meta, sandbox / "data")
    assert len(texts.rows) == len(texts.gold) == len(texts.answers) == 16 and {*texts.answers} <= {
        *meta["labels"]
    }
    with pytest.raises(UserError, match="name that snapshot"):
        export.read_texts(sandbox / "student" / "snapshot_last", meta, sandbox / "data")
    shutil.copyfile(sandbox / "data" / "dev.tsv", sandbox / "data" / "test.tsv")
    with pytest.raises(UserError, match="name the data of this run"):
        export.read_texts(snapshot, meta, sandbox / "data")


def ask(folder, *words):
    """Runs the command in the Python that has optimum."""
    command = [os.environ["METAKD_TORCH_PYTHON"], "-m", "modeling.export", "--snapshot", folder / "student"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*map(str, command), "--data_dir", "data", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )


@NEEDS_TORCH
def test_an_export_is_kept_that_passes(sandbox):
    """The file, the tokenizer beside it and what it was judged by, in float32 and in int8."""
    for words in ([], ["--quantize", "int8", "--max_changed", "1", "--max_loss", "1"]):
        done = ask(sandbox, "--target", f"onnx{len(words)}", *words)
        assert done.returncode == 0, done.stderr
        target = sandbox / f"onnx{len(words)}"
        names = {
            "model.onnx",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
            "export.json",
        }
        assert {path.name for path in target.iterdir()} == names and "ONNX float32" in done.stdout
        facts = json.loads((target / "export.json").read_text())
        assert facts["precision"] == ("int8" if words else "float32")
        assert words or facts["labels_changed"] == 0


@NEEDS_TORCH
def test_an_export_that_fails_is_not_kept(sandbox):
    """Stored answers that the file does not give: one sentence at the end, exit code 2, and no folder."""
    path = sandbox / "student" / "predictions.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    swap = {"positive": "negative", "negative": "positive"}
    rows = [[*row[:4], swap.get(row[4], row[4]), *row[5:]] for row in rows]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    done = ask(sandbox, "--target", "onnx")
    assert (
        done.returncode == 2
        and "no file was kept" in done.stderr
        and "float32: 100.00% of the labels" in done.stdout
    )
    assert not (sandbox / "onnx").exists()


def test_a_library_that_finds_no_room_is_told():
    """Rust's libraries raise an Exception and no more.

    What names its file, or is another fault, stays as it is.
    """
    with pytest.raises(UserError, match="^there: No space left on device"), export.telling_of_room("there"):
        raise Exception("No space left on device (os error 28)")
    for error in (OSError(errno.ENOSPC, "No space left on device", "file"), ValueError("another")):
        with pytest.raises(type(error)) as told, export.telling_of_room("there"):
            raise error
        assert told.value is error


def test_the_versions_are_those_of_the_page():
    """What the sentence installs is what docs/serving.md says was tried together, and what is imported."""
    page = " ".join((ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split())
    tried = re.search(r"`pip install ([^`]*)`", page[page.index("## ONNX") :])[1].split()
    assert sorted(re.findall(r"'([^']*)'", export.INSTALL)) == sorted(tried)
    assert {each.partition("==")[0] for each in tried} >= {"onnx", "onnxruntime", "optimum-onnx", "torch"}


def test_what_is_not_installed_is_told():
    """With the versions that were tried together."""
    if not shutil.which("true") or export.importlib.util.find_spec("optimum"):
        pytest.skip("optimum is installed here")
    with pytest.raises(UserError, match="optimum-onnx==0.1.0"):
        export.import_libraries()
