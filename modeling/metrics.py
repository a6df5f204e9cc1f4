"""What answers are worth: accuracy over examples and domains, and macro-F1. N examples."""

import numpy as np
from sklearn.metrics import f1_score


def classification_metrics(predicted, label, domain, task):
    """Accuracy over examples, per domain and averaged over the domains that have examples, and macro-F1
    over the classes that occur, as label or as answer.

    Args:
        predicted, label, domain: int [N].
    Returns:
        {"examples", "accuracy", "domains": {name: accuracy}, "domain_average", "macro_f1"}.
    """
    right = predicted == label
    domains = domain_accuracies(right, domain, task.domains)
    return {
        "examples": len(label),
        "accuracy": float(right.mean()),
        "domains": domains,
        "domain_average": float(np.mean(list(domains.values()))),
        "macro_f1": float(f1_score(label, predicted, average="macro", zero_division=0)),
    }


def domain_accuracies(right, domain, names) -> dict:
    """{name: share of its examples that are right}, of the domains that have examples.

    Args:
        right: bool [N]; domain: int [N], places in `names`.
    """
    return {name: float(right[domain == k].mean()) for k, name in enumerate(names) if (domain == k).any()}
