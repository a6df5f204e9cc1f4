"""What scripts.reproduce makes of finished runs: statistics, a Markdown table, a CSV file; its plots are in plots.py.

S seeds, N test examples.
"""

import collections
import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from data.tasks import read_examples, split_path
from util import UserError, atomic_file, make_folder, read_json, sha256

ROOT = Path(__file__).resolve().parents[2]

DRAWS = 10_000  # of the bootstrap


class Outcome(NamedTuple):
    """What a row came to with one seed.

    row: a Row; dev: accuracy on dev over all its runs; test: {idxs: (domain, label, predicted)}; parameters: of one of its models;
    seconds: of all its runs; curve: {step: accuracy on dev over all its runs}.
    """

    row: tuple
    seed: int
    rate: float
    dev: float
    test: dict
    parameters: int
    seconds: float
    curve: dict


# --------------------------------------------------------------------------------------- reading


def read_predictions(folder):
    """The predictions of a run, {split: {idxs: (domain, label, predicted)}}.

    Raises:
        UserError: the file is missing, is not the one that the run has written, is cut short, or has no predictions on dev.
    """
    path, splits = Path(folder, "predictions.tsv"), {"dev": {}, "test": {}}
    remedy = "remove the folder of that run, and run this again"
    written = read_json(Path(folder, "results.json"), "the results of a run").get("predictions_sha256")
    if not path.is_file():
        raise UserError(f"{path}: missing, expected the predictions of a run: {remedy}.")
    if written not in (None, sha256(path)):  # None: a run of an earlier version
        raise UserError(f"{path}: its content is not what its run has written: {remedy}.")
    for number, line in enumerate(path.read_bytes().splitlines()[1:], 2):  # after the header
        try:
            split, idxs, domain, label, predicted = line.decode("utf-8").split("\t")[:5]
            splits[split][int(idxs)] = (domain, label, predicted)
        except (ValueError, KeyError):
            raise UserError(f"{path}:{number}: found a line that is cut or changed: {remedy}.") from None
    if not splits["dev"]:
        raise UserError(f"{path}: holds no predictions on dev, by which a learning rate is chosen: {remedy}.")
    return splits


def dev_accuracy(folders):
    """Share of right answers on dev over all runs in `folders`."""
    right = [
        label == predicted
        for folder in folders
        for _, label, predicted in read_predictions(folder)["dev"].values()
    ]
    return sum(right) / len(right)


def read_outcome(row, seed, rate, runs):
    """The Outcome of a row whose runs are [(folder, the domain that it is tested on, None: all)]."""
    test = {}
    for folder, domain in runs:
        test.update(
            (idxs, line)
            for idxs, line in read_predictions(folder)["test"].items()
            if domain in (None, line[0])
        )
    folders = [folder for folder, _ in runs]
    records = [read_json(folder.parent / f"{folder.name}.json", "the record of a run") for folder in folders]
    parameters = read_json(folders[0] / "results.json", "the results of a run")["parameters"]
    return Outcome(
        row,
        seed,
        rate,
        dev_accuracy(folders),
        dict(sorted(test.items())),
        parameters,
        sum(record["seconds"] for record in records),
        mean_curve([read_curve(folder) for folder in folders]),
    )


def read_curve(folder):
    """{step: (accuracy on dev, dev examples)} of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {
        line["step"]: (line["dev"]["accuracy"], line["dev"]["examples"]) for line in lines if "dev" in line
    }


def mean_curve(curves):
    """{step: accuracy over the dev examples of all runs}, at the steps that all of them have."""
    steps = sorted(set.intersection(*map(set, curves)))
    return {
        step: float(
            np.average([curve[step][0] for curve in curves], weights=[curve[step][1] for curve in curves])
        )
        for step in steps
    }


def training_examples(task, data_dir, limit):
    """How many training examples each domain and label has, among the first `limit` or all, as a Counter."""
    examples = itertools.islice(read_examples(task, split_path(data_dir, "train")), limit)
    return collections.Counter((example.domain, example.label) for example in examples)


def portion_size(cells, portion):
    """How many training examples --data_portion keeps of the Counter `cells` (data.selection.select)."""
    return sum(max(1, round(count * portion)) for count in cells.values())


# --------------------------------------------------------------------------------------- statistics


def scores(outcome, task):
    """Accuracy over all test examples, {domain: accuracy}, their mean, and macro-F1, each from 0 to 1."""
    domain, label, predicted = (np.array(column) for column in zip(*outcome.test.values()))
    right = label == predicted
    domains = {name: float(right[domain == name].mean()) for name in task.domains if (domain == name).any()}
    f1 = [
        2 * (right & (label == m)).sum() / max(1, (label == m).sum() + (predicted == m).sum())
        for m in task.labels
        if m in label or m in predicted
    ]
    return {
        "all": float(right.mean()),
        "domains": domains,
        "average": float(np.mean(list(domains.values()))),
        "macro_f1": float(np.mean(f1)),
    }


def interval(accuracies, examples):
    """The 95% interval of a mean accuracy: Student's t over S seeds, or Wilson's over `examples` where there is one seed."""
    if len(accuracies) == 1:
        return wilson(accuracies[0], examples)
    mean, error = np.mean(accuracies), np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    half = stats.t.ppf(0.975, len(accuracies) - 1) * error
    return float(max(mean - half, 0)), float(min(mean + half, 1))


def wilson(share, n):
    """Wilson's 95% interval of a share seen in n examples."""
    z = stats.norm.ppf(0.975)
    middle, half = (
        (share + z**2 / (2 * n)) / (1 + z**2 / n),
        z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n),
    )
    return float(middle - half), float(middle + half)


def correctness(outcomes, idxs):
    """1 where the answer to a test example is right, [S, N]. Args: outcomes of one row; idxs: N of its test examples."""
    return np.array([[outcome.test[i][1] == outcome.test[i][2] for i in idxs] for outcome in outcomes], float)


def paired_difference(ours, theirs, same_seeds=False, draws=DRAWS):
    """Mean difference of correctness, and its 95% interval: the percentile bootstrap over examples and seeds.

    Args:
        ours, theirs: [S, N] and [S', N], over the same examples.
        same_seeds: whether the rows of both are those of the same seeds, which share order, portion and teacher: they are drawn together.
    Returns:
        the difference, and the two ends of the interval.
    """
    stream, means = np.random.default_rng(0), []
    N = ours.shape[1]
    for _ in range(draws):
        seeds = stream.integers(len(ours), size=len(ours))
        others = seeds if same_seeds else stream.integers(len(theirs), size=len(theirs))
        examples = np.bincount(stream.integers(N, size=N), minlength=N)  # how often each was drawn
        means.append((ours[seeds].mean(axis=0) - theirs[others].mean(axis=0)) @ examples / N)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def difference(outcomes, baseline):
    """`paired_difference` of a row to its baseline over the test examples that both have; None where there is no baseline."""
    if not baseline or outcomes[0].row == baseline[0].row:
        return None
    idxs = sorted(set.intersection(*(set(outcome.test) for outcome in (*outcomes, *baseline))))
    same_seeds = [outcome.seed for outcome in outcomes] == [outcome.seed for outcome in baseline]
    return (
        paired_difference(correctness(outcomes, idxs), correctness(baseline, idxs), same_seeds)
        if idxs
        else None
    )


# --------------------------------------------------------------------------------------- lines of the table


def summary(outcomes, baseline, task):
    """What the table says of a row. Args: outcomes of the row and of its baseline, one a seed."""
    each = [scores(outcome, task) for outcome in outcomes]
    everything = [score["all"] for score in each]
    domains = {
        name: float(np.mean([score["domains"][name] for score in each])) for name in each[0]["domains"]
    }
    return {
        "row": outcomes[0].row,
        "domains": domains,
        "average": float(np.mean([score["average"] for score in each])),
        "all": float(np.mean(everything)),
        "sd": float(np.std(everything, ddof=1)) if len(everything) > 1 else None,
        "interval": interval(everything, len(outcomes[0].test)),
        "difference": difference(outcomes, baseline),
        "dev": float(np.mean([outcome.dev for outcome in outcomes])),
        "rate": outcomes[0].rate,
        "seeds": len(outcomes),
        "curve": mean_curve(
            [{step: (value, 1) for step, value in outcome.curve.items()} for outcome in outcomes]
        ),
    }


def percent(value):
    return "–" if value is None else f"{100 * value:.1f}"


def cells(line, task):
    """The cells of a table line, as text."""
    low, high = line["interval"]
    points = (
        "–"
        if line["difference"] is None
        else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in line["difference"]))
    )
    return [
        line["row"].name,
        *(percent(line["domains"].get(name)) for name in task.domains),
        percent(line["average"]),
        percent(line["all"]),
        percent(line["sd"]),
        f"{percent(low)} to {percent(high)}",
        points,
        percent(line["dev"]),
        f"{line['rate']:g}",
        str(line["seeds"]),
    ]


def tables(lines, task):
    """The Markdown tables, one for each group but those whose rows all stand in another table."""
    heads = [
        "row",
        *task.domains,
        "average",
        "all",
        "sd",
        "95% interval",
        "difference",
        "dev",
        "rate",
        "seeds",
    ]
    groups, text = {}, []
    for line in lines:
        for group in line["row"].groups.split():
            groups.setdefault(group, []).append(line["row"].name)
    each = {line["row"].name: cells(line, task) for line in lines}
    for group, names in groups.items():
        earlier = list(groups).index(group)
        if any(
            set(names) < set(others) or names == others and place < earlier
            for place, others in enumerate(groups.values())
        ):
            continue
        rows = [each[name] for name in names]
        text += [
            f"## {group}",
            "",
            *("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)),
            "",
        ]
    return "\n".join(text)


CAPTION = """Accuracy on test in percent, means over the seeds; `average` is the mean of the domains, `all` is over all examples, and `sd` and
the 95% interval are of that (Student's t over the seeds; where a row has one seed, Wilson's over the test examples). `difference`: points above
{baseline} (of the same portion; teachers: above mixed), over the same examples, with the 95% interval of a bootstrap of {draws:,} draws over
examples and seeds (of one seed: over examples alone, which is too narrow). Few-shot rows are students of a portion, whose teacher and prototypes
know all training examples. Learning rate and snapshot were chosen on dev, so the column `dev` is higher than it would be on new examples; test chose
nothing."""


def footer(outcomes, facts):
    """What stands under the tables."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(facts["base"].glob("*.json"))]
    counts = sorted({len(outcome.test) for outcome in outcomes})
    rates = {
        kind: ", ".join(f"{rate:g}" for rate in facts[f"{kind} candidates"])
        for kind in ("teacher", "student")
    }
    lines = [
        CAPTION.format(baseline=facts["baseline"], draws=DRAWS).replace("\n", " "),
        "",
        f"- {' or '.join(map(str, counts))} test examples, {sum(facts['train'].values())} training examples; seeds "
        f"{', '.join(map(str, sorted({outcome.seed for outcome in outcomes})))}",
        f"- learning rates to choose from: {rates['teacher']} for teachers, {rates['student']} for students",
        f"- {sum(record['seconds'] for record in records) / 60:.0f} machine minutes in all, of commit "
        f"{', '.join(sorted({str(record['commit'])[:12] for record in records}))}",
        f"- made by `{facts['command']}`",
    ]
    if facts["missing"]:
        lines.append(f"- not finished: {', '.join(facts['missing'])}")
    return "\n".join(lines)


def bag_of_words(task, data_dir, examples):
    """What bag_of_words.py prints over the first `examples` training examples, as a Markdown block; a sentence where it cannot run."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "scripts.reproduce.bag_of_words",
            "--task_name",
            task.name,
            "--data_dir",
            data_dir,
            "--train_example_num",
            str(examples),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return (
        f"TF-IDF and logistic regression over the same training examples:\n\n```\n{done.stdout}```"
        if done.returncode == 0
        else "TF-IDF and logistic regression: bag_of_words.py did not run here."
    )


# --------------------------------------------------------------------------------------- writing


def csv_lines(outcomes, task):
    """The lines of the CSV file, as dicts: one for each row and seed, accuracies from 0 to 1."""
    for outcome in outcomes:
        score, row = scores(outcome, task), outcome.row
        yield {
            "row": row.name,
            "group": row.groups,
            "teacher": row.teacher or "",
            "student": row.student or "",
            "seed": outcome.seed,
            "learning_rate": outcome.rate,
            "dev_accuracy": outcome.dev,
            "test_accuracy": score["all"],
            "test_domain_average": score["average"],
            **{f"test_{name}": score["domains"].get(name, "") for name in task.domains},
            "macro_f1": score["macro_f1"],
            "parameters": outcome.parameters,
            "seconds": outcome.seconds,
        }


def write_csv(path, lines):
    lines = list(lines)
    with atomic_file(path, "w") as file:
        writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def summaries(outcomes, task, baselines):
    """The `summary` of every row, in order. Args: baselines: {row: the row that it is compared with}."""
    rows = {}
    for outcome in outcomes:
        rows.setdefault(outcome.row.name, []).append(outcome)
    return [summary(mine, rows.get(baselines[name]), task) for name, mine in rows.items()]


def write_all(outcomes, task, folder, facts):
    """Writes <task>.csv, <task>.md and, with matplotlib, the plots into `folder`; returns what it wrote.

    Args:
        facts: base, the folder of the runs; baselines, {row: row}; train, the Counter of training examples; data_dir; and for the text under
            the tables baseline, command, missing, and the candidates.
    """
    make_folder(folder)
    lines = summaries(outcomes, task, facts["baselines"])
    table, sheet = folder / f"{task.name}.md", folder / f"{task.name}.csv"
    write_csv(sheet, csv_lines(outcomes, task))
    with atomic_file(table, "w") as file:
        words = bag_of_words(task, facts["data_dir"], sum(facts["train"].values()))
        file.write(f"# {task.name}\n\n{tables(lines, task)}\n{footer(outcomes, facts)}\n\n{words}\n")
    try:
        from scripts.reproduce import plots
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return [sheet, table]
    sizes = {outcome.row.portion: portion_size(facts["train"], outcome.row.portion) for outcome in outcomes}
    return [sheet, table, *plots.draw_all(lines, task, folder, sizes, set(facts["baselines"].values()))]
