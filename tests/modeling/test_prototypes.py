"""Prototype scores: one prototype per domain and class, of the training examples alone.

Rules say what is done where one is missing.
"""

import numpy as np
import pytest

from modeling.meta_kd.prototypes import directions, prototype_scores, prototypes


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def example_set(K, M, seed=0, per_cell=3):
    stream = np.random.default_rng(seed)
    return [(stream.standard_normal(5), k, m) for k in range(K) for m in range(M) for _ in range(per_cell)]


def score(vector, domain, label, axes, alpha=0.5):
    """The score of one example."""
    return prototype_scores(vector[None], np.array([domain]), np.array([label]), axes, alpha)[0]


def axes_of(examples, K, M):
    return directions(prototypes(iter(examples), K, M))


def test_prototype_is_the_mean_of_its_domain_and_class():
    """p(k, m) is the mean over domain k and class m alone; one centroid per domain would be a fault."""
    examples = example_set(3, 2)
    found = prototypes(iter(examples), 3, 2)
    for k in range(3):
        for m in range(2):
            np.testing.assert_allclose(
                found[k, m], np.mean([v for v, d, y in examples if (d, y) == (k, m)], axis=0)
            )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_score_mixes_own_domain_and_the_others(alpha):
    """alpha * cos(own prototype) + (1 - alpha) * mean over other domains of cos(prototype of the class)."""
    examples = example_set(4, 2)
    means, axes = prototypes(iter(examples), 4, 2), axes_of(examples, 4, 2)
    for v, k, y in examples:
        others = np.mean([cosine(means[j, y], v) for j in range(4) if j != k])
        assert score(v, k, y, axes, alpha) == pytest.approx(
            alpha * cosine(means[k, y], v) + (1 - alpha) * others
        )


def test_one_domain_or_a_class_of_one_domain_leaves_the_first_term():
    """K = 1, or a class that no other domain has: the own-domain term alone, whatever alpha is."""
    single = example_set(1, 2)
    v, k, y = single[0]
    assert score(v, k, y, axes_of(single, 1, 2), 0.2) == pytest.approx(
        cosine(prototypes(iter(single), 1, 2)[0, y], v)
    )
    lonely = [e for e in example_set(2, 2) if e[1:] != (1, 1)]
    v, k, y = next(e for e in lonely if e[1:] == (0, 1))
    assert score(v, k, y, axes_of(lonely, 2, 2), 0.2) == pytest.approx(
        cosine(prototypes(iter(lonely), 2, 2)[0, 1], v)
    )


def test_a_domain_held_out_of_training_is_scored_by_the_others():
    """Its examples have no prototype of their own: the second term alone."""
    examples = example_set(3, 2)
    kept = [e for e in examples if e[1] != 2]
    v, k, y = next(e for e in examples if e[1] == 2)
    means = prototypes(iter(kept), 3, 2)
    assert score(v, k, y, axes_of(kept, 3, 2)) == pytest.approx(
        np.mean([cosine(means[j, y], v) for j in (0, 1)])
    )


@pytest.mark.parametrize("K", [1, 4, 12])
def test_an_example_scores_the_same_bits_alone_and_among_others(K):
    """How many examples are scored at once does not show in the records."""
    examples = [e for e in example_set(K, 3) if e[1:] != (0, 1)]
    axes = axes_of(examples[::2], K, 3)
    vectors, domain, label = (np.array(column) for column in zip(*examples))
    vectors = vectors.astype(np.float32)
    together = prototype_scores(vectors, domain, label, axes)
    assert together.tolist() == [score(v, k, y, axes) for v, k, y in zip(vectors, domain, label)]
