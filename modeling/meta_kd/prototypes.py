"""Prototype scores: how typical an example is of its class, in its own domain and in the others.

Meta-KD (arXiv 2012.01266) takes them from Wang et al., "Meta Fine-Tuning Neural Language Models for
Multi-Domain Text Mining" (EMNLP 2020), which has one prototype per domain and class. N examples, K domains, M
classes, H width.
"""

import numpy as np


def prototypes(embeddings, K, M):
    """p(k, m) = mean of f(x) over the examples of domain k with class m.

    Args:
        embeddings: an iterable of (f(x) float [H], domain, label) over the training examples.
    Returns:
        float64 [K, M, H]; a cell without examples is all NaN.
    """
    totals, counts = None, np.zeros((K, M, 1))
    for vector, domain, label in embeddings:
        if totals is None:
            totals = np.zeros((K, M, len(vector)))
        totals[domain, label] += vector
        counts[domain, label] += 1
    with np.errstate(invalid="ignore"):
        return totals / counts


def prototype_scores(vectors, domain, label, directions, alpha=0.5):
    """t(x) = alpha * cos(p(k,y), f(x)) + (1 - alpha) * mean of cos(p(k',y), f(x)) over the other domains k'
    that have class y.

    A term without a prototype (one domain only, a class that no other domain has, a domain held out of
    training) leaves the whole weight to the other term; with neither the score is 0.

    Args:
        vectors: f(x), [N, H]; domain, label: k and y, int [N].
        directions: prototypes of length 1, [K, M, H], NaN where there is none.
    Returns:
        float64 [N] in -1..1.
    """
    scores = np.empty(len(vectors))
    for k, m in set(zip(domain.tolist(), label.tolist())):
        rows = np.flatnonzero((domain == k) & (label == m))
        scores[rows] = _scores_of_cell(vectors[rows], k, directions[:, m], alpha)
    return scores


def _scores_of_cell(vectors, domain, directions, alpha):
    """t(x) of examples of one domain and class: f(x) [N, H], directions of the class [K, H]."""
    columns = vectors[:, :, None]  # [N, H, 1]
    norms = np.sqrt(vectors[:, None] @ columns)  # [N, 1, 1]
    cosines = (directions @ (columns / norms))[..., 0]  # [N, K]
    there = ~np.isnan(directions[:, 0])  # [K]
    own, others = cosines[:, domain], there & (np.arange(len(there)) != domain)
    if not others.any():
        return own if there[domain] else np.zeros(len(vectors))
    # rows that stand together in memory are summed as one alone would be, whatever N is
    mean = np.ascontiguousarray(cosines[:, others]).mean(axis=1)
    return alpha * own + (1 - alpha) * mean if there[domain] else mean


def directions(prototypes):
    """Prototypes scaled to length 1. [K, M, H] -> [K, M, H]."""
    return prototypes / np.linalg.norm(prototypes, axis=-1, keepdims=True)
