"""Writes what finished runs came to: Markdown tables, a CSV file and, by plots.py, plots."""

import collections
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from data.store.files import atomic_file, make_folder
from data.tasks import Task
from modeling.reports.markdown import markdown_table
from scripts.reproduce import plots
from scripts.reproduce.outcomes import Outcome, portion_size
from scripts.reproduce.statistics import DRAWS, Summary, scores, summaries

ROOT = Path(__file__).resolve().parents[2]


class Facts(NamedTuple):
    """What stands under the tables, and what the rows are compared with."""

    base: Path  # the folder of the runs
    data_dir: str
    command: str
    baseline: str  # the row of --baseline
    baselines: dict  # {row: the row that it is compared with, or None}
    candidates: str  # what there was to choose from, a line
    tried: dict  # {row: {setting: accuracy on dev with the first seed}}
    train: collections.Counter  # training examples by domain and label
    chosen: dict  # {row: the setting that dev chose}, of the rows and of their teachers
    missing: list  # names of the rows that are not finished
    test_domain: Optional[str] = None  # whose test examples alone count; None: all do


# ------------------------------------------------------------------------------ the Markdown tables


def percent(value: Optional[float]) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def table_cells(line: Summary, task: Task) -> list[tuple[str, str]]:
    """The cells of a table line, (column, text) each; a domain may have the name of another column."""
    low, high = line.interval
    points = "–"
    if line.difference is not None:
        points = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in line.difference))
    return [
        ("row", line.row.name),
        *((name, percent(line.domains.get(name))) for name in task.domains),
        ("average", percent(line.average)),
        ("all", percent(line.all)),
        ("sd", percent(line.sd)),
        ("95% interval", f"{percent(low)} to {percent(high)}"),
        ("difference", points),
        ("dev", percent(line.dev)),
        ("setting", str(line.setting)),
        ("seeds", str(line.seeds)),
    ]


def shown_groups(lines: list[Summary]) -> dict[str, list[Summary]]:
    """{group: its lines}, without the groups whose rows all stand in another one
    that is larger or comes first.
    """
    groups = {}
    for line in lines:
        for group in line.row.groups.split():
            groups.setdefault(group, []).append(line)
    names = {group: {line.row.name for line in members} for group, members in groups.items()}
    shown = {}
    for place, (group, members) in enumerate(groups.items()):
        others = enumerate(names.values())
        mine = names[group]
        if not any(mine < theirs or (mine == theirs and earlier < place) for earlier, theirs in others):
            shown[group] = members
    return shown


def markdown_tables(lines: list[Summary], task: Task) -> str:
    """A table for each group that is shown."""
    text = []
    for group, members in shown_groups(lines).items():
        rows = [table_cells(line, task) for line in members]
        header = [name for name, _ in rows[0]]
        text += [f"## {group}", "", markdown_table(header, ([cell for _, cell in row] for row in rows))]
    return "\n".join(text)


def tried_table(tried: dict, chosen: dict) -> str:
    """A table of every setting that was tried, the chosen ones in bold; "" where no row had a choice."""
    body = []
    for row, settings in tried.items():
        for setting, dev in settings.items():
            mark = "**" if setting == chosen.get(row) else ""
            body.append((row, f"{mark}{setting}{mark}", percent(dev)))
    if all(len(settings) < 2 for settings in tried.values()):
        return ""
    return "## tried\n\n" + markdown_table(("row", "setting", "dev, first seed"), body)


CAPTION = """Accuracy on test in percent, means over the seeds; `average` is the mean of the domains, `all`
is over all examples, and `sd` and the 95% interval are of that (Student's t over the seeds; where a row has
one seed, Wilson's over the test examples). `difference`: points above {baseline} (of the same portion;
teachers: above mixed), over the same examples, with the 95% interval of a bootstrap of {draws:,} draws over
examples and seeds (of one seed: over examples alone, which is too narrow). Few-shot rows are students of a
portion, whose teacher and prototypes know all training examples. `setting` (the learning rate, and what else
was searched) and snapshot were chosen on dev, so the column `dev` is higher than it would be on new examples;
test chose nothing."""


def footer(outcomes: list[Outcome], facts: Facts) -> str:
    """What stands under the tables."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(facts.base.glob("*.json"))]
    counts = sorted({len(outcome.test) for outcome in outcomes})
    seeds = sorted({outcome.seed for outcome in outcomes})
    minutes = sum(record["seconds"] for record in records) / 60
    commits = sorted({str(record["commit"])[:12] for record in records})
    of_domain = f" of {facts.test_domain} alone" if facts.test_domain else ""
    lines = [
        CAPTION.format(baseline=facts.baseline, draws=DRAWS).replace("\n", " "),
        "",
        f"- {' or '.join(map(str, counts))} test examples{of_domain}, {sum(facts.train.values())} training "
        "examples",
        f"- seeds {', '.join(map(str, seeds))}",
        f"- {facts.candidates}",
        f"- {minutes:.0f} machine minutes in all, of commit {', '.join(commits)}",
        f"- made by `{facts.command}`",
    ]
    rows = {outcome.row.name for outcome in outcomes}
    if absent := sorted({facts.baselines[row] for row in rows} - {None, *rows}):
        lines.append(
            f"- no differences to {', '.join(absent)}, not among these rows: name it in `--rows`, or another "
            "row as `--baseline`"
        )
    if facts.missing:
        lines.append(f"- not finished: {', '.join(facts.missing)}")
    return "\n".join(lines)


def bag_of_words(task: Task, data_dir: str, examples: int) -> str:
    """What bag_of_words.py prints over the first `examples` training examples, as a Markdown block.

    A sentence where it cannot run.
    """
    flags = ["--task_name", task.name, "--data_dir", str(data_dir), "--train_example_num", str(examples)]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reproduce.bag_of_words", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode != 0:
        return "TF-IDF and logistic regression: bag_of_words.py did not run here."
    return f"TF-IDF and logistic regression over the same training examples:\n\n```\n{done.stdout}```"


# ------------------------------------------------------------------------------ the CSV file


def csv_lines(outcomes: list[Outcome], task: Task) -> Iterator[dict]:
    """The lines of the CSV file: one for each row and seed, accuracies from 0 to 1."""
    for outcome in outcomes:
        score, row = scores(outcome, task), outcome.row
        yield {
            "row": row.name,
            "group": row.groups,
            "teacher": row.teacher or "",
            "student": row.student or "",
            "seed": outcome.seed,
            "learning_rate": outcome.setting.rate,
            "setting": str(outcome.setting),
            "dev_accuracy": outcome.dev,
            "test_accuracy": score["all"],
            "test_domain_average": score["average"],
            **{f"test_{name}": score["domains"].get(name, "") for name in task.domains},
            "macro_f1": score["macro_f1"],
            "parameters": outcome.parameters,
            "seconds": outcome.seconds,
        }


def write_csv(path: Path, lines: Iterator[dict]) -> None:
    lines = list(lines)
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


# ------------------------------------------------------------------------------ all of it


def write_all(outcomes: list[Outcome], task: Task, folder: Path, facts: Facts) -> list[Path]:
    """Writes <task>.csv, <task>.md and the plots into `folder`; returns what it wrote."""
    make_folder(folder)
    lines = summaries(outcomes, task, facts.baselines)
    table, sheet = folder / f"{task.name}.md", folder / f"{task.name}.csv"
    write_csv(sheet, csv_lines(outcomes, task))
    words = bag_of_words(task, facts.data_dir, sum(facts.train.values()))
    with atomic_file(table, "w") as file:
        parts = [
            markdown_tables(lines, task),
            tried_table(facts.tried, facts.chosen),
            footer(outcomes, facts),
        ]
        file.write("\n".join([f"# {task.name}", "", *filter(None, parts), "", words, ""]))
    sizes = {outcome.row.portion: portion_size(facts.train, outcome.row.portion) for outcome in outcomes}
    return [sheet, table, *plots.draw_all(lines, task, folder, sizes, set(facts.baselines.values()))]
