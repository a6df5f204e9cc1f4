"""Medians with their spread, ratios as medians of the rounds' pairs, and Markdown tables of both."""

import statistics
from typing import NamedTuple, Optional


class Key(NamedTuple):
    """Which measurement: of a group, of what, on whose side, on how many threads."""

    group: str
    what: str
    side: str
    workers: int


class Ratio(NamedTuple):
    """One figure over that of another measurement of the same round, or as it is where `under` is None.

    `target` is what it should be: "at most 1.05", "at least 1.8", or "".
    """

    words: str
    over: Key
    under: Optional[Key]
    figure: str = "seconds"
    target: str = ""


class Spread(NamedTuple):
    """The middle of several values, the least and the greatest."""

    median: float
    least: float
    greatest: float


def median_and_range(values):
    """The Spread of one or more numbers."""
    return Spread(statistics.median(values), min(values), max(values))


def spread_of_ratio(ratio, figures):
    """The Spread of a Ratio over the rounds; None where one of its measurements is not there.

    Args:
        figures: {Key: [{figure: number} of each round]}.
    """
    over, under = ([run[ratio.figure] for run in figures.get(key, ())] for key in (ratio.over, ratio.under))
    if ratio.under is None:
        under = [1] * len(over)
    return median_and_range([a / b for a, b in zip(over, under)]) if over and under else None


def met(value, target):
    """Whether a number is what a target such as "at most 1.05" or "at least 1.8" asks for."""
    *_, kind, limit = target.split()
    return value <= float(limit) if kind == "most" else value >= float(limit)


def measurements_table(keys, figures, unit):
    """Lines of Markdown: seconds, `unit` per second at the median, and peak memory of each measurement."""
    lines = [
        f"| what | side | threads | seconds, median | min to max | {unit} a second | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for key in keys:
        runs = figures.get(key)
        if not runs:
            lines.append(f"| {key.what} | {key.side} | {key.workers} | failed | | | |")
            continue
        seconds = median_and_range([run["seconds"] for run in runs])
        megabytes = statistics.median(run["megabytes"] for run in runs)
        lines.append(
            f"| {key.what} | {key.side} | {key.workers} | {digits(seconds.median)} | {_range(seconds)} "
            f"| {digits(runs[0]['units'] / seconds.median)} | {megabytes:,.0f} |"
        )
    return lines


def ratios_table(ratios, figures):
    """Lines of Markdown: each Ratio with its spread, its target, and whether the median meets it."""
    lines = ["| ratio | median | min to max | target | reached |", "|---|---|---|---|---|"]
    for ratio in ratios:
        value = spread_of_ratio(ratio, figures)
        if value is None:
            lines.append(f"| {ratio.words} | failed | | {ratio.target} | |")
            continue
        reached = ("yes" if met(value.median, ratio.target) else "no") if ratio.target else ""
        lines.append(
            f"| {ratio.words} | {digits(value.median)} | {_range(value)} | {ratio.target} | {reached} |"
        )
    return lines


def digits(value):
    """A number with the three digits that count, or more where it has more before the point."""
    return f"{value:#.3g}" if value < 99.95 else f"{value:,.0f}"


def _range(values):
    return f"{digits(values.least)} to {digits(values.greatest)}"
