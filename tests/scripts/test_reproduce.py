"""scripts.reproduce: what it plans, how it chooses, goes on and refuses, and its statistics against formulas
written out by hand.
"""

import argparse
import collections
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, lay_out

import config
from data.selection import select
from data.store.files import write_json
from data.tasks import load_task, read_examples
from modeling.meta_kd.terms import add_flags
from scripts.reproduce import __main__ as reproduce
from scripts.reproduce import flags as flag_groups
from scripts.reproduce import grid, outcomes, plan, plots, rows, runner, state, statistics, tables
from scripts.reproduce.grid import Setting
from util import UserError, sha256

GROUPS = {
    "preprocess.py": (
        config.task,
        config.selection,
        config.model,
        config.device,
        config.inference,
        config.prototypes,
    ),
    "meta_teacher.py": (
        config.task,
        config.selection,
        config.model,
        config.device,
        config.training,
        config.teacher,
    ),
    "meta_teacher_eval.py": (
        config.task,
        config.selection,
        config.model,
        config.device,
        config.inference,
        config.knowledge,
        config.extraction,
    ),
    "meta_distill.py": (
        config.task,
        config.selection,
        config.device,
        config.training,
        config.knowledge,
        config.distillation,
        add_flags,
    ),
}
DOMAINS, RUNS = ("books", "dvd", "electronics", "kitchen"), "output/reproduce/senti"
FLAGS = {
    "task_name": "senti",
    "data_dir": "data",
    "model": "bert",
    "student_layers": 2,
    "seq_length": 32,
    "batch_size": 8,
    "teacher_epochs": 1,
    "student_epochs": 1,
    "eval_every": 2,
    "jobs": 2,
}


def flags(*words, **more):
    """The driver's flags over a sandbox, parsed."""
    return config.parse(
        "",
        flag_groups.what,
        flag_groups.perturbation,
        flag_groups.training,
        flag_groups.running,
        argv=command_line(*words, **more),
    )


def command_line(*words, **more):
    return [
        *words,
        *(word for name, value in {**FLAGS, **more}.items() for word in (f"--{name}", str(value))),
    ]


def full_plan(names, args, folder):
    """{name: (script, its parsed flags, needs)} of the whole set, as if the first candidate were always
    chosen.
    """
    task = load_task("senti", folder)
    steps = state.all_steps(rows.with_teachers(rows.chosen_rows(names)), task, args, {})
    return {
        name: (step.stage, config.parse("", *GROUPS[step.stage], argv=list(step.words[1:])), step.needs)
        for name, step in steps.items()
    }


def write_run(folder, test, dev=(), command=("x",), seconds=60.0):
    """A made-up finished run. test, dev: lists of (domain, label, predicted), whose places are the idxs."""
    folder.mkdir(parents=True)
    lines = ["split\tidxs\tdomain\tlabel\tpredicted"]
    lines += [
        f"{split}\t{i}\t" + "\t".join(line)
        for split, answers in (("dev", dev), ("test", test))
        for i, line in enumerate(answers)
    ]
    (folder / "predictions.tsv").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text('{"parameters": 7}')
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2}\n{"step": 2, "dev": {"accuracy": 0.5, "examples": 4}}\n'
    )
    (folder.parent / f"{folder.name}.json").write_text(
        json.dumps({"command": list(command), "seconds": seconds, "commit": None})
    )
    return folder


# --------------------------------------------------------------------------------------- the plan


def test_every_planned_command_is_one_that_its_script_accepts_and_needs_only_earlier_steps(tiny_data):
    """All rows, parsed by the scripts' own flags; what a step needs is planned before it.

    No two runs share a folder or a command.
    """
    steps = full_plan(
        ",".join(rows.GROUPS),
        flags(seeds="1,2", student_epochs=4, student_learning_rates="1e-4,5e-5", unlabelled_file="more.tsv"),
        tiny_data,
    )
    seen = set()
    for name, (_, _, needs) in steps.items():
        assert set(needs) <= seen
        seen.add(name)
    folders = [
        args.model_save_dir
        for script, args, _ in steps.values()
        if script in ("meta_teacher.py", "meta_distill.py")
    ]
    assert len(set(folders)) == len(folders) > 100 and all(
        args.cpu_processes == 1 for _, args, _ in steps.values()
    )


def test_the_group_table_has_every_row_of_the_paper():
    """Four teachers; each distilled by logits and by layers, the single-domain ones also together; the
    meta-teacher in full. A student without a teacher.
    """
    names = {row.name for row in rows.chosen_rows("table")}
    assert names == {
        "hard",
        "meta-full",
        "multi-logits",
        "multi-layers",
        *(
            f"{teacher}{kind}"
            for teacher in ("single", "mixed", "multi-task", "meta")
            for kind in ("", "-logits", "-layers")
        ),
    }
    with pytest.raises(UserError, match="few-shots"):
        rows.chosen_rows("table,few-shots")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("teacher-single-dvd-5e-05-s1", {"domain": "dvd", "domain_loss_weight": 0, "weight_scaling": "none"}),
        (
            "teacher-mixed-5e-05-s2",
            {"domain": None, "domain_loss_weight": 0, "weight_scaling": "none", "seed": 2},
        ),
        (
            "teacher-multi-task-5e-05-s1",
            {"class_heads": "per_domain", "domain_loss_weight": 0, "weight_scaling": "none"},
        ),
        (
            "teacher-meta-5e-05-s1",
            {
                "class_heads": "shared",
                "domain_loss_weight": 0.5,
                "weight_scaling": "mean",
                "learning_rate": 5e-5,
            },
        ),
        (
            "teacher-meta-spread-0.1-5e-05-s1",
            {"weight_scaling": "spread", "weight_spread": 0.1, "domain_loss_weight": 0.5},
        ),
        (
            "teacher-leave-one-out-dvd-5e-05-s1",
            {"exclude_domain": "dvd", "domain": None, "eval_every_step_num": 75},
        ),
        (
            "student-hard-0.0001-s1",
            {
                "teacher_model": None,
                "hard_label_weight": 1,
                "soft_label_weight": 0,
                "attention_loss_weight": 0,
                "representation_loss_weight": 0,
                "hidden_loss_weight": 0,
                "transfer_loss_weight": 0,
            },
        ),
        (
            "student-meta-logits-0.0001-s1",
            {
                "hard_label_weight": 0,
                "soft_label_weight": 1,
                "attention_loss_weight": 0,
                "representation_loss_weight": 0,
                "hidden_loss_weight": 0,
                "transfer_loss_weight": 0,
            },
        ),
        (
            "student-mixed-layers-0.0001-s1",
            {
                "soft_label_weight": 1,
                "attention_loss_weight": 0.1,
                "representation_loss_weight": 1,
                "transfer_loss_weight": 0,
                "expertise_weight": "none",
            },
        ),
        (
            "student-single-layers-dvd-0.0001-s1",
            {"domain": "dvd", "teacher_model": ["BEST:output/reproduce/senti/teacher-single-dvd-5e-05-s1"]},
        ),
        (
            "student-meta-full-0.0001-s2",
            {
                "soft_label_weight": 1,
                "attention_loss_weight": 0.1,
                "representation_loss_weight": 1,
                "seed": 2,
                "transfer_loss_weight": 0.3,
                "expertise_weight": "lambda",
                "num_epochs": 6,
                "student_layers": 2,
                "teacher_model": ["BEST:output/reproduce/senti/teacher-meta-5e-05-s2"],
            },
        ),
        ("student-meta-two-phase-0.0001-s1", {"intermediate_epochs": 2, "num_epochs": 6}),
        (
            "student-meta-full-by-domain-dvd-0.0001-s1",
            {"domain": "dvd", "teacher_model": ["BEST:output/reproduce/senti/teacher-meta-5e-05-s1"]},
        ),
        (
            "student-meta-full-transfer-30-0.0001-s1",
            {"transfer_loss_weight": 30, "expertise_weight": "lambda", "attention_loss_weight": 0.1},
        ),
        ("student-meta-full-centred-0.0001-s1", {"attention_match": "centred"}),
        ("student-meta-full-hard-0.0001-s1", {"hard_label_weight": 1, "transfer_loss_weight": 0.3}),
        (
            "student-meta-full-0.02-0.0001-s1",
            {"data_portion": 0.02, "num_epochs": 48, "eval_every_step_num": 16},
        ),
        ("student-hard-0.2-0.0001-s1", {"data_portion": 0.2, "num_epochs": 30, "teacher_model": None}),
        (
            "student-leave-one-out-full-dvd-0.0001-s1",
            {"domain": "dvd", "ofrecord_dir": "output/reproduce/senti/ofrecord-without-dvd"},
        ),
        ("ofrecord-without-dvd", {"exclude_domain": "dvd", "resave_ofrecord": True}),
        (
            "knowledge-teacher-leave-one-out-dvd-5e-05-s1",
            {"domain": "dvd", "ofrecord_dir": "output/reproduce/senti/ofrecord-without-dvd"},
        ),
        (
            "knowledge-teacher-leave-one-out-mixed-dvd-5e-05-s1",
            {"domain": "dvd", "ofrecord_dir": "output/reproduce/senti/ofrecord-without-dvd"},
        ),
        (
            "teacher-leave-one-out-mixed-dvd-5e-05-s1",
            {"exclude_domain": "dvd", "domain_loss_weight": 0, "weight_scaling": "none"},
        ),
        (
            "student-leave-one-out-mixed-layers-dvd-0.0001-s1",
            {"domain": "dvd", "expertise_weight": "none", "transfer_loss_weight": 0},
        ),
        ("knowledge-teacher-meta-5e-05-s1-hidden", {"hidden_states": True}),
        (
            "student-multi-layers-0.0001-s2",
            {
                "domain": None,
                "transfer_loss_weight": 0,
                "teacher_model": [f"BEST:{RUNS}/teacher-single-{name}-5e-05-s2" for name in DOMAINS],
                "knowledge_dir": [f"{RUNS}/knowledge-teacher-single-{name}-5e-05-s2-all" for name in DOMAINS],
            },
        ),
        ("knowledge-teacher-single-dvd-5e-05-s1-all", {"domain": None}),
        ("knowledge-teacher-single-dvd-5e-05-s1", {"domain": "dvd"}),
        (
            "student-ensemble-0.0001-s2",
            {
                "expertise_weight": "lambda",
                "teacher_model": [f"BEST:{RUNS}/teacher-meta-5e-05-s{seed}" for seed in (1, 2)],
                "student_model": "bert",
            },
        ),
        (
            "student-meta-full-from-teacher-0.0001-s2",
            {"student_model": f"BEST:{RUNS}/teacher-meta-5e-05-s2", "student_layers": 2},
        ),
        (
            "student-meta-full-lambda-spread-0.0001-s1",
            {"expertise_weight": "spread", "expertise_spread": 0.5, "transfer_loss_weight": 0.3},
        ),
        (
            "student-meta-full-unlabelled-0.0001-s1",
            {
                "unlabelled_file": "more.tsv",
                "knowledge_dir": [f"{RUNS}/knowledge-teacher-meta-5e-05-s1-unlabelled"],
            },
        ),
        (
            "student-meta-full-from-teacher-unlabelled-0.0001-s1",
            {"unlabelled_file": "more.tsv", "student_model": f"BEST:{RUNS}/teacher-meta-5e-05-s1"},
        ),
        ("student-meta-full-0.0001-s1", {"unlabelled_file": None}),
        (
            "knowledge-teacher-meta-5e-05-s1-unlabelled",
            {"unlabelled_file": "more.tsv", "knowledge_layers": None, "knowledge_vectors": "float32"},
        ),
        (
            "knowledge-teacher-meta-5e-05-s1-unlabelled-answers",
            {"unlabelled_file": "more.tsv", "knowledge_layers": (), "knowledge_vectors": "float16"},
        ),
    ],
)
def test_steps_have_the_flags_of_their_row(tiny_data, name, expected):
    """The flags by which a row differs from the others."""
    _, args, _ = full_plan(
        ",".join(rows.GROUPS),
        flags(seeds="1,2", student_epochs=6, eval_every=100, unlabelled_file="more.tsv"),
        tiny_data,
    )[name]
    assert {flag: getattr(args, flag) for flag in expected} == expected


def test_students_take_turns_with_fewer_teachers_and_wait_for_the_choice(tiny_data):
    """Three students, two teachers: the third learns from the first.

    With two candidates for the teacher, no student is planned before the choice, and of the students' own
    search only the first seed.
    """
    task, args = (
        load_task("senti", tiny_data),
        flags(
            seeds="1,2,3",
            teacher_seeds="7,8",
            teacher_learning_rates="1e-4,5e-5",
            student_learning_rates="1e-3,2e-3",
        ),
    )
    chosen = rows.with_teachers(rows.chosen_rows("meta-full"))
    assert set(plan.plan(chosen, task, args, {})) == {
        "ofrecord",
        "teacher-meta-0.0001-s7",
        "teacher-meta-5e-05-s7",
    }
    steps = plan.plan(chosen, task, args, {"meta": Setting(5e-5)})
    assert {name for name in steps if name.startswith("student")} == {
        "student-meta-full-0.001-s1",
        "student-meta-full-0.002-s1",
    }
    steps = plan.plan(chosen, task, args, {"meta": Setting(5e-5), "meta-full": Setting(2e-3)})
    assert steps["student-meta-full-0.002-s3"].needs[1] == "teacher-meta-5e-05-s7"
    assert steps["student-meta-full-0.002-s2"].needs[1] == "teacher-meta-5e-05-s8"


def test_an_ensemble_waits_for_the_teachers_of_all_seeds_and_needs_several(tiny_data):
    """It is planned last, with every teacher and its knowledge among its needs; one seed is refused."""
    task, args = load_task("senti", tiny_data), flags(seeds="1,2", teacher_seeds="7,8,9")
    chosen = rows.with_teachers(rows.chosen_rows("ensemble,meta-full"))
    choices = {"meta": Setting(5e-5), "meta-full": Setting(1e-4), "ensemble": Setting(1e-4)}
    steps = plan.plan(chosen, task, args, choices)
    teachers = [f"teacher-meta-5e-05-s{seed}" for seed in (7, 8, 9)]
    needs = ("ofrecord", *teachers, *(f"knowledge-{name}" for name in teachers))
    assert steps["student-ensemble-0.0001-s1"].needs == needs
    assert list(steps)[-2:] == ["student-ensemble-0.0001-s1", "student-ensemble-0.0001-s2"]
    with pytest.raises(UserError, match="an ensemble takes several"):
        reproduce.check(chosen, task, flags(seeds="1"))
    with pytest.raises(UserError, match="--test_domain music: the task senti has the domains books"):
        reproduce.check(chosen, task, flags(test_domain="music"))


def test_seeds_come_one_after_another_so_that_a_stopped_set_has_whole_comparisons(tiny_data):
    """All rows with the first seed come before any row with the second.

    The teachers' seeds may be more or fewer.
    """
    for teacher_seeds in (None, "7", "7,8,9"):
        args = flags(seeds="1,2", **{"teacher_seeds": teacher_seeds} if teacher_seeds else {})
        seeds = [
            args.seed
            for script, args, _ in full_plan("table,few-shot", args, tiny_data).values()
            if script == "meta_distill.py"
        ]
        assert seeds == sorted(seeds) and set(seeds) == {1, 2}


# --------------------------------------------------------------------------------------- choosing and pooling


def test_dev_chooses_over_all_domains_and_test_does_not(tmp_path, tiny_data):
    """The candidate with more right on dev over all domains, though fewer in three and fewer on test.

    A tie goes to the first listed.
    """
    task, args = (
        load_task("senti", tiny_data),
        flags(output=tmp_path, seeds="1", teacher_learning_rates="1e-4,5e-5"),
    )
    row, good, bad = rows.ROWS["single"], ("books", "positive", "positive"), ("books", "positive", "negative")
    for rate, test, dev in ((1e-4, [good], {"kitchen": [bad] * 9}), (5e-5, [bad], {"kitchen": [good] * 9})):
        for domain in task.domains:
            write_run(
                tmp_path / "senti" / plan.run_name(row, domain, Setting(rate), 1),
                test,
                dev.get(domain, [good, bad] if rate < 1e-4 else [good, good]),
            )
    finished = {path.name for path in (tmp_path / "senti").iterdir() if path.is_dir()}
    assert state.choose([row], task, args, finished) == {"single": Setting(5e-5)}
    assert state.choose([row], task, args, finished - {"teacher-single-dvd-0.0001-s1"}) == {}
    args.teacher_learning_rates = [5e-5, 5e-5]
    assert state.choose([row], task, args, finished) == {"single": Setting(5e-5)}


def test_single_domain_runs_are_pooled_each_over_its_own_domain(tmp_path, tiny_data):
    """Each run answers the whole test set, and counts for its domain alone; dev counts in full."""
    task = load_task("senti", tiny_data)
    lines = [(domain, "positive", "positive") for domain in task.domains]
    runs = []
    for k, domain in enumerate(task.domains):
        own = [
            (name, label, "negative") if name != domain or k == 0 else (name, label, predicted)
            for name, label, predicted in lines
        ]
        runs.append(
            (
                write_run(tmp_path / domain, own, [("x", "a", "a")] * k + [("x", "a", "b")], seconds=10.0),
                domain,
            )
        )
    outcome = outcomes.read_outcome(rows.ROWS["single"], 1, Setting(5e-5), runs)
    score = statistics.scores(outcome, task)
    assert (
        score["domains"] == {"books": 0, "dvd": 1, "electronics": 1, "kitchen": 1}
        and score["all"] == score["average"] == 0.75
    )
    assert (
        outcome.dev == pytest.approx(6 / 10)
        and outcome.seconds == 40
        and outcome.curve == {2: 0.5}
        and outcome.parameters == 7
    )
    assert score["macro_f1"] == pytest.approx((2 * 3 / (4 + 3) + 0) / 2)


# --------------------------------------------------------------------------------------- the grid


def grid_of(folder, content, names="meta-full", **more):
    """The settings of the rows by a file of that content, and the flags of the set."""
    (folder / "grid.json").write_text(json.dumps(content))
    chosen, args = rows.with_teachers(rows.chosen_rows(names)), flags(seeds="1,2", **more)
    args.grid = grid.read_grid(folder / "grid.json", chosen, args)
    return chosen, args


def test_a_grid_makes_a_run_of_every_combination_with_the_first_seed_alone(tmp_path, tiny_data):
    """Two temperatures by two numbers of epochs; teachers, which have no entry, keep their learning rates.

    The grid's values win in the commands, and the second seed has the setting that was chosen.
    """
    content = {"students": {"temperature": [1, 2.5], "num_epochs": [2, 4], "attention_loss_weight": [0.01]}}
    chosen, args = grid_of(tmp_path, content)
    task, teacher = load_task("senti", tiny_data), {"meta": Setting(5e-5)}
    settings = grid.candidates(rows.ROWS["meta-full"], args)
    assert len(settings) == 4 and grid.candidates(rows.ROWS["meta"], args) == [Setting(5e-5)]
    steps = plan.plan(chosen, task, args, teacher)
    students = {name: step for name, step in steps.items() if step.stage == "meta_distill.py"}
    found = [
        config.parse("", *GROUPS["meta_distill.py"], argv=list(step.words[1:])) for step in students.values()
    ]
    assert {(each.temperature, each.num_epochs) for each in found} == {(1, 2), (1, 4), (2.5, 2), (2.5, 4)}
    assert {(each.seed, each.attention_loss_weight) for each in found} == {(1, 0.01)}
    steps = plan.plan(chosen, task, args, {**teacher, "meta-full": settings[3]})
    second = [name for name, step in steps.items() if name.startswith("student") and name.endswith("s2")]
    expected = "student-meta-full-0.0001-temperature=2.5-num_epochs=4-attention_loss_weight=0.01-s2"
    assert second == [expected]


def test_hidden_states_are_stored_for_settings_that_learn_from_them(tmp_path, tiny_data):
    """Of a weight of 0 and one of 1, the second needs knowledge with hidden states."""
    chosen, args = grid_of(tmp_path, {"students": {"hidden_loss_weight": [0, 1]}})
    steps = plan.plan(chosen, load_task("senti", tiny_data), args, {"meta": Setting(5e-5)})
    needs = {name: step.needs[-1] for name, step in steps.items() if name.startswith("student")}
    assert {name[-4]: need.endswith("-hidden") for name, need in needs.items()} == {"0": False, "1": True}


@pytest.mark.parametrize("row", rows.ROWS.values(), ids=rows.ROWS)
def test_no_row_has_a_flag_that_would_change_nothing(row):
    """Stages 2 and 4 would refuse it."""
    grid.check_flags_count(row, Setting(1e-4), flags())


def test_a_row_that_centres_scores_needs_their_term(tiny_data):
    """Without it the row would be meta-full by another name."""
    chosen = rows.with_teachers(rows.chosen_rows("meta-full-centred"))
    with pytest.raises(UserError, match="--attention_weight 0 leaves the row meta-full-centred"):
        reproduce.check(chosen, load_task("senti", tiny_data), flags(attention_weight=0))


@pytest.mark.parametrize(
    "content, expected",
    [
        (
            {"students": {"learning_rate": [1e-4, 2e-4]}, "hard": {"learning_rate": [1e-4]}},
            "1 for hard, 2 for meta-full",
        ),
        ({"students": {"attention_loss_weight": [0.1, 1]}}, "hard: .*makes the row what it is"),
        ({"students": {"temperature": [1, 2]}}, "hard: --temperature 2 softens .* --soft_label_weight is 0"),
        (
            {"teachers": {"weight_scaling": ["mean", "spread"], "weight_spread": [0.3]}},
            "meta: --weight_spread 0.3 counts with --weight_scaling spread, and that is mean",
        ),
        ({"students": {"hidden_loss_weight": [0, 1]}}, "hard: .*makes the row what it is"),
        ({"students": {"num_epochs": [1], "num_train_epochs": [2]}}, "this is num_epochs by another name"),
        ({"students": {"train_data_prefix": ["a", "b"]}}, "train_data_prefix: expected a flag of students"),
        ({"students": {"seed": [1, 2]}}, "seed: expected a flag of students"),
        ({"students": {"model_save_dir": ["x"]}}, "model_save_dir: expected a flag of students"),
        ({"teachers": {"temperature": [1, 2]}}, "temperature: expected a flag of teachers"),
        ({"students": {"temperature": [1, "warm"]}}, "temperature: found 'warm', expected a"),
        ({"students": {"temperature": [0]}}, "temperature: 0 is not above 0"),
        ({"students": {"temperature": 2}}, "expected a list"),
        ({"students": {"temperature": [2, 2]}}, "expected a list of different values"),
        (
            {"meta-layers": {"temperature": [2]}},
            "entry 'meta-layers', expected one of teachers, students, meta,",
        ),
        ({"students": [1]}, "expected flags"),
    ],
)
def test_mistakes_in_a_grid_are_sentences(tmp_path, content, expected):
    """Among them other numbers of settings for rows that are compared."""
    with pytest.raises(UserError, match=expected) as error:
        grid_of(tmp_path, content, "meta-full,hard")
    assert "grid.json: " in str(error.value) and "\n" not in str(error.value)


# --------------------------------------------------------------------------------------- statistics


def test_intervals_are_those_of_the_formulas():
    """Student's t with tabulated 2.776 for four degrees of freedom.

    Wilson's for 8 of 10 as in Newcombe's (1998) formula.
    """
    values = [0.80, 0.82, 0.84, 0.83, 0.81]
    half = 2.7764 * np.sqrt(sum((value - 0.82) ** 2 for value in values) / 4) / np.sqrt(5)
    assert statistics.interval(values, 800) == pytest.approx((0.82 - half, 0.82 + half), abs=1e-6)
    z, p, n = 1.959964, 0.8, 10
    root = z * np.sqrt(z * z + 4 * n * p * (1 - p))
    assert statistics.interval([p], n) == pytest.approx(
        ((2 * n * p + z * z - root) / (2 * (n + z * z)), (2 * n * p + z * z + root) / (2 * (n + z * z)))
    )


def test_the_paired_bootstrap_agrees_with_the_standard_error_of_paired_differences():
    """With one seed each, over 900 examples: mean of the differences, and 1.96 standard errors around it.

    Equal rows differ by exactly 0.
    """
    stream = np.random.default_rng(5)
    ours = (stream.random((1, 900)) < 0.85).astype(float)
    theirs = np.where(stream.random((1, 900)) < 0.9, ours, 1 - ours)
    each = (ours - theirs)[0]
    middle, low, high = statistics.paired_difference(ours, theirs, draws=4000)
    half = 1.96 * each.std() / np.sqrt(900)
    assert middle == pytest.approx(each.mean()) and (middle - low, high - middle) == pytest.approx(
        (half, half), rel=0.08
    )
    assert statistics.paired_difference(ours, ours, draws=50) == (0, 0, 0)
    assert statistics.paired_difference(ours, theirs, draws=50) == statistics.paired_difference(
        ours, theirs, draws=50
    )


def test_the_paired_bootstrap_draws_seeds_as_well():
    """Two seeds that are right everywhere or nowhere, against a row that is always wrong: the difference is
    from 0 to 1.
    """
    assert statistics.paired_difference(np.array([[1.0] * 50, [0.0] * 50]), np.zeros((1, 50)), draws=500) == (
        0.5,
        0.0,
        1.0,
    )


def test_rows_of_the_same_seeds_are_drawn_by_seed():
    """Better by 0.1 with each of two seeds that differ by 0.4 themselves: the difference is 0.1 in every draw
    of seeds.
    """
    ours, theirs = (np.repeat([[a], [b]], 50, axis=1) for a, b in ((0.9, 0.5), (0.8, 0.4)))
    assert statistics.paired_difference(ours, theirs, same_seeds=True, draws=200) == pytest.approx(
        (0.1, 0.1, 0.1)
    )
    assert statistics.paired_difference(ours, theirs, draws=200)[2] > 0.2


def test_a_label_may_have_the_name_of_a_column(tmp_path):
    """predictions.tsv is read by the places of its first five columns."""
    folder = write_run(tmp_path / "run", [("d", "split", "label")], [("d", "label", "label")])
    path = folder / "predictions.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header + "\tlabel\tsplit", *(line + "\t0.9\t0.1" for line in lines)]) + "\n")
    assert outcomes.read_answers(folder) == {
        "test": {0: ("d", "split", "label")},
        "dev": {0: ("d", "label", "label")},
    }


def test_predictions_that_their_run_has_not_written_are_refused(tmp_path):
    """A sentence names the file and what to do for predictions edited by hand, cut in a line, or gone."""
    folder = write_run(tmp_path / "run", [("d", "up", "down")] * 9, [("d", "up", "up")])
    path = folder / "predictions.tsv"
    whole, old = path.read_text(), outcomes.read_answers(folder)  # of a version that kept no hash
    write_json(folder / "results.json", {"parameters": 7, "predictions_sha256": sha256(path)})
    assert outcomes.read_answers(folder) == old
    for content in (whole.replace("down", "up", 1), whole[:-20], ""):
        path.write_text(content)
        with pytest.raises(UserError, match="predictions.tsv: its content is not what its run has written"):
            outcomes.read_answers(folder)
    (folder / "results.json").write_text("{}")
    for content in (whole[:-7], whole.replace("test\t3", "tset\t3"), whole.replace("\t3\t", "\tx\t")):
        path.write_text(content)
        with pytest.raises(UserError, match=r"predictions.tsv:\d+: found a line that is cut or changed"):
            outcomes.read_answers(folder)
    path.unlink()
    with pytest.raises(UserError, match="predictions.tsv: missing"):
        outcomes.dev_accuracy([folder])


def test_a_portion_is_as_large_as_what_stage_4_chooses(tiny_data):
    """Of each domain and label its share, and at least one example; a limit counts first."""
    task = load_task("senti", tiny_data)
    domain, label = (
        np.array(column)
        for column in zip(*((e.domain, e.label) for e in read_examples(task, tiny_data / "train.tsv")))
    )
    for portion in rows.PORTIONS:
        for limit in (None, 20):
            args = argparse.Namespace(
                train_example_num=limit, domain=None, exclude_domain=None, data_portion=portion, seed=1
            )
            assert outcomes.portion_size(outcomes.training_examples(task, tiny_data, limit), portion) == len(
                select(domain, label, task, args)
            )


def test_few_shot_rows_are_compared_at_the_same_portion(tmp_path):
    """With a baseline that no portion has, they are compared with nothing."""
    args = flags(output=tmp_path)
    assert (
        reproduce.baseline_row(rows.ROWS["meta-full-0.1"], args) == "hard-0.1"
        and reproduce.baseline_row(rows.ROWS["meta-full"], args) == "hard"
    )
    args.baseline = "mixed-logits"
    assert reproduce.baseline_row(rows.ROWS["meta-full-0.1"], args) is None


def test_rows_over_some_domains_are_compared_over_the_examples_that_both_have():
    """A row with two of four test examples against a baseline with all: the other two do not count."""

    def outcome(row, right, idxs):
        test = {i: ("d", "a", "a" if i in right else "b") for i in idxs}
        return [outcomes.Outcome(rows.ROWS[row], 1, Setting(1e-4), 0.5, test, 7, 1.0, {})]

    middle, _, _ = statistics.difference(
        outcome("meta-full", {2, 3}, (2, 3)), outcome("hard", {0, 1, 2}, range(4))
    )
    assert (
        middle == 0.5
        and statistics.difference(outcome("hard", {0}, (0,)), outcome("hard", {0}, (0,))) is None
    )


def made_up(row, seed, share, idxs=range(40)):
    """An Outcome of the row with a share of right answers."""
    test = {
        i: (
            ("books", "dvd", "electronics", "kitchen")[i % 4],
            "positive",
            "positive" if i < share * len(idxs) else "negative",
        )
        for i in idxs
    }
    return outcomes.Outcome(
        rows.ROWS[row], seed, Setting(1e-4), share, test, 7, 1.0, {2: share - 0.1, 4: share}
    )


def test_the_table_has_means_intervals_and_differences_of_each_row(tiny_data):
    """Two seeds at 70% and 80% right against 60%: mean, sd and interval, cut at 1, by hand.

    No second table with rows of the first alone.
    """
    task = load_task("senti", tiny_data)
    found = [
        made_up("hard", 1, 0.6),
        made_up("hard", 2, 0.6),
        made_up("meta-full", 1, 0.7),
        made_up("meta-full", 2, 0.8),
    ]
    lines = statistics.summaries(found, task, {"hard": "hard", "meta-full": "hard"})
    half = 12.7062 * np.sqrt(0.005) / np.sqrt(2)
    assert lines[1].all == pytest.approx(0.75)
    assert lines[1].sd == pytest.approx(np.sqrt(0.005))
    assert lines[1].seeds == 2
    assert lines[1].interval == pytest.approx((0.75 - half, 1), abs=1e-5)
    assert lines[1].difference[0] == pytest.approx(0.15)
    text = tables.markdown_tables(lines, task)
    first_cells = [line.split(" | ")[0] for line in text.splitlines()[2:6]]
    assert text.count("## ") == 1 and first_cells == ["| row", "| ---", "| hard", "| meta-full"]
    assert "| 75.0 | 7.1 | " in text and "| +15.0 [" in text
    assert text.splitlines()[4].split(" | ")[9] == "–"  # a baseline has no difference to itself


def test_the_table_of_settings_says_what_was_tried():
    """Each setting with its accuracy on dev, the chosen one in bold; nothing where no row had a choice."""
    warm = Setting(1e-4, (("temperature", 2.5),))
    text = tables.tried_table({"hard": {Setting(1e-4): 0.61, warm: 0.6}}, {"hard": Setting(1e-4)})
    assert "| hard | **0.0001** | 61.0 |" in text and "| hard | 0.0001 temperature=2.5 | 60.0 |" in text
    assert tables.tried_table({"hard": {Setting(1e-4): 0.61}}, {"hard": Setting(1e-4)}) == ""


def test_the_footer_names_a_baseline_that_is_absent_and_the_domain_of_the_table(tmp_path):
    found = [made_up("meta-full", 1, 0.5)]
    facts = tables.Facts(
        base=tmp_path,
        data_dir="data",
        command="x",
        baseline="hard",
        baselines={"meta-full": "hard"},
        candidates="",
        tried={},
        train=collections.Counter(),
        chosen={},
        missing=[],
        test_domain="books",
    )
    text = tables.footer(found, facts)
    assert "no differences to hard, not among these rows" in text and "test examples of books alone" in text
    facts = facts._replace(test_domain=None, baselines={"meta-full": "hard", "hard": "hard"})
    text = tables.footer([*found, made_up("hard", 1, 0.5)], facts)
    assert "no differences" not in text and "of books alone" not in text


def test_a_table_over_one_domain_compares_the_rows_over_its_examples_alone(tiny_data):
    """Books are every fourth of 40 examples: half right of all leaves 5 of 10; other domains have no cell."""
    task = load_task("senti", tiny_data)
    found = [
        outcomes.over_domain(made_up(row, 1, share), "books")
        for row, share in (("hard", 1), ("meta-full", 0.5))
    ]
    line = statistics.summaries(found, task, {"hard": "hard", "meta-full": "hard"})[1]
    assert (line.domains, line.all, line.difference[0]) == ({"books": 0.5}, 0.5, -0.5)
    assert dict(tables.table_cells(line, task))["dvd"] == "–"
    assert outcomes.over_domain(made_up("hard", 1, 1), None) == made_up("hard", 1, 1)


def test_a_domain_may_have_the_name_of_a_column(tiny_data):
    """Its cell and that of the column stand beside each other."""
    task = dataclasses.replace(
        load_task("senti", tiny_data), domains=("all", "dvd", "electronics", "kitchen")
    )
    line = statistics.summaries([made_up("hard", 1, 0.5)], load_task("senti", tiny_data), {"hard": "hard"})[0]
    line = line._replace(domains={"all": 0.25}, all=0.5)
    cells = tables.table_cells(line, task)
    assert [cell for name, cell in cells if name == "all"] == ["25.0", "50.0"]


def test_plots_are_drawn(tmp_path, tiny_data):
    """Rows and curves always, the few-shot plot where there are portions."""
    task, names = load_task("senti", tiny_data), ("mixed", "hard", "meta-full", "hard-0.1", "meta-full-0.1")
    lines = statistics.summaries(
        [made_up(name, seed, 0.6 + seed / 20) for name in names for seed in (1, 2)],
        task,
        dict.fromkeys(names, "hard"),
    )
    paths = [tmp_path / f"senti-{name}.png" for name in ("rows", "curves", "few-shot")]
    sizes = {1: 100, 0.1: 10}
    assert plots.draw_all(lines, task, tmp_path, sizes, {"hard"}) == paths
    assert all(path.stat().st_size > 5000 for path in paths)
    assert plots.draw_all(lines[:3], task, tmp_path, sizes, {"hard"}) == paths[:2]
    # all right: an end of Wilson's interval is 1 + 2e-16
    all_right = statistics.summaries([made_up("hard-0.1", 1, 1.0, range(10))], task, {"hard-0.1": None})
    assert plots.draw_all(all_right, task, tmp_path, sizes, set()) == [paths[0], paths[2]]


# --------------------------------------------------------------------------------------- going on


def test_another_command_in_a_folder_is_refused(tmp_path):
    """The sentence names the folder and the flags that differ.

    The same command is taken as finished once results are there.
    """
    args = flags(output=tmp_path)
    step = plan.Step("run", ("meta_teacher.py", "--do_train", "--seed", "1", "--seq_length", "64"), ())
    assert not state.is_finished(step, args)
    folder = write_run(tmp_path / "senti" / "run", [("d", "a", "a")], command=state.resolve_command(step))
    assert state.is_finished(step, args)
    with pytest.raises(
        UserError, match=f"{folder}.*had '--seed 1' where this one has '--seed 2'.*remove"
    ) as error:
        state.is_finished(
            step._replace(words=("meta_teacher.py", "--do_train", "--seed", "2", "--seq_length", "64")), args
        )
    assert "\n" not in str(error.value) and "seq_length" not in str(error.value)
    (folder / "predictions.tsv").unlink()
    assert not state.is_finished(step, args)


def test_runs_of_other_data_are_refused(tmp_path, tiny_data):
    """The records of runs hold the hashes of the TSV files.

    A changed test split would be compared by number with the old one.
    """
    data = shutil.copytree(tiny_data, tmp_path / "data")
    step, words = (
        plan.Step("run", ("meta_teacher.py", "--do_train"), ()),
        {"output": tmp_path, "data_dir": data},
    )
    path = (
        write_run(tmp_path / "senti" / "run", [("d", "a", "a")], command=state.resolve_command(step)).parent
        / "run.json"
    )
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": state.data_hashes(data)}))
    assert state.is_finished(step, flags(**words))
    (data / "test.tsv").write_text((data / "dev.tsv").read_text())
    state.data_hashes.cache_clear()
    with pytest.raises(UserError, match="made of other TSV files"):
        state.is_finished(step, flags(**words))


def test_the_eta_takes_the_mean_of_the_stage_or_of_all(tmp_path):
    """Teachers took 10 and 30 s, so one more takes 20 s; no student is finished: the mean of all, 20 s.

    Over two jobs.
    """
    args = flags(output=tmp_path)
    steps = {
        name: plan.Step(name, (script,), ())
        for name, script in (
            ("a", "meta_teacher.py"),
            ("b", "meta_teacher.py"),
            ("c", "meta_teacher.py"),
            ("d", "meta_distill.py"),
        )
    }
    for name, seconds in (("a", 10.0), ("b", 30.0)):
        write_run(tmp_path / "senti" / name, [], command=state.resolve_command(steps[name]), seconds=seconds)
    assert runner.eta(steps, {"a", "b"}, args) == 20
    assert [runner.clock(seconds) for seconds in (45, 190, 7500)] == ["45s", "3m10s", "2h05m"]


# --------------------------------------------------------------------------------------- from end to end

RUN = {
    "rows": "hard,meta,meta-full",
    "seeds": "1,2",
    "student_learning_rates": "3e-3,1e-4",
    "output": "out",
    "results": "results",
}


def start(folder, *words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.reproduce", *command_line(*words, **{**RUN, **more})],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def test_a_set_that_is_stopped_goes_on_skips_what_is_finished_and_makes_the_table(
    tmp_path, tiny_model, tiny_data
):
    """Stopped after its first teacher: exit code 130 and a sentence.

    The same command runs the rest, and a third time nothing at all.
    """
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    first = start(folder)
    while "teacher" not in first.stdout.readline():
        assert first.poll() is None, first.stderr.read()
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate()
    assert first.returncode == 130 and "the same command goes on" in err and len(err.splitlines()) == 1
    runs = folder / "out" / "senti"
    done = {path.parent: path.stat().st_mtime_ns for path in runs.glob("*/results.json")}
    assert done and not list(runs.glob("student-meta-full*/results.json"))

    second = start(folder)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert all(
        (path / "results.json").stat().st_mtime_ns == changed and f"| {path.name} " not in out
        for path, changed in done.items()
    )
    assert len(list(runs.glob("*/predictions.tsv"))) == 2 + 3 + 3 and not list(runs.glob("*/snapshot_last"))
    with open(folder / "results" / "senti.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"]) for line in lines] == [
        (row, seed) for row in ("meta", "hard", "meta-full") for seed in "12"
    ]
    told = {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/results.json")}
    for line in lines:
        kind, rate = "student" if line["student"] else "teacher", float(line["learning_rate"])
        result = told[f"{kind}-{line['row']}-{rate!r}-s{line['seed']}"]
        assert float(line["test_accuracy"]) == pytest.approx(result["test"]["accuracy"])
        assert float(line["dev_accuracy"]) == pytest.approx(result["dev"]["accuracy"])
        assert float(line["macro_f1"]) == pytest.approx(result["test"]["macro_f1"])
    table = (folder / "results" / "senti.md").read_text()
    assert "| meta-full | " in table and "16 test examples" in table
    assert [line for line in table.splitlines() if line.startswith("## ")] == ["## table", "## tried"]

    third = start(folder)
    started = time.time_ns()
    assert third.wait() == 0 and all(path.stat().st_mtime_ns < started for path in runs.glob("*.out"))


def test_what_needs_a_failed_step_is_left_out_and_the_rest_goes_on(tmp_path, tiny_model, tiny_data):
    """A teacher without its model: named with its last line, exit code 1.

    The student that needs none is in the table.
    """
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    (folder / "out" / "senti" / "teacher-meta-5e-05-s1").mkdir(parents=True)
    (folder / "out" / "senti" / "teacher-meta-5e-05-s1" / "snapshot_last").write_text("no snapshot")
    driver = start(folder, seeds="1", student_learning_rates="3e-3")
    _, err = driver.communicate()
    assert driver.returncode == 1 and "teacher-meta-5e-05-s1 failed: error: " in err
    table = (folder / "results" / "senti.md").read_text()
    assert "| hard |" in table and "not finished: meta, meta-full" in table


def test_a_grid_is_searched_on_dev_and_the_chosen_setting_goes_over_all_seeds(
    tmp_path, tiny_model, tiny_data
):
    """Two settings with the first seed, one with the second; the table has all that were tried."""
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    (folder / "grid.json").write_text('{"students": {"num_epochs": [1, 3], "learning_rate": [3e-3]}}')
    driver = start(folder, rows="hard", grid="grid.json")
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    whole = (folder / "results" / "senti.md").read_bytes()
    driver = start(folder, "--collect", rows="hard", grid="grid.json", test_domain="books")
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    assert (folder / "results" / "senti.md").read_bytes() == whole
    assert "of books alone" in (folder / "results" / "test=books" / "senti.md").read_text()
    runs = sorted(path.parent.name for path in (folder / "out" / "senti").glob("*/results.json"))
    assert len(runs) == 3 and [run[-1] for run in runs].count("2") == 1
    table = (folder / "results" / "senti.md").read_text()
    assert table.count("\n| hard | ") == 1 + 2 and "settings to choose from: 2 for hard" in table
    with open(folder / "results" / "senti.csv") as file:
        chosen = {line["setting"] for line in csv.DictReader(file)}
    assert len(chosen) == 1 and f"**{chosen.pop()}**" in table


def test_students_of_several_teachers_learn_from_all_of_them(tmp_path, tiny_model, tiny_data):
    """The single-domain teachers together, and the meta-teachers of two seeds: the log says how many."""
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    driver = start(folder, rows="multi-logits,ensemble,meta-full-from-teacher", student_learning_rates="3e-3")
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    runs = folder / "out" / "senti"
    for seed in (1, 2):
        log = (runs / f"student-multi-logits-0.003-s{seed}" / "log.txt").read_text()
        assert "knowledge of 4 teachers" in log
        log = (runs / f"student-ensemble-0.003-s{seed}" / "log.txt").read_text()
        assert "knowledge of 2 teachers" in log
        log = (runs / f"student-meta-full-from-teacher-0.003-s{seed}" / "log.txt").read_text()
        assert f"weights from {runs.relative_to(folder)}/teacher-meta-5e-05-s{seed}/" in log
    table = (folder / "results" / "senti.md").read_text()
    assert all(f"| {row} | " in table for row in ("multi-logits", "ensemble", "meta-full-from-teacher"))


def test_students_get_texts_without_labels_and_other_texts_are_another_set(tmp_path, tiny_model, tiny_data):
    """By answers and by layers they see more texts; a changed file is refused, as are rows without it."""
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    texts = [line.split("\t")[0] for line in (folder / "data" / "dev.tsv").read_text().splitlines()[1:21]]
    text_name = load_task("senti", tiny_data).text[0]
    (folder / "more.tsv").write_text("\n".join([text_name, *texts]) + "\n")
    more = {"rows": "unlabelled", "seeds": "1", "student_learning_rates": "3e-3"}
    driver = start(folder, unlabelled_file="more.tsv", **more)
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    examples = len((folder / "data" / "train.tsv").read_text().splitlines()) - 1
    for row in ("logits", "full"):
        log = (folder / "out" / "senti" / f"student-meta-{row}-unlabelled-0.003-s1" / "log.txt").read_text()
        assert f"{examples + len(texts)} train" in log
    (folder / "more.tsv").write_text("\n".join([text_name, *texts[1:]]) + "\n")
    for words, expected in (
        ({"unlabelled_file": "more.tsv"}, "made of other TSV files"),
        ({}, "--unlabelled_file goes with the rows"),
        ({"unlabelled_file": "gone.tsv"}, "there is no such file"),
    ):
        driver = start(folder, **more, **words)
        assert expected in driver.communicate()[1] and driver.returncode == 2


def test_mistakes_name_the_script(tmp_path):
    """As a user calls it: scripts/reproduce.sh, not the file that Python runs."""
    driver = start(tmp_path, "--rowz", "hard")
    assert "scripts/reproduce.sh: " in driver.communicate()[1] and driver.returncode == 2


def test_a_dry_run_starts_nothing(tmp_path, tiny_data):
    """It prints commands and counts, and makes no folder."""
    (tmp_path / "data").symlink_to(tiny_data)
    driver = start(tmp_path, "--dry_run", rows="variants")  # with one epoch
    assert (
        driver.communicate()[1].startswith("error: --student_epochs 1 has no room") and driver.returncode == 2
    )
    driver = start(tmp_path, "--dry_run")
    out, _ = driver.communicate()
    assert (
        driver.returncode == 0
        and not (tmp_path / "out").exists()
        and "11 steps in all, 8 of them training runs; 8 are known" in out
    )


def test_a_set_with_wrong_labels_trains_on_them_and_keeps_dev_and_test(tmp_path, tiny_model, tiny_data):
    """The runs read a train.tsv of the first 24 examples, books thinned, a quarter of the rest wrong; folders
    and results have a name of their own.
    """
    folder = lay_out(tmp_path, tiny_model, tiny_data)
    more = {"label_noise": 0.25, "thin_domains": "books=0.5", "train_example_num": 24}
    driver = start(folder, rows="hard", seeds="1", student_learning_rates="3e-3", **more)
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    name = "noise=0.25-thin=books=0.5-seed=1-first=24"
    data, task = folder / "out" / name / "data", load_task("senti", folder / "data")
    before = {each.text_a: each for each in read_examples(task, folder / "data" / "train.tsv")}
    after = list(read_examples(task, data / "train.tsv"))
    assert collections.Counter(each.domain for each in after) == {0: 4, 1: 6, 2: 6, 3: 6}
    assert (
        sum(each.label != before[each.text_a].label for each in after) == 6
    )  # one of three in a cell, none of two
    for split in ("dev", "test"):
        assert (data / f"{split}.tsv").read_bytes() == (folder / "data" / f"{split}.tsv").read_bytes()
    run = folder / "out" / name / "senti" / "student-hard-0.003-s1"
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and "22 train" in (run / "log.txt").read_text()
    table = (folder / "results" / name / "senti.md").read_text()
    assert "22 training examples" in table and "--label_noise 0.25" in table
