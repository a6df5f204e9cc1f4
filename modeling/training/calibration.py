"""Calibration: a temperature that makes probabilities say how often they are right. N examples, M classes."""

import numpy as np
from scipy.optimize import minimize_scalar

from modeling.distributed.collective import broadcast
from modeling.meta_kd.classifier import STUDENT_ONLY
from modeling.meta_kd.losses import softmax
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights_in_ranks
from modeling.snapshots.rewrite import rewrite_snapshot
from util import UserError, get_rank

BINS = 15  # of the confidence, in the calibration error
RANGE = (0.02, 50.0)  # of temperatures that are tried
NEAR = 2.0  # an optimum within this factor of an end of RANGE lies at that end


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


def usable_temperature(logits, label):
    """(T, "") by `fit_temperature`, or (1.0, why none follows from these answers). float [N, M], int [N].

    Where every answer is right the log-loss falls to 0 with T, whatever the probabilities are worth; where
    the answers tell nothing of the labels it falls until all classes are alike.
    """
    if (logits.argmax(axis=1) == label).all():
        return 1.0, f"all {len(label)} answers on dev are right, so that surer ones would only look better"
    found, (low, high) = fit_temperature(logits, label), RANGE
    if not low * NEAR < found < high / NEAR:
        return 1.0, (
            f"the log-loss on dev is smallest at {found:.3g}, at the end of the temperatures that are tried, "
            f"{low:g} to {high:g}"
        )
    return found, ""


def calibration_figures(logits, labels, meta):
    """Calibration before and after, for results.json.

    Args:
        logits, labels: {"dev": [N, M], ...}, {"dev": [N], ...}.
        meta: of the snapshot; with "temperature" its logits are divided by it already.
    Returns:
        {"temperature", "folded", "dev": {"before": {"ece", "log_loss"}, "after": ...}, "test": ...}, and
        where no temperature follows from dev, which is then 1, "unfit": why.
    """
    folded = meta.get("temperature") is not None
    fitted = (meta["temperature"], "") if folded else usable_temperature(logits["dev"], labels["dev"])
    temperature, unfit = fitted
    figures = {"temperature": temperature, "folded": folded, **({"unfit": unfit} if unfit else {})}
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


def calibrate_snapshot(folder, model, heldout, log):
    """The snapshot `folder`, a ModelFolder, with a temperature fitted on dev folded into its classifier; one
    that has it stays, and so does one for which none follows from dev. Rank 0 rewrites it; the other ranks
    take part in the answers on dev, and get None.

    W x + b becomes (W x + b) / T, so that whatever reads the snapshot gives calibrated probabilities and
    the same labels.
    Args:
        folder: None in the other ranks; heldout: the Heldout examples of the run.
        log: takes the line that says why the snapshot stays.
    Raises:
        UserError: the snapshot has no classifier.
    """
    if broadcast(get_rank() == 0 and folder.meta.get("temperature") is not None):
        return folder
    load_weights_in_ranks(model, folder, STUDENT_ONLY)
    logits = heldout.logits(model, "dev")
    if get_rank() > 0:
        return None
    if "classifier.weight" not in folder.arrays:
        raise UserError(
            f"--calibrate: {folder.path} has no classifier to put a temperature in: leave --calibrate out."
        )
    temperature, unfit = usable_temperature(logits, heldout.splits["dev"]["label"])
    if unfit:
        log(f"note: --calibrate changes nothing: {unfit}")
        return folder
    scaled = {
        name: array / np.float32(temperature) if name.startswith("classifier.") else array
        for name, array in folder.arrays.items()
    }
    rewrite_snapshot(folder.path, scaled, {**folder.meta, "temperature": temperature})
    return read_model(folder.path)


def calibration_sentence(figures):
    """What a model card says of the figures of `calibration_figures`."""
    if unfit := figures.get("unfit"):
        splits = [
            f"{split}: ECE {100 * figures[split]['before']['ece']:.1f}%, log-loss "
            f"{figures[split]['before']['log_loss']:.3f}"
            for split in ("dev", "test")
        ]
        return f"- The probabilities were not calibrated, since {unfit}; {'; '.join(splits)}."
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
