"""Students by flags: what they start from, and the weights that their examples get."""

import numpy as np
import pytest
from conftest import best, call, stage_flags

import meta_distill
from modeling.meta_kd.losses import domain_expertise, spread_weights
from modeling.snapshots.folder import read_model


def learn(folder, **more):
    """Stage 4 with other flags, into the run folder `pupil`; returns what it printed."""
    flags = {**stage_flags(folder)["meta_distill"], "model_save_dir": "pupil", **more}
    outcome = call("meta_distill", folder, flags)
    assert outcome.code == 0, outcome.err
    return outcome.out


def first_weights(monkeypatch, folder, **more):
    """{name: array} of a student before its first step, and what the run printed."""
    found = {}

    def note(model, *rest):
        found.update({name: each.numpy().copy() for name, each in model.named_parameters()})

    monkeypatch.setattr(meta_distill, "train", note)
    monkeypatch.setattr(meta_distill, "best_snapshot", lambda run: None)
    monkeypatch.setattr(meta_distill, "evaluate_snapshot", lambda *rest: None)
    return found, learn(folder, **more)


# --------------------------------------------------------------------------------------- what it starts from


def test_a_student_that_starts_from_its_teacher_has_its_layers_and_its_heads(sandbox, monkeypatch):
    """Layers 2 and 4 of 4, embeddings, pooler, class head and domain head are the teacher's numbers."""
    snapshot = best(sandbox / "teacher")
    found, printed = first_weights(monkeypatch, sandbox, student_model=snapshot, student_layers=2)
    teacher, taken = read_model(snapshot).arrays, {"0": "1", "1": "3"}
    for name, array in found.items():
        parts = name.split(".")
        if "layer" in parts:
            place = parts.index("layer") + 1
            parts[place] = taken[parts[place]]
        np.testing.assert_array_equal(array, teacher[".".join(parts)], err_msg=name)
    assert {"classifier.weight", "bert.pooler.dense.weight"} < set(found) and " 0 new" in printed


def test_a_student_takes_no_class_head_that_does_not_fit(sandbox, monkeypatch):
    """A teacher with a class head for each domain gives its layers; the log says that the head is new."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "class_heads": "per_domain", "model_save_dir": "multi"}
    assert call("meta_teacher", sandbox, flags).code == 0
    found, printed = first_weights(monkeypatch, sandbox, student_model="multi", student_layers=2)
    teacher = read_model(best(sandbox / "multi")).arrays
    np.testing.assert_array_equal(
        found["bert.pooler.dense.weight"], teacher["bert.pooler.dense.weight"], err_msg="pooler"
    )
    assert "2 new (classifier.weight, classifier.bias)" in printed


# --------------------------------------------------------------------------------------- lambda, spread


def test_spread_expertise_is_that_of_the_whole_training_set(sandbox, monkeypatch):
    """Every example of every batch has lambda as stretched over all: mean 1, the deviation asked for."""
    seen, known = {}, {}
    compute, prepare = meta_distill.make_targets, meta_distill.spread_expertise

    def note_targets(items, batch, *rest):
        targets = compute(items, batch, *rest)
        seen.update(zip(batch.idxs.tolist(), targets.expertise.numpy().tolist()))
        return targets

    def note_examples(examples, knowledge, spread):
        known["scores"], known["label"] = examples["weights"].reshape(-1), examples["label"].reshape(-1)
        known["idxs"], known["logits"] = examples["idxs"], knowledge.logits(examples["idxs"])
        return prepare(examples, knowledge, spread)

    monkeypatch.setattr(meta_distill, "make_targets", note_targets)
    monkeypatch.setattr(meta_distill, "spread_expertise", note_examples)
    learn(sandbox, expertise_weight="spread", expertise_spread=0.2)
    plain = domain_expertise(known["scores"], known["logits"], known["label"])
    expected = 1 + 0.2 * (plain - plain.mean()) / plain.std()
    assert expected.min() > 0 and len(seen) == len(expected)
    np.testing.assert_allclose([seen[number] for number in known["idxs"].tolist()], expected, rtol=1e-4)


def test_spread_weights_are_cut_at_zero_and_average_one():
    """A deviation beyond what the values bear leaves no weight below 0; equal values weigh the same."""
    values = np.array([0.1, 0.5, 0.6, 0.7, 0.9], np.float32)
    weights = spread_weights(values, 3.0)
    assert weights.min() == 0 and weights.mean() == pytest.approx(1) and (np.diff(weights) >= 0).all()
    assert (spread_weights(np.full(3, 0.6, np.float32), 0.5) == 1).all()
