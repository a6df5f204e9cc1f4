"""The four scripts from end to end on 60 examples: what they write, and how they resume.

Each time the same bytes are written.
"""

import json
import math
import shutil
import signal

import numpy as np
import pytest
from conftest import STAGES, best, call, call_process, lay_out, stage_flags

from data.store.knowledge import Knowledge
from data.store.records import Records
from modeling.training.step_log import StepLog
from util import sha256

CLOCKED = ("timing.jsonl", "log.txt", ".meta-kd.lock")  # where times, speeds and process numbers may stand


def tree(folder):
    """{relative name: SHA-256} of every file below `folder` but those that hold a clock."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(CLOCKED)
    }


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_runs_leave_the_files_of_the_design(golden):
    """Run folders hold snapshots, metrics and results, and a snapshot what transformers reads.

    Only snapshot_last has optimizer state.
    """
    for run in ("teacher", "student"):
        names = {path.name for path in (golden / run).iterdir()}
        written = {
            "best",
            "best.json",
            "results.json",
            "predictions.tsv",
            "metrics.jsonl",
            "flags.json",
            "report.html",
            *CLOCKED,
        }
        assert names == {best(golden / run).name, "snapshot_last", *written}
        files = {
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "meta.json",
            "manifest.json",
        }
        assert {path.name for path in best(golden / run).iterdir()} == files | {"README.md"}
        assert {path.name for path in (golden / run / "snapshot_last").iterdir()} == files | {
            "optimizer.safetensors"
        }


def test_best_json_names_the_snapshot_with_the_best_dev_accuracy(golden):
    """The name holds task and accuracy.

    It is the first of the highest accuracies on dev that metrics.jsonl tells of.
    """
    for run, kind in (("teacher", "mft"), ("student", "student")):
        chosen = json.loads((golden / run / "best.json").read_text())
        evaluations = [
            (line["step"], line["dev"]["accuracy"]) for line in metrics(golden / run) if "dev" in line
        ]
        assert (chosen["step"], chosen["accuracy"]) == max(evaluations, key=lambda pair: pair[1])
        assert chosen["snapshot"] == f"snapshot_best_{kind}_model_senti_dev_{chosen['accuracy']!r}"


def test_results_tell_of_dev_and_test_per_domain(golden):
    """results.json has the best snapshot, its size, and its accuracy, in all and per domain.

    That is on dev and on the whole test split.
    """
    for run in ("teacher", "student"):
        results = json.loads((golden / run / "results.json").read_text())
        snapshot = best(golden / run)
        assert (
            results["snapshot"] == snapshot.name
            and results["bytes"] == (snapshot / "model.safetensors").stat().st_size
        )
        assert results["dev"] == next(
            line["dev"]
            for line in metrics(golden / run)
            if "dev" in line and line["step"] == json.loads((golden / run / "best.json").read_text())["step"]
        )
        assert results["test"]["examples"] == 16 and list(results["test"]["domains"]) == [
            "books",
            "dvd",
            "electronics",
            "kitchen",
        ]
        assert results["test"]["accuracy"] == pytest.approx(
            np.mean(list(results["test"]["domains"].values()))
        )  # of equal size here


def test_metrics_hold_every_step_once_and_every_example_once_an_epoch(golden):
    """2 epochs of 32 examples in batches of 7 are steps 1 to 10; the last of an epoch has 4 examples.

    Dev is evaluated at each second step.
    """
    for run in ("teacher", "student"):
        steps = [line for line in metrics(golden / run) if "dev" not in line]
        assert [line["step"] for line in steps] == list(range(1, 11))
        assert [line["epoch"] for line in steps] == [0] * 5 + [1] * 5
        assert (
            sorted(line["examples"] for line in steps[:5])
            == sorted(line["examples"] for line in steps[5:])
            == [4, 7, 7, 7, 7]
        )
        assert [line["step"] for line in metrics(golden / run) if "dev" in line] == [2, 4, 6, 8, 10]
        assert all(
            math.isfinite(value) for line in steps for value in line.values() if isinstance(value, float)
        )


def test_the_logged_loss_is_made_of_the_logged_parts(golden):
    """Teacher: class + 0.5 * domain, both lines in the log."""
    for line in metrics(golden / "teacher"):
        if "dev" not in line:
            assert line["loss"] == pytest.approx(line["class"] + 0.5 * line["domain"], rel=1e-5)
    assert {"loss", "soft", "attention", "representation", "transfer", "gradient_norm"} < metrics(
        golden / "student"
    )[0].keys()


def test_knowledge_holds_every_training_example(golden):
    """One item per example, with finite logits.

    It has attention over exactly its real tokens in layers 2, 3 and 4 of 4.
    """
    records = Records(golden / "data" / "ofrecord" / "train", "train").arrays()
    (folder,) = (golden / "data" / "ofrecord").glob("knowledge-*")
    assert folder.name == "knowledge-" + sha256(best(golden / "teacher") / "model.safetensors")[:12]
    knowledge = Knowledge(folder)
    assert knowledge.idxs.tolist() == list(range(32)) and knowledge.manifest["layers"] == [2, 3, 4]
    for item, n in zip(knowledge.read(np.arange(32)), records["input_mask"].sum(axis=1)):
        assert item["attention"].shape == (3, n, n) and np.isfinite(item["logits"]).all()


def test_records_are_scored_and_keep_their_scores_when_written_again(golden, sandbox):
    """Every record has a score within -1..1.

    --resave_ofrecord in a later stage leaves every byte of the records as it was.
    """
    weights = Records(golden / "data" / "ofrecord" / "train", "train").arrays()["weights"]
    assert len(np.unique(weights)) > 16 and (np.abs(weights) <= 1).all()
    outcome = call(
        "meta_teacher_eval", sandbox, {**stage_flags(sandbox)["meta_teacher_eval"], "resave_ofrecord": True}
    )
    assert outcome.code == 0 and "nothing to do" in outcome.out
    assert tree(sandbox / "data") == tree(golden / "data")
    outcome = call("preprocess", sandbox, stage_flags(sandbox)["preprocess"])
    assert outcome.code == 0 and tree(sandbox / "data") == tree(golden / "data")


def test_the_same_flags_and_seed_give_the_same_bytes(golden, tmp_path, tiny_model, tiny_data):
    """All four stages again, in another folder and one process, give the same files.

    Only clocks and logs differ.
    """
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    for stage in STAGES:
        assert call(stage, folder, stage_flags(folder)[stage]).code == 0
    assert tree(folder) == tree(golden)


def test_another_seed_gives_another_run(golden, sandbox):
    """The seed reaches initialisation, order and dropout: the first loss differs already."""
    outcome = call(
        "meta_teacher",
        sandbox,
        {**stage_flags(sandbox)["meta_teacher"], "seed": 2, "model_save_dir": "other"},
    )
    assert (
        outcome.code == 0 and metrics(sandbox / "other")[0]["loss"] != metrics(golden / "teacher")[0]["loss"]
    )


# --------------------------------------------------------------------------------------- resuming

KILLED = """
import os, signal
from modeling.snapshots import manager, saving
save_snapshot, save_file = manager.save_snapshot, saving.save_file
def save_and_die(*args, **kwargs):
    save_file(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
def save(path, model, tokenizer, meta, *args, **kwargs):
    if path.name == "snapshot_last" and meta["step"] > {step}:
        saving.save_file = save_and_die
    save_snapshot(path, model, tokenizer, meta, *args, **kwargs)
manager.save_snapshot = save
"""


@pytest.mark.parametrize("stage, last", [("meta_teacher", 6), ("meta_distill", 3)])
def test_a_killed_run_resumes_to_the_same_bytes(golden, sandbox, stage, last):
    """SIGKILL in the middle of a save leaves the snapshot_last before it.

    From there the run ends as if nothing had happened.
    """
    flags, run = stage_flags(sandbox)[stage], stage_flags(sandbox)[stage]["model_save_dir"]
    (sandbox / run).rename(sandbox / "whole")
    outcome = call_process(stage, sandbox, flags, KILLED.format(step=last))
    assert outcome.code == -signal.SIGKILL, outcome.err
    assert json.loads((sandbox / run / "snapshot_last" / "meta.json").read_text())["step"] == last
    assert not (sandbox / run / "results.json").exists()
    outcome = call(stage, sandbox, {**flags, "resume_from": f"{run}/snapshot_last"})
    assert outcome.code == 0, outcome.err
    assert tree(sandbox / run) == tree(golden / run)


@pytest.fixture(scope="module")
def two_phases(golden, tmp_path_factory):
    """A sandbox with a student trained in two phases.

    Steps 1 to 5 are on the intermediate terms, 6 to 10 on the logits.
    """
    folder = shutil.copytree(golden, tmp_path_factory.mktemp("two") / "sandbox", symlinks=True)
    shutil.rmtree(folder / "student")
    assert call("meta_distill", folder, stage_flags(folder, intermediate_epochs=1)["meta_distill"]).code == 0
    return folder


def test_two_phases_match_first_and_predict_then(two_phases):
    """The first epoch has the intermediate terms alone, the second the logits.

    The second has a schedule of its own, and evaluation on dev.
    """
    lines = metrics(two_phases / "student")
    for line in lines:
        if "dev" not in line:
            first = line["epoch"] == 0
            assert line["phase"] == ("intermediate" if first else "prediction")
            assert ("attention" in line, "representation" in line, "transfer" in line, "soft" in line) == (
                first,
                first,
                first,
                not first,
            )
    rates = [line["lr"] for line in lines if "dev" not in line]
    assert rates[:5] == rates[5:] and len(set(rates[:5])) > 1
    assert [line["step"] for line in lines if "dev" in line] == [6, 8, 10]
    assert json.loads((two_phases / "student" / "best.json").read_text())["step"] > 5


class Stop(Exception):
    pass


@pytest.mark.parametrize("last", [3, 6, 9])
def test_resuming_in_either_phase_gives_the_same_bytes(two_phases, tmp_path, monkeypatch, last):
    """A run that breaks off after a snapshot and goes on from it is the run in one go.

    Weights, metrics and results are equal.
    """
    folder, whole = shutil.copytree(two_phases, tmp_path / "sandbox", symlinks=True), StepLog.step
    shutil.rmtree(folder / "student")

    def step(self, number, *args):
        whole(self, number, *args)
        if number == last + 1:
            raise Stop

    flags = stage_flags(folder, intermediate_epochs=1)["meta_distill"]
    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "step", step)
        with pytest.raises(Stop):
            call("meta_distill", folder, flags)
    assert metrics(folder / "student")[-1]["step"] == last + 1
    outcome = call("meta_distill", folder, {**flags, "resume_from": "student/snapshot_last"})
    assert outcome.code == 0, outcome.err
    assert tree(folder / "student") == tree(two_phases / "student")


def test_a_finished_run_can_be_resumed_and_changes_nothing(golden, sandbox):
    """--resume_from at the end of a run tests the best snapshot again, and that is all."""
    outcome = call(
        "meta_teacher",
        sandbox,
        {**stage_flags(sandbox)["meta_teacher"], "resume_from": "teacher/snapshot_last"},
    )
    assert outcome.code == 0 and tree(sandbox / "teacher") == tree(golden / "teacher")


def test_a_student_needs_nothing_but_its_snapshot(golden, sandbox):
    """The best student is a --model_load_dir.

    --do_eval alone gives the accuracies of the run's results.json.
    """
    flags = {
        **stage_flags(sandbox)["meta_distill"],
        "student_model": best(sandbox / "student"),
        "student_layers": None,
        "do_train": False,
        "model_save_dir": "again",
    }
    outcome = call("meta_distill", sandbox, flags)
    assert outcome.code == 0, outcome.err
    first, second = (json.loads((sandbox / run / "results.json").read_text()) for run in ("student", "again"))
    assert first == second
