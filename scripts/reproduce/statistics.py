"""Means over seeds, their intervals, and paired differences between rows.

S seeds, N test examples.
"""

from typing import NamedTuple, Optional

import numpy as np
from scipy import stats

from data.tasks import Task
from modeling.metrics import classification_metrics
from scripts.reproduce.grid import Setting
from scripts.reproduce.outcomes import Outcome, mean_curve
from scripts.reproduce.rows import Row

DRAWS = 10_000  # of the bootstrap


class Summary(NamedTuple):
    """What the table says of a row. Accuracies are on test, from 0 to 1, means over the seeds."""

    row: Row
    domains: dict  # {domain: accuracy}
    average: float  # of the domains
    all: float  # over all examples
    sd: Optional[float]  # of `all` over the seeds; None: there is one seed
    interval: tuple[float, float]  # of `all`, 95%
    difference: Optional[tuple[float, float, float]]  # to the baseline, with its 95% interval
    dev: float  # accuracy on dev
    setting: Setting  # learning rate and what else was chosen
    seeds: int
    curve: dict  # {step: accuracy on dev}


def scores(outcome: Outcome, task: Task) -> dict:
    """Accuracy over all test examples, {domain: accuracy}, their mean, and macro-F1, each from 0 to 1."""
    names = (task.domains, task.labels, task.labels)
    domain, label, predicted = (
        np.array([kind.index(value) for value in column])
        for kind, column in zip(names, zip(*outcome.test.values()))
    )
    found = classification_metrics(predicted, label, domain, task)
    return {
        "all": found["accuracy"],
        "domains": found["domains"],
        "average": found["domain_average"],
        "macro_f1": found["macro_f1"],
    }


# ------------------------------------------------------------------------------ intervals


def interval(accuracies: list[float], examples: int) -> tuple[float, float]:
    """The 95% interval of a mean accuracy.

    Student's t over S seeds, or Wilson's over the `examples` where there is one seed.
    """
    if len(accuracies) == 1:
        return wilson(accuracies[0], examples)
    mean, error = np.mean(accuracies), np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    half = stats.t.ppf(0.975, len(accuracies) - 1) * error
    return float(max(mean - half, 0)), float(min(mean + half, 1))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share seen in n examples.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    """
    z = stats.norm.ppf(0.975)
    scale = 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / scale
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / scale
    return float(middle - half), float(middle + half)


# ------------------------------------------------------------------------------ paired differences


def correctness(outcomes: list[Outcome], idxs: list[int]) -> np.ndarray:
    """1 where the answer to a test example is right, [S, N].

    Args:
        outcomes: of one row, one a seed.
        idxs: N of its test examples.
    """
    answers = [[outcome.test[i] for i in idxs] for outcome in outcomes]
    return np.array([[label == predicted for _, label, predicted in row] for row in answers], float)


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, same_seeds: bool = False, draws: int = DRAWS
) -> tuple[float, float, float]:
    """Mean difference of correctness, and its 95% interval: the percentile bootstrap over examples and seeds.

    Args:
        ours, theirs: [S, N] and [S', N], over the same examples.
        same_seeds: whether the rows of both are those of the same seeds. They share order, portion and
            teacher, and are drawn together.
    Returns:
        the difference, and the two ends of the interval.
    """
    stream, means = np.random.default_rng(0), []
    N = ours.shape[1]
    for _ in range(draws):
        seeds = stream.integers(len(ours), size=len(ours))
        others = seeds if same_seeds else stream.integers(len(theirs), size=len(theirs))
        examples = np.bincount(stream.integers(N, size=N), minlength=N)  # [N] how often each was drawn
        means.append((ours[seeds].mean(axis=0) - theirs[others].mean(axis=0)) @ examples / N)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def difference(
    outcomes: list[Outcome], baseline: Optional[list[Outcome]]
) -> Optional[tuple[float, float, float]]:
    """`paired_difference` of a row to its baseline over the test examples that both have.

    None where there is no baseline, or no such example.
    """
    if not baseline or outcomes[0].row == baseline[0].row:
        return None
    idxs = sorted(set.intersection(*(set(outcome.test) for outcome in (*outcomes, *baseline))))
    if not idxs:
        return None
    same_seeds = [outcome.seed for outcome in outcomes] == [outcome.seed for outcome in baseline]
    return paired_difference(correctness(outcomes, idxs), correctness(baseline, idxs), same_seeds)


# ------------------------------------------------------------------------------ rows


def summarise(outcomes: list[Outcome], baseline: Optional[list[Outcome]], task: Task) -> Summary:
    """The Summary of a row. Args: outcomes of the row and of its baseline, one a seed."""
    each = [scores(outcome, task) for outcome in outcomes]
    everything = [score["all"] for score in each]
    curves = [{step: (value, 1) for step, value in outcome.curve.items()} for outcome in outcomes]
    return Summary(
        row=outcomes[0].row,
        domains={
            name: float(np.mean([score["domains"][name] for score in each])) for name in each[0]["domains"]
        },
        average=float(np.mean([score["average"] for score in each])),
        all=float(np.mean(everything)),
        sd=float(np.std(everything, ddof=1)) if len(everything) > 1 else None,
        interval=interval(everything, len(outcomes[0].test)),
        difference=difference(outcomes, baseline),
        dev=float(np.mean([outcome.dev for outcome in outcomes])),
        setting=outcomes[0].setting,
        seeds=len(outcomes),
        curve=mean_curve(curves),
    )


def summaries(outcomes: list[Outcome], task: Task, baselines: dict[str, Optional[str]]) -> list[Summary]:
    """The Summary of every row, in order. baselines: {row: the row that it is compared with}."""
    rows = {}
    for outcome in outcomes:
        rows.setdefault(outcome.row.name, []).append(outcome)
    return [summarise(mine, rows.get(baselines[name]), task) for name, mine in rows.items()]
