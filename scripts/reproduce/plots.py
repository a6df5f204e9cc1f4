"""The plots of scripts.reproduce, from the lines of its table (`results.summaries`)."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEACHER, STUDENT = "#b35806", "#2166ac"  # colours


def draw_all(lines, task, folder, sizes, baselines):
    """Draws what there is to draw; returns the files. Args: sizes: {portion: training examples in it}; baselines: names of rows."""
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


def accuracy_by_row(lines, baselines):
    """A dot with its interval for each row, in the order of the table; a dotted line at each baseline over all examples."""
    figure, axes = plt.subplots(figsize=(7, 1 + 0.28 * len(lines)))
    for place, line in enumerate(lines):
        colour, (low, high) = (
            STUDENT if line["row"].student else TEACHER,
            (100 * end for end in line["interval"]),
        )
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot(100 * line["all"], place, "o", color=colour, markersize=5)
        if line["row"].name in baselines and line["row"].portion == 1:
            axes.axvline(100 * line["all"], color=colour, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(lines)), [line["row"].name for line in lines])
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


def learning_curves(lines):
    """Accuracy on dev over the steps, teachers and students apart, the means over seeds; rows over all examples alone."""
    full = [line for line in lines if line["row"].portion == 1 and line["curve"]]
    panels = [
        panel
        for panel in (
            [line for line in full if not line["row"].student],
            [line for line in full if line["row"].student],
        )
        if panel
    ]
    if not panels:
        return None
    figure, grid = plt.subplots(len(panels), 1, figsize=(7, 4 * len(panels)), squeeze=False)
    for axes, panel in zip(grid[:, 0], panels):
        for place, line in enumerate(panel):
            steps, values = zip(*line["curve"].items())
            axes.plot(
                steps,
                [100 * value for value in values],
                marker="os^Dvx"[place % 6],
                markersize=4,
                linewidth=1.2,
                color=plt.get_cmap("tab10")(place % 10),
                linestyle="-" if place < 10 else "--",
                label=line["row"].name,
            )
        axes.set_title("students" if panel[0]["row"].student else "teachers")
        axes.set_xlabel("step")
        axes.set_ylabel("accuracy on dev, percent")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
        tidy(axes)
    figure.tight_layout()
    return figure


def few_shot(lines, sizes):
    """Accuracy on test over the number of training examples, of the rows that were trained on portions of them; None: there are none.

    Args:
        sizes: {portion: training examples in it}.
    """
    curves = {}
    for line in lines:
        if "few-shot" in line["row"].groups.split():
            curves.setdefault(line["row"].name.removesuffix(f"-{line['row'].portion}"), []).append(line)
    if not any(line["row"].portion < 1 for curve in curves.values() for line in curve):
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for place, (name, curve) in enumerate(curves.items()):
        curve.sort(key=lambda line: line["row"].portion)
        x = [
            sizes[line["row"].portion] * (1 + 0.04 * place) for line in curve
        ]  # side by side, so that intervals stay apart
        errors = [[100 * abs(line["all"] - line["interval"][end]) for line in curve] for end in (0, 1)]
        axes.errorbar(
            x,
            [100 * line["all"] for line in curve],
            yerr=errors,
            marker="os^"[place % 3],
            capsize=3,
            label=name,
        )
    ticks = sorted({sizes[line["row"].portion] for curve in curves.values() for line in curve})
    axes.set_xscale("log")
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel("accuracy on test, percent, with 95% interval")
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def tidy(axes):
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
