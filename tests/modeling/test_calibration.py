"""Calibration folds the temperature with the smallest log-loss into the classifier.

It changes no label.
"""

import json

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
    assert found == pytest.approx(2.5, rel=0.05)
    smallest = log_loss(logits / found, label)
    assert all(smallest <= log_loss(logits / (found * factor), label) for factor in (0.5, 0.99, 1.01, 2))


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


def test_a_calibrated_student_gives_the_same_labels(golden, sandbox):
    """--resume calibrates a finished run: labels, accuracy and all weights but the classifier stay.

    Probabilities change by the temperature. Results, card and description say so; doing it again changes no
    byte.
    """
    flags = {**stage_flags(sandbox)["meta_distill"], "resume": True, "calibrate": True}
    assert call("meta_distill", sandbox, flags).code == 0
    before, after = read_model(golden / "student"), read_model(sandbox / "student")
    temperature = after.meta["temperature"]
    for name, array in before.arrays.items():
        factor = np.float32(temperature) if name.startswith("classifier.") else 1
        np.testing.assert_array_equal(after.arrays[name], array / factor)
    (answers, old), (same, new) = columns(golden / "student"), columns(sandbox / "student")
    assert answers == same
    divided = old ** (1 / temperature)
    np.testing.assert_allclose(new, divided / divided.sum(axis=1, keepdims=True), atol=1e-4)
    results = [json.loads((folder / "student" / "results.json").read_text()) for folder in (golden, sandbox)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["calibration"]["temperature"] == pytest.approx(temperature)
    assert [each["calibration"]["folded"] for each in results] == [False, True]
    cards = [(best(folder / "student") / "README.md").read_text() for folder in (golden, sandbox)]
    assert "were not calibrated; with the temperature" in cards[0] and "were calibrated; with" in cards[1]
    names = (
        "results.json",
        "predictions.tsv",
        "best/README.md",
        "best/model.safetensors",
        "best/manifest.json",
    )
    bytes_before = [(sandbox / "student" / name).read_bytes() for name in names]
    assert call("meta_distill", sandbox, flags).code == 0
    assert [(sandbox / "student" / name).read_bytes() for name in names] == bytes_before


def test_a_teacher_has_figures_and_stays_as_it_is(golden):
    """Its results and card tell the calibration error; its weights are those that stage 3 reads."""
    results = json.loads((golden / "teacher" / "results.json").read_text())
    assert (
        results["calibration"]["folded"] is False and "temperature" not in read_model(golden / "teacher").meta
    )
    assert (
        "were not calibrated; with the temperature" in (golden / "teacher" / "best" / "README.md").read_text()
    )
