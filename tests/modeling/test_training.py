"""The training loop: gradients, instance weights, schedule, phases, snapshots, evaluation."""

import argparse
import json
import re

import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import load_file

import config
from data.batches import epoch_batches, lengths, make_batch
from data.tasks import BUILT_IN
from meta_teacher import explain_domain_loss, make_loss, teacher_loss
from modeling.bert.config import BertConfig
from modeling.bert.model import flow, init_weights
from modeling.cpu.encoder import choose_encoder
from modeling.inference import DomainTable, evaluate, infer, tensor, to_device
from modeling.meta_kd.classifier import DomainClassifier, build_student, build_teacher
from modeling.meta_kd.distillation import active_terms, check_knowledge_covers, make_targets, student_loss
from modeling.meta_kd.terms import add_flags, term_weights
from modeling.metrics import classification_metrics
from modeling.snapshots.manager import Snapshots
from modeling.training.loop import Phase, one_phase, train, two_phases
from modeling.training.optimization import is_undecayed, learning_rate_at
from modeling.training.run import Run
from modeling.training.stage import snapshot_options, training_options
from modeling.training.step_log import StepLog
from tokenization import tokenizer_for
from util import UserError

TASK, CPU, DOMAINS = BUILT_IN["senti"], flow.device("cpu"), DomainTable(4, (0, 1, 2, 3))
CONFIG = BertConfig.from_dict({**BertConfig().to_dict(), **TINY, "num_hidden_layers": 2})
ALL_TERMS = {
    "soft": 1.0,
    "hard": 0.5,
    "attention": 2.0,
    "representation": 0.7,
    "hidden": 0.3,
    "transfer": 0.3,
}


def records(N=6, T=12, seed=0):
    """N random records of 4 to T tokens."""
    stream = np.random.default_rng(seed)
    n = stream.integers(4, T + 1, N)
    mask = (np.arange(T) < n[:, None]).astype(np.int32)
    return {
        "input_ids": stream.integers(5, 40, (N, T)).astype(np.int32) * mask,
        "input_mask": mask,
        "segment_ids": 0 * mask,
        "domain": np.arange(N, dtype=np.int32) % 4,
        "label": np.arange(N, dtype=np.int32) // 2 % 2,
        "idxs": np.arange(N, dtype=np.int32),
        "weights": stream.uniform(0.2, 1, N).astype(np.float32),
    }


def initialised(model, seed=1):
    init_weights(model, seed, 0.2)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # biases and gains of their own, so that their gradients count
        if parameter.ndim == 1:
            parameter.data.copy_(
                parameter
                + 0.1
                * flow.tensor(np.random.default_rng(len(name)).standard_normal(parameter.shape, np.float32))
            )
    return model


# --------------------------------------------------------------------------------------- gradients


def check_gradients(model, loss, unreached=()):
    """The loss changes along a direction in each module's weights as their gradients say.

    Half of the direction is the gradients, and half of it is random. The same module of all layers counts as
    one; a weight that `unreached` names must have no gradient.
    """
    loss().backward()
    parameters, groups = dict(model.named_parameters()), {}
    for name, parameter in parameters.items():
        g = parameter.grad.numpy().astype(np.float64)
        if name.endswith(unreached):
            assert np.abs(g).max() < 1e-5, name
        else:
            groups.setdefault(re.sub(r"layer\.\d+\.", "", name).rpartition(".")[0], {})[name] = g
    stream, h = np.random.default_rng(0), 2e-3
    for module, gradients in groups.items():
        starts = {name: parameters[name].numpy().copy() for name in gradients}
        noise = {name: stream.standard_normal(g.shape) for name, g in gradients.items()}
        v = {
            name: g / np.linalg.norm(g) + noise[name] / np.linalg.norm(noise[name])
            for name, g in gradients.items()
        }
        values = []
        for step in (h, -h, 0):
            for name, start in starts.items():
                parameters[name].data.copy_(flow.tensor((start + step * v[name]).astype(np.float32)))
            if step:
                with flow.no_grad():
                    values.append(float(loss().numpy()))
        expected = sum((g * v[name]).sum() for name, g in gradients.items())
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=0.02, abs=3e-4), module


def test_gradients_of_the_teachers_whole_loss():
    """Without dropout, gradients are finite differences: both heads and all encoder weights that matter."""
    model, batch = (
        initialised(build_teacher(CONFIG, TASK, domain_head=True)).eval(),
        to_device(make_batch(records(), np.arange(6)), DOMAINS, CPU),
    )
    weights, corrupted = np.array([1, 0.5, 2, 0, 1, 1.5], np.float32), np.array([3, 1, 0, 2, 2, 0])
    check_gradients(
        model, lambda: teacher_loss(model, batch, weights, corrupted, 0.5)[0], unreached=("self.key.bias",)
    )


def test_gradients_of_a_multi_task_teacher():
    """Finite differences through class heads per domain, of which each learns from its own domain alone."""
    model = initialised(build_teacher(CONFIG, TASK, False, "per_domain")).eval()
    batch, weights = (
        to_device(make_batch(records(), np.array([0, 1, 4, 5])), DOMAINS, CPU),
        np.array([1, 0.5, 2, 1], np.float32),
    )
    check_gradients(
        model, lambda: teacher_loss(model, batch, weights, None, 0)[0], unreached=("self.key.bias",)
    )
    gradient = model.domain_classifiers.dense.weight.grad.numpy().reshape(4, 2, -1)
    assert [bool(np.abs(of_domain).max() > 0) for of_domain in gradient] == [
        True,
        True,
        False,
        False,
    ]  # those examples are of domains 0 and 1


def lesson_flags(**changed):
    return argparse.Namespace(
        **{"attention_match": "raw", "expertise_weight": "lambda", "temperature": 2.0, **changed}
    )


def targets_for(batch, terms, heads="mean", width=24, **flags):
    """TeacherTargets of a Batch by a random teacher of 4 layers, and the layers that are matched."""
    layers, H, items = [2, 3, 4], (TINY["num_attention_heads"],) if heads != "mean" else (), []
    for row, n in zip(batch.idxs, batch.input_mask.sum(axis=1)):
        stream = np.random.default_rng(int(row))
        draw = lambda *shape: stream.standard_normal(shape, np.float32)  # noqa: B023, E731
        items.append(
            {
                "logits": draw(2),
                "representation": draw(width),
                "domain_feature": draw(width),
                "attention": draw(3, *H, n, n).astype(np.float16),
                "hidden": draw(3, n, width).astype(np.float16),
            }
        )
    manifest, matches = {"layers": layers, "attention_heads": heads}, {1: 3, 2: 4}
    return make_targets(items, batch, terms, matches, manifest, lesson_flags(**flags), CPU)


@pytest.mark.parametrize("heads, match", [("mean", "raw"), (4, "centred")])
def test_gradients_of_the_students_whole_loss(heads, match):
    """Gradients of all six terms at once are finite differences.

    With maps to a wider teacher, lambda per example, and temperature 2.
    """
    model, batch = (
        initialised(build_student(CONFIG, TASK, 24, ALL_TERMS)).eval(),
        make_batch(records(), np.arange(6)),
    )
    tensors, targets = (
        to_device(batch, DOMAINS, CPU),
        targets_for(batch, ALL_TERMS, heads, attention_match=match),
    )
    check_gradients(model, lambda: student_loss(model, tensors, targets, ALL_TERMS)[0])


def test_the_students_loss_is_the_weighted_sum_of_its_terms():
    """Soft and hard are plain terms; the others have lambda(x) inside the mean over the batch.

    Without lambda the logged parts add up to the loss.
    """
    model, batch = (
        initialised(build_student(CONFIG, TASK, 24, ALL_TERMS)).eval(),
        make_batch(records(), np.arange(6)),
    )
    loss, parts = student_loss(
        model,
        to_device(batch, DOMAINS, CPU),
        targets_for(batch, ALL_TERMS, expertise_weight="none"),
        ALL_TERMS,
    )
    assert loss.item() == pytest.approx(
        sum(ALL_TERMS[name] * parts[name].item() for name in ALL_TERMS), rel=1e-5
    )
    expertise, expected = targets_for(batch, ALL_TERMS).expertise.numpy(), 0.0
    assert len(set(expertise.tolist())) == 6
    for i in range(6):  # each example alone
        one = make_batch(records(), np.array([i]))
        _, alone = student_loss(model, to_device(one, DOMAINS, CPU), targets_for(one, ALL_TERMS), ALL_TERMS)
        expected += (
            sum(
                ALL_TERMS[name] * alone[name].item() * (expertise[i] if name not in ("soft", "hard") else 1)
                for name in ALL_TERMS
            )
            / 6
        )
    whole, _ = student_loss(model, to_device(batch, DOMAINS, CPU), targets_for(batch, ALL_TERMS), ALL_TERMS)
    assert whole.item() == pytest.approx(expected, rel=1e-4)  # so padding and neighbours play no part either


def test_an_instance_weight_of_zero_takes_an_example_out():
    """Its label changes neither the class loss nor a gradient; that of an example with weight 1 does."""
    model = initialised(build_teacher(CONFIG, TASK, domain_head=False)).eval()
    found, weights = [], np.array([1, 1, 0, 1, 1, 1], np.float32)
    for flipped in (None, 2, 3):
        arrays = records()
        if flipped is not None:
            arrays["label"][flipped] = 1 - arrays["label"][flipped]
        model.zero_grad()
        loss, parts = teacher_loss(
            model, to_device(make_batch(arrays, np.arange(6)), DOMAINS, CPU), weights, None, 0
        )
        loss.backward()
        found.append((parts["class"].item(), model.classifier.weight.grad.numpy().tolist()))
        assert parts.keys() == {"class"}
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("counts", [(14, 2, 2, 2), (5, 5, 5, 5), (12, 0, 8, 0)])
def test_the_log_knows_the_loss_of_a_domain_head_that_has_learned_nothing(counts, tmp_path, capsys):
    """What a head that always answers with the domains' shares has over an epoch, and one of any other answer
    has no less.
    """
    examples = {**records(20), "domain": np.repeat(np.arange(4, dtype=np.int32), counts)}
    explain_domain_loss(Run(tmp_path), examples["domain"])
    told = re.search(r"loss of ([\d.]+) at best.*\(log (\d) = ([\d.]+)", capsys.readouterr().out)
    assert float(told[3]) == pytest.approx(np.log(int(told[2])), abs=1e-4)
    assert int(told[2]) == np.count_nonzero(counts)
    shares = np.array(counts) / 20
    assert float(told[1]) == pytest.approx(constant_head_loss(examples, shares), abs=1e-4)
    other = 0.9 * shares + 0.1 * np.array([0.1, 0.2, 0.3, 0.4])
    assert float(told[1]) < constant_head_loss(examples, other)


def constant_head_loss(examples, shares):
    """The mean domain loss, over the steps of an epoch, of a head that gives every text the same shares."""
    model = initialised(build_teacher(CONFIG, TASK, domain_head=True)).eval()
    logits = np.log(np.maximum(shares, 1e-30)).astype(np.float32)
    model.domain_head.domain_logits = lambda feature: tensor(np.tile(logits, (len(feature), 1)), CPU)
    loss = make_loss(model, examples, np.ones(20, np.float32), DOMAINS, CPU, 1, 0.5)
    batches = epoch_batches(lengths(examples), 8, 1, 0)
    return sum(len(rows) * loss(rows, 0)[1]["domain"].item() for rows in batches) / 20


def test_terms_of_weight_zero_cost_nothing():
    """Terms of weight 0 are no terms: no target, scores, map or head is made for them."""
    parser = config.Parser("")
    config.distillation(parser)
    add_flags(parser)
    config.training(parser)
    args = parser.parse_args(
        ["--attention_loss_weight", "0", "--transfer_loss_weight", "0", "--representation_loss_weight", "0"]
    )
    terms = active_terms(term_weights(vars(args)), args)
    assert terms == {"soft": 1.0}
    model, batch = initialised(build_student(CONFIG, TASK, 24, terms)), make_batch(records(), np.arange(6))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"bert", "classifier"}
    targets, asked = targets_for(batch, terms), []
    assert (
        not targets.attention
        and not targets.hidden
        and targets.pair_weights is targets.token_weights is targets.centring is None
    )
    forward = model.bert.forward
    model.bert.forward = lambda *args: asked.append(args[3]) or forward(*args)
    loss, parts = student_loss(model, to_device(batch, DOMAINS, CPU), targets, terms)
    assert parts.keys() == {"soft"} and asked == [()]


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            {
                f"{name}_weight": 0.0
                for name in ("soft_label", "attention_loss", "representation_loss", "transfer_loss")
            },
            "nothing to learn",
        ),
        ({"intermediate_epochs": 3, "num_epochs": 3}, "--intermediate_epochs 3"),
        ({"intermediate_epochs": 1, "soft_label_weight": 0.0}, "each phase"),
    ],
)
def test_losses_that_cannot_be_are_refused(flags, words):
    """No term at all, no epoch or no term for a phase."""
    parser = config.Parser("")
    config.distillation(parser)
    add_flags(parser)
    config.training(parser)
    args = parser.parse_args([])
    vars(args).update(flags)
    with pytest.raises(UserError, match=words):
        active_terms(term_weights(vars(args)), args)


def test_knowledge_must_serve_the_terms():
    """Knowledge that cannot serve a term is refused with a sentence that says what to do.

    No domain feature, hidden states or layers, or scores of more heads than the student has.
    """
    manifest = {"domain_feature": True, "hidden_states": True, "attention_heads": "mean", "layers": [2]}
    check_knowledge_covers(ALL_TERMS, manifest, CONFIG)
    check_knowledge_covers(ALL_TERMS, {**manifest, "attention_heads": 4}, CONFIG)
    for changed, words in (
        ({"domain_feature": False}, "--transfer_loss_weight 0"),
        ({"hidden_states": False}, "--hidden_states"),
        ({"attention_heads": 12}, "--attention_heads mean"),
        ({"layers": []}, "--knowledge_layers"),
    ):
        with pytest.raises(UserError, match=words):
            check_knowledge_covers(ALL_TERMS, {**manifest, **changed}, CONFIG)
    check_knowledge_covers(
        {"soft": 1.0}, {"domain_feature": False, "hidden_states": False, "attention_heads": 12}, CONFIG
    )


# ------------------------------------------------------- decay and schedule (the steps: test_optimization.py)


def test_biases_and_layernorm_are_not_decayed():
    """By their names in a teacher; its other weights, embeddings too, are matrices."""
    for name, parameter in build_teacher(CONFIG, TASK, domain_head=True).named_parameters():
        assert is_undecayed(name) == (parameter.ndim == 1), name


@pytest.mark.parametrize("steps, warmup", [(100, 0.1), (100, 0.0), (100, 1.0), (7, 0.1), (1, 0.1), (1, 1.0)])
def test_the_learning_rate_rises_and_falls(steps, warmup):
    """The learning rate is above 0 and never above the peak.

    A straight line goes up to the peak, reached when the warm-up ends, and one goes down to 0.
    """
    rates = np.array([learning_rate_at(step, steps, warmup, 2.0) for step in range(steps)])
    w = round(warmup * steps)
    assert (rates > 0).all() and rates.max() == pytest.approx(2.0)
    np.testing.assert_allclose(rates[:w], 2.0 * np.arange(1, w + 1) / max(w, 1))
    np.testing.assert_allclose(rates[w:], 2.0 * np.arange(steps - w, 0, -1) / max(steps - w, 1))


# --------------------------------------------------------------------------------------- the loop


ON_CPU = choose_encoder("cpu", CPU, 2)


class Loop:
    """All that `train` takes, over 10 records in batches of 4, so 3 steps an epoch.

    It has a teacher's loss, which can be changed.
    """

    def __init__(self, folder, tiny_model, make_encoder=ON_CPU, **flags):
        self.args = argparse.Namespace(
            **{
                "num_epochs": 2,
                "batch_size_per_device": 4,
                "learning_rate": 1e-3,
                "weight_decay_rate": 0.01,
                "max_grad_norm": 1.0,
                "seed": 1,
                "warmup_proportion": 0.1,
                "eval_every_step_num": 2,
                "save_every_step_num": 2,
                "log_every_step_num": 100,
                "intermediate_epochs": 1,
                "resume_from": None,
                "device": "cpu",
                "num_nodes": 1,
                "gpu_num_per_node": 1,
                "max_steps": None,
                "gradient_accumulation_steps": 1,
                "lr_schedule": "linear",
                "early_stopping_patience": None,
                "save_total_limit": 1,
                "select_by": "accuracy",
                "defaults": {},
                **flags,
            }
        )
        self.run, self.arrays, self.model = (
            Run(folder),
            records(10),
            initialised(build_teacher(CONFIG, TASK, True, make_encoder=make_encoder)),
        )
        self.meta = {"kind": "teacher", "task": "senti", "labels": TASK.labels, "domains": TASK.domains}
        self.snapshots = Snapshots(
            self.run, "mft", self.model, tokenizer_for(tiny_model), self.meta, snapshot_options(self.args)
        )
        self.options = training_options(self.args)

    def loss(self, rows, epoch):
        batch = to_device(make_batch(self.arrays, rows), DOMAINS, CPU)
        return teacher_loss(self.model, batch, np.ones(len(rows), np.float32), np.zeros(len(rows), int), 0.5)

    def train(self, phases, on_dev=None):
        train(self.model, self.arrays, phases, self.options, self.run, self.snapshots, on_dev)

    def metrics(self):
        return [json.loads(line) for line in open(self.run.folder / "metrics.jsonl")]


@pytest.fixture
def loop(tmp_path, tiny_model):
    return Loop(tmp_path / "run", tiny_model)


def test_dropout_is_on_in_training_and_off_in_evaluation(loop):
    """Evaluation amid training gives the same twice.

    It leaves every module in training mode, after an exception too.
    """
    modes, accuracies = [], []

    def loss(rows, epoch):
        modes.append(all(module.training for module in loop.model.modules()))
        return loop.loss(rows, epoch)

    def on_dev():
        pair = [np.stack(infer(loop.model, loop.arrays, 4, DOMAINS, CPU, logits_of)) for _ in range(2)]
        accuracies.append(np.array_equal(*pair))
        return evaluate(loop.model, loop.arrays, TASK, 4, DOMAINS, CPU)

    loop.train(one_phase(loop.options, 10, loss), on_dev)
    assert modes == [True] * 6 and accuracies == [True] * 3
    logits = []
    for step in (0, 0, 1):
        loop.model.masks.open_step(1, step)
        logits.append(
            loop.model(to_device(make_batch(loop.arrays, np.arange(4)), DOMAINS, CPU)).logits.numpy().tolist()
        )
    assert logits[0] == logits[1] != logits[2]

    def broken(model, batch):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        infer(loop.model, loop.arrays, 4, DOMAINS, CPU, broken)
    assert all(module.training for module in loop.model.modules())


@pytest.mark.parametrize("broken", ["loss", "part", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_snapshots(loop, broken):
    """A loss, part or gradient that is not finite at step 4 gives a sentence that names it.

    snapshot_last is that of step 2.
    """
    count = []

    def loss(rows, epoch):
        count.append(1)
        value, parts = loop.loss(rows, epoch)
        if len(count) == 4:
            if broken == "loss":
                value = value * float("nan")
            elif broken == "part":
                parts = {**parts, "class": parts["class"] * float("inf")}
            else:
                value = value + flow.sqrt(0 * parts["class"])  # a slope of 0 * infinity
        return value, parts

    with pytest.raises(UserError) as error:
        loop.train(one_phase(loop.options, 10, loss))
    sentence = str(error.value)
    assert (
        sentence.startswith("step 4: ")
        and "not finite" in sentence
        and "--learning_rate" in sentence
        and "\n" not in sentence
    )
    assert {"loss": "loss", "part": "class", "gradient": "step 4: gradient_norm is"}[broken] in sentence
    assert json.loads((loop.run.folder / "snapshot_last" / "meta.json").read_text())["step"] == 2
    assert [line["step"] for line in loop.metrics()] == [1, 2, 3]


def test_only_the_second_phase_selects(loop):
    """Steps 1 to 3 have the first loss and no evaluation, steps 4 to 6 the second.

    Each phase has a fresh optimizer and schedule.
    """
    seen, evaluated = [], []

    def named(name):
        def loss(rows, epoch):
            seen.append((name, epoch, sorted(rows.tolist())))
            return loop.loss(rows, epoch)

        return loss

    def on_dev():
        evaluated.append(len(seen))
        return evaluate(loop.model, loop.arrays, TASK, 4, DOMAINS, CPU)

    loop.train(two_phases(loop.options, 10, named("first"), named("second")), on_dev)
    assert [entry[:2] for entry in seen] == [("first", 0)] * 3 + [("second", 1)] * 3
    assert (
        sorted(sum((rows for _, _, rows in seen[:3]), []))
        == sorted(sum((rows for _, _, rows in seen[3:]), []))
        == list(range(10))
    )
    assert evaluated == [4, 6]
    rates = [line["lr"] for line in loop.metrics() if "lr" in line]
    assert rates[:3] == rates[3:] and [line["step"] for line in loop.metrics() if "lr" in line] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_a_phase_without_a_use_for_a_weight_leaves_its_moments_at_zero(loop):
    """A student's first phase sends no gradient to the class head, whose moments stay at zero.

    This holds in a whole run as in a resumed one.
    """

    def domain_only(rows, epoch):
        _, parts = loop.loss(rows, epoch)
        return parts["domain"], {"domain": parts["domain"]}

    loop.train([Phase("first", 0, 2, domain_only)])
    arrays = load_file(loop.run.folder / "snapshot_last" / "optimizer.safetensors")
    assert not arrays["exp_avg.classifier.weight"].any() and arrays["exp_avg.domain_head.dense.weight"].any()


def metrics_with(accuracy):
    return {
        "examples": 4,
        "accuracy": accuracy,
        "domains": {},
        "domain_average": accuracy,
        "macro_f1": accuracy,
    }


def test_the_best_snapshot_is_the_first_with_the_highest_accuracy(loop):
    """One is kept; best.json names it at all times; a tie changes nothing."""
    kept = []
    for step, accuracy in enumerate((0.5, 0.75, 0.75, 0.25, 0.875), 1):
        loop.snapshots.save_best(step, metrics_with(accuracy))
        (folder,) = loop.run.folder.glob("snapshot_best_*")
        chosen = json.loads((loop.run.folder / "best.json").read_text())
        assert (
            folder.name == chosen["snapshot"] == f"snapshot_best_mft_model_senti_dev_{chosen['accuracy']!r}"
        )
        assert json.loads((folder / "meta.json").read_text())["step"] == chosen["step"]
        kept.append(chosen["step"])
    assert kept == [1, 2, 2, 2, 5]


def test_without_evaluation_the_last_snapshot_counts(loop):
    """best.json names snapshot_last, and no best snapshot is written."""
    loop.train(one_phase(loop.options, 10, loop.loss))
    assert json.loads((loop.run.folder / "best.json").read_text())["snapshot"] == "snapshot_last"
    assert not list(loop.run.folder.glob("snapshot_best_*"))


def test_a_log_line_averages_over_examples(tmp_path, capsys):
    """Batches of 7 and 1 examples with losses 1 and 5: 1.5; the next line starts anew."""
    log = StepLog(Run(tmp_path), 2, 0, 4)
    for step, (n, value) in enumerate([(7, 1.0), (1, 5.0), (2, 3.0), (2, 4.0)], 1):
        log.step(step, 0, "joint", np.arange(n), 1e-3, {"loss": value})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 2/4 | loss 1.5000 | lr 1.0e-03 | ") and lines[1].startswith(
        "step 4/4 | loss 3.5000 | "
    )
    assert (tmp_path / "log.txt").read_text().splitlines() == lines


# --------------------------------------------------------------------------------------- inference


def logits_of(model, batch):
    return list(model(batch).logits.numpy())


def test_inference_keeps_the_order_and_knows_no_neighbours():
    """One item per record, in record order, at any batch size; logits depend on no other in the batch."""
    model, arrays = initialised(DomainClassifier(CONFIG, 2, 4)).eval(), records(30)
    single = np.stack(infer(model, arrays, 1, DOMAINS, CPU, logits_of))
    np.testing.assert_allclose(np.stack(infer(model, arrays, 8, DOMAINS, CPU, logits_of)), single, atol=1e-5)
    assert infer(model, arrays, 8, DOMAINS, CPU, lambda model, batch: batch.host.idxs.tolist()) == list(
        range(30)
    )


def test_metrics_are_those_of_their_formulas():
    """Accuracy: over examples, per domain, and averaged over the domains that have examples.

    Macro-F1 is the mean of 2PR / (P + R).
    """
    stream = np.random.default_rng(0)
    label, predicted, domain = (
        stream.integers(0, 2, 60),
        stream.integers(0, 2, 60),
        stream.choice([0, 1, 3], 60, p=[0.6, 0.3, 0.1]),
    )
    found = classification_metrics(predicted, label, domain, TASK)
    right = predicted == label
    per_domain = {name: right[domain == k].mean() for name, k in (("books", 0), ("dvd", 1), ("kitchen", 3))}
    f1 = [2 * (right & (label == m)).sum() / ((label == m).sum() + (predicted == m).sum()) for m in (0, 1)]
    assert found["examples"] == 60 and found["accuracy"] == right.mean() and found["domains"] == per_domain
    assert found["domain_average"] == pytest.approx(np.mean(list(per_domain.values()))) and found[
        "macro_f1"
    ] == pytest.approx(np.mean(f1))
    assert (
        classification_metrics(0 * label, 0 * label, domain, TASK)["macro_f1"] == 1
    )  # a class that occurs nowhere does not count
    assert (
        classification_metrics(label % 1, 1 - 0 * label, domain, TASK)["macro_f1"] == 0
    )  # one that is answered does


def test_tensors_are_contiguous_copies():
    """A slice of an array becomes a tensor with its values: the engine would read what lies beside them."""
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(tensor(array, CPU).numpy(), array)
