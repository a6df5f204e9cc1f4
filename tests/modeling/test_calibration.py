"""Calibration folds the temperature with the smallest log-loss into the classifier.

It changes no label.
"""

import json
import shutil

import numpy as np
import pytest
from conftest import best, call, stage_flags

from modeling.meta_kd.losses import softmax
from modeling.snapshots.folder import read_model
from modeling.training.calibration import (
    calibration_error,
    calibration_figures,
    calibration_sentence,
    fit_temperature,
    log_loss,
    usable_temperature,
)


@pytest.fixture(scope="module")
def overconfident():
    """Logits of 4,000 examples of 3 classes, 2.5 times too large for the labels drawn from them."""
    stream = np.random.default_rng(0)
    logits = stream.normal(0, 1.5, (4000, 3))
    label = np.array([stream.choice(3, p=row) for row in softmax(logits)])
    return logits * 2.5, label


def test_log_loss_is_that_of_scikit_learn(overconfident):
    """Also of logits whose exponential would overflow."""
    from sklearn.metrics import log_loss as theirs

    logits, label = overconfident
    assert log_loss(logits, label) == pytest.approx(theirs(label, softmax(logits)), rel=1e-9)
    assert log_loss(np.array([[1e5, 0.0]]), np.array([1])) == 1e5


def test_calibration_error_by_hand():
    """Two bins, half of the examples each: 0.9 twice, right once; 0.6 twice, right twice.

    The error is the mean of |0.5 - 0.9| and |1 - 0.6|.
    """
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0.4)
    assert calibration_error(np.eye(2), np.array([0, 1])) == 0


def test_the_temperature_is_found(overconfident):
    """Labels drawn from the logits over 2.5 give about 2.5; no other temperature has a smaller log-loss."""
    logits, label = overconfident
    found = fit_temperature(logits, label)
    assert usable_temperature(logits, label) == (found, "")
    assert found == pytest.approx(2.5, rel=0.05)
    smallest = log_loss(logits / found, label)
    assert all(smallest <= log_loss(logits / (found * factor), label) for factor in (0.5, 0.99, 1.01, 2))


@pytest.mark.parametrize(
    "scale, wrong, words",
    [
        (3.0, 0, "all 40 answers on dev are right"),  # the smaller T, the smaller the log-loss
        (3.0, 30, "smallest at 50, at the end of the temperatures that are tried"),  # worse than chance
        (0.01, 1, "smallest at 0.02"),  # one example in doubt, all others right
    ],
)
def test_a_dev_set_from_which_no_temperature_follows_changes_nothing(scale, wrong, words):
    """The temperature is 1, the figures before and after are the same, and the card says why."""
    label = np.arange(40) % 2
    logits = scale * np.eye(2)[label] + np.random.default_rng(0).normal(0, scale / 100, (40, 2))  # [40, 2]
    label[:wrong] = 1 - label[:wrong]
    if wrong == 1:
        logits[0] = [1e-6 * (label[0] == 1), 1e-6 * (label[0] == 0)]  # wrong by a hair
    temperature, unfit = usable_temperature(logits, label)
    assert temperature == 1 and words in unfit
    sets = {"dev": logits, "test": logits}, {"dev": label, "test": label}
    figures = calibration_figures(*sets, {})
    assert figures["unfit"] == unfit and figures["dev"]["before"] == figures["dev"]["after"]
    assert f"were not calibrated, since {unfit}; dev: ECE" in calibration_sentence(figures)


def test_figures_are_the_same_with_and_without_folding(overconfident):
    """Before and after, whether the logits are divided already or not."""
    logits, label = overconfident
    raw = {"dev": logits[:2000], "test": logits[2000:]}
    labels = {"dev": label[:2000], "test": label[2000:]}
    loose = calibration_figures(raw, labels, {})
    folded = {split: each / loose["temperature"] for split, each in raw.items()}
    bound = calibration_figures(folded, labels, {"temperature": loose["temperature"]})
    assert (loose["folded"], bound["folded"]) == (False, True)
    for split in raw:
        for name in ("before", "after"):
            assert bound[split][name] == pytest.approx(loose[split][name])
        assert loose[split]["after"]["ece"] < loose[split]["before"]["ece"] / 2
    assert "not calibrated" in calibration_sentence(loose) and "not" not in calibration_sentence(bound)


def columns(run):
    """Predicted labels and probabilities in a predictions.tsv."""
    rows = [line.split("\t") for line in (run / "predictions.tsv").read_text().splitlines()[1:]]
    return [row[:5] for row in rows], np.array([row[5:] for row in rows], float)


@pytest.fixture
def sure(sandbox):
    """(flags, run folder) of a student that answers as its teacher does, for which a temperature follows."""
    flags = {
        **stage_flags(sandbox)["meta_distill"],
        "student_model": "teacher",
        "student_layers": None,
        "num_epochs": 1,
        "learning_rate": 1e-9,
        "model_save_dir": "sure",
    }
    assert call("meta_distill", sandbox, flags).code == 0
    return flags, sandbox / "sure"


def test_a_calibrated_student_gives_the_same_labels(sure, sandbox):
    """--resume calibrates a finished run: labels, accuracy and all weights but the classifier stay.

    Probabilities change by the temperature. Results, card and description say so; doing it again changes no
    byte.
    """
    flags, run = {**sure[0], "resume": True, "calibrate": True}, sure[1]
    plain = shutil.copytree(run, sandbox / "plain", symlinks=True)
    assert call("meta_distill", sandbox, flags).code == 0
    before, after = read_model(plain), read_model(run)
    temperature = after.meta["temperature"]
    for name, array in before.arrays.items():
        factor = np.float32(temperature) if name.startswith("classifier.") else 1
        np.testing.assert_array_equal(after.arrays[name], array / factor)
    (answers, old), (same, new) = columns(plain), columns(run)
    assert answers == same
    divided = old ** (1 / temperature)
    np.testing.assert_allclose(new, divided / divided.sum(axis=1, keepdims=True), atol=1e-4)
    results = [json.loads((folder / "results.json").read_text()) for folder in (plain, run)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["calibration"]["temperature"] == pytest.approx(temperature)
    assert [each["calibration"]["folded"] for each in results] == [False, True]
    cards = [(best(folder) / "README.md").read_text() for folder in (plain, run)]
    assert "were not calibrated; with the temperature" in cards[0] and "were calibrated; with" in cards[1]
    names = (
        "results.json",
        "predictions.tsv",
        "best/README.md",
        "best/model.safetensors",
        "best/manifest.json",
    )
    bytes_before = [(run / name).read_bytes() for name in names]
    assert call("meta_distill", sandbox, flags).code == 0
    assert [(run / name).read_bytes() for name in names] == bytes_before


def test_a_student_that_no_temperature_helps_stays_as_it_is(golden, sandbox):
    """The golden student's answers are half wrong on dev: log, card and report say why, no weight changes."""
    flags = {**stage_flags(sandbox)["meta_distill"], "resume": True, "calibrate": True}
    outcome = call("meta_distill", sandbox, flags)
    why = "the log-loss on dev is smallest at 50, at the end of the temperatures that are tried, 0.02 to 50"
    assert outcome.code == 0 and f"note: --calibrate changes nothing: {why}" in outcome.out
    run = sandbox / "student"
    assert f"were not calibrated, since {why}; dev: ECE" in (best(run) / "README.md").read_text()
    assert f"No temperature follows from dev: {why}." in (run / "report.html").read_text()
    for name in ("results.json", "predictions.tsv", "best/model.safetensors"):
        assert (run / name).read_bytes() == (golden / "student" / name).read_bytes()


def test_a_teacher_has_figures_and_stays_as_it_is(golden):
    """Its results and card tell the calibration error; its weights are those that stage 3 reads."""
    results = json.loads((golden / "teacher" / "results.json").read_text())
    assert (
        results["calibration"]["folded"] is False and "temperature" not in read_model(golden / "teacher").meta
    )
    assert (
        "were not calibrated; with the temperature" in (golden / "teacher" / "best" / "README.md").read_text()
    )
