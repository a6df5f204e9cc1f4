"""Charts as SVG, with matplotlib where it is installed.

The same numbers give the same bytes; the colour is that of the text around them.
"""

import io
import re

import numpy as np

NO_CHARTS = (
    "There are charts here where matplotlib is installed: "
    "pip install matplotlib, and run the same command again."
)
# Told apart by the colour-blind as well:
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
MARKERS = "o^sDvPX*"
INK = "#010203"  # stands for the colour of the text around
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#808080",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "savefig.transparent": True,
    "figure.constrained_layout.use": True,
}


def available() -> bool:
    """Whether there is matplotlib, which is optional: a report without it has its tables.

    It is imported when a report is written, since it takes 20 MB beside a model that trains.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def chart(title, draw, width=4.0, height=2.6):
    """A <figure> with what `draw` puts on the axes it is given; inches. Needs matplotlib: see `available`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height))
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return f"<figure>{_inline(file.getvalue())}</figure>"


def _inline(svg):
    """An SVG file as part of a page: without its head and its metadata, as wide as there is room."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return re.sub(r"<svg ", '<svg role="img" ', svg, count=1).replace(INK, "currentColor").strip()


def lines(title, curves, label="", scale=1, markers=False):
    """Curves over steps: {name: (steps, values)}; values are multiplied by `scale`.

    One curve needs no legend.
    """

    def draw(axes):
        for place, (name, (steps, values)) in enumerate(curves.items()):
            axes.plot(
                steps,
                [scale * value for value in values],
                color=COLOURS[place % len(COLOURS)],
                linewidth=1.4,
                markersize=3.5,
                marker=MARKERS[place % len(MARKERS)] if markers else None,
                label=shown(name),
            )
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        below(axes, len(curves))

    return chart(title, draw, height=2.6 + _legend_height(len(curves)))


def boxes(title, groups, label):
    """A lying box for the numbers of each group, {name: numbers}.

    It shows the quartiles, and a line from the 5th to the 95th percentile.
    """

    def draw(axes):
        places, ends = (
            range(len(groups)),
            np.array([np.quantile(numbers, (0.05, 0.25, 0.5, 0.75, 0.95)) for numbers in groups.values()]).T,
        )
        axes.hlines(places, ends[0], ends[4], color=INK, linewidth=1)
        axes.barh(places, ends[3] - ends[1], left=ends[1], height=0.55, color=COLOURS[0], zorder=2)
        axes.plot(ends[2], places, "|", color="white", markersize=9, markeredgewidth=1.6, zorder=3)
        axes.set_yticks(places, [shown(name) for name in groups])
        axes.invert_yaxis()
        axes.set_xlabel(label)

    return chart(title, draw, width=5.5, height=1 + 0.26 * len(groups))


def scatter(title, points, large, domain, label, domains, labels):
    """Points in a plane: colour for the domain, shape for the label; `large` ones, prototypes, have an edge.

    Args:
        points: [N, 2]; large: {(k, m): [2]}; domain, label: int [N].
    """

    def draw(axes):
        for k, m in sorted(set(zip(domain.tolist(), label.tolist())) | set(large)):
            colour, marker = COLOURS[k % len(COLOURS)], MARKERS[m % len(MARKERS)]
            chosen = points[(domain == k) & (label == m)]
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=14, color=colour, marker=marker, alpha=0.6, linewidths=0
            )
            if (k, m) in large:
                axes.scatter(
                    *large[k, m], s=110, color=colour, marker=marker, edgecolors=INK, linewidths=1.3, zorder=3
                )
        for k, name in enumerate(domains):
            axes.scatter([], [], s=40, color=COLOURS[k % len(COLOURS)], marker="s", label=shown(name))
        for m, name in enumerate(labels):
            axes.scatter([], [], s=40, color=INK, marker=MARKERS[m % len(MARKERS)], label=shown(name))
        below(axes, len(domains) + len(labels))

    return chart(title, draw, width=5, height=4.4 + _legend_height(len(domains) + len(labels)))


def shown(name):
    """A name as a legend has it: 30 characters at most, and no underscore first, which it would leave out."""
    name = name if len(name) <= 30 else f"{name[:29]}…"
    return f" {name}" if name.startswith("_") else name


def below(axes, count):
    """Names the curves below the axes, where there is more than one."""
    if count > 1:
        axes.figure.legend(loc="outside lower left", ncol=2)


def _legend_height(count):
    return 0.2 * ((count + 1) // 2) if count > 1 else 0
