"""The losses and weights of Meta-KD as pure functions (Pan et al., arXiv 2012.01266; formulas in the README).

B examples, T tokens, L matched layers, M classes, K domains, H width. Every function returns one value per example, [B]:
an average over the batch is taken last, in `batch_mean`, so that instance weights act on examples.
"""

import numpy as np

from modeling.operation import Operation, flow

F = flow.nn.functional


def batch_mean(values, weights=None):
    """mean over the batch of weights * values. Both [B]; the weights are given, not normalised here."""
    return (values if weights is None else values * weights).mean()


def cross_entropy(logits, labels):
    """-log softmax(logits)[label]. logits [B, M], labels int [B] -> [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def soft_cross_entropy(student_logits, teacher_logits, temperature=1.0):
    """-T^2 * sum over classes of softmax(teacher / T) * log_softmax(student / T). Both [B, M] -> [B], summed over classes."""
    targets = F.softmax(teacher_logits / temperature, dim=-1)
    return -(targets * F.log_softmax(student_logits / temperature, dim=-1)).sum(dim=-1) * temperature**2


def attention_loss(student_scores, teacher_scores, pair_weights, centring=None):
    """Mean squared error of attention scores over real token pairs, averaged over layers and, where all are given, heads.

    Args:
        student_scores: a list of L tensors [B, T, T] (mean over heads) or [B, A, T, T]; teacher_scores: L such arrays.
        pair_weights: an array [B, T, T], 1/n^2 at the n x n real pairs of an example with n real tokens, else 0.
        centring: None, or an array [B, T, T] from `centring_matrix`: each row of scores loses its mean over real keys, a constant
            that the softmax does not see.
    Returns:
        [B].
    """
    return AttentionError(teacher_scores, pair_weights, centring)(*student_scores)


def _by_head(scores):
    """[B, T, T] or [B, A, T, T] -> [B, A, T, T]"""
    B, *A, T, _ = scores.shape
    return scores.reshape(B, *A or [1], T, T)


class AttentionError(Operation):
    """The mean over layers and heads of the sum over pairs of weight * ((student - teacher) C)^2: the student's scores -> [B].

    Arguments and inputs as in `attention_loss`; C is the centring, if there is one. What the teacher gives are arrays, not tensors:
    to see a tensor as an array waits for a thread of the engine, which took six times as long as the arithmetic.
    """

    def __init__(self, teachers, weights, centring):
        self.teachers, self.weights, self.centring = teachers, weights, centring

    def forward(self, *students):
        self.weighted, total = [], 0.0
        for student, teacher in zip(students, self.teachers):
            error = _by_head(student - teacher)
            if self.centring is not None:
                error = error @ self.centring[:, None]
            weighted = error * self.weights[:, None]
            total += np.einsum("baqk,baqk->b", weighted, error)
            if self.saving:
                self.weighted.append(weighted)
        self.shape, self.scale = students[0].shape, np.float32(1 / (len(students) * error.shape[1]))
        return total * self.scale

    def backward(self, dvalues):
        factor, gradients = (2 * self.scale * dvalues)[:, None, None, None], []
        while self.weighted:
            derror = self.weighted.pop(0)
            derror *= factor
            if self.centring is not None:
                derror = derror @ self.centring.transpose(0, 2, 1)[:, None]
            gradients.append(derror.reshape(self.shape))
        return gradients

    def formula(self, *students):
        def there(array):
            return flow.from_numpy(array).to(students[0].device)

        total = 0.0
        for student, teacher in zip(students, self.teachers):
            error = _by_head(student - there(teacher))
            for head in range(error.shape[1]):
                one = (
                    error[:, head]
                    if self.centring is None
                    else flow.matmul(error[:, head], there(self.centring))
                )
                total = total + (one * one * there(self.weights)).sum(dim=(1, 2))
        return total / (len(students) * error.shape[1])


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


# --------------------------------------------------------------------------------------- on the host, with NumPy


def softmax(logits):
    """exp(z) / sum over classes of exp(z), in float64. [B, M] -> [B, M]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return shifted / shifted.sum(axis=1, keepdims=True)


def domain_expertise(scores, teacher_logits, labels):
    """lambda(x) = (1 + t(x)) / (exp((p_y - 1)^2) + 1), p_y the teacher's probability of the gold class.

    scores: raw prototype scores t, [B]; teacher_logits [B, M]; labels int [B] -> float32 [B].
    """
    gold = softmax(teacher_logits)[np.arange(len(labels)), labels]
    return ((1 + scores) / (np.exp((gold - 1) ** 2) + 1)).astype(np.float32)


def instance_weights(scores, scaling, spread=0.5):
    """The teacher's instance weights made of the raw prototype scores t of the N training examples, [N] -> float32 [N].

    scaling: `mean`: max(t, 0) divided by its mean; `spread`: max(0, 1 + spread * (t - mean) / standard deviation) divided by its
        mean, so that they differ by as much whichever encoder made the scores; `raw`: t; `none`: 1. All but `raw` average 1.
    """
    if scaling == "none" or scaling == "spread" and np.ptp(scores) == 0:
        return np.ones(len(scores), np.float32)
    if scaling == "raw":
        return scores.astype(np.float32)
    scores = scores.astype(np.float64)
    if scaling == "spread":
        scores = 1 + spread * (scores - scores.mean()) / scores.std()
    clipped = np.maximum(scores, 0)
    return (clipped / clipped.mean() if clipped.any() else np.ones_like(clipped)).astype(np.float32)


def pair_weights(input_mask):
    """1/n^2 at the real token pairs of an example with n real tokens, else 0. int [B, T] -> float32 [B, T, T]."""
    share = token_weights(input_mask)
    return share[:, :, None] * share[:, None, :]


def token_weights(mask):
    """1/n at the n marked tokens of an example, else 0. int [B, T] -> float32 [B, T]."""
    mask = mask.astype(np.float32)
    return mask / mask.sum(axis=1, keepdims=True)


def centring_matrix(input_mask):
    """C with (S C)[q, k] = S[q, k] - mean over real keys of S[q]. int [B, T] -> float32 [B, T, T]."""
    return np.eye(input_mask.shape[1], dtype=np.float32) - token_weights(input_mask)[:, :, None]
