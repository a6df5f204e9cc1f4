"""Several teachers for one student: the mean of what they know, and runs of stage 4 that learn from it."""

import argparse
import json
import shutil

import numpy as np
import pytest
from conftest import TINY, best, call, stage_flags
from test_training import CPU

from data.batches import Batch
from data.store.knowledge import Knowledge
from modeling.meta_kd.distillation import make_targets
from modeling.meta_kd.ensemble import Ensemble, describe_difference, weight_shares
from modeling.meta_kd.losses import domain_expertise, log_mean_softmax
from modeling.snapshots import manager
from modeling.snapshots.saving import save_snapshot
from util import UserError, sha256

IDXS = [3, 0, 17]


def done(outcome):
    assert outcome.code == 0, outcome.err
    return outcome


def train_teacher(folder, name, **more):
    """Stages 2 and 3 of one more teacher: the run `name`, its knowledge in `known-<name>`."""
    flags, extract = stage_flags(folder), {"attention_heads": more.pop("attention_heads", None)}
    done(call("meta_teacher", folder, {**flags["meta_teacher"], "model_save_dir": name, **more}))
    flags = {
        **flags["meta_teacher_eval"],
        "model_load_dir": name,
        "knowledge_dir": f"known-{name}",
        **extract,
    }
    done(call("meta_teacher_eval", folder, flags))


@pytest.fixture(scope="module")
def teachers(golden, tmp_path_factory):
    """The golden sandbox with two more teachers, of another seed and of one domain. Not to be changed."""
    folder = shutil.copytree(golden, tmp_path_factory.mktemp("teachers") / "sandbox", symlinks=True)
    train_teacher(folder, "second", seed=2)
    train_teacher(folder, "books", domain="books", domain_loss_weight=0)
    flags = {**stage_flags(folder)["meta_teacher_eval"], "knowledge_dir": "known-teacher"}
    done(call("meta_teacher_eval", folder, flags))
    return folder


@pytest.fixture
def sandbox(teachers, tmp_path):
    return shutil.copytree(teachers, tmp_path / "sandbox", symlinks=True)


def known(folder, *names):
    return [Knowledge(folder / f"known-{name}") for name in names]


def learn(folder, *names, **more):
    """Stage 4 from the teachers of those names."""
    flags = {
        **stage_flags(folder)["meta_distill"],
        "teacher_model": list(names),
        "knowledge_dir": [f"known-{name}" for name in names],
        "model_save_dir": "pupil",
        **more,
    }
    return call("meta_distill", folder, flags)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


# --------------------------------------------------------------------------------------- the mean


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_the_softmax_of_the_mean_is_the_mean_of_the_softmaxes(temperature):
    """By the plain formula; answers that are 2,000 apart stay finite, with the probability 0 for no class."""
    logits = np.random.default_rng(1).normal(0, 3, (3, 5, 4)).astype(np.float32)
    weights = np.array([0.5, 0.3, 0.2])
    mean = log_mean_softmax(logits, weights, temperature)
    expected = np.tensordot(weights, softmax(logits / temperature), 1)
    np.testing.assert_allclose(softmax(mean / temperature), expected, rtol=1e-5)
    far = log_mean_softmax(np.array([[[1000.0, -1000.0]], [[999.0, -1000.0]]]), np.array([0.5, 0.5]))
    assert np.isfinite(far).all() and far[0, 1] == pytest.approx(
        np.log((np.exp(-1) + 1) / 2) - 1999, abs=0.01
    )


def test_attention_vectors_and_answers_are_means_by_weight(teachers):
    """Each array of an example is sum of w times the teachers', the weights scaled to add up to 1."""
    members = known(teachers, "teacher", "second")
    ensemble = Ensemble(members, [3, 1])
    for mean, first, second in zip(ensemble.read(IDXS), *(member.read(IDXS) for member in members)):
        for name in ("representation", "domain_feature", "attention"):
            expected = 0.75 * first[name].astype(np.float64) + 0.25 * second[name].astype(np.float64)
            np.testing.assert_allclose(mean[name], expected, atol=1e-6)
        expected = 0.75 * softmax(first["logits"]) + 0.25 * softmax(second["logits"])
        np.testing.assert_allclose(softmax(mean["logits"]), expected, rtol=1e-5)
    np.testing.assert_allclose(ensemble.logits(IDXS), [item["logits"] for item in ensemble.read(IDXS)])


@pytest.mark.parametrize(
    "weights, expected",
    [([1, 3], [0.25, 0.75]), ([1e308, 1e308], [0.5, 0.5]), ([5e-324, 5e-324, 1e-323], [0.25, 0.25, 0.5])],
)
def test_weights_of_any_size_add_up_to_1(weights, expected):
    """Also where their sum is more than a float holds."""
    assert weight_shares(weights).tolist() == expected


def test_a_weight_that_would_not_count_is_refused():
    """Beside one that is so much larger that its share is 0."""
    with pytest.raises(UserError, match="--teacher_weights: found 1e-300 beside 1e[+]200, expected weights"):
        weight_shares([1e200, 1e-300])


def test_lambda_takes_the_mean_probability_and_the_loss_the_mean_of_the_softened_answers(teachers):
    """At a temperature of 4 the one is not the other: p_y is averaged at temperature 1, the targets at 4."""
    members = known(teachers, "teacher", "second")
    items = Ensemble(members, temperature=4.0).read(IDXS)
    n, label = np.ones((3, 30), np.int32), np.array([0, 1, 0])
    batch = Batch(n, n, n, label, label, np.array(IDXS), np.array([0.5, 0.2, 0.9], np.float32))
    args = argparse.Namespace(expertise_weight="lambda", attention_match="raw", temperature=4.0)
    manifest = {"layers": [], "attention_heads": "mean"}
    targets = make_targets(items, batch, {"soft": 1.0, "transfer": 1.0}, {}, manifest, args, CPU)
    answers = np.stack([[item["logits"] for item in member.read(IDXS)] for member in members])
    np.testing.assert_allclose(
        softmax(targets.logits.numpy() / 4), softmax(answers / 4).mean(axis=0), rtol=1e-5
    )
    gold = softmax(answers).mean(axis=0)[np.arange(3), label]
    expected = (1 + batch.weights) / (np.exp((gold - 1) ** 2) + 1)
    np.testing.assert_allclose(targets.expertise.numpy(), expected, rtol=1e-5)
    assert domain_expertise(batch.weights, answers[0], label) != pytest.approx(expected, rel=1e-4)


# --------------------------------------------------------------------------------------- runs of stage 4


def test_a_student_of_several_teachers_says_whose_it_is(sandbox):
    """Log, meta.json and model card name all teachers; attention and vectors are among what it learned."""
    outcome = done(learn(sandbox, "teacher", "second", teacher_weights=[1, 3]))
    assert "knowledge of 2 teachers: known-teacher x 0.25, known-second x 0.75; terms soft" in outcome.out
    hashes = [sha256(best(sandbox / name) / "model.safetensors") for name in ("teacher", "second")]
    snapshot = best(sandbox / "pupil")
    meta = json.loads((snapshot / "meta.json").read_text())
    assert meta["teacher_sha256"] == hashes and meta["flags"]["teacher_weights"] == [1, 3]
    assert all(each in (snapshot / "README.md").read_text() for each in hashes)
    first = json.loads((sandbox / "pupil" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"soft", "attention", "representation", "transfer"} <= first.keys()


def test_a_killed_run_of_several_teachers_resumes_to_the_same_bytes(sandbox, monkeypatch):
    """Weights and log of steps; with other weights, other teachers or another order it is refused."""
    done(learn(sandbox, "teacher", "second", model_save_dir="whole"))

    def save_and_die(path, *args, **kwargs):
        save_snapshot(path, *args, **kwargs)
        if path.name == "snapshot_last":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manager, "save_snapshot", save_and_die)
        learn(sandbox, "teacher", "second")
    for names, more, words in (
        (("teacher", "second"), {"teacher_weights": [1, 2]}, "--teacher_weights None"),
        (("second", "teacher"), {}, "another teacher"),
        (("teacher",), {}, "another teacher"),
    ):
        outcome = learn(sandbox, *names, resume=True, **more)
        assert outcome.code == 2 and words in outcome.err
    done(learn(sandbox, "teacher", "second", resume=True))
    for name in ("model.safetensors", "meta.json"):
        assert (best(sandbox / "pupil") / name).read_bytes() == (best(sandbox / "whole") / name).read_bytes()
    logs = [(sandbox / run / "metrics.jsonl").read_bytes() for run in ("pupil", "whole")]
    assert logs[0] == logs[1]


def test_teachers_of_other_structure_teach_by_their_answers_alone(sandbox):
    """Where one of two teachers stored each head, the log says so and no term of the layers is left.

    Without soft labels there would be nothing to learn from: refused.
    """
    train_teacher(sandbox, "heads", seed=3, attention_heads="all")
    outcome = done(learn(sandbox, "teacher", "heads"))
    assert (
        f"their answers alone, since they differ in heads (mean / {TINY['num_attention_heads']})"
        in outcome.out
    )
    first = json.loads((sandbox / "pupil" / "metrics.jsonl").read_text().splitlines()[0])
    assert "soft" in first and not {"attention", "representation", "transfer"} & first.keys()
    outcome = learn(sandbox, "teacher", "heads", soft_label_weight=0, model_save_dir="nothing")
    assert outcome.code == 2 and "there are only answers to learn from" in outcome.err
    outcome = learn(sandbox, "teacher", "heads", intermediate_epochs=1, model_save_dir="nothing")
    assert outcome.code == 2 and "nothing for the first phase: set it to 0" in outcome.err


def test_heads_of_which_nothing_is_stored_are_no_difference():
    """After --knowledge_layers none the vectors are averaged, whatever --attention_heads said."""
    manifests = [{"width": 16, "layers": [], "attention_heads": heads} for heads in ("mean", 4)]
    assert describe_difference(manifests) == ""
    assert "heads (mean / 4)" in describe_difference([{**each, "layers": [1]} for each in manifests])


def test_a_teacher_of_one_domain_has_to_answer_every_text(sandbox):
    """With stage 3 over all texts it teaches; with stage 3 over its own domain a sentence says what to do."""
    flags = {"transfer_loss_weight": 0}  # it has no domain feature
    done(learn(sandbox, "teacher", "books", **flags))
    narrow = {**stage_flags(sandbox)["meta_teacher_eval"], "model_load_dir": "books", "domain": "books"}
    done(call("meta_teacher_eval", sandbox, {**narrow, "knowledge_dir": "narrow"}))
    outcome = learn(
        sandbox, "teacher", "books", knowledge_dir=["known-teacher", "narrow"], model_save_dir="new", **flags
    )
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "narrow: found no knowledge of 24 examples" in outcome.err and "without --domain." in outcome.err
    outcome = learn(sandbox, "teacher", "books", model_save_dir="new")
    assert outcome.code == 2 and "--transfer_loss_weight 0" in outcome.err


def test_mistakes_in_several_teachers_are_sentences(sandbox):
    """The same teacher twice, another number of weights or of folders, texts that none has answered,
    several folders in stage 3.
    """
    (sandbox / "more.tsv").write_text("review\nthe book is fine\n")
    for names, more, words in (
        (("teacher", "teacher"), {}, "the same weights"),
        (("teacher", "second"), {"teacher_weights": [1]}, "--teacher_weights: found 1 for the 2"),
        (("teacher", "second"), {"knowledge_dir": ["known-teacher"]}, "--knowledge_dir: found 1 for the 2"),
        (("teacher", "second"), {"knowledge_dir": ["known-teacher"] * 2}, "of another teacher"),
        (("teacher", "second"), {"knowledge_dir": None}, "this teacher is second/snapshot_"),
        (("teacher", "second"), {"unlabelled_file": "more.tsv"}, "and with the same --unlabelled_file"),
    ):
        outcome = learn(sandbox, *names, **more)
        assert outcome.code == 2 and words in outcome.err and len(outcome.err.splitlines()) == 1
    flags = {**stage_flags(sandbox)["meta_teacher_eval"], "knowledge_dir": ["a", "b"]}
    outcome = call("meta_teacher_eval", sandbox, flags)
    assert outcome.code == 2 and "expected one" in outcome.err


def test_the_flags_of_a_run_with_several_teachers_make_it_again(sandbox):
    """flags.json holds lists, and --config takes them."""
    done(learn(sandbox, "teacher", "second", teacher_weights=[1, 3]))
    done(call("meta_distill", sandbox, {"config": "pupil/flags.json", "model_save_dir": "again"}))
    weights = [best(sandbox / run) / "model.safetensors" for run in ("pupil", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
