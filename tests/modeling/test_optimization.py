"""The optimizer's steps, against golden values that PyTorch made (tests/golden/make_golden.py)."""

import pathlib

import numpy as np
import pytest

from modeling.bert import flow, nn
from modeling.optimization import (
    clip_gradients,
    is_undecayed,
    learning_rate_at,
    make_optimizer,
    optimizer_arrays,
    restore_optimizer,
    set_learning_rate,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "adamw.npz"


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
    """Runs `steps` on the golden gradients; returns the gradients' norms and {name: what the parameter was after each step}."""
    norms, after = [], {name: [] for name, _ in model.named_parameters()}
    for step in steps:
        optimizer.zero_grad()
        sum(
            (parameter * flow.tensor(golden[f"gradient.{name}"][step])).sum()
            for name, parameter in model.named_parameters()
        ).backward()
        norms.append(float(clip_gradients(model, 1.0)))
        set_learning_rate(optimizer, golden["rates"][step])
        optimizer.step()
        for name, parameter in model.named_parameters():
            after[name].append(parameter.numpy().copy())
    return norms, after


def test_twenty_steps_equal_pytorch(golden):
    """AdamW with decay on the matrix alone, clipping, warm-up and linear decay moves every parameter as PyTorch's, within 1e-6."""
    model = Small(golden)
    norms, after = walk(
        model, make_optimizer(model, 1.0, float(golden["decay"])), golden, range(len(golden["rates"]))
    )
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


def test_moments_put_back_go_on_as_if_never_stopped(golden):
    """Parameters and moments carried over to a new optimizer after 8 steps give exactly the 20 steps of one optimizer."""
    whole, first = Small(golden), Small(golden)
    _, expected = walk(whole, make_optimizer(whole, 1.0, 0.1), golden, range(20))
    optimizer = make_optimizer(first, 1.0, 0.1)
    walk(first, optimizer, golden, range(8))
    second = Small(golden)
    for name, parameter in first.named_parameters():
        dict(second.named_parameters())[name].data.copy_(flow.tensor(parameter.numpy()))
    resumed = make_optimizer(second, 1.0, 0.1)
    restore_optimizer(
        resumed, second, {name: array.copy() for name, array in optimizer_arrays(optimizer, first).items()}, 8
    )
    _, after = walk(second, resumed, golden, range(8, 20))
    for name, values in after.items():
        np.testing.assert_array_equal(values, expected[name][8:], err_msg=name)


def test_decay_spares_biases_and_layer_norm():
    """By name, wherever the parameter stands."""
    assert is_undecayed("bert.encoder.layer.0.output.LayerNorm.weight") and is_undecayed("classifier.bias")
    assert not is_undecayed("bert.embeddings.word_embeddings.weight") and not is_undecayed(
        "classifier.weight"
    )
