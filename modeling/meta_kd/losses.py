"""The losses and weights of Meta-KD as pure functions (Pan et al., arXiv 2012.01266; see docs/training.md).

B examples, T tokens, L matched layers, A heads, M classes, H width. Every loss returns one value per
example, [B]; their average over the batch is taken last, in `batch_mean`, so that instance weights act on
examples.
"""

import numpy as np

from data.engine import load_oneflow

flow = load_oneflow()
F = flow.nn.functional


def batch_mean(values, weights=None):
    """mean over the batch of weights * values. Both [B]; the weights are given, not normalised here."""
    return (values if weights is None else values * weights).mean()


def cross_entropy(logits, labels):
    """-log softmax(logits)[label]. logits [B, M], labels int [B] -> [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def soft_cross_entropy(student_logits, teacher_logits, temperature=1.0):
    """-T^2 * sum over classes of softmax(teacher / T) * log_softmax(student / T).

    Both [B, M] -> [B], summed over classes.
    """
    targets = F.softmax(teacher_logits / temperature, dim=-1)
    return -(targets * F.log_softmax(student_logits / temperature, dim=-1)).sum(dim=-1) * temperature**2


def attention_loss(student_scores, teacher_scores, pair_weights, centring=None):
    """Mean squared error of attention scores over real token pairs, averaged over layers and,
    where all are given, heads.

    Args:
        student_scores: a list of L tensors [B, T, T] (mean over heads) or [B, A, T, T].
        teacher_scores: L such arrays.
        pair_weights: an array [B, T, T], 1/n^2 at the n x n real pairs
            of an example with n real tokens, else 0.
        centring: None, or an array [B, T, T] from `centring_matrix`: each row of scores loses its mean over
            real keys, a constant that the softmax does not see.
    Returns:
        [B].
    """
    B, T = pair_weights.shape[:2]
    A, device, total = student_scores[0].numel() // (B * T * T), student_scores[0].device, 0.0

    def by_head(array):  # [B, T, T] -> [B*A, T, T]
        return flow.from_numpy(np.repeat(array, A, axis=0)).to(device)

    weights = by_head(pair_weights / np.float32(A * len(student_scores)))
    centre = None if centring is None else by_head(centring)
    ones = flow.ones(T * T, 1, device=device)  # to add up rows by a product is faster than by a sum
    for student, teacher in zip(student_scores, teacher_scores):
        error = (student - flow.from_numpy(teacher).to(device)).reshape(B * A, T, T)
        if centre is not None:
            error = flow.matmul(error, centre)
        weighted = (flow.square(error) * weights).reshape(B * A, T * T)
        total = total + flow.matmul(weighted, ones)  # [B*A, 1]
    return total.reshape(B, A).sum(dim=1)


def squared_error(student, teacher):
    """Mean squared error over the last dimension. Both [B, H] -> [B]."""
    difference = student - teacher
    return (difference * difference).mean(dim=-1)


def hidden_loss(student_states, teacher_states, token_weights):
    """Mean squared error of hidden states over real tokens, averaged over layers.

    Args:
        student_states, teacher_states: lists of L tensors [B, T, H].
        token_weights: [B, T], 1/n at the n real tokens of an example, else 0.
    Returns:
        [B].
    """
    total = 0.0
    for student, teacher in zip(student_states, teacher_states):
        difference = student - teacher
        total = total + ((difference * difference).mean(dim=-1) * token_weights).sum(dim=1)
    return total / len(student_states)


# ------------------------------------------------------------------------------ on the host, with NumPy


def softmax(logits):
    """exp(z) / sum over classes of exp(z), in float64. [B, M] -> [B, M]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=1, keepdims=True)


def log_mean_softmax(logits, weights, temperature=1.0):
    """T * log(sum over teachers of w * softmax(z / T)): logits whose softmax at T is the mean of theirs.

    logits [E, B, M] of E teachers; weights [E], which add up to 1 -> float32 [B, M]. In float64, by the
    largest term of each sum, so that no probability is rounded to 0.
    """
    scaled = logits.astype(np.float64) / temperature  # [E, B, M]
    scaled -= scaled.max(axis=-1, keepdims=True)
    terms = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))  # log softmax
    terms += np.log(weights)[:, None, None]
    largest = terms.max(axis=0)  # [B, M]
    return (temperature * (largest + np.log(np.exp(terms - largest).sum(axis=0)))).astype(np.float32)


def domain_expertise(scores, teacher_logits, labels):
    """lambda(x) = (1 + t(x)) / (exp((p_y - 1)^2) + 1), p_y the teacher's probability of the gold class.

    scores: raw prototype scores t, [B]; teacher_logits [B, M]; labels int [B] -> float32 [B].
    """
    gold = softmax(teacher_logits)[np.arange(len(labels)), labels]
    return ((1 + scores) / (np.exp((gold - 1) ** 2) + 1)).astype(np.float32)


def spread_weights(values, spread):
    """max(0, 1 + spread * (v - mean) / standard deviation), divided by its mean.

    Weights that average 1, with the standard deviation `spread` but for what is cut at 0; 1 where all values
    are equal. [N] -> float32 [N].
    """
    if np.ptp(values) == 0:
        return np.ones(len(values), np.float32)
    values = values.astype(np.float64)
    clipped = np.maximum(1 + spread * (values - values.mean()) / values.std(), 0)
    return (clipped / clipped.mean()).astype(np.float32)


def instance_weights(scores, scaling, spread=0.5):
    """The teacher's instance weights, made of the raw prototype scores t of the N training examples.

    [N] -> float32 [N].

    scaling: `mean`: max(t, 0) divided by its mean; `spread`: `spread_weights`, so that they differ by as much
        whichever encoder made the scores; `raw`: t; `none`: 1. All but `raw` average 1.
    """
    if scaling == "none":
        return np.ones(len(scores), np.float32)
    if scaling == "raw":
        return scores.astype(np.float32)
    if scaling == "spread":
        return spread_weights(scores, spread)
    clipped = np.maximum(scores.astype(np.float64), 0)
    return (clipped / clipped.mean() if clipped.any() else np.ones_like(clipped)).astype(np.float32)


def balance_classes(weights, label):
    """w(x) / W(y), W(y) the sum of w over the class of x, scaled to average 1: all classes weigh the same.

    A class whose weights are all 0 counts with even ones. weights float32 [N], at least 0; label int [N]
    -> float32 [N].
    """
    weights = weights.astype(np.float64)
    weights = np.where(np.bincount(label, weights)[label] > 0, weights, 1.0)  # [N]
    balanced = weights / np.bincount(label, weights)[label]  # [N]
    return (balanced / balanced.mean()).astype(np.float32)


def pair_weights(input_mask):
    """1/n^2 at the real token pairs of an example with n real tokens, else 0.

    int [B, T] -> float32 [B, T, T].
    """
    share = token_weights(input_mask)
    return share[:, :, None] * share[:, None, :]


def token_weights(mask):
    """1/n at the n marked tokens of an example, else 0. int [B, T] -> float32 [B, T]."""
    mask = mask.astype(np.float32)
    return mask / mask.sum(axis=1, keepdims=True)


def centring_matrix(input_mask):
    """C with (S C)[q, k] = S[q, k] - mean over real keys of S[q]. int [B, T] -> float32 [B, T, T]."""
    return np.eye(input_mask.shape[1], dtype=np.float32) - token_weights(input_mask)[:, :, None]
