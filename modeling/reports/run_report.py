"""The report.html of a run of stage 2 or 4: what it was told, what it learned, where it errs.
No clock stands in it.
"""

import collections
import pathlib
from typing import NamedTuple, Optional

from data.store.files import atomic_file
from modeling.reports import charts
from modeling.reports.acceptance import (
    abstaining_section,
    calibration_section,
    class_table,
    comparison_table,
    other_test,
)
from modeling.reports.html import long_text, note, page, percent, shaded, table
from modeling.reports.run_files import read_metrics, read_predictions
from modeling.snapshots.best import find_snapshot
from util import read_json

POINTS = 200  # of a curve at most
MISTAKES = 10
TEXT_LENGTH = 300  # characters of a mistake that are shown
MANY = 30  # labels in a table of all confusions, and domains in a chart, at most
CONFUSIONS = 50  # that are listed where there are more labels
SPEED = (
    "No time stands here, so that the same run gives the same page. python3 -m modeling.speed measures how "
    "fast it is, and writes speed.html beside this page."
)
# Of a line of metrics.jsonl; the rest are losses and the gradient's norm:
NOT_VALUES = ("step", "epoch", "phase", "examples", "lr")


def write_report(run, path, make, *facts):
    """Writes the page that `make(*facts)` returns to `path`. What fails in making it is told, and fails no
    run that has done its work.
    """
    try:
        text = make(*facts)
    except Exception as error:
        run.log(f"note: {path} was not made ({type(error).__name__}: {' '.join(str(error).split()):.300})")
        path.unlink(missing_ok=True)  # the one of another time would be believed
        return
    with atomic_file(path, "w") as file:
        file.write(text)
    run.log(f"report: {path}")


def run_page(folder, meta, flags, teacher_model=None, texts=None):
    """The page of a run.

    Args:
        folder: the run folder, with results.json, predictions.tsv and, if it has trained, metrics.jsonl.
        meta: the meta.json of the snapshot that was tested;
            flags: {name: value} that differ from the defaults.
        teacher_model: the snapshot of a student's teacher, as --teacher_model names it.
        texts: those of test.tsv in their order, for the mistakes; None: without them.
    """
    folder = pathlib.Path(folder)
    results = read_json(folder / "results.json", "the results of the run")
    dev, rows = read_predictions(folder / "predictions.tsv").values()
    labels, teacher = list(meta["labels"]), read_teacher(teacher_model, results["task"], rows)
    steps, evaluations = read_metrics(folder / "metrics.jsonl")
    test = results["test"]
    summary = (
        f"{100 * test['accuracy']:.2f}% of {test['examples']} test examples are right; "
        f"{results['parameters']:,} parameters, {results['bytes'] / 1e6:.1f} MB; {results['snapshot']}, "
        f"step {meta['step']}."
    )
    sections = [
        ("Accuracy in percent", [accuracy_table(results, teacher.results)]),
        ("Beside the teacher", beside_teacher(rows, teacher, test["domains"])),
        ("Size", size_table(results, meta["kind"])),
        ("Classes on test", class_table(rows, labels, teacher.rows)),
        ("How sure it is", calibration_section(results.get("calibration"), rows, labels)),
        ("When to abstain", abstaining_section(dev, rows)),
        ("Training", training_charts(steps, evaluations)),
        ("Labels on test", [confusion_table(rows, labels)]),
        ("Most confident mistakes on test", mistakes(rows, texts)),
        ("Flags that differ from their defaults, paths left out", [flag_table(flags)]),
    ]
    return page(f"{meta['kind'].capitalize()} of the task {results['task']}", summary, sections)


def flag_table(flags):
    """The flags {name: value} as a table; words where there are none."""
    rows = [(f"--{name}", value) for name, value in flags.items()]
    return table(("flag", "value"), rows, words=True) if rows else note("None.")


# --------------------------------------------------------------------------------------- reading


class Teacher(NamedTuple):
    """What stands beside a student: its teacher's results.json and answers on test, none where there is no
    teacher, or where these tell of another snapshot, task or test split. `fault`: a sentence for the last.
    """

    results: Optional[dict] = None
    rows: list = []
    fault: Optional[str] = None


def read_teacher(teacher_model, task, rows):
    """The Teacher at `teacher_model`, a snapshot or None. Args: rows: the student's answers on test."""
    if teacher_model is None:
        return Teacher()
    snapshot = find_snapshot(teacher_model).resolve()
    path = snapshot.parent / "results.json"
    results = read_json(path, "the teacher's results") if path.exists() else {}
    if (results.get("snapshot"), results.get("task")) != (snapshot.name, task):
        return Teacher()
    path = snapshot.parent / "predictions.tsv"
    theirs = read_predictions(path)["test"] if path.is_file() else []
    other = other_test(rows, theirs) if theirs else None
    if other is not None:
        return Teacher(
            fault=f"The teacher's predictions.tsv, {other}: it was tested on another test.tsv, so its "
            "figures do not stand beside the student's. Evaluate it on this one, then the student again."
        )
    return Teacher(results, theirs)


# --------------------------------------------------------------------------------------- tables


def beside_teacher(rows, teacher, domains):
    """The comparison with a Teacher, or the sentence why there is none."""
    return [note(teacher.fault)] if teacher.fault else comparison_table(rows, teacher.rows, domains)


def accuracy_table(results, teacher=None):
    """Dev and test by domain, the average of the domains, all examples and macro-F1; the teacher's test
    beside them if there is one.
    """
    columns = [("dev", results["dev"]), ("test", results["test"])] + (
        [("teacher, test", teacher["test"])] if teacher else []
    )
    domains = dict.fromkeys(name for _, metrics in columns for name in metrics["domains"])
    rows = [(name, *(percent(metrics["domains"].get(name)) for _, metrics in columns)) for name in domains]
    for name, key in (
        ("average of the domains", "domain_average"),
        ("all examples", "accuracy"),
        ("macro-F1", "macro_f1"),
    ):
        rows.append((name, *(percent(metrics[key]) for _, metrics in columns)))
    rows.append(("number of examples", *(metrics["examples"] for _, metrics in columns)))
    return table(("domain", *(name for name, _ in columns)), rows)


def size_table(results, kind):
    """Parameters and megabytes, those of the teacher beside them if there is one."""
    models = {kind: results, "teacher": results.get("teacher")} if results.get("teacher") else {kind: results}
    lines = [(name, f"{each['parameters']:,}", f"{each['bytes'] / 1e6:.1f}") for name, each in models.items()]
    return [table(("model", "parameters", "MB"), lines), note(SPEED)]


def confusion_table(rows, labels):
    """How many test examples of each label (lines) are taken for which (columns);
    of many labels the largest confusions alone.
    """
    counts = collections.Counter((row["label"], row["predicted"]) for row in rows)
    if len(labels) > MANY:
        return largest_confusions(counts)
    lines = [[counts[label, predicted] for predicted in labels] for label in labels]
    return table(
        ("label, predicted as", *labels),
        [(label, *(shaded(count, sum(line)) for count in line)) for label, line in zip(labels, lines)],
    )


def largest_confusions(counts):
    """The most frequent wrong answers. Args: counts: {(label, predicted): test examples}."""
    wrong = {pair: count for pair, count in counts.items() if pair[0] != pair[1]}
    totals = collections.Counter()
    for (label, _), count in counts.items():
        totals[label] += count
    listed = sorted(wrong, key=lambda pair: (-wrong[pair], pair))[:CONFUSIONS]
    return note(f"The {len(listed)} largest of {len(wrong)} confusions.") + table(
        ("label", "predicted as", "examples", "of the label's"),
        [(*pair, wrong[pair], totals[pair[0]]) for pair in listed],
        words=True,
    )


def mistakes(rows, texts=None):
    """The wrong answers on test with the highest probability,
    and their texts where `texts` of test.tsv are given.
    """
    wrong = [(float(row["p", row["predicted"]]), row) for row in rows if row["label"] != row["predicted"]]
    wrong.sort(key=lambda pair: (-pair[0], int(pair[1]["idxs"])))
    if not wrong:
        return [note("None.")]
    header = ("idxs", *["text"] * bool(texts), "label", "predicted", "probability", "domain")
    lines = []
    for probability, row in wrong[:MISTAKES]:
        text = [long_text(shorten(texts[int(row["idxs"])]))] if texts else []
        lines.append(
            (row["idxs"], *text, row["label"], row["predicted"], f"{probability:.4f}", row["domain"])
        )
    return [
        note(
            f"{len(wrong)} of {len(rows)} are wrong. idxs is the number of the example in test.tsv, from 0."
        ),
        table(header, lines, words=True),
    ]


def shorten(text):
    """At most TEXT_LENGTH characters of a text."""
    return text if len(text) <= TEXT_LENGTH else f"{text[: TEXT_LENGTH - 1]}…"


# --------------------------------------------------------------------------------------- curves


def training_charts(steps, evaluations):
    """Charts of the losses, the learning rate and dev; nothing of a run that has not trained."""
    if not steps:
        return []
    if not charts.available():
        return [note(charts.NO_CHARTS)]
    drawn = []
    if evaluations:
        domains = {name: None for line in evaluations for name in line["dev"]["domains"]}
        domains = domains if len(domains) <= MANY else {}
        curves = {
            name: _curve(evaluations, lambda line, name=name: line["dev"]["domains"].get(name))
            for name in domains
        }
        curves = {"all examples": _curve(evaluations, lambda line: line["dev"]["accuracy"]), **curves}
        drawn.append(charts.lines("accuracy on dev", curves, label="percent", scale=100, markers=True))
    names = dict.fromkeys(name for line in steps for name in line if name not in NOT_VALUES)
    width = -(-len(steps) // POINTS)  # of all charts, also of a loss that only one phase has
    for name in (*names, "lr"):
        title = {"lr": "learning rate", "gradient_norm": "norm of the gradient"}.get(
            name, name if name == "loss" else f"{name} (part of the loss)"
        )
        drawn.append(charts.lines(title, {name: thin([line for line in steps if name in line], name, width)}))
    means = [note(f"A point is the mean over {width} steps.")] if width > 1 else []
    return ['<div class="charts">' + "\n".join(drawn) + "</div>", *means]


def _curve(lines, value):
    pairs = [(line["step"], value(line)) for line in lines if value(line) is not None]
    return [step for step, _ in pairs], [number for _, number in pairs]


def thin(lines, name, width):
    """(steps, values) of points that are each the mean over the examples of `width` steps and stand at the
    last of them.
    """
    steps, values = [], []
    for start in range(0, len(lines), width):
        group = lines[start : start + width]
        steps.append(group[-1]["step"])
        values.append(
            sum(line[name] * line["examples"] for line in group) / sum(line["examples"] for line in group)
        )
    return steps, values
