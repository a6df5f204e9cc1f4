"""report.html and the model card have the numbers of the run.

Their texts are shown as texts, and nothing in them comes from the net.
"""

import csv
import dataclasses
import html.parser
import importlib.util
import json
import re
import sys
import types

import numpy as np
import pytest
from conftest import DATA, best, call, stage_flags

import config
from data.store.files import write_json
from data.store.records import Records
from data.tasks import BUILT_IN
from modeling.reports import charts
from modeling.reports.model_card import model_card
from modeling.reports.prototype_report import scores_page
from modeling.reports.run_report import (
    POINTS,
    confusion_table,
    mistakes,
    read_predictions,
    run_page,
    thin,
    training_charts,
    write_report,
)
from modeling.reports.tensorboard import Board
from modeling.snapshots.folder import read_model
from modeling.training.evaluation import acceptance_figures
from modeling.training.run import Run
from util import UserError

RUNS = ("teacher", "student")
NASTY = (
    "<script>alert(1)</script>",
    "a & b|`c` $x_1$",
    '" onload="x',
    "_under ü \\frac",
)  # as labels and domains
needs_matplotlib = pytest.mark.skipif(not charts.available(), reason="needs matplotlib")
WITHOUT_NET = {
    "meta",
    "title",
    "style",
    "h1",
    "h2",
    "p",
    "div",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "data",
    "section",
    "figure",
    "svg",
    "g",
    "path",
    "defs",
    "use",
    "text",
    "clippath",
    "rect",
    "html",
    "head",
    "body",
}


class Page(html.parser.HTMLParser):
    """A page taken apart.

    `rows`: lists of the texts of cells; `exact`: the numbers behind them; `tags` with attributes; `text`.
    """

    def __init__(self, text):
        super().__init__()
        self.rows, self.exact, self.tags, self.text, self.cell = [], {}, [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "data":
            self.exact[len(self.rows) - 1, len(self.rows[-1]) - 1] = float(dict(attributes)["value"])
        self.cell = tag in ("td", "th", "data")

    def handle_endtag(self, tag):
        self.cell = False

    def handle_data(self, data):
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data

    def numbers(self, name):
        """The exact numbers of the first row that begins with `name`."""
        row = next(i for i, cells in enumerate(self.rows) if cells[0] == name)
        return [self.exact[place] for place in sorted(self.exact) if place[0] == row]


def contents(run, name):
    return json.loads((run / name).read_text(encoding="utf-8"))


@pytest.fixture
def nasty_run(tmp_path):
    """A run folder whose names HTML, mathtext and Markdown might take for markup.

    They are those of the task, its labels and domains, and the snapshot.
    """
    metrics = {
        "examples": 4,
        "accuracy": 0.5,
        "domains": dict(zip(NASTY, (0.0, 0.25, 0.5, 1.0))),
        "domain_average": 0.4375,
        "macro_f1": 1 / 3,
    }
    write_json(
        tmp_path / "results.json",
        {
            "task": NASTY[0],
            "snapshot": NASTY[2],
            "parameters": 7,
            "bytes": 8,
            "dev": metrics,
            "test": metrics,
        },
    )
    lines = [
        ("split", "idxs", "domain", "label", "predicted", *NASTY),
        *(("test", i, NASTY[i], NASTY[i], NASTY[0], *[".25"] * 4) for i in range(4)),
    ]
    (tmp_path / "predictions.tsv").write_text(
        "".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8"
    )
    steps = [
        {
            "step": i,
            "epoch": 0,
            "phase": "joint",
            "examples": 4,
            "lr": 0.1 / i,
            "loss": 1 / i,
            NASTY[0]: 1 / i,
        }
        for i in range(1, 6)
    ]
    with open(tmp_path / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in (*steps, {"step": 5, "dev": metrics}))
    meta = {
        "kind": "student",
        "task": NASTY[0],
        "text": ["a_b|c"],
        "labels": NASTY,
        "domains": NASTY,
        "seen_domains": [0, 1],
        "seq_length": 32,
        "content_sha256": "0" * 64,
        "step": 5,
        "dev": metrics,
        "teacher_sha256": "1" * 64,
    }
    return tmp_path, meta


# --------------------------------------------------------------------------------------- the report of a run


@pytest.mark.parametrize("run", RUNS)
def test_the_report_has_the_numbers_of_results_json(golden, run):
    """Dev and test of every domain, average, total and macro-F1 are those of results.json, to the last bit.

    The teacher's test stands beside those of its student.
    """
    page, results = (
        Page((golden / run / "report.html").read_text(encoding="utf-8")),
        contents(golden / run, "results.json"),
    )
    columns = [results["dev"], results["test"]] + [contents(golden / "teacher", "results.json")["test"]] * (
        run == "student"
    )
    for name in ("books", "dvd", "electronics", "kitchen"):
        assert page.numbers(name) == [metrics["domains"][name] for metrics in columns]
    for name, key in (
        ("average of the domains", "domain_average"),
        ("all examples", "accuracy"),
        ("macro-F1", "macro_f1"),
    ):
        assert page.numbers(name) == [metrics[key] for metrics in columns]
    assert results["snapshot"] in page.text and f"of {results['test']['examples']} test examples" in page.text
    assert (
        ["--learning_rate", "0.003"] in page.rows
        and "model_load_dir" not in page.text
        and "snapshot_last" not in page.text
    )


def test_confusions_and_mistakes_are_those_of_predictions_tsv(golden):
    """Counted from the file by other means; the most confident first."""
    with open(golden / "teacher" / "predictions.tsv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "test"]
    page = Page((golden / "teacher" / "report.html").read_text(encoding="utf-8"))
    for label in ("positive", "negative"):
        counts = [
            str(sum(row["label"] == label and row["predicted"] == other for row in rows))
            for other in ("positive", "negative")
        ]
        assert [label, *counts] in page.rows
    wrong = sorted(
        (row for row in rows if row["label"] != row["predicted"]),
        key=lambda row: -float(row[row["predicted"]]),
    )
    header = ["idxs", "text", "label", "predicted", "probability", "domain"]
    shown = page.rows[page.rows.index(header) + 1 :][: len(wrong[:10])]
    assert [row[4] for row in shown] == [f"{float(row[row['predicted']]):.4f}" for row in wrong[:10]]
    texts = (golden / "data" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert {(row[0], *row[2:4], row[5]) for row in shown} <= {
        tuple(row[name] for name in ("idxs", "label", "predicted", "domain")) for row in wrong
    }
    assert all(row[1] == texts[int(row[0])].split("\t")[0] for row in shown)


def test_of_many_labels_the_largest_confusions_are_listed():
    """1,000 labels make no table of a million cells: the 50 largest confusions are listed.

    Each has its label's number of examples, and the largest comes first.
    """
    labels = [f"label {i}" for i in range(1000)]
    rows = [{"label": name, "predicted": name} for name in labels]
    for i in range(60):
        rows += [{"label": labels[i], "predicted": labels[i + 1]}] * (60 - i)
    text = confusion_table(rows, labels)
    lines = Page(text).rows[1:]
    assert len(text) < 20_000 and "50 largest of 60" in text
    assert lines == [[labels[i], labels[i + 1], str(60 - i), str(61 - i)] for i in range(50)]


def test_ten_mistakes_at_most_and_none_is_said():
    """Twelve wrong answers give ten lines, in the file's order where confidence is equal.

    No wrong answer gives a word.
    """
    rows = [
        {"idxs": str(i), "domain": "d", "label": "a", "predicted": "b", ("p", "b"): "0.9"} for i in range(12)
    ]
    assert [row[0] for row in Page("".join(mistakes(rows))).rows[1:]] == [str(i) for i in range(10)]
    assert "None." in mistakes([{**row, "predicted": "a"} for row in rows])[0]


def test_names_stay_texts(nasty_run):
    """No name becomes a tag, an attribute or a formula, with charts or without."""
    folder, meta = nasty_run
    page = Page(run_page(folder, meta, {"domain": NASTY[0]}))
    assert {tag for tag, _ in page.tags} <= WITHOUT_NET and not any(
        "onload" in attributes for _, attributes in page.tags
    )
    assert all(any(name in row for row in page.rows) for name in NASTY) and page.numbers(NASTY[1]) == [
        0.25,
        0.25,
    ]


@pytest.mark.parametrize("path", ["teacher/report.html", "student/report.html", "data/ofrecord/report.html"])
def test_nothing_is_loaded_from_the_net(golden, path):
    """No tag that runs or fetches anything, and every reference leads to a place on the page itself."""
    text = (golden / path).read_text(encoding="utf-8")
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= WITHOUT_NET and "@import" not in text and str(golden) not in text
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and (
                name not in ("src", "href", "xlink:href") or value.startswith("#")
            ), (name, value)
            assert name.startswith("xmlns") or "://" not in value
    assert all(link.startswith("#") for link in re.findall(r"url\(['\"]?(.)", text))


@pytest.mark.parametrize("run", RUNS)
def test_the_same_run_gives_the_same_bytes(golden, run):
    """Made again of the folder's files, in another process than the first time."""
    flags = {name: value for name, value in contents(golden / run, "flags.json").items()}
    teacher = best(golden / "teacher") if run == "student" else None
    texts = [line.split("\t")[0] for line in (golden / "data" / "test.tsv").read_text().splitlines()[1:]]
    pages = [
        run_page(golden / run, contents(best(golden / run), "meta.json"), flags, teacher, texts)
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
    first, again = (
        (text[: text.index("<h2>Flags")])
        for text in ((golden / run / "report.html").read_text(encoding="utf-8"), pages[0])
    )
    assert first == again


def test_without_matplotlib_there_are_the_tables(nasty_run, monkeypatch):
    """And a sentence how to get the charts, in place of them alone."""
    folder, meta = nasty_run
    monkeypatch.setattr(charts, "available", lambda: False)
    page = Page(run_page(folder, meta, {}))
    assert (
        "pip install matplotlib" in page.text
        and "svg" not in {tag for tag, _ in page.tags}
        and page.numbers("all examples") == [0.5, 0.5]
    )


@needs_matplotlib
def test_with_matplotlib_there_is_a_chart_for_each_curve(nasty_run):
    """Dev, the loss, its one part, and the learning rate; their words take the colour of the page."""
    text = run_page(*nasty_run, {})
    assert (
        text.count("<svg ") == 4
        and "pip install" not in text
        and "currentColor" in text
        and charts.INK not in text
    )


def test_a_folder_that_has_not_trained_has_no_curves(nasty_run):
    """As after --do_eval alone."""
    folder, meta = nasty_run
    (folder / "metrics.jsonl").unlink()
    text = run_page(folder, meta, {})
    assert "<svg" not in text and "pip install" not in text and "<h2>Training" not in text


def test_a_teacher_of_another_name_or_task_is_not_set_beside(golden):
    """Its folder's results.json must tell of this very snapshot."""
    meta = contents(best(golden / "student"), "meta.json")
    for other in (golden / "teacher" / "snapshot_last", golden / "bert", None):
        assert "teacher, test" not in run_page(golden / "student", meta, {}, other)


def test_curves_are_means_over_examples():
    """The mean of the points of a curve, weighted by examples, is that of the steps.

    The last point stands at the last step.
    """
    stream = np.random.default_rng(0)
    lines = [
        {"step": i + 1, "loss": value, "examples": int(count)}
        for i, (value, count) in enumerate(zip(stream.random(1234), stream.integers(1, 9, 1234)))
    ]
    steps, values = thin(lines, "loss", 7)
    counts = np.array([line["examples"] for line in lines])
    weights = np.add.reduceat(counts, np.arange(0, 1234, 7))
    assert len(values) == len(weights) and steps[-1] == 1234
    assert np.average(values, weights=weights) == pytest.approx(
        np.average([line["loss"] for line in lines], weights=counts)
    )
    assert thin(lines[:5], "loss", 1) == (
        [1, 2, 3, 4, 5],
        [pytest.approx(line["loss"]) for line in lines[:5]],
    )


@pytest.mark.parametrize("count, width", [(200, 1), (201, 2), (300, 2), (1234, 7)])
def test_every_chart_has_the_points_that_the_note_tells(monkeypatch, count, width):
    """Of a loss that one phase has, too: as many steps to a point as in the charts of the whole run."""
    drawn = {}
    monkeypatch.setattr(charts, "available", lambda: True)
    monkeypatch.setattr(charts, "lines", lambda title, curves, **more: drawn.update(curves) or "")
    steps = [{"step": i + 1, "loss": 1.0, "lr": 0.1, "examples": 4} for i in range(count)]
    steps = [{**line, "attention" if line["step"] <= count // 2 else "soft": 1.0} for line in steps]
    notes = "".join(training_charts(steps, []))
    assert drawn.keys() == {"loss", "attention", "soft", "lr"}
    for part, (ends, _) in drawn.items():
        assert len(ends) <= POINTS and set(np.diff(ends)[:-1]) == {width}, part
    assert (f"A point is the mean over {width} steps." in notes) == (width > 1)


def test_a_page_that_cannot_be_made_is_told_and_fails_nothing(tmp_path):
    """A page that fails gives a line with the error, and no older page is left.

    A full disk is a matter of the run, as for any file.
    """
    said, path = [], tmp_path / "report.html"
    path.write_text("old")
    write_report(types.SimpleNamespace(log=said.append), path, lambda: 1 / 0)
    assert not path.exists() and len(said) == 1 and "ZeroDivisionError" in said[0]
    with pytest.raises(FileNotFoundError):
        write_report(
            types.SimpleNamespace(log=said.append), tmp_path / "nowhere" / "report.html", lambda: "new"
        )


def test_predictions_are_read_as_they_were_written(golden):
    """All 16 lines of test, with a probability for each label that adds up to 1."""
    rows = read_predictions(golden / "student" / "predictions.tsv")["test"]
    assert len(rows) == 16 and all(
        float(row["p", "positive"]) + float(row["p", "negative"]) == pytest.approx(1, abs=2e-6)
        for row in rows
    )


# -------------------------------------------------------------------------------------- the report of stage 1


def test_the_records_report_has_the_scores_of_the_records(golden):
    """Count, mean and extremes of every domain and class."""
    page = Page((golden / "data" / "ofrecord" / "report.html").read_text(encoding="utf-8"))
    arrays = Records(golden / "data" / "ofrecord" / "train", "train").arrays()
    for k, name in enumerate(("books", "dvd", "electronics", "kitchen")):
        for m, label in enumerate(("positive", "negative")):
            scores = arrays["weights"][(arrays["domain"] == k) & (arrays["label"] == m)]
            (row,) = [row for row in page.rows if row[0] == f"{name}, {label}"]
            found = [float(row[i]) for i in (1, 2, 4, 8)]
            assert found == pytest.approx([len(scores), scores.mean(), scores.min(), scores.max()], abs=6e-5)


def test_a_cell_without_examples_or_prototype_is_left_out():
    """Cells without examples or prototype are left out, and two calls give the same bytes.

    Two domains with one class each, one example on the map, names that are not markup.
    """
    task = BUILT_IN["senti"]
    axes = np.full((4, 2, 3), np.nan)
    axes[0, 0] = axes[1, 1] = (1, 0, 0)
    few = (
        task,
        np.array([0, 1]),
        np.array([0, 1]),
        [0.5, 0.25],
        0.5,
        np.array([0]),
        np.ones((1, 3), np.float32),
        axes,
    )
    many = (
        task,
        np.array([0, 1] * 4),
        np.array([0, 1] * 4),
        [0.5] * 8,
        0.5,
        np.arange(8),
        np.eye(8, 3, dtype=np.float32) + 1,
        axes,
    )
    for facts in (few, many):
        page = Page(scores_page(*facts))
        assert [row[0] for row in page.rows[1:]] == ["books, positive", "dvd, negative"] and scores_page(
            *facts
        ) == scores_page(*facts)


def test_many_domains_and_classes_make_a_small_page():
    """1,000 classes in 500 domains: the page draws no million prototypes and lists the largest cells.

    It says both.
    """
    names = [tuple(f"{kind} {i}" for i in range(count)) for kind, count in (("class", 1000), ("domain", 500))]
    task = dataclasses.replace(BUILT_IN["senti"], labels=names[0], domains=names[1])
    domain, label = np.arange(2000) % 500, np.arange(2000) % 1000
    axes = np.broadcast_to(np.float32(1), (500, 1000, 3))
    vectors = np.eye(2000, 3, dtype=np.float32) + 1
    text = scores_page(task, domain, label, np.ones(2000), 0.5, np.arange(2000), vectors, axes)
    assert len(text) < 1_000_000 and "of 1000" in text and "No map" in text
    assert len(Page(text).rows) == 1 + 100


# --------------------------------------------------------------------------------------- the model card


def front_matter(text):
    """The values of a card's head, and the rest of the card.

    Each value is JSON, and the head YAML, where a reader of YAML is installed.
    """
    head, rest = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, flags=re.S).groups()
    values = {name: json.loads(value) for name, value in (line.split(": ", 1) for line in head.split("\n"))}
    if "yaml" in sys.modules or _has("yaml"):
        assert __import__("yaml").safe_load(head) == values
    return values, rest


def _has(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("run, kind", [("teacher", "meta-teacher"), ("student", "student")])
def test_the_card_has_the_numbers_of_meta_json(golden, run, kind):
    """The card's head is as the hub reads it, and its numbers are those of meta.json.

    Dev of each domain, examples, hashes, step and flags; the manifest leaves the card free to be edited.
    """
    snapshot = best(golden / run)
    (values, text), meta = (
        front_matter((snapshot / "README.md").read_text(encoding="utf-8")),
        contents(snapshot, "meta.json"),
    )
    assert (
        values["library_name"] == "transformers"
        and values["pipeline_tag"] == "text-classification"
        and kind in values["tags"]
    )
    for name, value in meta["dev"]["domains"].items():
        assert f"| {name} | {100 * value:.2f} |" in text
    assert (
        f"| all examples | {100 * meta['dev']['accuracy']:.2f} |" in text
        and f"Step {meta['step']} of the run." in text
    )
    assert (
        "| training examples | 32 |" in text
        and f"| {meta['content_sha256']} |" in text
        and f"cut after {meta['seq_length']} tokens" in text
    )
    assert (
        "| --batch_size_per_device | 7 |" in text and str(golden) not in text and "model_load_dir" not in text
    )
    assert run == "teacher" or meta["teacher_sha256"] in text
    assert "README.md" not in contents(snapshot, "manifest.json")["sha256"]


def test_a_card_of_heads_by_domain_promises_no_pipeline(nasty_run):
    """Nor is the pipeline in its head; names of any kind leave lines and tables as they are."""
    meta = {**nasty_run[1], "kind": "teacher"}
    values, text = front_matter(model_card(meta, {"domain": NASTY[0]}, 9, has_classifier=False))
    assert "pipeline_tag" not in values and "pipeline(" not in text and "BertModel" in text
    assert "<script" not in text.replace("\\<script", "") and re.search(r"^\| a & b|`c`", text) is None
    for line in text.split("\n"):
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


def test_a_pair_of_texts_is_given_as_a_pair(nasty_run):
    """As transformers wants it."""
    text = model_card({**nasty_run[1], "text": ["premise", "hypothesis"]}, {}, 9, has_classifier=True)
    assert (
        'classify({"text": "first text", "text_pair": "second text"}, truncation=True)  # cut after 32 tokens'
        in text
        and "All flags" in text
    )


def test_a_snapshot_without_a_card_or_with_another_is_read(sandbox):
    """A snapshot is read without a card, as old ones are, or with one that was edited for the hub."""
    snapshot = best(sandbox / "student")
    (snapshot / "README.md").write_text("changed")
    assert read_model(snapshot).meta["kind"] == "student"
    (snapshot / "README.md").unlink()
    assert read_model(snapshot).meta["kind"] == "student"


# --------------------------------------------------------------------------------------- TensorBoard


class Writer:
    """Stands for tensorboardX.SummaryWriter."""

    made = []

    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.scalars = log_dir, purge_step, {}
        self.made.append(self)

    def add_scalar(self, name, value, step):
        assert (name, step) not in self.scalars
        self.scalars[name, step] = value

    def flush(self):
        pass


@pytest.fixture
def written(monkeypatch):
    """The writers that are made from now on."""
    monkeypatch.setitem(
        sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer, __spec__=True)
    )
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_every_number_of_metrics_jsonl_is_a_scalar(tmp_path, written):
    """Steps go under train/, dev under dev/ and dev/domains/.

    A resumed run says from which step on its numbers count.
    """
    run = Run(tmp_path)
    run.board = Board("somewhere")
    assert written == []
    run.metric(step=4, epoch=1, phase="joint", examples=7, lr=0.5, loss=2.0)
    run.metric(step=4, dev={"accuracy": 0.75, "domains": {"books": 0.25}})
    (writer,) = written
    assert (writer.log_dir, writer.purge_step) == ("somewhere", 4)
    assert writer.scalars == {
        ("train/epoch", 4): 1,
        ("train/examples", 4): 7,
        ("train/lr", 4): 0.5,
        ("train/loss", 4): 2.0,
        ("dev/accuracy", 4): 0.75,
        ("dev/domains/books", 4): 0.25,
    }


def test_a_run_with_a_board_is_the_same_run(golden, sandbox, written):
    """--log_dir changes no byte of the run folder."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "other", "log_dir": "board"}
    assert call("meta_teacher", sandbox, flags).code == 0
    (writer,) = written
    assert len({step for name, step in writer.scalars if name == "train/loss"}) == 10
    for name in ("metrics.jsonl", "results.json", "report.html", "flags.json"):
        assert (sandbox / "other" / name).read_bytes() == (golden / "teacher" / name).read_bytes()


def test_a_board_without_a_package_is_refused_at_the_start(monkeypatch):
    """Before anything is read."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = ["--task_name", "senti", "--data_dir", DATA["data_dir"], "--log_dir", "x"]
    with pytest.raises(UserError, match="pip install tensorboardX"):
        config.parse("", config.task, config.training, argv=argv)


@pytest.mark.parametrize("column, other", [(2, "kitchen"), (3, "negative"), (None, None)])
def test_a_teacher_of_another_test_split_is_not_set_beside(sandbox, column, other):
    """A domain, a label or a row that differs: no figure of the teacher's, and page and log say why."""
    path = sandbox / "teacher" / "predictions.tsv"
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if line[0] == "test"]
    changed = next(row for row in rows if column is None or row[column] != other)
    expected = f"domain {changed[2]!r}, label {changed[3]!r}"
    if column is None:
        lines.remove(changed)
    else:
        changed[column] = other
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    log = []
    run = types.SimpleNamespace(folder=sandbox / "student", log=log.append)
    teacher, meta = best(sandbox / "teacher"), contents(best(sandbox / "student"), "meta.json")
    assert acceptance_figures(run, BUILT_IN["senti"], teacher)["against_teacher"] is None
    page = Page(run_page(sandbox / "student", meta, {}, teacher))
    for text in (page.text, "\n".join(log)):
        assert f"test example {changed[1]}: found " in text and f"expected {expected}" in text
    assert "teacher, test" not in page.text and "F1 of the teacher" not in page.text
