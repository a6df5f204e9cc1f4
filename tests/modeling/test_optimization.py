"""The optimizer's steps, against golden values that PyTorch made (tests/golden/make_golden.py)."""

import pathlib

import numpy as np
import pytest

from modeling.bert.model import flow, nn
from modeling.cpu.threads import Threads
from modeling.training.optimization import (
    is_undecayed,
    learning_rate_at,
    make_optimizer,
    restore_optimizer,
    set_learning_rate,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "adamw.npz"

WAYS = pytest.mark.parametrize("threads", [None, Threads(2)], ids=["OneFlow's", "the CPU's"])


class Small(nn.Module):
    """The parameters of the golden values: a linear map and a LayerNorm."""

    def __init__(self, golden):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(4, 5), nn.LayerNorm(4)
        for name, parameter in self.named_parameters():
            parameter.data.copy_(flow.tensor(golden[f"parameter.{name}"]))


@pytest.fixture(scope="module")
def golden():
    """The arrays of adamw.npz."""
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def walk(model, optimizer, golden, steps):
    """Runs `steps` on the golden gradients; returns the gradients' norms and {name: what the parameter was
    after each step}.
    """
    norms, after = [], {name: [] for name, _ in model.named_parameters()}
    for step in steps:
        optimizer.zero_grad()
        sum(
            (parameter * flow.tensor(golden[f"gradient.{name}"][step])).sum()
            for name, parameter in model.named_parameters()
        ).backward()
        norms.append(optimizer.clip(1.0))
        set_learning_rate(optimizer, golden["rates"][step])
        optimizer.step()
        for name, parameter in model.named_parameters():
            after[name].append(parameter.numpy().copy())
    return norms, after


@WAYS
def test_twenty_steps_equal_pytorch(golden, threads):
    """AdamW with decay on the matrix alone, clipping, warm-up and linear decay moves every parameter as
    PyTorch's, within 1e-6.
    """
    model = Small(golden)
    optimizer = make_optimizer(model, 1.0, float(golden["decay"]), threads)
    norms, after = walk(model, optimizer, golden, range(len(golden["rates"])))
    np.testing.assert_allclose(norms, golden["norms"], rtol=1e-5)
    assert min(norms) < 1 < max(norms)
    for name, values in after.items():
        np.testing.assert_allclose(values, golden[f"after.{name}"], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_schedule_is_that_of_the_golden_steps(golden):
    """Linear up to the peak in the warm-up's steps, linear down to 0 after the last."""
    steps, warmup, peak = len(golden["rates"]), int(golden["warmup"]), float(golden["peak"])
    np.testing.assert_allclose(
        [learning_rate_at(step, steps, warmup / steps, peak) for step in range(steps)],
        golden["rates"],
        rtol=1e-12,
    )


@WAYS
def test_moments_put_back_go_on_as_if_never_stopped(golden, threads):
    """Parameters and moments carried over to a new optimizer after 8 steps give exactly the 20 steps of one
    optimizer.
    """
    whole, first = Small(golden), Small(golden)
    _, expected = walk(whole, make_optimizer(whole, 1.0, 0.1, threads), golden, range(20))
    optimizer = make_optimizer(first, 1.0, 0.1, threads)
    walk(first, optimizer, golden, range(8))
    second = Small(golden)
    for name, parameter in first.named_parameters():
        dict(second.named_parameters())[name].data.copy_(flow.tensor(parameter.numpy()))
    resumed = make_optimizer(second, 1.0, 0.1, threads)
    restore_optimizer(resumed, {name: array.copy() for name, array in optimizer.moments().items()}, 8)
    _, after = walk(second, resumed, golden, range(8, 20))
    for name, values in after.items():
        np.testing.assert_array_equal(values, expected[name][8:], err_msg=name)


def test_decay_spares_biases_and_layer_norm():
    """By name, wherever the parameter stands."""
    assert is_undecayed("bert.encoder.layer.0.output.LayerNorm.weight") and is_undecayed("classifier.bias")
    assert not is_undecayed("bert.embeddings.word_embeddings.weight") and not is_undecayed(
        "classifier.weight"
    )


def test_the_cpus_optimizer_does_what_oneflows_does():
    """Twenty steps on parameters of several pieces, with rows that get no gradient: within 1e-6, and the same
    bytes with any threads.
    """
    stream, found = np.random.default_rng(0), []
    values = {
        "a.weight": stream.standard_normal((300, 400), np.float32),
        "b.bias": stream.standard_normal(7, np.float32),
    }
    gradients = [
        {name: stream.standard_normal(array.shape, np.float32) for name, array in values.items()}
        for _ in range(20)
    ]
    for each in gradients:
        each["a.weight"][100:200] = 0
    for threads in (None, Threads(1), Threads(3)):
        model = nn.Module()
        for name, array in values.items():
            model.add_module(name[0], nn.Module())
            getattr(model, name[0]).register_parameter(name[2:], nn.Parameter(flow.tensor(array)))
        optimizer = make_optimizer(model, 1e-3, 0.1, threads)
        for step in gradients:
            optimizer.zero_grad()
            for name, parameter in model.named_parameters():
                parameter.grad = flow.tensor(step[name])
            optimizer.clip(1e9)  # nothing: OneFlow adds up squares less exactly
            optimizer.step()
        arrays = {
            **{name: parameter.numpy() for name, parameter in model.named_parameters()},
            **optimizer.moments(),
        }
        found.append({name: array.copy() for name, array in arrays.items()})
    for name, expected in found[0].items():
        np.testing.assert_allclose(found[1][name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found[1][name], found[2][name], err_msg=name)
