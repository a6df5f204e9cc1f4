"""Calibration: a temperature that makes probabilities say how often they are right. N examples, M classes."""

import numpy as np
from scipy.optimize import minimize_scalar

from modeling.distributed.collective import barrier
from modeling.meta_kd.classifier import STUDENT_ONLY
from modeling.meta_kd.losses import softmax
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.snapshots.rewrite import rewrite_snapshot
from util import UserError, get_rank

BINS = 15  # of the confidence, in the calibration error
RANGE = (0.02, 50.0)  # of temperatures that are tried


def log_loss(logits, label):
    """-mean of log softmax(logits)[label]. float [N, M], int [N] -> float."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)  # [N, M]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(label)), label]))


def calibration_error(probabilities, label, bins=BINS):
    """ECE: sum over bins of confidence of (share of the bin) * |accuracy - mean confidence|. float [N, M],
    int [N] -> float.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == label  # [N], [N]
    place = np.minimum((confidence * bins).astype(int), bins - 1)  # [N]
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)  # [bins]
    return float(np.abs(gaps).sum() / len(label))


def fit_temperature(logits, label):
    """The T that makes the log-loss of softmax(logits / T) smallest. float [N, M], int [N] -> float."""
    found = minimize_scalar(
        lambda log_t: log_loss(logits / np.exp(log_t), label), bounds=np.log(RANGE), method="bounded"
    )
    return float(np.exp(found.x))


def calibration_figures(logits, labels, meta):
    """Calibration before and after, for results.json.

    Args:
        logits, labels: {"dev": [N, M], ...}, {"dev": [N], ...}.
        meta: of the snapshot; with "temperature" its logits are divided by it already.
    Returns:
        {"temperature", "folded", "dev": {"before": {"ece", "log_loss"}, "after": ...}, "test": ...}.
    """
    folded = meta.get("temperature") is not None
    temperature = meta["temperature"] if folded else fit_temperature(logits["dev"], labels["dev"])
    figures = {"temperature": temperature, "folded": folded}
    for split in logits:
        before = logits[split] * temperature if folded else logits[split]
        after = logits[split] if folded else logits[split] / temperature
        figures[split] = {
            name: {
                "ece": calibration_error(softmax(each), labels[split]),
                "log_loss": log_loss(each, labels[split]),
            }
            for name, each in (("before", before), ("after", after))
        }
    return figures


def calibrate_snapshot(folder, model, heldout):
    """The snapshot `folder`, a ModelFolder, with a temperature fitted on dev folded into its classifier; one
    that has it stays.

    W x + b becomes (W x + b) / T, so that whatever reads the snapshot gives calibrated probabilities and
    the same labels.
    Args:
        heldout: the Heldout examples of the run.
    Raises:
        UserError: the snapshot has no classifier.
    """
    if folder.meta.get("temperature") is not None:
        return folder
    if "classifier.weight" not in folder.arrays:
        raise UserError(
            f"--calibrate: {folder.path} has no classifier to put a temperature in: leave --calibrate out."
        )
    load_weights(model, folder, allow_missing=STUDENT_ONLY)
    label = heldout.splits["dev"]["label"]
    temperature = fit_temperature(heldout.logits(model, "dev"), label)
    if get_rank() == 0:
        scaled = {
            name: array / np.float32(temperature) if name.startswith("classifier.") else array
            for name, array in folder.arrays.items()
        }
        rewrite_snapshot(folder.path, scaled, {**folder.meta, "temperature": temperature})
    barrier()
    return read_model(folder.path)


def calibration_sentence(figures):
    """What a model card says of the figures of `calibration_figures`."""
    state = "calibrated" if figures["folded"] else "not calibrated"
    splits = [
        f"{split}: ECE {100 * figures[split]['before']['ece']:.1f}% before and "
        f"{100 * figures[split]['after']['ece']:.1f}% after, log-loss "
        f"{figures[split]['before']['log_loss']:.3f} and {figures[split]['after']['log_loss']:.3f}"
        for split in ("dev", "test")
    ]
    return (
        f"- The probabilities were {state}; with the temperature {figures['temperature']:.3f}, fitted on "
        f"dev, {'; '.join(splits)}."
    )
