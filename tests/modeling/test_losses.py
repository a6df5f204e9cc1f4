"""Each loss, weight and score against an independent NumPy formula, on random inputs with padding."""

import numpy as np
import pytest

from data.batches import content_mask, domain_mix
from meta_teacher import training_weights
from modeling.bert.config import BertConfig
from modeling.meta_kd import losses
from modeling.meta_kd.classifier import ClassHeads, evenly_spaced_layers, match_layers, text_embedding
from modeling.meta_kd.losses import flow

LENGTHS = [3, 7, 5]  # real tokens of three examples, padded to 7
T = 7


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mask():
    return (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.int32)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def as_tensors(*arrays):
    return [flow.tensor(array) for array in arrays]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("M", [2, 5])
def test_soft_cross_entropy_is_summed_over_classes_and_scaled_by_T_squared(temperature, M):
    """-T^2 sum_m softmax(z_T/T)_m log softmax(z_S/T)_m per example: not divided by the number of classes."""
    student, teacher = normal(3, M), normal(3, M, seed=1)
    expected = (
        -(softmax(teacher / temperature) * np.log(softmax(student / temperature))).sum(1) * temperature**2
    )
    found = losses.soft_cross_entropy(*as_tensors(student, teacher), temperature).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_instance_weights_act_inside_the_mean():
    """mean(w * v) differs from mean(w) * mean(v): weights act on examples, not on the scalar."""
    values, weights = np.array([1.0, 2.0, 6.0], np.float32), np.array([2.0, 1.0, 0.0], np.float32)
    assert losses.batch_mean(*as_tensors(values, weights)).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("heads", [None, 4])
def test_attention_loss_is_the_mean_over_real_pairs(heads, centred):
    """Per example the mean over n x n real pairs (and heads) of the squared difference, then over layers."""
    shape = (3, T, T) if heads is None else (3, heads, T, T)
    student, teacher = [normal(*shape, seed=i) for i in (0, 1)], [normal(*shape, seed=i) for i in (2, 3)]
    expected = np.zeros(3)
    for s, t in zip(student, teacher):
        for i, n in enumerate(LENGTHS):
            a, b = s[i, ..., :n, :n], t[i, ..., :n, :n]
            if centred:
                a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
            expected[i] += ((a - b) ** 2).mean() / 2
    centring = losses.centring_matrix(mask()) if centred else None
    found = losses.attention_loss(as_tensors(*student), teacher, losses.pair_weights(mask()), centring)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [(3, T, T), (3, 4, T, T)])
def test_the_gradient_of_the_attention_loss_is_that_of_its_formula(shape, centred):
    """2 * weight * (student - teacher) C C^T over layers and heads, within 1e-5."""
    students, teachers = ([normal(*shape, seed=seed) for seed in seeds] for seeds in ((3, 4), (1, 2)))
    factor, pairs = normal(3), losses.pair_weights(mask())
    centring = losses.centring_matrix(mask()) if centred else np.eye(T, dtype=np.float32)[None]
    tensors = [flow.tensor(student, requires_grad=True) for student in students]
    values = losses.attention_loss(tensors, teachers, pairs, centring if centred else None)
    (values * flow.tensor(factor)).sum().backward()
    heads = shape[1] if len(shape) == 4 else 1
    for tensor, student, teacher in zip(tensors, students, teachers):
        error = (student - teacher).reshape(3, heads, T, T) @ centring[:, None]
        error *= (2 * factor[:, None, None] * pairs / (len(students) * heads))[:, None]
        expected = (error @ centring.transpose(0, 2, 1)[:, None]).reshape(shape)
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_padding_never_enters_a_loss():
    """Other values at padded tokens leave every loss as it is."""
    first, second = normal(3, T, T), normal(3, T, 6, seed=1)
    teacher, states = normal(3, T, T, seed=2), normal(3, T, 6, seed=3)
    changed_first, changed_second = first.copy(), second.copy()
    for i, n in enumerate(LENGTHS):
        changed_first[i, n:], changed_first[i, :, n:], changed_second[i, n:] = 99, -99, 99
    pairs, tokens = losses.pair_weights(mask()), flow.tensor(losses.token_weights(mask()))
    for a, b in ((first, changed_first),):
        one, two = (losses.attention_loss(as_tensors(x), [teacher], pairs).numpy() for x in (a, b))
        np.testing.assert_allclose(one, two, rtol=1e-6)
    one, two = (
        losses.hidden_loss(as_tensors(x), as_tensors(states), tokens).numpy()
        for x in (second, changed_second)
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    expected = [((second[i, :n] - states[i, :n]) ** 2).mean() for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(one, expected, rtol=1e-5)


def test_squared_error_is_one_value_per_example():
    """Mean over the width, no reduction over the batch."""
    a, b = normal(3, 6), normal(3, 6, seed=1)
    np.testing.assert_allclose(
        losses.squared_error(*as_tensors(a, b)).numpy(), ((a - b) ** 2).mean(1), rtol=1e-5
    )


def test_domain_expertise_follows_the_formula_and_its_limits():
    """(1 + t) / (exp((p - 1)^2) + 1): for t = 0.95 from 0.52 (teacher wrong) to 0.98 (sure and right)."""
    logits, labels, scores = normal(3, 4), np.array([0, 3, 2]), np.array([0.1, -0.2, 0.9])
    p = softmax(logits)[np.arange(3), labels]
    np.testing.assert_allclose(
        losses.domain_expertise(scores, logits, labels), (1 + scores) / (np.exp((p - 1) ** 2) + 1), rtol=1e-5
    )
    sure = np.array([[50.0, 0.0]], np.float32)
    right, wrong = (losses.domain_expertise(np.array([0.95]), sure, np.array([label]))[0] for label in (0, 1))
    assert (round(float(wrong), 2), round(float(right), 2)) == (0.52, 0.98)


@pytest.mark.parametrize("scaling", ["mean", "spread", "raw", "none"])
def test_instance_weights_average_one_unless_raw(scaling):
    """All but `raw` average 1 over the training examples and are never negative; `raw` is the score."""
    scores = normal(50)
    weights = losses.instance_weights(scores, scaling)
    if scaling == "raw":
        np.testing.assert_array_equal(weights, scores)
    else:
        assert weights.mean() == pytest.approx(1, abs=1e-6) and weights.min() >= 0


@pytest.mark.parametrize("low, high", [(0.95, 0.99), (0.02, 0.52)])
def test_weights_of_a_chosen_spread_do_not_depend_on_the_encoder(low, high):
    """Scores as BERT-base's or as MiniLM's: weights of mean 1, deviation 0.3, in the order of the scores."""
    scores = np.random.default_rng(0).uniform(low, high, 200).astype(np.float32)
    weights = losses.instance_weights(scores, "spread", 0.3)
    assert weights.mean() == pytest.approx(1, abs=1e-5) and weights.std() == pytest.approx(0.3, abs=1e-4)
    assert (
        np.argsort(weights, kind="stable") == np.argsort(scores, kind="stable")
    ).mean() > 0.95  # but for ties of float32
    assert (losses.instance_weights(scores, "spread", 0.0) == 1).all() and losses.instance_weights(
        scores, "spread", 5.0
    ).min() == 0
    assert (losses.instance_weights(np.full(4, 0.3, np.float32), "spread", 0.3) == 1).all()


def test_a_multi_task_model_judges_by_the_head_of_the_domain():
    """logits = W_k pooled + b_k of the example's domain k; of one that was not trained the mean of the heads
    that were.
    """
    config = BertConfig.from_dict({**BertConfig().to_dict(), "hidden_size": 6, "num_attention_heads": 2})
    heads, pooled = ClassHeads(config, 3, 4), normal(4, 6)
    W, b = heads.dense.weight.numpy().reshape(4, 3, 6), heads.dense.bias.numpy().reshape(4, 3)
    domain, seen = np.array([2, 0, 1, 3]), (0, 1, 2)
    found = heads(*as_tensors(pooled, domain_mix(domain, 4, seen))).numpy()
    for row, k in enumerate(domain):
        each = [W[j] @ pooled[row] + b[j] for j in ((k,) if k in seen else seen)]
        np.testing.assert_allclose(found[row], np.mean(each, axis=0), rtol=1e-4, atol=1e-5)


def test_text_embedding_leaves_out_special_tokens_and_padding():
    """f(x) is the mean over the text's own tokens: without [CLS], any [SEP] (a pair's too) and padding."""
    input_mask = np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]], np.int32)
    segments = np.array(
        [[0] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32
    )  # [CLS] a a [SEP] and [CLS] a [SEP] b b b [SEP]
    hidden = normal(2, T, 6)
    weights = losses.token_weights(content_mask(input_mask, segments))
    found = text_embedding(*as_tensors(hidden, weights)).numpy()
    np.testing.assert_allclose(
        found, [hidden[0, 1:3].mean(0), hidden[1, [1, 3, 4, 5]].mean(0)], rtol=1e-5, atol=1e-6
    )


def test_layers_are_evenly_spaced_and_matched():
    """3 of 12: 4, 8, 12; 3 of 6: 2, 4, 6. Of two teacher layers on one student layer the later stays."""
    assert evenly_spaced_layers(3, 12) == (4, 8, 12) and evenly_spaced_layers(3, 6) == (2, 4, 6)
    assert match_layers([2, 4, 6], 3) == {1: 2, 2: 4, 3: 6}
    assert match_layers([4, 8, 12], 6) == {2: 4, 4: 8, 6: 12}
    assert match_layers([2, 4, 6], 2) == {1: 2, 2: 6}


def test_balanced_classes_weigh_the_same():
    """With even weights as scikit-learn's "balanced"; with others their sum is the same in every class, the
    ratios within a class stay, and the average is 1. A class without any weight has even ones.
    """
    from sklearn.utils.class_weight import compute_sample_weight

    label = np.array([0] * 7 + [1] * 2 + [3])
    even = losses.balance_classes(np.ones(10, np.float32), label)
    np.testing.assert_allclose(even, compute_sample_weight("balanced", label), rtol=1e-6)
    weights = np.linspace(0.5, 1.5, 10).astype(np.float32)
    found = losses.balance_classes(weights, label)
    np.testing.assert_allclose(found[:7] / found[0], weights[:7] / weights[0], rtol=1e-6)
    assert found.dtype == np.float32 and found.mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(label, found)[[0, 1, 3]], 10 / 3, rtol=1e-6)
    nothing = losses.balance_classes(np.where(label == 1, 0, weights), label)
    np.testing.assert_allclose(nothing[7:9], 10 / 3 / 2, rtol=1e-6)
    np.testing.assert_allclose(np.bincount(label, nothing)[[0, 3]], 10 / 3, rtol=1e-6)


@pytest.mark.parametrize("scaling", ["mean", "spread", "none"])
def test_classes_of_unlike_scores_weigh_the_same(scaling):
    """However sure the prototypes are of one class, and wherever scores are below 0."""
    stream, label = np.random.default_rng(0), np.repeat([0, 1], [30, 10])
    scores = np.where(label == 0, 0.4, 0.2) + stream.normal(0, 0.2, 40)
    found = training_weights({"weights": scores, "label": label}, scaling, 0.5, "balanced")
    assert scores.min() < 0 <= found.min()
    np.testing.assert_allclose(np.bincount(label, found), [20, 20], rtol=1e-6)
