"""The rows of the paper's table by flags, and faults of other implementations of Meta-KD.

Each fault has the test that would tell.
"""

import csv
import json

import numpy as np
import pytest
from conftest import TINY, best, call, stage_flags
from test_training import ALL_TERMS, CONFIG, CPU, DOMAINS, TASK, initialised, records, targets_for

from data.batches import make_batch
from data.store.knowledge import Knowledge
from data.store.records import Records
from modeling.bert.config import BertConfig
from modeling.inference import class_logits, to_device
from modeling.meta_kd.classifier import DomainClassifier, build_student, build_teacher, class_head_kind
from modeling.meta_kd.distillation import student_loss
from modeling.meta_kd.losses import softmax
from modeling.snapshots import manager
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.training import stage as training_stage

HARD = {
    "hard_label_weight": 1,
    "soft_label_weight": 0,
    "attention_loss_weight": 0,
    "representation_loss_weight": 0,
    "transfer_loss_weight": 0,
}


def done(outcome):
    assert outcome.code == 0, outcome.err
    return outcome


def steps_and_evaluations(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "dev" not in line], [line["dev"] for line in lines if "dev" in line]


# --------------------------------------------------------------------------------------- rows by flags


def test_a_multi_task_teacher_trains_teaches_and_is_evaluated(sandbox):
    """A teacher with one class head per domain is trained, evaluated, and teaches.

    Its test results come back from the snapshot alone, stage 3 stores its logits, a student learns.
    """
    flags = stage_flags(sandbox)
    done(
        call(
            "meta_teacher",
            sandbox,
            {
                **flags["meta_teacher"],
                "class_heads": "per_domain",
                "domain_loss_weight": 0,
                "model_save_dir": "multi",
            },
        )
    )
    snapshot = best(sandbox / "multi")
    folder = read_model(snapshot)
    assert class_head_kind(folder) == "per_domain" and folder.arrays[
        "domain_classifiers.dense.weight"
    ].shape == (8, TINY["hidden_size"])
    done(
        call(
            "meta_teacher",
            sandbox,
            {
                **flags["meta_teacher"],
                "do_train": False,
                "model_load_dir": snapshot,
                "model_save_dir": "again",
            },
        )
    )
    assert (sandbox / "again" / "results.json").read_bytes() == (
        sandbox / "multi" / "results.json"
    ).read_bytes()

    without = {
        **flags["meta_teacher"],
        "class_heads": "per_domain",
        "domain_loss_weight": 0,
        "model_save_dir": "without",
    }
    done(call("meta_teacher", sandbox, {**without, "exclude_domain": "dvd"}))
    later = {
        **without,
        "do_train": False,
        "model_load_dir": best(sandbox / "without"),
        "model_save_dir": "later",
    }
    done(
        call("meta_teacher", sandbox, later)
    )  # without --exclude_domain: dvd has the mean of the trained heads, as in the run
    test = [json.loads((sandbox / run / "results.json").read_text())["test"] for run in ("without", "later")]
    assert test[0] == test[1]

    done(
        call(
            "meta_teacher_eval",
            sandbox,
            {**flags["meta_teacher_eval"], "model_load_dir": snapshot, "knowledge_dir": "known"},
        )
    )
    model = build_teacher(folder.config, TASK, False, "per_domain")
    load_weights(model, folder, allow_missing=())
    arrays = Records(sandbox / "data" / "ofrecord" / "train", "train").arrays()
    logits = class_logits(model, arrays, TASK, 8, DOMAINS, CPU)
    stored = np.stack(
        [item["logits"] for item in Knowledge(sandbox / "known").read(arrays["idxs"].reshape(-1))]
    )
    np.testing.assert_allclose(stored, logits, rtol=1e-4, atol=1e-5)
    learn = {
        **flags["meta_distill"],
        "teacher_model": snapshot,
        "knowledge_dir": "known",
        "transfer_loss_weight": 0,
        "model_save_dir": "pupil",
    }
    done(call("meta_distill", sandbox, learn))
    assert "classifier.weight" in read_model(best(sandbox / "pupil")).arrays

    alone = {**learn, "do_train": False, "teacher_model": None, "student_layers": None}
    outcome = call("meta_distill", sandbox, {**alone, "student_model": "multi", "model_save_dir": "none"})
    assert outcome.code == 2 and "it holds a teacher, expected a student" in outcome.err
    assert "run meta_teacher.py on this one" in outcome.err and not (sandbox / "none").exists()


def test_hard_labels_need_no_teacher(sandbox):
    """Neither teacher nor knowledge is read, and the loss is the plain cross-entropy."""
    done(
        call(
            "meta_distill",
            sandbox,
            {**stage_flags(sandbox)["meta_distill"], **HARD, "teacher_model": None, "model_save_dir": "hard"},
        )
    )
    steps, _ = steps_and_evaluations(sandbox / "hard")
    assert all(line["loss"] == pytest.approx(line["hard"]) for line in steps) and "soft" not in steps[0]
    outcome = call(
        "meta_distill",
        sandbox,
        {**stage_flags(sandbox)["meta_distill"], "teacher_model": None, "model_save_dir": "soft"},
    )
    assert outcome.code == 2 and "--teacher_model is needed" in outcome.err


def test_a_student_is_evaluated_from_its_snapshot_alone(sandbox):
    """--do_eval alone needs no teacher or knowledge.

    It gives the results of the run, but for the teacher's beside them.
    """
    flags = {
        **stage_flags(sandbox)["meta_distill"],
        "do_train": False,
        "student_model": best(sandbox / "student"),
        "student_layers": None,
        "teacher_model": None,
        "model_save_dir": "again",
    }
    done(call("meta_distill", sandbox, flags))
    again, before = (json.loads((sandbox / run / "results.json").read_text()) for run in ("again", "student"))
    for beside in ("against_teacher", "teacher"):
        assert again.pop(beside) is None and before.pop(beside) is not None
    assert again == before


@pytest.mark.parametrize(
    "stage, more",
    [
        ("meta_teacher", {"domain": "dvd"}),
        ("meta_distill", {"domain": "dvd"}),
        ("meta_teacher", {"exclude_domain": "dvd"}),
    ],
)
def test_a_run_is_selected_on_its_own_domains(sandbox, stage, more):
    """--domain and --exclude_domain hold for training and dev; test keeps all domains.

    A misspelt keyword once swallowed this.
    """
    done(call(stage, sandbox, {**stage_flags(sandbox)[stage], **more, "model_save_dir": "one"}))
    steps, evaluations = steps_and_evaluations(sandbox / "one")
    mine = {"dvd"} if "domain" in more else set(TASK.domains) - {"dvd"}
    assert all(set(dev["domains"]) == mine for dev in evaluations)
    assert sum(line["examples"] for line in steps) == 2 * 8 * len(mine)  # of 2 epochs
    assert set(json.loads((sandbox / "one" / "results.json").read_text())["test"]["domains"]) == set(
        TASK.domains
    )


def test_every_prediction_is_stored(golden):
    """predictions.tsv has a line for each dev and test example.

    Probabilities sum to 1, the highest is the answer, and accuracy is as in results.json.
    """
    for run in ("teacher", "student"):
        results = json.loads((golden / run / "results.json").read_text())
        with open(golden / run / "predictions.tsv", encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        for split in ("dev", "test"):
            mine = [line for line in lines if line["split"] == split]
            assert [int(line["idxs"]) for line in mine] == list(range(results[split]["examples"]))
            assert np.mean([line["label"] == line["predicted"] for line in mine]) == pytest.approx(
                results[split]["accuracy"]
            )
        for line in lines:
            probabilities = {label: float(line[label]) for label in TASK.labels}
            assert sum(probabilities.values()) == pytest.approx(1, abs=2e-6) and probabilities[
                line["predicted"]
            ] == max(probabilities.values())


def test_softmax_is_that_of_the_formula():
    """exp(z) / sum exp(z) over the classes, also where exp(z) would overflow."""
    logits = np.array([[1.0, 2.0, 4.0], [1000.0, 999.0, -1000.0]], np.float32)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))
    np.testing.assert_allclose(softmax(logits), expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)


# ---------------------------------------------------------------------------- faults of other implementations


def test_the_transfer_target_is_the_teachers_feature_itself():
    """The term is the error against the stored feature, which passes through no layer of the student's."""
    terms = {"transfer": 1.0}
    model, batch = (
        initialised(build_student(CONFIG, TASK, 24, terms)).eval(),
        make_batch(records(), np.arange(6)),
    )
    tensors, targets = to_device(batch, DOMAINS, CPU), targets_for(batch, terms, expertise_weight="none")
    encoder = model(tensors).encoder
    mine = model.domain_feature(encoder, tensors).numpy() @ model.transfer_map.weight.numpy().T
    loss, _ = student_loss(model, tensors, targets, terms)
    assert loss.item() == pytest.approx(
        float(((mine - targets.domain_feature.numpy()) ** 2).mean()), rel=1e-4
    )


def test_attention_is_compared_before_dropout():
    """With dropout of attention alone, the first layer's scores are the same in training as in evaluation."""
    config = BertConfig.from_dict(
        {**CONFIG.to_dict(), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    )
    model, batch = (
        initialised(DomainClassifier(config, 2, 4)),
        to_device(make_batch(records(), np.arange(6)), DOMAINS, CPU),
    )
    found = {}
    for training in (True, False):
        model.train(training)
        model.masks.open_step(1, 0, 0, 1)
        answers = model(batch, (1,))
        found[training] = answers.encoder.scores[1].numpy(), answers.logits.numpy()
    np.testing.assert_array_equal(found[True][0], found[False][0])
    assert not np.allclose(found[True][1], found[False][1])  # the dropout was there


def test_the_teacher_speaks_in_eval_mode(golden):
    """Stored logits are those of the snapshot without dropout."""
    folder = read_model(best(golden / "teacher"))
    model = build_teacher(folder.config, TASK, True)
    load_weights(model, folder, allow_missing=())
    arrays = Records(golden / "data" / "ofrecord" / "train", "train").arrays()
    (known,) = (golden / "data" / "ofrecord").glob("knowledge-*")
    stored = np.stack([item["logits"] for item in Knowledge(known).read(arrays["idxs"].reshape(-1))])
    np.testing.assert_allclose(
        stored, class_logits(model.eval(), arrays, TASK, 8, DOMAINS, CPU), rtol=1e-4, atol=1e-5
    )


def test_no_epoch_runs_the_teacher(sandbox, monkeypatch):
    """Stage 4 makes one model, the student, and reads the weights of no other."""
    read, made = [], []
    for module in (manager, training_stage):
        monkeypatch.setattr(
            module, "read_model", lambda path, *rest: read.append(str(path)) or read_model(path, *rest)
        )
    built = DomainClassifier.__init__
    monkeypatch.setattr(
        DomainClassifier,
        "__init__",
        lambda self, config, *rest, **more: made.append(config) or built(self, config, *rest, **more),
    )
    done(call("meta_distill", sandbox, {**stage_flags(sandbox)["meta_distill"], "model_save_dir": "new"}))
    assert len(made) == 1 and made[0].num_hidden_layers == 2
    assert read == ["bert", str(sandbox / "new" / best(sandbox / "new").name)] or read == [
        "bert",
        f"new/{best(sandbox / 'new').name}",
    ]


def test_what_is_only_evaluated_must_bring_its_class_head(sandbox):
    """A snapshot whose class head is gone is refused: a random one would be tested in its place."""
    from safetensors.numpy import load_file, save_file

    from util import sha256

    snapshot = best(sandbox / "teacher")
    arrays = {
        name: array
        for name, array in load_file(snapshot / "model.safetensors").items()
        if not name.startswith("classifier.")
    }
    save_file(arrays, snapshot / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((snapshot / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = sha256(snapshot / "model.safetensors")
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    outcome = call(
        "meta_teacher",
        sandbox,
        {
            **stage_flags(sandbox)["meta_teacher"],
            "do_train": False,
            "model_load_dir": snapshot,
            "model_save_dir": "x",
        },
    )
    assert outcome.code == 2 and "classifier" in outcome.err


def test_the_terms_that_lambda_weights_are_those_of_the_layers():
    """Doubling lambda doubles attention, representation, hidden states and transfer alone.

    The terms of the labels stay as they are.
    """
    model, batch = (
        initialised(build_student(CONFIG, TASK, 24, ALL_TERMS)).eval(),
        make_batch(records(), np.arange(6)),
    )
    tensors, targets = to_device(batch, DOMAINS, CPU), targets_for(batch, ALL_TERMS)
    once, parts = student_loss(model, tensors, targets, ALL_TERMS)
    twice, _ = student_loss(model, tensors, targets._replace(expertise=2 * targets.expertise), ALL_TERMS)
    labels = sum(ALL_TERMS[name] * parts[name].item() for name in ("soft", "hard"))
    assert twice.item() - labels == pytest.approx(2 * (once.item() - labels), rel=1e-4)
