"""The acceptance part of a report: classes, student beside teacher, threshold for an accuracy."""

import json

import numpy as np
import pytest

from modeling.reports.acceptance import abstaining_section, class_figures, class_table, compare, threshold
from modeling.reports.run_files import read_predictions
from modeling.reports.run_report import mistakes


def rows(labels, answers, sure=None, domain="d"):
    """Rows of a predictions.tsv, numbered from 0."""
    sure = sure or [0.9] * len(labels)
    return [
        {"idxs": str(i), "domain": domain, "label": label, "predicted": answer, ("p", answer): str(p)}
        for i, (label, answer, p) in enumerate(zip(labels, answers, sure))
    ]


def test_class_figures_by_hand():
    """a: 2 of 3 answers right, 2 of 4 found; b: 1 of 3, 1 of 2; c never answered: zeros, no warning."""
    figures = class_figures(rows("aaaabbc", "aabbbaa"[:5] + "ab"), ["a", "b", "c"])
    assert figures["a"] == {"precision": 2 / 3, "recall": 0.5, "f1": pytest.approx(4 / 7), "support": 4}
    assert figures["b"]["recall"] == 0.5 and figures["b"]["precision"] == pytest.approx(1 / 4)
    assert figures["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_the_classes_that_are_worst_are_shown_of_many():
    """Thirty of forty, and a sentence says so."""
    labels = [f"label {i}" for i in range(40)]
    answers = [labels[0] if i in (3, 7) else label for i, label in enumerate(labels)]
    shown = "".join(class_table(rows(labels, answers), labels, []))
    assert (
        "label 3<" in shown
        and "label 7<" in shown
        and "The 30 of 40 classes" in shown
        and "label 39<" not in shown
    )


def test_the_comparison_is_paired_by_example():
    """Of 100 examples, the teacher alone is right on 10 and the student alone on 4: -6 points.

    The interval is that of the paired differences.
    """
    labels, ours, theirs = "a" * 100, "b" * 10 + "a" * 90, "a" * 10 + "b" * 4 + "a" * 86
    found = compare(rows(labels, ours), rows(labels, theirs)[::-1])
    gap = np.array([-1] * 10 + [1] * 4 + [0] * 86)
    half = 1.96 * gap.std(ddof=1) / 10
    assert (found["student_wrong"], found["teacher_wrong"], found["agreement"]) == (10, 4, 0.86)
    assert found["difference"] == pytest.approx(-0.06)
    assert found["interval"] == pytest.approx([-0.06 - half, -0.06 + half])
    assert compare(rows(labels, ours), []) is None


def test_a_threshold_is_the_lowest_that_reaches_the_accuracy():
    """The threshold is counted over all values; equal confidences are answered together.

    It is None where the surest answers are wrong.
    """
    stream = np.random.default_rng(0)
    sure = np.round(stream.uniform(0.5, 1, 500), 2)
    right = stream.random(500) < sure
    for aim in (0.8, 0.9, 0.95):
        good = [p for p in np.unique(sure) if right[sure >= p].mean() >= aim]
        assert threshold(sure, right, aim) == (min(good) if good else None)
    assert threshold(np.array([0.9, 0.9]), np.array([True, False]), 0.9) is None


def test_no_threshold_is_told():
    """A model that is never right has no --min_confidence, and answers nothing."""
    wrong = rows("aaaa", "bbbb", [0.9, 0.8, 0.7, 0.6])
    assert "none reaches it" in abstaining_section(wrong, wrong)[0] and abstaining_section([], wrong) == []


def test_mistakes_have_their_texts():
    """By their numbers in test.tsv, as text that is no markup, and no longer than is readable."""
    shown = "".join(mistakes(rows("aab", "abb"), ["right", "<b>wrong" + "x" * 400, "right"]))
    assert "&lt;b&gt;wrong" in shown and "x" * 280 in shown and "x" * 300 not in shown


def test_results_have_classes_and_the_teacher(golden):
    """Those of predictions.tsv; a teacher's results have no other teacher beside them."""
    for run in ("teacher", "student"):
        results = json.loads((golden / run / "results.json").read_text())
        found = read_predictions(golden / run / "predictions.tsv")["test"]
        assert results["classes"]["test"] == class_figures(found, ["positive", "negative"])
        if run == "teacher":
            assert results["against_teacher"] is None
        else:
            taught = read_predictions(golden / "teacher" / "predictions.tsv")["test"]
            assert results["against_teacher"] == compare(found, taught)


def test_the_size_of_both_is_told(golden):
    """The teacher's parameters and bytes beside the student's, as its own results have them; not its own."""
    teacher, student = (
        json.loads((golden / run / "results.json").read_text()) for run in ("teacher", "student")
    )
    assert student["teacher"] == {key: teacher[key] for key in ("snapshot", "parameters", "bytes")}
    assert teacher["teacher"] is None
    page = (golden / "student" / "report.html").read_text()
    for each in (teacher, student):
        assert f"<td>{each['parameters']:,}</td><td>{each['bytes'] / 1e6:.1f}</td>" in page
