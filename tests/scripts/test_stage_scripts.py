"""The scripts of the four stages: what they call, from which folder, and when they call nothing."""

import pathlib
import subprocess

import pytest
from conftest import ROOT

STAGES = {
    "1_preprocess.sh": "preprocess.py",
    "2_meta_teacher.sh": "meta_teacher.py",
    "3_meta_teacher_eval.sh": "meta_teacher_eval.py",
    "4_meta_distill.sh": "meta_distill.py",
}


@pytest.fixture
def stub(tmp_path):
    """A Python that prints the folder where it runs and its words, each on a line."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def run(script, *words, **variables):
    """Runs a script of scripts/ from the folder `/`; returns the finished process."""
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *words],
        env={"PATH": "/usr/bin:/bin", **{name: str(value) for name, value in variables.items()}},
        cwd="/",
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", STAGES)
def test_words_go_on_to_the_stage(stub, tmp_path, script):
    """Further flags come last, so that they win, whole words stay whole, and paths are relative to the
    repository.
    """
    words = ("--early_stopping_patience", "3", "--vocab_file", "my models/vocab.txt")
    done = run(
        script, *words, PYTHON=stub, TEACHER_RUN=tmp_path / "teacher", STUDENT_RUN=tmp_path / "student"
    )
    assert (done.returncode, done.stderr) == (0, "")
    folder, stage, *flags = done.stdout.splitlines()
    assert (pathlib.Path(folder), stage) == (ROOT, STAGES[script])
    assert tuple(flags[-4:]) == words and flags[flags.index("--data_dir") + 1] == "data/SENTI"


@pytest.mark.parametrize(
    "script, name", [("2_meta_teacher.sh", "TEACHER_RUN"), ("4_meta_distill.sh", "STUDENT_RUN")]
)
def test_a_finished_run_is_used_and_said(stub, tmp_path, script, name):
    """Nothing is called; the line says what to do to train anew."""
    (tmp_path / "results.json").write_text("{}")
    done = run(script, PYTHON=stub, **{name: tmp_path})
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1
    assert f"{tmp_path} holds a finished run" in done.stdout and f"another {name}" in done.stdout


def test_a_finished_student_is_calibrated(stub, tmp_path):
    """--calibrate goes on to the stage, which does not train again."""
    (tmp_path / "results.json").write_text("{}")
    done = run("4_meta_distill.sh", "--calibrate", PYTHON=stub, STUDENT_RUN=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("--resume\n--calibrate\n")


@pytest.mark.parametrize("finished", [False, True])
def test_a_teacher_whose_run_is_not_finished_is_told(stub, tmp_path, finished):
    """Stage 3 takes the best snapshot so far, and says so."""
    if finished:
        (tmp_path / "results.json").write_text("{}")
    done = run("3_meta_teacher_eval.sh", PYTHON=stub, TEACHER_RUN=tmp_path)
    assert done.returncode == 0 and ("is not finished" in done.stderr) is not finished


@pytest.mark.parametrize("script", [*STAGES, "reproduce.sh"])
def test_a_missing_python_is_told(tmp_path, script):
    """One sentence that names the setup, exit code 2."""
    done = run(script, PYTHON=tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith(f"error: {tmp_path / 'none'} is missing") and "scripts/setup.sh" in done.stderr
    )


def test_each_script_says_what_it_does_and_is_short():
    """A comment follows the first line, and all but setup.sh have fewer than 30 lines."""
    for path in sorted((ROOT / "scripts").glob("*.sh")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("# ") for line in lines[:2]), path
        assert len(lines) < 30 or path.name == "setup.sh", path
