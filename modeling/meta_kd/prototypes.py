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


def prototype_score(vector, domain, label, directions, alpha=0.5):
    """t(x) = alpha * cos(p(k,y), f(x)) + (1 - alpha) * mean over k' of cos(p(k',y), f(x)).

    k' are the other domains that have class y.

    A term without a prototype (one domain only, a class that no other domain has, a domain held out of
    training) leaves the whole weight to the other term; with neither the score is 0.

    Args:
        vector: f(x), [H]; domain, label: k and y; directions: prototypes of length 1, [K, M, H], NaN where
            there is none.
    Returns:
        float in -1..1.
    """
    cosines = directions[:, label] @ (vector / np.linalg.norm(vector))  # [K]
    own, others = cosines[domain], np.delete(cosines, domain)
    others = others[~np.isnan(others)]
    if np.isnan(own):
        return float(others.mean()) if len(others) else 0.0
    return float(alpha * own + (1 - alpha) * others.mean()) if len(others) else float(own)


def directions(prototypes):
    """Prototypes scaled to length 1. [K, M, H] -> [K, M, H]."""
    return prototypes / np.linalg.norm(prototypes, axis=-1, keepdims=True)
