"""The encoder for CPUs against OneFlow's own, under any number of threads, and what becomes of faults in a
thread.
"""

import dataclasses
import gc
import math
import threading
import time
import weakref

import numpy as np
import pytest
from test_bert import CONFIG, random_batch, random_model, run

from modeling.bert.model import BertModel, flow
from modeling.cpu import attention, encoder, layers
from modeling.cpu.encoder import CpuBertModel, split_batch
from modeling.cpu.layers import gelu
from modeling.cpu.threads import OrderedSum, Threads, cores, count_threads
from modeling.training.optimization import make_optimizer
from util import UserError


def on_cpu(threads=2):
    """What makes the CPU's encoder with so many threads."""
    return lambda config, masks: CpuBertModel(config, masks, Threads(threads))


def weighted_sum(outputs, mask):
    """A scalar that each output of an encoder has a part in, at real tokens alone."""
    real = flow.tensor(mask.astype(np.float32))
    pairs = real.unsqueeze(2) * real.unsqueeze(1)
    factor = flow.arange(outputs.pooled.shape[1], dtype=flow.float32) / 10
    loss = (outputs.pooled * factor).sum()
    for hidden in (*outputs.hidden.values(), *([] if outputs.last_hidden is None else [outputs.last_hidden])):
        loss = loss + (hidden * hidden * real.unsqueeze(2)).mean()
    for scores in outputs.scores.values():
        weights = pairs if scores.ndim == 3 else pairs.unsqueeze(1)
        loss = loss + (scores * scores * weights).mean()
    return loss


def step(make, batch, config=CONFIG, training=True, **options):
    """Outputs and gradients of a random encoder on a batch: {name: array}."""
    model = random_model(make, config=config).train(training)
    model.masks.open_step(3, 4)
    outputs = run(model, batch, **options)
    weighted_sum(outputs, batch["input_mask"]).backward()
    found = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    found["pooled"] = outputs.pooled.numpy()
    real = batch["input_mask"].astype(bool)
    found.update({f"hidden.{n}": hidden.numpy()[real] for n, hidden in outputs.hidden.items()})
    return found


def assert_close(found, expected):
    """Within 1e-5 of the largest value of each array."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        tolerance = 1e-5 * max(1, np.abs(array).max())
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance, err_msg=name)


# --------------------------------------------------------------------------------------- encoder against
# encoder


BATCHES = {
    "one example": (9,),
    "one token": (1,),
    "two shards of one example": (128, 3),
    "like lengths": (3, 7, 5, 7, 7),
    "all lengths": (40, 20, 3, 3, 3, 100, 127, 64),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_outputs_and_gradients_are_those_of_oneflows_operators(lengths, training):
    """With the same masks, pairs of texts, padding, scores of all layers averaged over heads and hidden
    states of one: 1e-5.
    """
    options = {"scores_of": (1, 2), "hidden_of": (1,), "mean_over_heads": True}
    batch = random_batch(lengths)
    assert_close(*(step(make, batch, training=training, **options) for make in (on_cpu(), BertModel)))


@pytest.mark.parametrize("last_hidden", [True, False])
def test_scores_of_each_head_and_cls_alone_too(last_hidden):
    """Scores of one layer by head, with and without the last hidden states, rates of dropout that differ:
    1e-5.
    """
    config = dataclasses.replace(CONFIG, attention_probs_dropout_prob=0.3)
    options = {"scores_of": (2,), "last_hidden": last_hidden}
    batch = random_batch((5, 17, 30, 4))
    assert_close(*(step(make, batch, config, **options) for make in (on_cpu(), BertModel)))


def test_many_pieces_give_what_one_gives(monkeypatch):
    """Arrays larger than one piece, attention example by example, and many shards: equal to 1e-5."""
    batch = random_batch((40, 20, 3, 3, 3, 100, 127, 64))
    expected = step(on_cpu(), batch, scores_of=(1,))
    monkeypatch.setattr(layers, "PIECE", 100)
    monkeypatch.setattr(attention, "STACK", 1)
    monkeypatch.setattr(encoder, "SHARD_TOKENS", 32)
    assert len(split_batch(batch["input_mask"].sum(1))) == 8
    assert_close(step(on_cpu(), batch, scores_of=(1,)), expected)


def test_gradients_add_up_over_batches():
    """Two batches before an optimizer's step: the sum of what each gives, also where zeros stood before."""
    model, batches = random_model(on_cpu()).eval(), [random_batch((5, 3)), random_batch((7, 2, 4), seed=1)]

    def gradients(*batches):
        for batch in batches:
            run(model, batch).pooled.sum().backward()
        found = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = None
        return found

    first, second, both = gradients(batches[0]), gradients(batches[1]), gradients(*batches)
    for parameter in model.parameters():
        parameter.grad = flow.zeros_like(parameter)
    for name, array in gradients(*batches).items():
        np.testing.assert_allclose(both[name], first[name] + second[name], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(array, both[name], err_msg=name)


def test_gelu_is_that_of_erf_everywhere():
    """x Phi(x) and its slope within 1e-6 of float64's erf from -30 to 30, and the limits far outside."""
    x = np.concatenate([np.linspace(-30, 30, 200001), [-1e4, 1e4]]).astype(np.float32)
    wide, y, slope = x.astype(np.float64), np.empty_like(x), np.empty_like(x)
    gelu(x, y, slope)
    np.testing.assert_array_equal(gelu(x, x), y)  # in its own place, without the slope
    phi = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in wide])
    np.testing.assert_allclose(y, wide * phi, rtol=1e-6, atol=1e-6)
    expected = phi + wide * np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(slope, expected, atol=1e-6)


def test_a_step_leaves_nothing_behind(monkeypatch):
    """What a batch kept goes with its graph, without the garbage collector: after backward, and where there
    is none.
    """
    alive, begin = weakref.WeakSet(), encoder.Pass.__init__
    monkeypatch.setattr(
        encoder.Pass, "__init__", lambda self, *a, **k: (alive.add(self), begin(self, *a, **k))[1]
    )
    model, batch = random_model(on_cpu()), random_batch((4, 6))
    gc.disable()
    try:
        outputs = run(model, batch, scores_of=(1,))
        assert alive
        (outputs.pooled.sum() + outputs.scores[1].sum()).backward()
        del outputs
        assert not alive
        outputs = run(model, batch)
        assert alive
        del outputs
        assert not alive
        with flow.no_grad():
            outputs = run(model, batch)
            assert not alive and outputs.pooled.shape[0]
    finally:
        gc.enable()


# --------------------------------------------------------------------------------------- threads and shards


def test_twenty_steps_are_the_same_bytes_with_any_number_of_threads():
    """Weights and moments after 20 steps of 8 shards with dropout, with 1, 2, 3 and 4 threads."""
    found = []
    for threads in (1, 2, 3, 4):
        model = random_model(on_cpu(threads))
        optimizer = make_optimizer(model, 1e-2, 0.1, model.threads)
        for number in range(20):
            model.masks.open_step(1, number)
            batch = random_batch([(7 * number + 13 * i) % 126 + 3 for i in range(70)], seed=number)
            optimizer.zero_grad()
            weighted_sum(run(model, batch, scores_of=(1,)), batch["input_mask"]).backward()
            optimizer.clip(1.0)
            optimizer.step()
        assert len(split_batch(batch["input_mask"].sum(1))) == 8
        arrays = {name: parameter.numpy() for name, parameter in model.named_parameters()}
        found.append({name: array.tobytes() for name, array in {**arrays, **optimizer.moments()}.items()})
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(
    "count, n, shards", [(1, 9, 1), (2, 9, 2), (24, 24, 2), (24, 93, 4), (24, 128, 4), (48, 93, 8)]
)
def test_shards_are_of_whole_examples_and_alike(count, n, shards):
    """Every example once; two shards at least, and more where each has 512 tokens; their tokens differ by one
    example at most.
    """
    lengths = np.random.default_rng(0).integers(max(1, n - 8), n + 1, count)
    found = split_batch(lengths)
    assert len(found) == shards and sorted(np.concatenate(found).tolist()) == list(range(count))
    assert np.ptp([lengths[examples].sum() for examples in found]) <= lengths.max()


def test_a_sum_does_not_depend_on_who_comes_first():
    """Parts in every order give the bits of ((a + b) + c), and each is added once."""
    parts = [np.float32([1e8, 1]), np.float32([-1e8, 1]), np.float32([1e-3, 1])]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)):
        total = OrderedSum()
        for number in order:
            total.add(number, parts[number].copy())
        np.testing.assert_array_equal(total.total, (parts[0] + parts[1]) + parts[2])


@pytest.mark.parametrize("variable, expected", [(None, 8), ("3", 3), ("16", 8), ("0", 8), ("many", 8)])
def test_auto_takes_a_thread_to_a_core(monkeypatch, variable, expected):
    """Or as many as OMP_NUM_THREADS says, where that is fewer; a number stands for itself."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("modeling.cpu.threads.cores", lambda: 8)
    assert (count_threads("auto"), count_threads(12)) == (expected, 12)
    assert cores() >= 1


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kernel, method", [("SelfAttention", "forward"), ("SelfAttention", "backward")])
def test_an_exception_in_a_thread_is_that_of_the_step(monkeypatch, kernel, method):
    """It arrives with its type and words, from forward and from backward, and the next step works."""
    original = getattr(attention.SelfAttention, method)
    model, batch = random_model(on_cpu()), random_batch((5, 4, 3))

    def broken(self, *arrays):
        if threading.current_thread() is not threading.main_thread():
            raise UserError("no more of this")
        return original(self, *arrays)

    monkeypatch.setattr(attention.SelfAttention, method, broken)
    with pytest.raises(UserError, match="no more of this"):
        run(model, batch).pooled.sum().backward()
    monkeypatch.undo()
    run(model, batch).pooled.sum().backward()


def test_no_thread_works_on_after_an_exception():
    """`run` raises when the other jobs have come to an end."""
    done = []

    def slow():
        time.sleep(0.05)
        done.append(1)

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Threads(2).run([fail, slow, slow])
    assert len(done) == 2
