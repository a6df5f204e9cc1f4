"""What a report tells whoever has to accept a student: by class, beside its teacher, how sure it is, and when
it should abstain.

Rows are those of a predictions.tsv, as `run_files.read_predictions` reads them.
"""

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from data.rows import DIGITS
from modeling.reports import charts
from modeling.reports.html import note, percent, table

BINS = 10  # of the reliability diagram
AIMS = (0.90, 0.95, 0.99)  # accuracies for which a threshold is named
MANY = 30  # classes in a table at most, the worst first
NAMES = ("precision", "recall", "f1", "support")


def confidences(rows):
    """Probability of the answer and whether it is right, float [N] and bool [N]."""
    sure = np.array([float(row["p", row["predicted"]]) for row in rows])
    return sure, np.array([row["label"] == row["predicted"] for row in rows])


# --------------------------------------------------------------------------------------- by class


def class_figures(rows, labels):
    """{label: {"precision", "recall", "f1", "support"}}."""
    truth, answers = ([row[key] for row in rows] for key in ("label", "predicted"))
    figures = precision_recall_fscore_support(truth, answers, labels=list(labels), zero_division=0)
    return {
        label: {name: int(value) if name == "support" else float(value) for name, value in zip(NAMES, values)}
        for label, values in zip(labels, zip(*figures))
    }


def class_table(rows, labels, teacher_rows):
    """Precision, recall and F1 of each class on test, the teacher's F1 beside them where it is there."""
    ours = class_figures(rows, labels)
    theirs = class_figures(teacher_rows, labels) if teacher_rows else None
    shown = sorted(labels, key=lambda label: ours[label]["f1"])[:MANY] if len(labels) > MANY else labels
    header = ("class", "precision", "recall", "F1", *["F1 of the teacher"] * bool(theirs), "examples")
    lines = []
    for label in shown:
        values = [percent(ours[label][name]) for name in NAMES[:3]]
        beside = [percent(theirs[label]["f1"])] if theirs else []
        lines.append((label, *values, *beside, ours[label]["support"]))
    rest = (
        [note(f"The {MANY} of {len(labels)} classes with the lowest F1.")] if len(shown) < len(labels) else []
    )
    return [table(header, lines), *rest]


# --------------------------------------------------------------------------------------- beside the teacher


def other_test(rows, teacher_rows):
    """The first example in which the teacher's test split is not the student's, in words; None where there is
    none.

    A predictions.tsv has the domain and the label of an example to tell it by, not its text.
    """
    ours, theirs = (
        {int(row["idxs"]): f"domain {row['domain']!r}, label {row['label']!r}" for row in each}
        for each in (rows, teacher_rows)
    )
    for idxs in sorted({*ours, *theirs}):
        if ours.get(idxs) != theirs.get(idxs):
            found, expected = (each.get(idxs, "no such example") for each in (theirs, ours))
            return f"test example {idxs}: found {found}, expected {expected}"
    return None


def compare(rows, teacher_rows):
    """The student beside its teacher on the examples that both have answered, paired by example; None where
    there are none.

    Returns:
        {"examples", "difference", "interval" of 95%, "agreement", "student_wrong", "teacher_wrong"}: the last
        two count the examples of which the other one is right.
    """
    theirs = {row["idxs"]: row for row in teacher_rows or ()}
    pairs = [(row, theirs[row["idxs"]]) for row in rows if row["idxs"] in theirs]
    if not pairs:
        return None
    right = np.array(
        [[each["label"] == each["predicted"] for each in pair] for pair in pairs], float
    )  # [N, 2]
    gap = right[:, 0] - right[:, 1]  # [N], of -1, 0, 1
    half = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else 1.0
    return {
        "examples": len(pairs),
        "difference": float(gap.mean()),
        "interval": [float(gap.mean() - half), float(gap.mean() + half)],
        "agreement": float(np.mean([ours["predicted"] == other["predicted"] for ours, other in pairs])),
        "student_wrong": int((gap < 0).sum()),
        "teacher_wrong": int((gap > 0).sum()),
    }


def comparison_table(rows, teacher_rows, domains):
    """Sentences and a table of `compare` by domain, in the order of `domains`; nothing where there is no
    teacher beside it.
    """
    whole = compare(rows, teacher_rows)
    if whole is None:
        return []
    lines = []
    for name in domains:
        part = compare([row for row in rows if row["domain"] == name], teacher_rows)
        lines.append((name, *_differences(part)))
    lines.append(("all examples", *_differences(whole)))
    header = (
        "domain",
        "difference, points",
        "95% interval",
        "agree, %",
        "only the teacher right",
        "only the student right",
    )
    return [note("Student less teacher on test, paired by example."), table(header, lines)]


def _differences(part):
    low, high = part["interval"]
    return (
        f"{100 * part['difference']:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        percent(part["agreement"]),
        part["student_wrong"],
        part["teacher_wrong"],
    )


# --------------------------------------------------------------------------------------- how sure it is


def calibration_section(figures, rows, labels):
    """ECE and log-loss before and after calibration, and the reliability diagram;
    nothing for results without the figures.
    """
    if not figures:
        return []
    state = (
        "is folded into this snapshot"
        if figures["folded"]
        else "is not in this snapshot (--calibrate folds it in)"
    )
    lines = [
        (f"{split}, {when}", percent(figures[split][when]["ece"]), f"{figures[split][when]['log_loss']:.4f}")
        for split in ("dev", "test")
        for when in ("before", "after")
    ]
    unfit = figures.get("unfit")
    told = (
        f"No temperature follows from dev: {unfit}."
        if unfit
        else f"The temperature {figures['temperature']:.3f}, fitted on dev, {state}."
    )
    pieces = [
        note(told),
        table(("calibration", "ECE, %", "log-loss"), lines),
    ]
    if charts.available() and rows:
        values = np.array([[float(row["p", label]) for label in labels] for row in rows])  # [N, M]
        right = np.array([labels.index(row["label"]) for row in rows])
        power = figures["temperature"] if figures["folded"] else 1 / figures["temperature"]
        other = np.maximum(values, 1e-9) ** power
        pair = [values, other / other.sum(axis=1, keepdims=True)]
        before, after = pair[::-1] if figures["folded"] else pair
        pieces.append(f'<div class="charts">{_reliability({"before": before, "after": after}, right)}</div>')
    return pieces


def _reliability(probabilities, label):
    """Accuracy over confidence, in bins. Args: {name: [N, M]}, int [N]."""

    def draw(axes):
        axes.plot([0, 1], [0, 1], color=charts.INK, linewidth=0.8, linestyle=":")
        for place, (name, values) in enumerate(probabilities.items()):
            confidence, right = values.max(axis=1), values.argmax(axis=1) == label
            bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
            points = [(confidence[bins == b].mean(), right[bins == b].mean()) for b in np.unique(bins)]
            marker = charts.MARKERS[place]
            axes.plot(
                *zip(*points),
                color=charts.COLOURS[place],
                marker=marker,
                markersize=4,
                linewidth=1.4,
                label=name,
            )
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        charts.below(axes, len(probabilities))

    return charts.chart("reliability on test", draw, height=3.0)


# --------------------------------------------------------------------------------------- when to abstain


def threshold(sure, right, aim):
    """The lowest P such that the answers of confidence P and above have the accuracy `aim`;
    None where there is none.

    sure float [N], right bool [N].
    """
    order = np.argsort(-sure, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)  # of the n surest
    last_of_its_value = np.append(sure[order][1:] != sure[order][:-1], True)
    good = np.flatnonzero((accuracy >= aim) & last_of_its_value)
    return float(sure[order][good[-1]]) if len(good) else None


def thresholds(dev, test):
    """For each of AIMS: the aim, P on dev, the share of test that is answered at P, and the accuracy there,
    as a list of tuples.
    """
    (sure, right), (sure_test, right_test) = confidences(dev), confidences(test)
    lines = []
    for aim in AIMS:
        limit = threshold(sure, right, aim)
        answered = sure_test >= limit if limit is not None else np.zeros(len(sure_test), bool)
        lines.append(
            (
                aim,
                limit,
                float(answered.mean()),
                float(right_test[answered].mean()) if answered.any() else None,
            )
        )
    return lines


def abstaining_section(dev, test):
    """Which --min_confidence to take for an accuracy on dev, what it does on test, and the curve on test."""
    if not dev or not test:
        return []
    lines = [
        (
            f"{100 * aim:.0f}",
            "none reaches it" if limit is None else f"{limit:.{DIGITS}f}",
            percent(share),
            percent(accuracy),
        )
        for aim, limit, share, accuracy in thresholds(dev, test)
    ]
    header = ("accuracy on dev, %", "min_confidence", "test answered, %", "accuracy of these, %")
    pieces = [table(header, lines)]
    if charts.available():
        sure, right = confidences(test)
        order = np.argsort(-sure, kind="stable")
        accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        kept = np.unique(np.linspace(0, len(order) - 1, min(200, len(order))).astype(int))

        def draw(axes):
            axes.plot(
                100 * (kept + 1) / len(order), 100 * accuracy[kept], color=charts.COLOURS[0], linewidth=1.4
            )
            axes.set_xlabel("answered, percent")
            axes.set_ylabel("accuracy, percent")

        pieces.append(
            f'<div class="charts">{charts.chart("accuracy of the surest answers on test", draw)}</div>'
        )
    return pieces
