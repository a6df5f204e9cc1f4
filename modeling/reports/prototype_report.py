"""The report.html of stage 1: how the scores spread, and where examples and prototypes lie."""

import numpy as np
from sklearn.decomposition import PCA

from modeling.reports import charts
from modeling.reports.html import note, page, table

SAMPLE = 400  # examples on the map at most
NAMES = 30  # domains and classes on the map at most
MANY = 100  # domains with a class in the table and the chart at most


def sample_of(rows, vectors):
    """At most SAMPLE training examples of `rows`, evenly spaced, and their vectors: int [S], float32 [S, H].

    vectors: an iterable of f(x) of all training examples, and more.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)]
    kept = set(chosen.tolist())
    return chosen, np.stack([vector for i, vector in zip(range(chosen[-1] + 1), vectors) if i in kept])


def scores_page(task, domain, label, scores, alpha, rows, vectors, axes):
    """The page of stage 1.

    Args:
        domain, label, scores: [N] of all training examples; alpha: weight of the own domain in the score.
        rows: the examples that the prototypes are made of, rising; vectors: an iterable of f(x) of all
            training examples, and more.
        axes: prototypes of length 1, [K, M, H], NaN where there is none.
    """
    scores, (sample, shown) = np.asarray(scores), sample_of(rows, vectors)
    summary = (
        f"{len(scores)} training examples have a mean score of {scores.mean():.4f}, "
        f"from {scores.min():.4f} to {scores.max():.4f}; alpha is {alpha:g}."
    )
    sections = [
        ("Scores of the training examples", score_section(task, domain, label, scores)),
        ("Map of examples and prototypes", prototype_map(task, domain[sample], label[sample], shown, axes)),
    ]
    return page(f"Prototype scores of the task {task.name}", summary, sections)


def score_section(task, domain, label, scores):
    """The scores of each class in each domain, of many the largest alone: a chart and a table."""
    cells = {
        f"{task.domains[k]}, {task.labels[m]}": scores[(domain == k) & (label == m)]
        for k in range(len(task.domains))
        for m in range(len(task.labels))
    }
    cells = {name: found for name, found in cells.items() if len(found)}
    section = [
        note(
            "The score is the cosine of a text's vector to the prototype of its class, "
            "in its own domain and in the others: 1 is typical."
        )
    ]
    if len(cells) > MANY:
        section.append(note(f"The {MANY} with the most examples, of {len(cells)}."))
        largest = sorted(cells, key=lambda name: -len(cells[name]))[:MANY]
        cells = {name: found for name, found in cells.items() if name in largest}
    if charts.available():
        section.append(charts.boxes("prototype score", cells, "score: quartiles, 5th and 95th percentile"))
    return [*section, score_table(cells)]


def score_table(cells):
    """Count, mean, spread and quartiles of the scores of each domain and class."""
    quartiles = {name: np.quantile(found, (0, 0.25, 0.5, 0.75, 1)) for name, found in cells.items()}
    rows = [
        (name, len(found), *(f"{value:.4f}" for value in (found.mean(), found.std(), *quartiles[name])))
        for name, found in cells.items()
    ]
    return table(
        (
            "domain, class",
            "examples",
            "mean",
            "deviation",
            "least",
            "lower quartile",
            "median",
            "upper quartile",
            "greatest",
        ),
        rows,
    )


def prototype_map(task, domain, label, vectors, axes):
    """The two directions in which the examples differ most, by PCA of the vectors at length 1.

    Prototypes are laid into the same plane.
    """
    if not charts.available():
        return [note(charts.NO_CHARTS)]
    if len(task.domains) + len(task.labels) > NAMES:
        return [note("No map: there are more domains and classes than colours and shapes tell apart.")]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if len(vectors) < 3:
        return [note("Fewer than three examples make no map.")]
    plane = PCA(2, svd_solver="full").fit(vectors.astype(np.float64))
    large = {
        (k, m): plane.transform(axes[k, m][None])[0]
        for k, m in np.ndindex(axes.shape[:2])
        if not np.isnan(axes[k, m]).any()
    }
    share = 100 * plane.explained_variance_ratio_.sum()
    return [
        charts.scatter(
            "examples (small) and prototypes (large)",
            plane.transform(vectors),
            large,
            domain,
            label,
            task.domains,
            task.labels,
        ),
        note(
            f"{len(vectors)} examples; the plane shows {share:.0f}% of their variance. Colour: domain; "
            "shape: class."
        ),
    ]
