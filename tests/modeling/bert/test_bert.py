"""Both encoders, OneFlow's own and the CPU's: outputs and gradients of transformers' BertModel, padding,
dropout, initial weights.
"""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from modeling.bert.config import BertConfig
from modeling.bert.dropout import Dropout, DropoutMasks, draw
from modeling.bert.model import BertModel, flow, init_weights
from modeling.cpu.encoder import CpuBertModel
from modeling.cpu.threads import Threads
from util import UserError, random_stream

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=24,
    max_position_embeddings=128,
)
ENCODERS = {"oneflow": BertModel, "cpu": lambda config, masks: CpuBertModel(config, masks, Threads(2))}


@pytest.fixture(scope="module")
def golden():
    """What transformers gave for a random model on a padded batch: parameters, outputs, a loss and its
    gradients.
    """
    with np.load(GOLDEN / "bert.npz") as arrays:
        return dict(arrays)


@pytest.fixture(params=ENCODERS)
def make(request):
    """Runs a test with each of the two encoders."""
    return ENCODERS[request.param]


def load(make, config, arrays):
    """An encoder in eval mode with parameters from {name: array}."""
    model = make(config, DropoutMasks())
    assert {name for name, _ in model.named_parameters()} == {
        name for name in arrays if not name.endswith("position_ids")
    }
    for name, parameter in model.named_parameters():
        parameter.data.copy_(flow.tensor(arrays[name]))
    return model.eval()


def golden_model(make, golden):
    """The golden model, its parameters named as transformers names them."""
    prefix = "parameter."
    arrays = {name[len(prefix) :]: array for name, array in golden.items() if name.startswith(prefix)}
    config = BertConfig(**{**vars(CONFIG), "max_position_embeddings": 12})
    return load(make, config, arrays)


def run(model, batch, **options):
    """The model's EncoderOutput on arrays input_ids, input_mask and segment_ids."""
    names = ("input_ids", "input_mask", "segment_ids")
    return model(*(flow.tensor(batch[name].astype(np.int32)) for name in names), **options)


def random_batch(lengths, seed=0):
    """A batch of random ids whose examples have `lengths` real tokens, some of them of segment 1."""
    T = max(lengths)
    mask = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int32)
    ids = np.random.default_rng(seed).integers(5, 30, mask.shape).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": (np.arange(T) % 2 * mask).astype(np.int32)}


def random_model(make, seed=0, config=CONFIG):
    """A random encoder in training mode."""
    model = make(config, DropoutMasks())
    init_weights(model, seed, 0.3)
    return model.train()


# --------------------------------------------------------------------------------------- against transformers


def differences(outputs, expected, mask):
    """{name: largest difference at real tokens, or pairs of them} of an EncoderOutput and the golden
    "output.*".
    """
    real = mask.astype(bool)
    pairs = real[:, None, :, None] & real[:, None, None, :]
    found = {f"hidden.{layer}": (hidden.numpy(), real) for layer, hidden in outputs.hidden.items()}
    for layer, scores in outputs.scores.items():
        found[f"scores.{layer}"] = scores.numpy(), np.broadcast_to(pairs, scores.shape)
    found["pooled"] = outputs.pooled.numpy(), ...
    return {
        name: float(np.abs(array - expected[f"output.{name}"])[where].max())
        for name, (array, where) in found.items()
    }


def test_outputs_equal_transformers(golden, make):
    """Hidden states, attention scores and the pooled output, at real tokens, on a padded batch."""
    outputs = run(golden_model(make, golden), golden, scores_of=(1, 2), hidden_of=(1, 2))
    found = differences(outputs, golden, golden["input_mask"])
    assert len(found) == 5 and max(found.values()) < 1e-5, found
    real = golden["input_mask"].astype(bool)
    np.testing.assert_array_equal(outputs.last_hidden.numpy()[real], outputs.hidden[2].numpy()[real])


def test_gradients_equal_transformers(golden, make):
    """Of a loss of pooled output, hidden states and scores, with respect to every parameter."""
    model = golden_model(make, golden)
    outputs = run(model, golden, scores_of=(1,), hidden_of=(1,))
    terms = {
        "pooled": outputs.pooled,
        "hidden.1": outputs.hidden[1],
        "hidden.2": outputs.last_hidden,
        "scores.1": outputs.scores[1],
    }
    sum((term * flow.tensor(golden[f"loss.{name}"])).sum() for name, term in terms.items()).backward()
    for name, parameter in model.named_parameters():
        expected = golden[f"gradient.{name}"]
        np.testing.assert_allclose(
            parameter.grad.numpy(), expected, atol=1e-5 * np.abs(expected).max() + 1e-5, err_msg=name
        )


@pytest.mark.parametrize("source", ["METAKD_MODEL_DIR", None], ids=["a model folder", "12 random layers"])
def test_outputs_equal_those_of_transformers_here_and_now(tmp_path, make, source):
    """Within 1e-4, on the folder $METAKD_MODEL_DIR and on 12 random layers; transformers runs under
    $METAKD_TORCH_PYTHON.
    """
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
    model = load(
        make, BertConfig.from_file(tmp_path / "config.json"), load_file(tmp_path / "model.safetensors")
    )
    with flow.no_grad():
        layers = tuple(range(1, model.config.num_hidden_layers + 1))
        outputs = run(model, expected, scores_of=layers, hidden_of=layers)
    found = differences(outputs, expected, expected["input_mask"])
    print(json.dumps(found))
    assert max(found.values()) < 1e-4, found


# --------------------------------------------------------------------------------------- padding and scores


def test_an_example_does_not_depend_on_its_batch(make):
    """Each example of a padded batch has the outputs that it has alone."""
    model, lengths = random_model(make).eval(), (3, 9, 5)
    batch, layers = random_batch(lengths), (1, 2)
    outputs = run(model, batch, scores_of=layers, hidden_of=layers)
    for i, n in enumerate(lengths):
        one = {name: array[i : i + 1, :n] for name, array in batch.items()}
        alone = run(model, one, scores_of=layers, hidden_of=layers)
        np.testing.assert_allclose(outputs.pooled.numpy()[i], alone.pooled.numpy()[0], atol=1e-6)
        for layer in layers:
            hidden, scores = outputs.hidden[layer].numpy()[i], outputs.scores[layer].numpy()[i]
            np.testing.assert_allclose(hidden[:n], alone.hidden[layer].numpy()[0], atol=2e-6)
            np.testing.assert_allclose(scores[:, :n, :n], alone.scores[layer].numpy()[0], atol=1e-5)


def test_mean_scores_are_the_mean_over_heads(make):
    """mean_over_heads gives [B, T, T], the average of the heads' scores."""
    model, batch = random_model(make).eval(), random_batch((7, 7))
    heads, mean = (
        run(model, batch, scores_of=(2,), mean_over_heads=mean).scores[2].numpy() for mean in (False, True)
    )
    assert heads.shape == (2, 3, 7, 7)
    np.testing.assert_allclose(mean, heads.mean(axis=1), atol=1e-5)


def test_outputs_are_made_for_the_layers_asked_for(make):
    """None by default; the last layer's hidden states, asked for by its number, are whole without
    `last_hidden`.
    """
    model, batch = random_model(make).eval(), random_batch((4,))
    outputs = run(model, batch)
    assert outputs.scores == {} and outputs.hidden == {}
    outputs = run(model, batch, scores_of=(2,), hidden_of=(2,), last_hidden=False)
    assert set(outputs.scores) == set(outputs.hidden) == {2}
    np.testing.assert_array_equal(outputs.hidden[2].numpy(), run(model, batch).last_hidden.numpy())


def test_less_work_without_the_last_hidden_states(make):
    """The pooled output, the scores and all gradients are the same without the last hidden states, which are
    then None.
    """
    batch, results = random_batch((7, 7, 7)), []
    for last_hidden in (True, False):
        model = random_model(make).eval()
        outputs = run(
            model, batch, scores_of=(2,), hidden_of=(1,), mean_over_heads=True, last_hidden=last_hidden
        )
        (outputs.pooled**2).sum().backward()
        arrays = [outputs.pooled.numpy(), outputs.scores[2].numpy(), outputs.hidden[1].numpy()]
        results.append([*arrays, *(parameter.grad.numpy() for parameter in model.parameters())])
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))
    assert outputs.last_hidden is None


def test_changed_weights_are_seen(make):
    """After an optimizer's step, data.copy_, load_state_dict and `to`, outputs are those of a model made with
    the new weights.
    """
    model, batch = random_model(make).eval(), random_batch((5, 3))
    optimizer = flow.optim.SGD(model.parameters(), lr=0.1)

    def step():
        run(model, batch).pooled.sum().backward()
        optimizer.step()

    changes = (
        step,
        lambda: init_weights(model, 5, 0.2),
        lambda: model.load_state_dict(random_model(make, seed=6).state_dict()),
        lambda: model.to(flow.float64).to(flow.float32),
        step,
    )
    for change in changes:
        before = run(model, batch).pooled.numpy().copy()
        change()
        after = run(model, batch).pooled.numpy()
        fresh = load(make, CONFIG, {name: parameter.numpy() for name, parameter in model.named_parameters()})
        np.testing.assert_array_equal(after, run(fresh, batch).pooled.numpy())
        assert change is changes[3] or (before != after).any()


# --------------------------------------------------------------------------------------- dropout


def test_masks_are_a_function_of_the_key():
    """The same key gives the same masks again; another seed, step, rank, number of ranks, batch or example
    gives others.
    """
    masks = DropoutMasks()

    def drawn(*key, batch=0):
        masks.open_step(*key)
        for _ in range(batch + 1):
            masks.open_batch([9, 9])
        return np.concatenate([masks.hidden(9, 50, 0.1).reshape(2, -1), masks.heads((2, 450), 0.1)])

    first = drawn(1, 2, 0, 2)
    np.testing.assert_array_equal(first, drawn(1, 2, 0, 2))
    assert all((first[i] != first[j]).any() for i in range(4) for j in range(i))
    for key in ((2, 2, 0, 2), (1, 3, 0, 2), (1, 2, 1, 2), (1, 2, 0, 1)):
        assert (drawn(*key) != first).any(axis=1).all(), key
    assert (drawn(1, 2, 0, 2, batch=1) != first).any(axis=1).all()


def test_an_examples_masks_do_not_depend_on_its_padding():
    """Those of 3 tokens among 5 are those of 3 tokens among 3; padding is kept."""
    found = []
    for T in (3, 5):
        masks = DropoutMasks()
        masks.open_batch([3, T])
        found.append((masks.attention(2, T, 0.5), masks.hidden(T, 8, 0.5)))
    (attention, hidden), (padded_attention, padded_hidden) = found
    np.testing.assert_array_equal(attention[0], padded_attention[0, :, :3, :3])
    np.testing.assert_array_equal(hidden[0], padded_hidden[0, :3])
    assert (
        padded_attention[0, :, 3:].all()
        and padded_attention[0, :, :, 3:].all()
        and padded_hidden[0, 3:].all()
    )


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate):
    """A share of `rate` is dropped and the rest scaled up, so that the mean stays; eval mode and rate 0
    change nothing.
    """
    x, masks = flow.ones(1000, 1001), DropoutMasks()
    masks.open_batch([])
    dropped = Dropout(rate, masks.heads)(x).numpy()
    assert abs((dropped == 0).mean() - rate) < 0.002 and abs(dropped.mean() - 1) < 0.002
    for same in (Dropout(rate, masks.heads).eval(), Dropout(0.0, masks.heads)):
        assert (same(x).numpy() == 1).all()


def test_a_mask_holds_the_bits_of_its_stream():
    """Each value is 16 bits of the stream against the rate, for sizes that no 64 bits divide."""
    raw = random_stream(1, "dropout", 2).bit_generator.random_raw(4).view(np.uint16)
    found = draw(random_stream(1, "dropout", 2), 0.25, np.empty(13, bool))
    np.testing.assert_array_equal(found, raw[:13] >= 16384)


def test_training_is_a_function_of_the_key(make):
    """Outputs and gradients of a step are the same bits under the same key, others under another; eval mode
    has no dropout.
    """
    batch = random_batch((6, 4))

    def step(key, training=True):
        model = random_model(make).train(training)
        model.masks.open_step(*key)
        outputs = run(model, batch)
        outputs.pooled.sum().backward()
        return outputs.pooled.numpy(), model.encoder.layer[0].attention.self.query.weight.grad.numpy()

    for found, expected in zip(step((1, 5)), step((1, 5))):
        np.testing.assert_array_equal(found, expected)
    assert (step((1, 5))[0] != step((1, 6))[0]).any()
    np.testing.assert_array_equal(step((1, 5), training=False)[0], step((1, 6), training=False)[0])


# --------------------------------------------------------------------------------------- initial weights,
# configuration


def test_initial_weights_are_a_function_of_name_and_seed():
    """Normal with the given deviation, biases 0, gains 1; a deeper model has the same weights where names are
    the same.
    """
    small, deep, other = (
        BertModel(BertConfig(**{**vars(CONFIG), "num_hidden_layers": layers}), DropoutMasks())
        for layers in (2, 3, 2)
    )
    for model, seed in ((small, 7), (deep, 7), (other, 8)):
        init_weights(model, seed, 0.02)
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
