"""The plots of scripts.reproduce, from the summaries of its rows."""

from pathlib import Path
from typing import Optional

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from data.tasks import Task
from scripts.reproduce.statistics import Summary

TEACHER, STUDENT = "#b35806", "#2166ac"  # colours


def draw_all(
    lines: list[Summary], task: Task, folder: Path, sizes: dict[float, int], baselines: set
) -> list[Path]:
    """Draws what there is to draw; returns the files.

    Args:
        sizes: {portion: training examples in it}.
        baselines: names of the rows that others are compared with.
    """
    figures = {
        "rows": accuracy_by_row(lines, baselines),
        "curves": learning_curves(lines),
        "few-shot": few_shot(lines, sizes),
    }
    paths = []
    for name, figure in figures.items():
        if figure:
            paths.append(folder / f"{task.name}-{name}.png")
            figure.savefig(paths[-1], dpi=150, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
    return paths


def accuracy_by_row(lines: list[Summary], baselines: set) -> Figure:
    """A dot with its interval for each row, in the order of the table; a dotted line at each baseline."""
    figure, axes = plt.subplots(figsize=(7, 1 + 0.28 * len(lines)))
    for place, line in enumerate(lines):
        colour = STUDENT if line.row.student else TEACHER
        low, high = (100 * end for end in line.interval)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot(100 * line.all, place, "o", color=colour, markersize=5)
        if line.row.name in baselines and line.row.portion == 1:
            axes.axvline(100 * line.all, color=colour, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(lines)), [line.row.name for line in lines])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on test, percent, with 95% interval")
    handles = [
        plt.Line2D([], [], color=colour, marker="o", label=label)
        for colour, label in ((TEACHER, "teachers"), (STUDENT, "students"))
    ]
    handles.append(plt.Line2D([], [], color="grey", linestyle=":", label="what they are compared with"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    tidy(axes)
    return figure


def learning_curves(lines: list[Summary]) -> Optional[Figure]:
    """Accuracy on dev over the steps, teachers and students apart, of the rows over all examples."""
    full = [line for line in lines if line.row.portion == 1 and line.curve]
    teachers = [line for line in full if not line.row.student]
    students = [line for line in full if line.row.student]
    panels = [(title, panel) for title, panel in (("teachers", teachers), ("students", students)) if panel]
    if not panels:
        return None
    figure, grid = plt.subplots(len(panels), 1, figsize=(7, 4 * len(panels)), squeeze=False)
    for axes, (title, panel) in zip(grid[:, 0], panels):
        for place, line in enumerate(panel):
            draw_curve(axes, place, line)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel("accuracy on dev, percent")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        tidy(axes)
    figure.tight_layout()
    return figure


def draw_curve(axes, place: int, line: Summary) -> None:
    """The learning curve of a row, which is the one at that place of its panel."""
    steps, values = zip(*line.curve.items())
    axes.plot(
        steps,
        [100 * value for value in values],
        marker="os^Dvx"[place % 6],
        markersize=4,
        linewidth=1.2,
        color=plt.get_cmap("tab10")(place % 10),
        linestyle="-" if place < 10 else "--",
        label=line.row.name,
    )


def few_shot(lines: list[Summary], sizes: dict[float, int]) -> Optional[Figure]:
    """Accuracy on test over the number of training examples; None where no row was trained on a portion."""
    curves = {}
    for line in lines:
        if "few-shot" in line.row.groups.split():
            curves.setdefault(line.row.name.removesuffix(f"-{line.row.portion}"), []).append(line)
    portions = {line.row.portion for curve in curves.values() for line in curve}
    if not any(portion < 1 for portion in portions):
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for place, (name, curve) in enumerate(curves.items()):
        curve.sort(key=lambda line: line.row.portion)
        # side by side, so that intervals stay apart
        x = [sizes[line.row.portion] * (1 + 0.04 * place) for line in curve]
        y = [100 * line.all for line in curve]
        # abs: an end of Wilson's interval may be 1 + 2e-16
        errors = [[100 * abs(line.all - line.interval[end]) for line in curve] for end in (0, 1)]
        axes.errorbar(x, y, yerr=errors, marker="os^"[place % 3], capsize=3, label=name)
    ticks = sorted(sizes[portion] for portion in portions)
    axes.set_xscale("log")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel("accuracy on test, percent, with 95% interval")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def tidy(axes) -> None:
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
