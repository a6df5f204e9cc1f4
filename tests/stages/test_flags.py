"""Flags of training and files of flags.

Accumulated gradients, schedules, the end of a run, the snapshots that are kept, --config, old names.
"""

import dataclasses
import json
import re
import shutil
import warnings

import numpy as np
import pytest
from conftest import ROOT, STAGES, best, call, call_process, stage_flags
from fuzz import rehash_snapshot
from test_cli import TRAINING_STAGES, refused
from test_faults import assert_whole, folder_states, restore
from test_stages import metrics, tree
from test_training import Loop, metrics_with

import config
from modeling.bert import dropout
from modeling.distributed.collective import shared_loss
from modeling.meta_kd.terms import add_flags
from modeling.snapshots.loading import load_weights
from modeling.snapshots.manager import COMPARED_BY_CONTENT, PER_CALL, read_model
from modeling.training.loop import accumulate_gradients, one_phase
from modeling.training.optimization import learning_rate_at, make_optimizer
from modeling.training.step_log import StepLog
from scripts.reproduce.flags import what
from util import UserError

# -------------------------------------------------------------------------------------- accumulated gradients


def set_dropout(model, rate):
    """Gives a model another rate of dropout, whichever encoder it has."""
    rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    model.bert.config = dataclasses.replace(model.bert.config, **rates)
    for module in model.modules():
        if isinstance(module, dropout.Dropout):
            module.rate = rate


def trained(folder, tiny_model, rate=0.0, **flags):
    """The Loop of test_training after one phase over its 10 records, with dropout at `rate`."""
    loop = Loop(folder, tiny_model, **flags)
    set_dropout(loop.model, rate)
    loop.train(one_phase(loop.options, 10, loop.loss))
    return loop


@pytest.mark.parametrize("batch, steps", [(3, 2), (1, 4)])
def test_accumulated_gradients_are_those_of_a_larger_batch(tmp_path, tiny_model, batch, steps):
    """Losses, norms and gradients are those of batches of `steps` times the size.

    The last steps have 4 examples (as 3 and 1) or 2.
    """
    one = trained(tmp_path / "one", tiny_model, batch_size_per_device=batch * steps)
    several = trained(
        tmp_path / "several", tiny_model, batch_size_per_device=batch, gradient_accumulation_steps=steps
    )
    assert [line["examples"] for line in one.metrics()] == [line["examples"] for line in several.metrics()]
    for line, other in zip(one.metrics(), several.metrics()):
        assert all(other[key] == pytest.approx(line[key], rel=1e-4) for key in line.keys() - {"phase"}), line[
            "step"
        ]
    found = []
    for loop in (one, several):  # the same weights and rows for both, and each weight's gradient
        load_weights(loop.model, read_model(one.run.folder / "snapshot_last"))
        optimizer = make_optimizer(loop.model, 1, 0)
        accumulate_gradients(
            shared_loss(loop.model),
            loop.loss,
            np.arange(batch * steps - 1),
            0,
            loop.options,
            loop.model,
            optimizer,
        )
        found.append({name: parameter.grad.numpy() for name, parameter in loop.model.named_parameters()})
    for name in found[0]:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-3, atol=1e-6, err_msg=name)


def test_each_part_of_a_step_has_dropout_masks_of_its_own(tmp_path, tiny_model, monkeypatch):
    """A run of accumulated steps opens no stream twice.

    The first part of each step has the streams of a run without the second.
    """
    drawn, whole = [], dropout.random_stream
    monkeypatch.setattr(
        dropout, "random_stream", lambda seed, name, *key: drawn.append(key) or whole(seed, name, *key)
    )
    flags = {"batch_size_per_device": 2, "num_epochs": 1}
    trained(tmp_path / "one", tiny_model, 0.1, **flags, max_steps=3)
    plain, drawn[:] = set(drawn), []
    trained(tmp_path / "two", tiny_model, 0.1, **flags, gradient_accumulation_steps=2)
    assert len(drawn) == len(set(drawn)) > len(plain) and plain < set(drawn)


def test_two_ranks_accumulate_too(sandbox):
    """Two ranks with 2 batches of 3 have the losses and norms of one rank with batches of 6.

    The last step has one example, and one rank has none.
    """
    still, path = (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        sandbox / "bert" / "config.json",
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), **still}))
    flags = {
        **stage_flags(sandbox)["meta_teacher"],
        "train_example_num": 31,
        "num_epochs": 1,
        "do_eval": False,
    }
    assert (
        call("meta_teacher", sandbox, {**flags, "batch_size_per_device": 6, "model_save_dir": "one"}).code
        == 0
    )
    two = {
        "batch_size_per_device": 3,
        "gradient_accumulation_steps": 2,
        "cpu_processes": 2,
        "model_save_dir": "two",
    }
    outcome = call_process("meta_teacher", sandbox, {**flags, **two})
    assert outcome.code == 0, outcome.err
    lines = metrics(sandbox / "one")
    assert sorted(line["examples"] for line in lines) == [1, 6, 6, 6, 6, 6] and len(lines) == len(
        metrics(sandbox / "two")
    )
    for line, other in zip(lines, metrics(sandbox / "two")):
        assert all(other[key] == pytest.approx(line[key], rel=2e-4) for key in line.keys() - {"phase"}), line[
            "step"
        ]


# --------------------------------------------------------------------------------------- schedule and end


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_schedules_are_those_of_their_formulas(warmup):
    """20 steps: the same warm-up, then half a cosine from the peak towards 0, or the peak."""
    w = int(20 * warmup)
    rates = {
        name: np.array([learning_rate_at(step, 20, warmup, 2.0, name) for step in range(20)])
        for name in ("linear", "cosine", "constant")
    }
    for found in rates.values():
        np.testing.assert_allclose(found[:w], rates["linear"][:w])
        assert (found > 0).all()
    np.testing.assert_allclose(rates["cosine"][w:], 1 + np.cos(np.pi * np.arange(20 - w) / (20 - w)))
    np.testing.assert_allclose(rates["constant"][w:], 2.0)


def test_max_steps_ends_the_run_and_its_schedule(tmp_path, tiny_model):
    """A run ends with --max_steps, and its rate falls to that step by the schedule that is asked for.

    7 steps or 2, where 2 epochs have 6.
    """
    for name, steps in (("more", 7), ("fewer", 2)):
        lines = trained(tmp_path / name, tiny_model, max_steps=steps, lr_schedule="cosine").metrics()
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        assert [line["lr"] for line in lines] == [
            learning_rate_at(step, steps, 0.1, 1e-3, "cosine") for step in range(steps)
        ]


def test_max_steps_of_two_phases_is_refused(golden):
    """It does not say where the second begins."""
    refused(
        golden, "meta_distill", "--max_steps 5", "--intermediate_epochs 0", max_steps=5, intermediate_epochs=1
    )


class Stop(Exception):
    pass


ACCURACIES = (
    0.5,
    0.75,
    0.625,
    0.875,
    0.75,
    0.875,
    0.9375,
    1.0,
)  # at steps 2, 4, ...: the best at step 8, then two that are not better


def patient(folder, tiny_model, resumed=False, macro_f1=ACCURACIES, **flags):
    """A run with patience 2 whose evaluations find ACCURACIES, and these values of macro-F1."""
    flags = {
        "num_epochs": 8,
        "early_stopping_patience": 2,
        "save_every_step_num": 3,
        "save_total_limit": 2,
        **flags,
    }
    loop = Loop(folder, tiny_model, **flags, resume_from=folder / "snapshot_last" if resumed else None)
    if resumed:
        last = read_model(folder / "snapshot_last")
        load_weights(loop.model, last)
        loop.snapshots.resume(last)

    def on_dev():
        place = loop.metrics()[-1]["step"] // 2 - 1
        return {**metrics_with(ACCURACIES[place]), "macro_f1": macro_f1[place]}

    loop.train(one_phase(loop.options, 10, loop.loss), on_dev)
    return loop


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory, tiny_model):
    """The Loop of such a run."""
    return patient(tmp_path_factory.mktemp("patience") / "run", tiny_model)


def test_a_run_ends_when_dev_is_no_better_for_long(stopped_early):
    """A run ends after the second evaluation in a row that is not above the best; a tie is not above.

    The last step is saved and the best is named.
    """
    folder = stopped_early.run.folder
    assert stopped_early.metrics()[-1] == {"step": 12, "dev": metrics_with(0.875)}
    assert json.loads((folder / "snapshot_last" / "meta.json").read_text())["step"] == 12
    assert json.loads((folder / "best.json").read_text())["step"] == 8
    assert (
        "no better accuracy on dev in 2 evaluations: the run ends with step 12"
        in (folder / "log.txt").read_text()
    )


@pytest.mark.parametrize("at", [4, 9, 12])
def test_a_resumed_run_ends_early_at_the_same_step(stopped_early, tmp_path, tiny_model, monkeypatch, at):
    """Broken off in step `at`, before its evaluation and save, then resumed: the same bytes."""
    folder, whole = tmp_path / "run", StepLog.step

    def step(self, number, *args):
        whole(self, number, *args)
        if number == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "step", step)
        with pytest.raises(Stop):
            patient(folder, tiny_model)
    patient(folder, tiny_model, resumed=True)
    assert tree(folder) == tree(stopped_early.run.folder)


def test_a_run_that_ended_early_does_nothing_more(stopped_early, tmp_path, tiny_model):
    """Resumed, it makes no step and keeps every byte."""
    folder = shutil.copytree(stopped_early.run.folder, tmp_path / "run", symlinks=True)
    patient(folder, tiny_model, resumed=True)
    assert tree(folder) == tree(stopped_early.run.folder)


def test_patience_of_a_script_ends_with_a_test_of_the_best(sandbox):
    """A learning rate too small to change an answer: the first evaluation is the best.

    The next one ends the run, and results are written.
    """
    flags = {"model_save_dir": "short", "learning_rate": 1e-9, "early_stopping_patience": 1}
    outcome = call("meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], **flags})
    assert outcome.code == 0 and [line["step"] for line in metrics(sandbox / "short") if "dev" in line] == [
        2,
        4,
    ], outcome.err
    assert (
        json.loads((sandbox / "short" / "results.json").read_text())["snapshot"]
        == best(sandbox / "short").name
    )


@pytest.mark.parametrize("encoder", ["cpu", "oneflow"])
def test_a_run_that_diverges_says_one_sentence(sandbox, encoder):
    """Nothing of numpy's before it."""
    flags = {"model_save_dir": "wild", "learning_rate": 1e15, "warmup_proportion": 0.0, "encoder": encoder}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outcome = call("meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], **flags})
    assert outcome.code == 2 and "not finite" in outcome.err and len(outcome.err.splitlines()) == 1
    assert [str(each.message) for each in told if "numpy" in str(each) or "encountered" in str(each)] == []


def test_patience_without_evaluations_is_refused(golden):
    """Without --do_eval it would never end anything."""
    for stage in TRAINING_STAGES:
        refused(
            golden, stage, "--early_stopping_patience", "--do_eval", early_stopping_patience=2, do_eval=False
        )


# -------------------------------------------------------------------------------- the snapshots that are kept


def kept(folder):
    """{step of a best snapshot in the folder: its accuracy by its name}."""
    return {
        json.loads((path / "meta.json").read_text())["step"]: float(path.name.rpartition("_")[2])
        for path in folder.glob("snapshot_best_*")
    }


def test_the_best_snapshots_are_kept(tmp_path, tiny_model):
    """Of 8 evaluations the 3 highest accuracies are kept, each by the first that had it.

    best.json names the best at all times.
    """
    loop, found = Loop(tmp_path / "run", tiny_model, save_total_limit=3), {}
    for step, accuracy in enumerate((0.5, 0.75, 0.75, 0.25, 0.875, 0.5, 0.625, 0.125), 1):
        loop.snapshots.save_best(step, metrics_with(accuracy))
        found.setdefault(accuracy, step)
        expected = {found[value]: value for value in sorted(found, reverse=True)[:3]}
        assert kept(loop.run.folder) == expected
        chosen = json.loads((loop.run.folder / "best.json").read_text())
        assert (chosen["step"], chosen["accuracy"]) == max(
            expected.items(), key=lambda pair: pair[1]
        ) and best(loop.run.folder).exists()


def test_a_kill_loses_none_of_the_best_snapshots(tmp_path, tiny_model):
    """A kill at any file event, while a third snapshot replaces the second, loses neither of the best.

    Both are whole, and the best is named.
    """
    loop = Loop(tmp_path / "run", tiny_model, save_total_limit=2)
    loop.run._log.close()
    for step, accuracy in ((1, 0.5), (2, 0.75)):
        loop.snapshots.save_best(step, metrics_with(accuracy))
    for state in folder_states(loop.run.folder, lambda: loop.snapshots.save_best(3, metrics_with(0.625))):
        restore(state, tmp_path / "state")
        assert_whole(tmp_path / "state")
        assert {2} < set(kept(tmp_path / "state")) and json.loads(state["best.json"])["step"] == 2
    assert kept(loop.run.folder) == {2: 0.75, 3: 0.625}


@pytest.mark.parametrize("others", [{}, "x", ["x"], [{"snapshot": "../x", "step": 1, "accuracy": 0.5}]])
def test_kept_snapshots_that_no_run_made_are_refused(sandbox, others):
    """They decide what is removed, as the best one does."""
    change(sandbox, lambda meta: meta.update(runners_up=others))
    refused(sandbox, "meta_teacher", "meta.json", model_save_dir=None, resume_from="teacher/snapshot_last")


# --------------------------------------------------------------------------------------- resuming


NEW_FLAGS = (
    "gradient_accumulation_steps",
    "lr_schedule",
    "max_steps",
    "early_stopping_patience",
    "save_total_limit",
    "select_by",
)


def change(folder, how):
    """Changes the meta.json of the teacher's snapshot_last, and its hash."""
    path = folder / "teacher" / "snapshot_last"
    meta = json.loads((path / "meta.json").read_text())
    how(meta)
    (path / "meta.json").write_text(json.dumps(meta))
    rehash_snapshot(path)


def test_a_run_is_another_with_other_flags_but_for_the_harmless(sandbox):
    """Flags that change steps, schedule or end are refused.

    How many snapshots are kept may differ, and the log says so.
    """
    resumed = {"model_save_dir": None, "resume_from": "teacher/snapshot_last"}
    for name, value in (
        ("gradient_accumulation_steps", 2),
        ("lr_schedule", "cosine"),
        ("max_steps", 20),
        ("early_stopping_patience", 3),
    ):
        refused(sandbox, "meta_teacher", f"--{name} ", f"this one has {value}", **resumed, **{name: value})
    outcome = call(
        "meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], **resumed, "save_total_limit": 4}
    )
    assert outcome.code == 0 and "--save_total_limit 4 instead of 1" in outcome.out


def test_a_run_older_than_a_flag_had_its_default(sandbox):
    """A snapshot without the flags of today: it goes on with their defaults, and with nothing else."""

    def age(meta):
        del meta["runners_up"]
        for name in NEW_FLAGS:
            del meta["flags"][name]

    change(sandbox, age)
    resumed = {"model_save_dir": None, "resume_from": "teacher/snapshot_last"}
    refused(
        sandbox, "meta_teacher", "had --lr_schedule linear", "has cosine", **resumed, lr_schedule="cosine"
    )
    outcome = call("meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], **resumed})
    assert outcome.code == 0 and "other flags" not in outcome.out, outcome.err


# --------------------------------------------------------------------------------------- a file of flags


@pytest.mark.parametrize("stage, run", [("meta_teacher", "teacher"), ("meta_distill", "student")])
def test_the_flags_of_a_run_make_it_again(golden, sandbox, stage, run):
    """--config RUN/flags.json and another folder give the same bytes.

    flags.json is among them; it holds all flags but those of one call.
    """
    outcome = call(stage, sandbox, {"config": f"{run}/flags.json", "model_save_dir": "again"})
    assert outcome.code == 0, outcome.err
    assert tree(sandbox / "again") == tree(golden / run)
    flags = json.loads((golden / run / "flags.json").read_text())
    assert flags.keys() & PER_CALL == {"cpu_processes", "gpu_num_per_node"}
    assert (
        flags.items()
        >= {
            name: value
            for name, value in stage_flags(golden)[stage].items()
            if name not in PER_CALL | COMPARED_BY_CONTENT
        }.items()
    )
    assert flags["data_dir"] == "data" and ("teacher_model" in flags) == (run == "student")


def parsed(folder, flags, *words):
    """The flags of a training script with a file of `flags`."""
    (folder / "flags.json").write_text(json.dumps(flags))
    return config.parse(
        "",
        config.task,
        config.device,
        config.training,
        config.distillation,
        add_flags,
        argv=["--config", str(folder / "flags.json"), *words],
    )


def test_the_command_line_wins_over_the_file(tmp_path):
    """The command line wins over the file, wherever --config stands.

    Required flags, numbers, switches, old names and null in the file.
    """
    flags = {
        "task_name": "senti",
        "data_dir": "data",
        "num_epochs": 4,
        "learning_rate": 1,
        "do_train": True,
        "do_eval": False,
        "vocab_file": None,
        "cpu_threads": "auto",
        "student_model": "-x",
        "loss_print_every_n_iter": 7,
        "save_last_snapshot": True,
    }
    args = parsed(tmp_path, flags, "--num_epochs", "5", "--seed=3")
    assert (args.num_epochs, args.seed, args.learning_rate, args.do_train, args.do_eval) == (
        5,
        3,
        1.0,
        True,
        False,
    )
    assert (args.vocab_file, args.student_model, args.log_every_step_num) == (None, "-x", 7)
    assert (
        args.changed.items() >= {"num_epochs": 5, "seed": 3, "do_train": True}.items()
        and "do_eval" not in args.changed
    )
    assert parsed(tmp_path, flags, "--log_every_step_num", "9").log_every_step_num == 9
    assert parsed(tmp_path, {**flags, "cpu_processes": 2}).cpu_processes == 2
    assert parsed(tmp_path, {**flags, "cpu_threads": 2}).cpu_threads == 2


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("sed", 1, "no flag 'sed'"),
        ("help", True, "no flag 'help'"),
        ("config", "x", "no flag 'config'"),
        ("seed", "1", "expected a whole number"),
        ("seed", 1.0, "found 1.0, expected a whole number"),
        ("seed", True, "found True"),
        ("seed", -1, "-1 is not of at least 0"),
        ("seed", [1], "found [1]"),
        ("resave_ofrecord", 1, "expected true or false"),
        ("data_dir", 1, "expected a string"),
        ("device", "tpu", "expected one of auto, cpu, cuda"),
        ("cpu_threads", "many", "found 'many', expected auto or a whole number"),
    ],
)
def test_a_file_with_a_wrong_flag_is_refused(golden, tmp_path, flag, value, words):
    """By every script, with the file and the flag in the sentence."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({flag: value}))
    for stage in STAGES:
        assert refused(golden, stage, words, config=file).startswith(f"error: --config {file}: ")


@pytest.mark.parametrize(
    "value, words",
    [
        ([], "found [], expected at least one value"),
        ([["a"], "b"], "found ['a'] in the list"),
        (["a", 1.5], "found 1.5"),
        (["a", "--do_train"], "found '--do_train' in the list"),
    ],
)
def test_a_wrong_list_in_a_file_of_flags_is_refused(tmp_path, value, words):
    """With the file and the flag in the sentence; no value is dropped or taken for a flag."""
    with pytest.raises(UserError) as error:
        parsed(tmp_path, {"task_name": "senti", "data_dir": "data", "teacher_model": value})
    assert str(error.value).startswith(f"--config {tmp_path / 'flags.json'}: --teacher_model: {words}")


@pytest.mark.parametrize(
    "group, flag, text, words",
    [
        (config.task, "seed", "one", "found 'one', expected a whole number"),
        (config.distillation, "temperature", "hot", "found 'hot', expected a number"),
        (config.device, "cpu_threads", "two", "expected auto or a whole number of at least 1"),
        (config.device, "cpu_threads", "0", "found '0', expected auto or a whole number of at least 1"),
        (config.extraction, "knowledge_layers", "2,x", "found '2,x', expected none or a rising list"),
        (config.extraction, "knowledge_layers", "", "found '', expected none or a rising list"),
        (what, "seeds", "1,x", "found 'x', expected a whole number"),
        (what, "seeds", "1,1", "found '1,1', expected different values"),
    ],
)
def test_a_value_of_another_kind_is_told_in_words(group, flag, text, words):
    """What was found and what is expected, and no name of a function."""
    with pytest.raises(UserError) as error:
        config.parse("", group, argv=[f"--{flag}={text}"])
    assert words in str(error.value) and "invalid" not in str(error.value)


def test_a_file_of_flags_that_is_none_is_refused(golden, tmp_path):
    """Missing, no JSON, no object, a folder; a flag of another script."""
    for content, words in (
        (None, "is missing"),
        ("num_epochs = 3", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"alpha": 0.5}', "no flag 'alpha'"),
    ):
        if content is not None:
            (tmp_path / "mine").write_text(content)
        refused(golden, "meta_teacher", str(tmp_path / "mine"), words, config=tmp_path / "mine")
    refused(golden, "meta_teacher", "directory", config=tmp_path)
    refused(golden, "meta_teacher", "expected one argument", flags={"config": True})


# --------------------------------------------------------------------------------------- old names


@pytest.mark.parametrize(
    "text, value", [("", True), ("True", True), ("false", False), ("0", False), ("1", True)]
)
def test_do_lower_case_means_what_it_says(tmp_path, text, value):
    """On the command line and in a file of flags; without it the model folder decides."""
    needed = {"task_name": "senti", "data_dir": "data"}
    assert parsed(tmp_path, needed).do_lower_case is None
    assert parsed(tmp_path, needed, "--do_lower_case", *text.split()).do_lower_case is value
    assert parsed(tmp_path, {**needed, "do_lower_case": value}).do_lower_case is value


def test_old_names_are_understood(tmp_path):
    """Two have another name now; three say what holds anyhow, and leave nothing behind."""
    needed = {"task_name": "senti", "data_dir": "data"}
    words = (
        "--loss_print_every_n_iter 3 --model_save_every_n_iter 4 --save_last_snapshot "
        "--train_data_prefix part- --train_data_part_num 8 --use_fp16 False"
    ).split()
    old, new = (
        parsed(tmp_path, needed, *words),
        parsed(tmp_path, needed, "--log_every_step_num", "3", "--save_every_step_num", "4"),
    )
    assert old == new
    with pytest.raises(UserError, match="--use_fp16: half precision is not built"):
        parsed(tmp_path, needed, "--use_fp16")


def test_names_of_transformers_are_understood(tmp_path):
    """Each sets the flag that has another name here."""
    needed = {"task_name": "senti", "data_dir": "data"}
    theirs = (
        "--output_dir out --max_seq_length 40 --num_train_epochs 2 --warmup_ratio 0.2 "
        "--lr_scheduler_type cosine"
    )
    ours = "--model_save_dir out --seq_length 40 --num_epochs 2 --warmup_proportion 0.2 --lr_schedule cosine"
    assert parsed(tmp_path, needed, *theirs.split()) == parsed(tmp_path, needed, *ours.split())
    words = "--task_name senti --data_dir data --model_name_or_path bert".split()
    assert config.parse("", config.task, config.model, argv=words).model_load_dir == "bert"


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_tells_its_version(tmp_path, stage):
    """That of pyproject.toml."""
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert call(stage, tmp_path, {"version": True}).out.strip() == version


def test_help_says_which_old_names_there_are(tmp_path):
    """In one paragraph, not as flags of their own."""
    text = " ".join(call("meta_teacher", tmp_path, {"help": True}).out.split())
    assert (
        "--loss_print_every_n_iter is --log_every_step_num" in text
        and text.count("--train_data_part_num") == 1
    )
