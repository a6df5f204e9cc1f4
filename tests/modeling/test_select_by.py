"""What chooses a run's best snapshot (--select_by).

Also what a rare class weighs in stage 4 (--class_weights).
"""

import json

import numpy as np
import pytest
from conftest import call, stage_flags
from test_cli import TRAINING_STAGES, refused
from test_flags import patient
from test_stages import metrics, tree
from test_training import ALL_TERMS, CONFIG, CPU, DOMAINS, TASK, Loop, initialised, records, targets_for

from data.batches import make_batch
from modeling.inference import tensor, to_device
from modeling.meta_kd.classifier import build_student
from modeling.meta_kd.distillation import student_loss
from modeling.training.step_log import StepLog


def figures(accuracy, macro_f1):
    return {
        "examples": 4,
        "accuracy": accuracy,
        "domains": {},
        "domain_average": accuracy,
        "macro_f1": macro_f1,
    }


def test_the_best_snapshot_is_the_best_by_the_figure_that_is_asked_for(tmp_path, tiny_model):
    """By macro-F1, an accuracy that rises alone changes nothing.

    Of two with the same accuracy, and so the same name, the better is kept.
    """
    loop, best = Loop(tmp_path / "run", tiny_model, select_by="macro_f1"), []
    for step, pair in enumerate(((0.5, 0.5), (0.75, 0.25), (0.5, 0.625), (0.25, 0.625), (0.25, 0.75)), 1):
        loop.snapshots.save_best(step, figures(*pair))
        (folder,) = loop.run.folder.glob("snapshot_best_*")
        chosen = json.loads((loop.run.folder / "best.json").read_text())
        assert folder.name == chosen["snapshot"] and folder.name.endswith(f"_dev_{chosen['accuracy']!r}")
        assert json.loads((folder / "meta.json").read_text())["step"] == chosen["step"]
        best.append((chosen["step"], chosen["macro_f1"]))
    assert best == [(1, 0.5), (1, 0.5), (3, 0.625), (3, 0.625), (5, 0.75)]


def test_two_of_the_best_by_macro_f1_are_kept(tmp_path, tiny_model):
    """Those of the highest macro-F1 whose accuracies differ; best.json names the first of them."""
    loop = Loop(tmp_path / "run", tiny_model, select_by="macro_f1", save_total_limit=2)
    for step, pair in enumerate(((0.5, 0.5), (0.75, 0.25), (0.5, 0.625), (0.25, 0.375)), 1):
        loop.snapshots.save_best(step, figures(*pair))
    assert [(each["step"], each["macro_f1"]) for each in loop.snapshots.kept] == [(3, 0.625), (4, 0.375)]
    assert len(list(loop.run.folder.glob("snapshot_best_*"))) == 2


MACRO_F1 = (0.25, 0.75, 0.5, 0.625, 0.5, 0.5, 0.5, 0.5)  # best at step 4, while accuracy is best at step 8


def by_macro_f1(folder, tiny_model, resumed=False):
    return patient(folder, tiny_model, resumed, macro_f1=MACRO_F1, select_by="macro_f1")


def test_a_run_ends_early_and_resumes_by_the_figure_that_is_asked_for(tmp_path, tiny_model, monkeypatch):
    """The run ends two evaluations after the best macro-F1.

    Broken off in step 5 and resumed, it ends with the same bytes.
    """
    whole, step = by_macro_f1(tmp_path / "whole" / "run", tiny_model).run.folder, StepLog.step
    assert json.loads((whole / "snapshot_last" / "meta.json").read_text())["step"] == 8
    assert json.loads((whole / "best.json").read_text())["step"] == 4
    assert "no better macro f1 on dev in 2 evaluations" in (whole / "log.txt").read_text()

    def stop(self, number, *args):
        step(self, number, *args)
        if number == 5:
            raise KeyError

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "step", stop)
        with pytest.raises(KeyError):
            by_macro_f1(tmp_path / "run", tiny_model)
    by_macro_f1(tmp_path / "run", tiny_model, resumed=True)
    assert tree(tmp_path / "run") == tree(whole)


def test_a_choice_without_evaluations_is_refused(golden):
    """Without --do_eval there is nothing to choose between."""
    for stage in TRAINING_STAGES:
        refused(golden, stage, "--select_by", "--do_eval", select_by="macro_f1", do_eval=False)


def test_class_weights_act_on_hard_labels_alone():
    """The loss changes by the weight of the term times mean((v - 1) * CE), the other terms stay."""
    model = initialised(build_student(CONFIG, TASK, 24, ALL_TERMS)).eval()
    batch = make_batch(records(), np.arange(6))
    tensors, targets = to_device(batch, DOMAINS, CPU), targets_for(batch, ALL_TERMS)
    weights = np.array([0.5, 2, 1, 0, 1.5, 1], np.float32)
    plain, parts = student_loss(model, tensors, targets, ALL_TERMS)
    weighted, same = student_loss(model, tensors, targets, ALL_TERMS, tensor(weights, CPU))
    logits = model(tensors).logits.numpy().astype(float)
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), batch.label]
    expected = ALL_TERMS["hard"] * np.mean((weights - 1) * loss)
    assert abs(expected) > 1e-3 and weighted.item() - plain.item() == pytest.approx(expected, rel=1e-3)
    assert {name: value.item() for name, value in parts.items()} == {
        name: value.item() for name, value in same.items()
    }


def test_a_rare_class_weighs_more_in_stage_4(sandbox):
    """A student on hard labels, whose first loss with class weights is another, and the same without them."""
    found = {}
    for name, flags in (("plain", {}), ("same", {}), ("balanced", {"class_weights": "balanced"})):
        flags = {**flags, "hard_label_weight": 1.0, "model_save_dir": name, "max_steps": 1}
        outcome = call(
            "meta_distill",
            sandbox,
            {**stage_flags(sandbox)["meta_distill"], **flags, "train_example_num": 31},
        )
        assert outcome.code == 0, outcome.err
        found[name] = metrics(sandbox / name)[0]
    assert found["plain"] == found["same"] and found["plain"]["hard"] == found["balanced"]["hard"]
    assert found["plain"]["gradient_norm"] != found["balanced"]["gradient_norm"]


def test_class_weights_of_raw_scores_are_refused(golden):
    """Their sum in a class may be below 0, and by a division every sign would turn."""
    words = ("--class_weights balanced", "--weight_scaling raw")
    refused(golden, "meta_teacher", *words, class_weights="balanced", weight_scaling="raw")


def test_class_weights_without_hard_labels_are_refused(golden):
    """A student that learns from its teacher alone has nothing that they would weigh."""
    refused(golden, "meta_distill", "--class_weights", "--hard_label_weight", class_weights="balanced")
