"""The encoder: outputs and gradients of transformers' BertModel, and the arithmetic by hand against its formulas."""

import gc
import json
import math
import os
import pathlib
import subprocess
import weakref

import numpy as np
import pytest
from safetensors.numpy import load_file

from modeling import operation
from modeling.attention import Packing, Scores, SelfAttention, Unpack
from modeling.bert import BertConfig, BertModel, flow, init_weights
from modeling.layers import Affine, FeedForward, Norm, Take, gelu
from modeling.operation import Dropout, Dropouts
from util import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=24,
    max_position_embeddings=12,
)


@pytest.fixture(scope="module")
def golden():
    """What transformers gave for a random model on a padded batch: parameters, outputs, a loss and its gradients."""
    with np.load(GOLDEN / "bert.npz") as arrays:
        return dict(arrays)


@pytest.fixture(params=["by hand", "formula"])
def way(request, monkeypatch):
    """Runs a test twice: with the gradients by hand, and as on a device that is no CPU."""
    if request.param == "formula":
        monkeypatch.setattr(operation, "by_hand", lambda tensor: False)
    return request.param


def load(config, arrays):
    """A BertModel in eval mode with parameters from {name: array}."""
    model = BertModel(config, Dropouts())
    assert {name for name, _ in model.named_parameters()} == {
        name for name in arrays if not name.endswith("position_ids")
    }
    for name, parameter in model.named_parameters():
        parameter.data.copy_(flow.tensor(arrays[name]))
    model.eval()
    return model


def golden_model(golden):
    """The golden model, its parameters named as transformers names them."""
    return load(
        CONFIG,
        {name[len("parameter.") :]: array for name, array in golden.items() if name.startswith("parameter.")},
    )


def run(model, batch, **options):
    """The model's Outputs on arrays input_ids, input_mask and segment_ids."""
    return model(
        *(flow.tensor(batch[name].astype(np.int32)) for name in ("input_ids", "input_mask", "segment_ids")),
        **options,
    )


def random_batch(lengths, T, seed=0):
    """A batch of random ids whose examples have `lengths` real tokens."""
    mask = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
    ids = np.random.default_rng(seed).integers(5, 30, mask.shape).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": (np.arange(T) % 2 * mask).astype(np.int32)}


def random_model(seed=0):
    """A random model of 2 layers, in training mode, and the source of its dropout masks."""
    model = BertModel(CONFIG, Dropouts())
    init_weights(model, seed, 0.3)
    return model.train()


# --------------------------------------------------------------------------------------- against transformers


def differences(outputs, expected, mask):
    """{name: largest difference at real tokens, or pairs of them} of Outputs and the golden "output.*"."""
    real = mask.astype(bool)
    pairs = np.broadcast_to(
        (real[:, None, :, None] & real[:, None, None, :]), expected["output.scores.1"].shape
    )
    found = {f"hidden.{layer}": (hidden.numpy(), real) for layer, hidden in enumerate(outputs.hidden)}
    found.update(
        {f"scores.{layer}": (scores.numpy(), pairs) for layer, scores in outputs.scores.items()},
        pooled=(outputs.pooled.numpy(), ...),
    )
    return {
        name: float(np.abs(array - expected[f"output.{name}"])[where].max())
        for name, (array, where) in found.items()
    }


def test_outputs_equal_transformers(golden, way):
    """All hidden states, attention scores and the pooled output, at real tokens, on a padded batch."""
    outputs = run(golden_model(golden), golden, scores_of=(1, 2))
    found = differences(outputs, golden, golden["input_mask"])
    assert len(found) == 6 and max(found.values()) < 1e-5, found


def test_gradients_equal_transformers(golden, way):
    """Of a loss of pooled output, hidden states and scores, with respect to every parameter."""
    model = golden_model(golden)
    outputs = run(model, golden, scores_of=(1,))
    terms = {
        "pooled": outputs.pooled,
        "hidden.1": outputs.hidden[1],
        "hidden.2": outputs.hidden[2],
        "scores.1": outputs.scores[1],
    }
    sum((term * flow.tensor(golden[f"loss.{name}"])).sum() for name, term in terms.items()).backward()
    for name, parameter in model.named_parameters():
        expected = golden[f"gradient.{name}"]
        np.testing.assert_allclose(
            parameter.grad.numpy(), expected, atol=1e-5 * np.abs(expected).max() + 1e-5, err_msg=name
        )


@pytest.mark.parametrize("source", ["METAKD_MODEL_DIR", None], ids=["a model folder", "12 random layers"])
def test_outputs_equal_those_of_transformers_here_and_now(tmp_path, source):
    """Within 1e-4, on the folder $METAKD_MODEL_DIR and on 12 random layers; transformers runs under $METAKD_TORCH_PYTHON."""
    python, model_dir = os.environ.get("METAKD_TORCH_PYTHON"), source and os.environ.get(source)
    if not python or source and not model_dir:
        pytest.skip(f"METAKD_TORCH_PYTHON{' and METAKD_MODEL_DIR are' if source else ' is'} not set")
    command = [
        python,
        str(GOLDEN / "make_golden.py"),
        "--parity",
        str(tmp_path),
        *(["--model", model_dir] if source else []),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(tmp_path / "outputs.npz") as arrays:
        expected = dict(arrays)
    model = load(BertConfig.from_file(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors"))
    with flow.no_grad():
        outputs = run(model, expected, scores_of=tuple(range(1, model.config.num_hidden_layers + 1)))
    found = differences(outputs, expected, expected["input_mask"])
    print(json.dumps(found))
    assert max(found.values()) < 1e-4, found


# --------------------------------------------------------------------------------------- by hand against the formula


B, T, H, A = 3, 7, 12, 3


def packing():
    """Three full examples; with the mask that the formula adds, all zero."""
    made = Packing(flow.ones(B, T, dtype=flow.int32))
    made.mask = flow.zeros(B, 1, 1, T)
    return made


def dropout(rate=0.3):
    """A Dropout in training mode whose next masks are always the same."""
    return Dropout(rate, Dropouts()).train()


OPERATIONS = {
    "one map": (Affine, [(B * T, H), (5, H), (5,)]),
    "three maps": (Affine, [(B * T, H), (5, H), (5,), (5, H), (5,), (5, H), (5,)]),
    "feed-forward": (FeedForward, [(B * T, H), (20, H), (20,), (H, 20), (H,)]),
    "feed-forward in pieces": (FeedForward, [(1100, H), (80, H), (80,), (H, 80), (H,)]),
    "norm": (lambda: Norm(1e-12), [(300, H), (H,), (H,)]),
    "norm of a sum": (lambda: Norm(1e-12), [(B * T, H), (H,), (H,), (B * T, H)]),
    "norm of a sum with dropout": (
        lambda: Norm(1e-12, dropout().kept(300 * H), 0.3),
        [(300, H), (H,), (H,), (300, H)],
    ),
    "attention": (lambda: SelfAttention(packing(), A, dropout(0)), [(B * T, 3 * H)]),
    "attention with dropout": (lambda: SelfAttention(packing(), A, dropout()), [(B * T, 3 * H)]),
    "scores": (lambda: Scores(packing(), A, False), [(B * T, 3 * H)]),
    "mean scores": (lambda: Scores(packing(), A, True), [(B * T, 3 * H)]),
    "rows of a table": (lambda: Take(np.array([3, 1, 3, 0, 3])), [(6, H)]),
    "rows of two tables": (
        lambda: Take(np.array([3, 1, 3, 0, 3]), np.array([0, 0, 1, 1, 1])),
        [(6, H), (2, H)],
    ),
    "rows in their batch": (lambda: Unpack(packing()), [(B * T, H)]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_by_hand_equal_those_of_the_formula(name):
    """Each operation's output, and its gradient with respect to every input, within 1e-5 of OneFlow's own operators."""
    make, shapes = OPERATIONS[name]
    stream = np.random.default_rng(0)
    arrays, results = [stream.standard_normal(shape, np.float32) for shape in shapes], []
    for call in (lambda it, inputs: it(*inputs), lambda it, inputs: it.formula(*inputs)):
        inputs = [flow.tensor(array, requires_grad=True) for array in arrays]
        output = call(make(), inputs)
        weights = np.random.default_rng(1).standard_normal(tuple(output.shape), np.float32)
        (output * flow.tensor(weights)).sum().backward()
        results.append([output.numpy(), *(tensor.grad.numpy() for tensor in inputs)])
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


def test_gelu_is_that_of_erf_everywhere():
    """x Phi(x) and its slope within 1e-6 of float64's erf from -30 to 30, and the limits far outside."""
    x = np.concatenate([np.linspace(-30, 30, 200001), [-1e4, 1e4]]).astype(np.float32)
    wide, y, slope = x.astype(np.float64), x.copy(), np.empty_like(x)
    gelu(y, slope)
    phi = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in wide])
    np.testing.assert_allclose(y, wide * phi, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, phi + wide * np.exp(-(wide**2) / 2) / math.sqrt(2 * math.pi), atol=1e-6)


def test_the_whole_model_with_dropout_equals_the_formula(monkeypatch):
    """Full batch, same masks: outputs and all gradients of training mode within 1e-5."""
    results = []
    for by_hand in (True, False):
        monkeypatch.setattr(operation, "by_hand", lambda tensor, by_hand=by_hand: by_hand)
        model = random_model()
        model.dropouts.key(1, 2, 0, 1)
        outputs = run(model, random_batch((T,) * B, T), scores_of=(2,), mean_over_heads=True)
        (outputs.pooled.sum() + (outputs.hidden[-1] ** 2).sum() + outputs.scores[2].sum()).backward()
        results.append({name: parameter.grad.numpy() for name, parameter in model.named_parameters()})
    for name, expected in results[1].items():
        np.testing.assert_allclose(
            results[0][name], expected, rtol=1e-4, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name
        )


# --------------------------------------------------------------------------------------- padding and scores


def test_an_example_does_not_depend_on_its_batch():
    """Each example of a padded batch has the outputs that it has alone, and 0 at padding."""
    model, lengths = random_model().eval(), (3, 9, 5)
    batch = random_batch(lengths, 9)
    outputs = run(model, batch, scores_of=(1, 2))
    for i, n in enumerate(lengths):
        alone = run(model, {name: array[i : i + 1, :n] for name, array in batch.items()}, scores_of=(1, 2))
        np.testing.assert_allclose(outputs.pooled.numpy()[i], alone.pooled.numpy()[0], atol=1e-6)
        for layer in range(3):
            np.testing.assert_allclose(
                outputs.hidden[layer].numpy()[i, :n], alone.hidden[layer].numpy()[0], atol=2e-6
            )
            assert not outputs.hidden[layer].numpy()[i, n:].any()
        for layer in (1, 2):
            scores = outputs.scores[layer].numpy()[i]
            np.testing.assert_allclose(scores[:, :n, :n], alone.scores[layer].numpy()[0], atol=1e-5)
            assert not scores[:, n:].any() and not scores[:, :, n:].any()


def test_mean_scores_are_the_mean_over_heads(way):
    """mean_over_heads gives [B, T, T], the average of the heads' scores."""
    model, batch = random_model().eval(), random_batch((7, 7), 7)
    heads, mean = (
        run(model, batch, scores_of=(2,), mean_over_heads=mean).scores[2].numpy() for mean in (False, True)
    )
    assert heads.shape == (2, 3, 7, 7)
    np.testing.assert_allclose(mean, heads.mean(axis=1), atol=1e-5)


def test_scores_are_made_for_the_layers_asked_for():
    """None by default."""
    model, batch = random_model().eval(), random_batch((4,), 4)
    assert run(model, batch).scores == {} and set(run(model, batch, scores_of=(2,)).scores) == {2}


def test_less_work_without_the_last_hidden_states(way):
    """The pooled output, the scores and all gradients are the same without the last hidden states, which are then refused."""
    batch, results = random_batch((7, 7, 7), 7), []
    for last_hidden in (True, False):
        model = random_model().eval()
        outputs = run(model, batch, scores_of=(2,), mean_over_heads=True, last_hidden=last_hidden)
        (outputs.pooled**2).sum().backward()
        results.append(
            [
                outputs.pooled.numpy(),
                outputs.scores[2].numpy(),
                outputs.hidden[1].numpy(),
                *(parameter.grad.numpy() for parameter in model.parameters()),
            ]
        )
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))
    with pytest.raises(ValueError):
        outputs.hidden[-1]


def test_a_step_leaves_nothing_behind(monkeypatch):
    """The intermediates of a batch go with its graph, without the garbage collector: after backward, and where there is none."""
    alive, call = weakref.WeakSet(), operation.Chain.__call__
    monkeypatch.setattr(
        operation.Chain, "__call__", lambda self, *tensors: (alive.add(self), call(self, *tensors))[1]
    )
    model, batch = random_model(), random_batch((4, 6), 6)
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


def test_changed_weights_are_seen():
    """After an optimizer's step, data.copy_, load_state_dict and `to`, outputs are those of a model made with the new weights."""
    model, batch = random_model().eval(), random_batch((5, 3), 5)
    optimizer = flow.optim.SGD(model.parameters(), lr=0.1)

    def step():
        run(model, batch).pooled.sum().backward()
        optimizer.step()

    changes = (
        step,
        lambda: init_weights(model, 5, 0.2),
        lambda: model.load_state_dict(random_model(seed=6).state_dict()),
        lambda: model.to(flow.float64).to(flow.float32),
        step,
    )
    for change in changes:
        before = run(model, batch).pooled.numpy().copy()
        change()
        after = run(model, batch).pooled.numpy()
        fresh = load(CONFIG, {name: parameter.numpy() for name, parameter in model.named_parameters()})
        np.testing.assert_array_equal(after, run(fresh, batch).pooled.numpy())
        assert change is changes[3] or (before != after).any()


# --------------------------------------------------------------------------------------- dropout


def test_masks_are_a_function_of_the_key():
    """The same key gives the same masks again; another seed, step, rank, number of ranks or site gives others."""
    dropouts = Dropouts()

    def masks(*key):
        dropouts.key(*key)
        return [dropouts.kept(1000, 0.1) for _ in range(2)]

    first = masks(1, 2, 0, 2)
    np.testing.assert_array_equal(first, masks(1, 2, 0, 2))
    assert (first[0] != first[1]).any()
    for key in ((2, 2, 0, 2), (1, 3, 0, 2), (1, 2, 1, 2), (1, 2, 0, 1)):
        assert (masks(*key)[0] != first[0]).any(), key


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    """A share of `rate` is dropped and the rest scaled up, so that the mean stays; eval mode and rate 0 change nothing."""
    x = flow.ones(1000, 1001)
    dropped = dropout(rate)(x).numpy()
    assert abs((dropped == 0).mean() - rate) < 0.002 and abs(dropped.mean() - 1) < 0.002
    assert (dropout(rate).eval()(x).numpy() == 1).all() and (dropout(0.0)(x).numpy() == 1).all()


def test_training_is_a_function_of_the_key():
    """Outputs and gradients of a step are the same bits under the same key, others under another; eval mode has no dropout."""
    batch = random_batch((6, 4), 6)

    def step(key, training=True):
        model = random_model().train(training)
        model.dropouts.key(*key)
        outputs = run(model, batch)
        outputs.pooled.sum().backward()
        return outputs.pooled.numpy(), model.encoder.layer[0].attention.self.query.weight.grad.numpy()

    for found, expected in zip(step((1, 5)), step((1, 5))):
        np.testing.assert_array_equal(found, expected)
    assert (step((1, 5))[0] != step((1, 6))[0]).any()
    np.testing.assert_array_equal(step((1, 5), training=False)[0], step((1, 6), training=False)[0])


# --------------------------------------------------------------------------------------- initial weights, configuration


def test_initial_weights_are_a_function_of_name_and_seed():
    """Normal with the given deviation, biases 0, gains 1; a deeper model has the same weights where names are the same."""
    small, deep, other = (
        BertModel(CONFIG, Dropouts()),
        BertModel(BertConfig(**{**vars(CONFIG), "num_hidden_layers": 3}), Dropouts()),
        None,
    )
    for model in (small, deep):
        init_weights(model, 7, 0.02)
    other = random_model(seed=8)
    deep_parameters, others = dict(deep.named_parameters()), dict(other.named_parameters())
    for name, parameter in small.named_parameters():
        values = parameter.numpy()
        np.testing.assert_array_equal(values, deep_parameters[name].numpy())
        if name.endswith("bias"):
            assert not values.any()
        elif name.endswith("LayerNorm.weight"):
            assert (values == 1).all()
        else:
            assert 0.01 < values.std() < 0.03 and (values != others[name].numpy()).any()


def test_configuration_survives_its_file(tmp_path):
    """from_file reads what to_dict wrote."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert BertConfig.from_file(tmp_path / "config.json") == CONFIG


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "roberta"}, "'roberta'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_dropout_prob": 1.0}, "below 1"),
        ({"vocab_size": "30"}, "'30'"),
        ({"hidden_size": True}, "True"),
        ({"vocab_size": ...}, "'vocab_size' is missing"),
    ],
)
def test_a_configuration_that_is_not_built_is_refused(tmp_path, change, words):
    """In a sentence with the file and what was found."""
    values = {name: value for name, value in {**CONFIG.to_dict(), **change}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="config.json") as error:
        BertConfig.from_file(tmp_path / "config.json")
    assert words in str(error.value)
