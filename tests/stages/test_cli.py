"""What a user can get wrong: each mistake is one sentence on standard error and exit code 2.

Every file stays as it was.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import conftest
import pytest
from conftest import ROOT, STAGES, best, call, call_process, stage_flags
from fuzz import rehash_snapshot
from safetensors.numpy import load_file, save_file
from test_stages import CLOCKED, tree

import config
import meta_distill
from data.store.files import LOCK, lock
from modeling.meta_kd.idle_flags import check_student_flags
from util import sha256

TRAINING_STAGES = ("meta_teacher", "meta_distill")
NEW = {stage: {"model_save_dir": "new"} for stage in TRAINING_STAGES}  # a run folder that is not there yet


def refused(folder, stage, *words, flags=None, **changed):
    """Runs a stage with the golden flags but for `changed`.

    Asserts that it is refused as it should be, with all `words`.
    """
    if flags is None:
        flags = {**stage_flags(folder)[stage], **NEW.get(stage, {}), **changed}
    before = tree(folder)
    outcome = call(stage, folder, flags)
    assert outcome.code == 2, outcome
    assert re.fullmatch(r"error: [^\n]+[.?)a-z]\n", outcome.err), outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert tree(folder) == before and not [
        path for path in folder.rglob(".*") if not path.name.endswith(CLOCKED)
    ]
    return outcome.err


# --------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_every_flag_with_its_default(stage, tmp_path):
    """--help ends with 0, says what the stage does, and shows each default once, and none where none is."""
    outcome = call(stage, tmp_path, {"help": True})
    text = " ".join(outcome.out.split())
    assert outcome.code == 0 and outcome.err == "" and f"Stage {STAGES.index(stage) + 1}:" in text
    assert "--seed SEED every random draw is a function of it (default: 42)" in text
    assert (
        "(default: DATA_DIR/ofrecord)" in text
        and "default: None" not in text
        and "default: False" not in text
    )


SLOW_IMPORTS = ("oneflow", "sklearn", "matplotlib", "safetensors")
WITHOUT_THE_ENGINE = [
    *((f"{stage}.py", "--help") for stage in STAGES),
    *((f"{stage}.py", "--no_such_flag") for stage in STAGES),
    *(("-m", f"data.prepare.{name}", "--help") for name in ("amazon", "mnli", "import_tsv", "fetch")),
    ("-m", "modeling.convert", "--help"),
    ("-m", "modeling.speed", "--help"),
]


@pytest.mark.parametrize("words", WITHOUT_THE_ENGINE, ids=" ".join)
def test_what_needs_no_engine_does_not_import_it(tmp_path, words):
    """Help and wrong flags come at once: none of the packages that take long is there to be imported."""
    for name in SLOW_IMPORTS:
        (tmp_path / f"{name}.py").write_text("raise ImportError('this takes seconds')")
    command = [sys.executable, *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in words else 2), done.stderr
    assert done.stdout.startswith("usage:") or "unrecognized arguments: --no_such_flag" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "changed, words",
    [
        ({"learning_rates": 1}, "--learning_rates"),
        ({"seq_len": 32}, "--seq_len"),
        ({"seed": "x"}, "--seed"),
        ({"seed": -1}, "-1 is not of at least 0"),
        ({"seq_length": 2}, "2 is not of at least 3"),
        ({"device": "tpu"}, "--device"),
        ({"data_portion": 1.5}, "at most 1.0"),
        ({"data_portion": 0}, "0 is not above 0"),
        ({"data_portion": "nan"}, "nan is not"),
        ({"data_dir": None}, "--data_dir"),
    ],
)
def test_flags_that_are_wrong_are_refused(golden, stage, changed, words):
    """Unknown, abbreviated, of the wrong kind, out of range, or missing; the sentence points to --help."""
    assert f"'{stage}.py --help' lists the flags" in refused(golden, stage, words, **changed)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"learning_rate": "inf"}, "inf is not"),
        ({"learning_rate": 0}, "0 is not above"),
        ({"warmup_proportion": 1.1}, "at most 1.0"),
        ({"num_epochs": 0}, "0 is not of at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(golden, changed, words):
    """Numbers of training: finite, above 0, shares up to 1."""
    for stage in TRAINING_STAGES:
        refused(golden, stage, words, **changed)


COMMANDS = {
    "preprocess": (
        "--task_name senti --model_load_dir uncased_L-12_H-768_A-12_oneflow --data_dir data/SENTI/ "
        "--num_epochs 4 --seed 42 --seq_length=128 --train_example_num 6480 "
        "--vocab_file uncased_L-12_H-768_A-12/vocab.txt --resave_ofrecord"
    ),
    "meta_teacher": (
        "--task_name senti --model_load_dir uncased_L-12_H-768_A-12_oneflow --data_dir data/SENTI/ "
        "--num_epochs 63 --seed 42 --seq_length=128 --train_example_num 6480 --eval_example_num 720 "
        "--batch_size_per_device 24 --eval_batch_size_per_device 48 --eval_every_step_num 100 "
        "--vocab_file uncased_L-12_H-768_A-12/vocab.txt --learning_rate 5e-5 --resave_ofrecord --do_train "
        "--do_eval"
    ),
    "meta_teacher_eval": (
        "--task_name senti "
        "--model_load_dir output/model_save-2021-09-26-15:31:15/snapshot_best_mft_model_senti_dev_0.87 "
        "--data_dir data/SENTI/ --num_epochs 4 --seed 42 --seq_length=128 --train_example_num 6480 "
        "--eval_batch_size_per_device 1 --vocab_file uncased_L-12_H-768_A-12/vocab.txt --resave_ofrecord"
    ),
    "meta_distill": (
        "--task_name senti --student_model uncased_L-12_H-768_A-12_oneflow "
        "--teacher_model output/model_save-2021-09-26-15:31:15/snapshot_best_mft_model_senti_dev_0.87 "
        "--data_dir data/SENTI/ --num_epochs 63 --seed 42 --seq_length=128 --train_example_num 6480 "
        "--eval_example_num 720 --batch_size_per_device 24 --eval_batch_size_per_device 48 "
        "--eval_every_step_num 100 --vocab_file uncased_L-12_H-768_A-12/vocab.txt --learning_rate 5e-5 "
        "--resave_ofrecord --do_train --do_eval"
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_documented_commands_are_understood(tmp_path, monkeypatch, stage):
    """Their flags are all known: what stops them here is the data that is missing."""
    monkeypatch.setattr(conftest, "words", str.split)
    monkeypatch.setattr("modeling.distributed.launch.launch", lambda *where: None)
    outcome = call(stage, tmp_path, COMMANDS[stage])
    assert outcome.code == 2 and outcome.err.startswith("error: data/SENTI/: no such folder"), outcome.err


def test_a_mistake_is_a_sentence_in_a_process_too(golden):
    """Nothing of the interpreter or the engine is added on its way out."""
    outcome = call_process(
        "meta_teacher",
        golden,
        {**stage_flags(golden)["meta_teacher"], "model_save_dir": "new", "model_load_dir": "nowhere"},
    )
    assert (outcome.code, outcome.err) == (
        2,
        "error: --model_load_dir nowhere: there is no such folder; models are not fetched by name: download "
        "one and name its folder.\n",
    )


# --------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_model_is_refused(golden, stage):
    """A folder that is not there, one that is no model, and no flag at all; the sentence names the flag."""
    flag = "student_model" if stage == "meta_distill" else "model_load_dir"
    refused(golden, stage, f"--{flag} nowhere", "no such folder", **{flag: "nowhere"})
    refused(golden, stage, "data", "config.json is missing", **{flag: "data"})
    refused(golden, stage, f"--{flag} is needed", **{flag: None})


@pytest.mark.parametrize("stage", STAGES)
def test_texts_longer_than_the_model_reads_are_refused(golden, stage):
    """--seq_length above the model's positions."""
    refused(golden, stage, "--seq_length 33", "32 positions", seq_length=33)


@pytest.mark.parametrize("stage", STAGES)
def test_a_vocabulary_that_is_none_is_refused(sandbox, stage):
    """Missing, of another model, or larger than the embeddings."""
    refused(sandbox, stage, "nowhere.txt", vocab_file="nowhere.txt")
    refused(sandbox, stage, "train.tsv", vocab_file="data/train.tsv")
    (sandbox / "large.txt").write_text((sandbox / "bert" / "vocab.txt").read_text() + "more\n")
    refused(sandbox, stage, "large.txt", "41 tokens", vocab_file="large.txt")


def test_only_a_teacher_can_be_asked_for_knowledge(golden):
    """Stages 3 and 4 refuse a plain model and a student as the teacher."""
    student = best(golden / "student").relative_to(golden)
    refused(golden, "meta_teacher_eval", "bert", "not trained here", model_load_dir="bert")
    refused(golden, "meta_teacher_eval", str(student), "a student", model_load_dir=student)
    refused(golden, "meta_distill", "--teacher_model bert", "meta.json is missing", teacher_model="bert")
    refused(golden, "meta_distill", str(student), "a student", teacher_model=student)
    refused(golden, "meta_distill", "--teacher_model is needed", teacher_model=None)


def test_a_damaged_teacher_is_refused(sandbox):
    """A changed byte in its weights, and a snapshot without its manifest."""
    flags, weights = stage_flags(sandbox), best(sandbox / "teacher") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for stage in ("meta_teacher_eval", "meta_distill"):
        refused(sandbox, stage, "model.safetensors", "manifest", flags={**flags[stage], **NEW.get(stage, {})})
    weights.write_bytes(content)
    (weights.parent / "manifest.json").unlink()
    refused(sandbox, "meta_teacher_eval", "no manifest.json")


def test_layers_that_are_not_there_are_refused(golden):
    """Of the student's folder and of the teacher."""
    refused(golden, "meta_distill", "--student_layers 5", "4 layers", student_layers=5)
    refused(golden, "meta_teacher_eval", "--knowledge_layers 2,5", "4 layers", knowledge_layers="2,5")
    refused(golden, "meta_teacher_eval", "rising list", knowledge_layers="3,2")
    refused(golden, "meta_teacher_eval", "--knowledge_layers", knowledge_layers="x")


# --------------------------------------------------------------------------------------- data and records


def test_data_that_is_missing_is_refused(sandbox):
    """No folder, no task of that name, no test split although training would not read it before its end."""
    for stage in STAGES:
        refused(sandbox, stage, "nowhere", data_dir="nowhere")
        refused(sandbox, stage, "'other' is not a built-in task", task_name="other")
    (sandbox / "data" / "test.tsv").unlink()
    for stage in ("preprocess", *TRAINING_STAGES):
        refused(sandbox, stage, "test.tsv", resave_ofrecord=True)
    refused(sandbox, "meta_teacher", "test.tsv")


@pytest.mark.parametrize(
    "line, words",
    [
        ("good plot\tbooks", "found 2 column(s)"),
        ("good plot\tbooks\tgood", "'good'"),
        ("good plot\ttoys\tpositive", "'toys'"),
        ("  \tbooks\tpositive", "empty 'review'"),
        ("good \udcff plot\tbooks\tpositive", "expected UTF-8"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(sandbox, line, words):
    """In every stage that reads the TSV, and the records stay as they were."""
    path = sandbox / "data" / "train.tsv"
    rows = path.read_text().splitlines()
    rows[4] = line
    path.write_bytes(("\n".join(rows) + "\n").encode("utf-8", "surrogateescape"))
    for stage in STAGES:
        refused(sandbox, stage, "data/train.tsv:5: ", words, resave_ofrecord=True)


def test_a_training_split_without_a_domain_or_a_class_is_refused(sandbox):
    """A domain or a class of the task without an example in train is refused.

    Where dev or test has none, the log says so and the stage goes on.
    """
    for name, other in (("kitchen", "dvd"), ("negative", "positive")):
        for split in ("dev", "test", "train"):
            path = sandbox / "data" / f"{split}.tsv"
            text = path.read_text()
            path.write_text(text.replace(f"\t{name}", f"\t{other}"))
            if split == "train":
                refused(sandbox, "preprocess", "train.tsv", name)
            else:
                outcome = call("preprocess", sandbox, stage_flags(sandbox)["preprocess"])
                assert outcome.code == 0 and re.search(
                    f"^{split}: .*; note: none of (domain|class) {name}$", outcome.out, re.M
                )
            path.write_text(text)


def test_records_that_are_missing_are_refused(sandbox):
    """Every stage names the flag that writes them; the later stages also the script that scores them."""
    shutil.rmtree(sandbox / "data" / "ofrecord")
    for stage in STAGES:
        refused(
            sandbox, stage, "ofrecord/train", "preprocess.py with --resave_ofrecord", resave_ofrecord=False
        )
        if stage != "preprocess":
            refused(sandbox, stage, "preprocess.py with --resave_ofrecord", resave_ofrecord=True)


def test_records_of_something_else_are_refused(sandbox):
    """Records of another seq_length, vocabulary, task or TSV: told which, with --resave_ofrecord."""
    flags = {"resave_ofrecord": False}
    for stage in STAGES:
        refused(sandbox, stage, "seq_length 32", "expected 16", "--resave_ofrecord", seq_length=16, **flags)
    tokens = (sandbox / "bert" / "vocab.txt").read_text().splitlines()
    (sandbox / "other.txt").write_text("\n".join([*tokens[:5], *tokens[:4:-1]]) + "\n")
    refused(sandbox, "meta_teacher", "vocab_sha256", "--resave_ofrecord", vocab_file="other.txt", **flags)
    task = {
        "name": "reviews",
        "text": ["review"],
        "domain": "domain",
        "label": "sentiment",
        "labels": ["positive", "negative"],
        "domains": ["books", "dvd", "electronics", "kitchen"],
    }
    (sandbox / "data" / "task.json").write_text(json.dumps(task))
    refused(sandbox, "meta_teacher", "task 'senti'", "'reviews'", task_name="reviews", **flags)
    (sandbox / "data" / "task.json").unlink()
    with open(sandbox / "data" / "train.tsv", "a") as file:
        file.write("good plot\tbooks\tpositive\n")
    for stage in STAGES:
        refused(sandbox, stage, "tsv_sha256", "--resave_ofrecord", **flags)
    for stage in STAGES[1:]:
        refused(sandbox, stage, "preprocess.py", resave_ofrecord=True)


def test_records_without_scores_are_refused(sandbox):
    """Where stage 1 was broken off, later stages say which script makes the scores."""
    manifest = sandbox / "data" / "ofrecord" / "train" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "scores": None}))
    for stage in STAGES[1:]:
        for resave in (False, True):
            refused(sandbox, stage, "no scores", "preprocess.py", resave_ofrecord=resave)


def test_damaged_records_are_refused(sandbox):
    """A changed byte in a part is found before any array reaches the engine."""
    part = sandbox / "data" / "ofrecord" / "dev" / "dev.of_record-0"
    content = part.read_bytes()
    part.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    for stage in TRAINING_STAGES:
        refused(sandbox, stage, "dev.of_record-0", "--resave_ofrecord")


def test_selections_that_cannot_be_met_are_refused(golden):
    """More examples than there are, unknown domains, and nothing left."""
    for stage in STAGES:
        refused(golden, stage, "--train_example_num 33", "32", train_example_num=33)
        refused(golden, stage, "--domain toys", "books", domain="toys")
        refused(golden, stage, "no training example", domain="dvd", exclude_domain="dvd")
    for stage in TRAINING_STAGES:
        refused(golden, stage, "--eval_example_num 13", "12", eval_example_num=13)
        refused(golden, stage, "no dev example", eval_example_num=1, domain="kitchen")


# --------------------------------------------------------------------------------------- knowledge


def knowledge_of(folder):
    (found,) = (folder / "data" / "ofrecord").glob("knowledge-*")
    return found


def test_knowledge_that_is_missing_is_refused(sandbox):
    """Stage 4 names stage 3."""
    shutil.rmtree(knowledge_of(sandbox))
    refused(sandbox, "meta_distill", "knowledge-", "meta_teacher_eval.py")


def test_a_start_that_fails_leaves_no_run_folder(sandbox):
    """What is wrong with the data is said before a folder is made for the run."""
    refused(sandbox, "meta_teacher", "--train_example_num", model_save_dir="new", train_example_num=1000)
    refused(sandbox, "meta_distill", "knowledge", model_save_dir="new", knowledge_dir="nowhere")
    assert not (sandbox / "new").exists()


def test_knowledge_of_another_teacher_is_refused(sandbox):
    """By the hash of its weights, whatever the folder is called."""
    last = sandbox / "teacher" / "snapshot_last"
    knowledge = knowledge_of(sandbox)
    knowledge.rename(sandbox / "mine")
    refused(
        sandbox,
        "meta_distill",
        "another teacher",
        "meta_teacher_eval.py",
        teacher_model="teacher/snapshot_last",
        knowledge_dir="mine",
    )
    (sandbox / "mine").rename(knowledge.with_name("knowledge-" + sha256(last / "model.safetensors")[:12]))
    refused(sandbox, "meta_distill", "another teacher", teacher_model="teacher/snapshot_last")


def test_knowledge_of_other_records_is_refused(sandbox):
    """Records that were made and scored again from other texts."""
    path = sandbox / "data" / "train.tsv"
    path.write_text(path.read_text().replace("good", "great"))
    assert call("preprocess", sandbox, stage_flags(sandbox)["preprocess"]).code == 0
    refused(sandbox, "meta_distill", "other records", "meta_teacher_eval.py")


def test_knowledge_of_fewer_examples_is_refused(sandbox):
    """Stage 3 with a limit, stage 4 without: the sentence says how many lack it, before a step is taken."""
    assert (
        call(
            "meta_teacher_eval",
            sandbox,
            {**stage_flags(sandbox)["meta_teacher_eval"], "train_example_num": 20},
        ).code
        == 0
    )
    refused(sandbox, "meta_distill", "12 examples", "number 20", "--train_example_num")
    flags = {**stage_flags(sandbox)["meta_distill"], "model_save_dir": "new", "train_example_num": 16}
    assert call("meta_distill", sandbox, flags).code == 0


def test_terms_that_the_knowledge_cannot_serve_are_refused(sandbox):
    """A term whose knowledge is not there is refused, unless it is switched off.

    Hidden states that were not stored; a teacher without a domain head.
    """
    refused(sandbox, "meta_distill", "--hidden_states", hidden_loss_weight=1)
    flags = stage_flags(sandbox, domain_loss_weight=0)["meta_teacher"]
    shutil.rmtree(sandbox / "teacher")
    assert call("meta_teacher", sandbox, flags).code == 0
    assert call("meta_teacher_eval", sandbox, stage_flags(sandbox)["meta_teacher_eval"]).code == 0
    refused(sandbox, "meta_distill", "--transfer_loss_weight 0", "--domain_loss_weight 0")
    outcome = call(
        "meta_distill",
        sandbox,
        {**stage_flags(sandbox)["meta_distill"], "model_save_dir": "new", "transfer_loss_weight": 0},
    )
    assert outcome.code == 0, outcome.err


def test_a_folder_of_the_user_is_not_replaced_by_knowledge(sandbox):
    """--knowledge_dir with other files in it, or a file, is refused and stays; an empty folder is taken."""
    refused(sandbox, "meta_teacher_eval", "--knowledge_dir data", "something else", knowledge_dir="data")
    refused(sandbox, "meta_teacher_eval", "something else", knowledge_dir="data/train.tsv")
    (sandbox / "empty").mkdir()
    assert (
        call(
            "meta_teacher_eval",
            sandbox,
            {**stage_flags(sandbox)["meta_teacher_eval"], "knowledge_dir": "empty"},
        ).code
        == 0
    )


def test_a_folder_of_the_user_is_not_replaced_by_records(sandbox):
    """--ofrecord_dir names a folder in which `train` is something else: refused, and it stays."""
    (sandbox / "mine" / "train").mkdir(parents=True)
    (sandbox / "mine" / "train" / "notes.txt").write_text("keep me")
    refused(sandbox, "preprocess", "--ofrecord_dir", "notes.txt", ofrecord_dir="mine", resave_ofrecord=True)
    assert (sandbox / "mine" / "train" / "notes.txt").read_text() == "keep me"


# --------------------------------------------------------------------------------------- flags without effect

LAYERS_OUT = {f"{name}_loss_weight": 0 for name in ("attention", "representation", "transfer")}
HARD = {**LAYERS_OUT, "soft_label_weight": 0, "hard_label_weight": 1}


@pytest.mark.parametrize(
    "stage, idle, beside, words",
    [
        ("meta_teacher", {"weight_spread": 0.3}, {}, "--weight_scaling spread, and that is mean"),
        ("meta_distill", {"expertise_spread": 0.3}, {}, "--expertise_weight spread, and that is lambda"),
        ("meta_distill", {"expertise_weight": "none"}, LAYERS_OUT, "--transfer_loss_weight are 0"),
        ("meta_distill", {"temperature": 2}, HARD, "--soft_label_weight is 0"),
        ("meta_distill", {"attention_match": "centred"}, LAYERS_OUT, "--attention_loss_weight is 0"),
        ("meta_distill", {"teacher_weights": [1]}, {}, "--teacher_model names one"),
        ("meta_distill", {"teacher_weights": [1]}, HARD, "hard labels alone"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(golden, stage, idle, beside, words):
    """The sentence names it and what it takes; at its default it is accepted."""
    (flag,) = idle
    message = refused(golden, stage, words, f"or leave --{flag} out.", **beside, **idle)
    assert message.startswith(f"error: --{flag} ")


def test_a_flag_at_its_default_is_never_one_without_effect(golden, tmp_path):
    """So that the flags.json of a run on hard labels, which holds all flags, makes it again."""
    file = tmp_path / "flags.json"
    defaults = {"temperature": 1.0, "expertise_spread": 0.5, "attention_match": "raw", **HARD}
    file.write_text(json.dumps(defaults))
    args = config.parse("", *meta_distill.FLAGS, argv=f"--config {file} --task_name x --data_dir y".split())
    check_student_flags(args)


def test_a_run_that_has_a_flag_without_effect_goes_on(sandbox):
    """One of an earlier version, which took --weight_spread beside --weight_scaling mean."""
    path = sandbox / "teacher" / "snapshot_last"
    meta = json.loads((path / "meta.json").read_text())
    meta["flags"]["weight_spread"] = 0.3
    (path / "meta.json").write_text(json.dumps(meta))
    rehash_snapshot(path)
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": None, "resume_from": "teacher"}
    assert call("meta_teacher", sandbox, {**flags, "weight_spread": 0.3}).code == 0


# --------------------------------------------------------------------------------------- runs


def test_a_run_is_not_written_over(golden):
    """--model_save_dir names a folder with a run: the sentence says how to go on with it."""
    for stage, folder in (("meta_teacher", "teacher"), ("meta_distill", "student")):
        refused(golden, stage, folder, "--resume_from", model_save_dir=folder)


def test_nothing_to_do_is_said(golden):
    """Neither --do_train nor --do_eval."""
    for stage in TRAINING_STAGES:
        refused(golden, stage, "neither --do_train nor --do_eval", do_train=False, do_eval=False)


def test_a_model_that_was_not_trained_is_not_evaluated(golden):
    """Its class head would be random: without --do_train a snapshot of this task is needed."""
    refused(golden, "meta_teacher", "bert", "not trained here", do_train=False)
    refused(golden, "meta_distill", "bert", "not trained here", do_train=False, student_layers=None)


def test_a_run_is_not_resumed_to_be_evaluated(golden):
    """The results of its best snapshot would become those of snapshot_last, by any flags: nothing changes."""
    for stage, run, flag in (
        ("meta_teacher", "teacher", "--model_load_dir"),
        ("meta_distill", "student", "--student_model"),
    ):
        words = ("without --do_train there is none", f"name it by {flag}.")
        refused(golden, stage, *words, do_train=False, resume=True, model_save_dir=run, domain="books")
        refused(golden, stage, *words, do_train=False, resume_from=run, model_save_dir=None)


def test_a_snapshot_is_evaluated_with_all_its_layers(sandbox):
    """--student_layers takes layers of a model to train; without --do_train another number is refused."""
    flags = {"student_model": "student", "do_train": False, "model_save_dir": "evaluated"}
    words = ("--student_layers 1", "is evaluated as it is, and it has 2 layers")
    refused(sandbox, "meta_distill", *words, **flags, student_layers=1)
    outcome = call("meta_distill", sandbox, {**stage_flags(sandbox)["meta_distill"], **flags})
    assert outcome.code == 0, outcome.err
    paths = [sandbox / name / "predictions.tsv" for name in ("student", "evaluated")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_resumes_only_as_itself(sandbox):
    """A run resumes from its snapshot_last, in its folder, with its own flags, data and kind of model."""
    flags = {"model_save_dir": None, "resume_from": "teacher/snapshot_last"}
    refused(sandbox, "meta_teacher", "--learning_rate 0.003", "0.1", **flags, learning_rate=0.1)
    refused(sandbox, "meta_teacher", "--train_example_num None", "16", **flags, train_example_num=16)
    refused(
        sandbox,
        "meta_teacher",
        "its own folder",
        "--model_save_dir",
        resume_from="teacher/snapshot_last",
        model_save_dir="student",
    )
    refused(
        sandbox,
        "meta_teacher",
        "not a snapshot to resume from",
        model_save_dir=None,
        resume_from=best(sandbox / "teacher").relative_to(sandbox),
    )
    refused(sandbox, "meta_teacher", "not a snapshot to resume from", model_save_dir=None, resume_from="bert")
    refused(sandbox, "meta_teacher", "--resume_from nowhere", model_save_dir=None, resume_from="nowhere")
    refused(
        sandbox,
        "meta_distill",
        "teacher/snapshot_last",
        model_save_dir=None,
        resume_from="teacher/snapshot_last",
    )
    path = sandbox / "data" / "train.tsv"
    path.write_text(path.read_text().replace("good", "great"))
    assert call("preprocess", sandbox, stage_flags(sandbox)["preprocess"]).code == 0
    refused(sandbox, "meta_teacher", "content_sha256", **flags)


def test_scores_of_another_model_are_told(sandbox):
    """Stage 2 tells of prototype scores that stage 1 made with another model; of its own it says nothing."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "max_steps": 1}
    assert "scores were made by another model" not in call("meta_teacher", sandbox, flags).out
    shutil.copytree(sandbox / "bert", sandbox / "other")
    weights = load_file(sandbox / "other" / "model.safetensors")
    weights["bert.pooler.dense.bias"] += 1
    save_file(weights, sandbox / "other" / "model.safetensors", metadata={"format": "pt"})
    outcome = call("meta_teacher", sandbox, {**flags, "model_load_dir": "other", "model_save_dir": "newer"})
    assert (
        outcome.code == 0
        and "note: the prototype scores were made by another model than other" in outcome.out
    )


def test_a_run_without_a_best_snapshot_is_told(sandbox):
    """A run that was stopped before its first evaluation is no model yet."""
    (sandbox / "started").mkdir()
    (sandbox / "started" / "flags.json").write_text("{}")
    refused(
        sandbox, "meta_teacher_eval", "started: this run has no best snapshot yet", model_load_dir="started"
    )


def test_a_teacher_of_other_texts_is_told(sandbox):
    """Stage 3 tells of texts that the teacher was not trained on, and goes on; of its own it says nothing."""
    flags = {**stage_flags(sandbox)["meta_teacher_eval"], "knowledge_dir": "other"}
    assert "trained on other texts" not in call("meta_teacher_eval", sandbox, flags).out
    path = sandbox / "data" / "train.tsv"
    path.write_text(path.read_text().replace("good", "great"))
    assert call("preprocess", sandbox, stage_flags(sandbox)["preprocess"]).code == 0
    outcome = call("meta_teacher_eval", sandbox, {**flags, "knowledge_dir": "another"})
    assert outcome.code == 0 and "note: the teacher was trained on other texts" in outcome.out


def test_a_run_resumes_only_with_the_dev_set_and_the_knowledge_that_it_had(sandbox):
    """A run does not resume with another dev set or other knowledge.

    Dev chose its best snapshot; its student learned from those layers and heads, at that precision.
    """
    flags = {"model_save_dir": None, "resume_from": "student/snapshot_last"}
    for more, told in (
        ({"knowledge_layers": "1,2"}, '"layers": [1, 2]'),
        ({"attention_heads": "all"}, '"attention_heads": 4'),
        ({"knowledge_vectors": "float16"}, '"vectors": "float16"'),
    ):
        again = {**stage_flags(sandbox)["meta_teacher_eval"], "knowledge_dir": "other", **more}
        assert call("meta_teacher_eval", sandbox, again).code == 0
        refused(
            sandbox,
            "meta_distill",
            "had knowledge of other layers, heads or precision",
            told,
            "start a new run",
            **flags,
            knowledge_dir="other",
        )
    path = sandbox / "data" / "dev.tsv"
    path.write_text(path.read_text().replace("good", "great"))
    assert call("preprocess", sandbox, stage_flags(sandbox)["preprocess"]).code == 0
    refused(sandbox, "meta_distill", "dev_sha256", **flags)


def test_a_student_older_than_the_precision_of_its_knowledge_resumes(sandbox):
    """Its snapshot_last does not tell whether vectors were float32 or float16: nothing is held against it."""
    path = sandbox / "student" / "snapshot_last"
    meta = json.loads((path / "meta.json").read_text())
    assert meta["knowledge"].pop("vectors") == "float32"
    (path / "meta.json").write_text(json.dumps(meta))
    rehash_snapshot(path)
    flags = {**stage_flags(sandbox)["meta_distill"], "model_save_dir": None, "resume_from": "student"}
    assert call("meta_distill", sandbox, flags).code == 0


def test_two_runs_do_not_share_a_folder(sandbox):
    """A run folder, records or knowledge in use is refused to another process by the holder's number."""
    with lock(sandbox / "new"):
        for stage in TRAINING_STAGES:
            refused(sandbox, stage, "is writing here")
    with lock(sandbox / "data" / "ofrecord"):
        refused(sandbox, "preprocess", "is writing here")
    knowledge = knowledge_of(sandbox)
    with lock(knowledge.parent, f".{knowledge.name}{LOCK}"):
        refused(sandbox, "meta_teacher_eval", "is writing here", hidden_states=True)
