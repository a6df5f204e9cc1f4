"""The table of finished runs: its cells, and what it says of folders that are none."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

FIGURES = {"domains": {"books": 0.75, "dvd": 0.5}, "domain_average": 0.625, "accuracy": 2 / 3}


@pytest.fixture
def run(tmp_path):
    """A run folder with what the table is made of."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    results = {"test": FIGURES, "parameters": 33_000_000, "bytes": 132_000_000}
    (folder / "results.json").write_text(json.dumps(results))
    lines = [{"event": "dev"}, *({"event": "test", "examples_per_second": speed} for speed in (80, 90.4))]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def summary(folder, *runs):
    """The finished command over these runs in `folder`."""
    words = [sys.executable, "-m", "scripts.summary", *(folder / name for name in runs)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_a_run_is_a_row(run):
    """Accuracies in percent, sizes in millions, the speed of the last test."""
    outcome = summary(run.parent, "teacher", "teacher")
    header, _, *rows = outcome.stdout.splitlines()
    assert header == "| run | books | dvd | average | all | parameters | file | examples/s |"
    assert rows == ["| teacher | 75.0 | 50.0 | 62.5 | 66.7 | 33.0 M | 132 MB | 90 |"] * 2


@pytest.mark.parametrize(
    "runs, words",
    [
        ([], "the following arguments are required: RUN"),
        (["nothere"], "nothere/results.json: the results of a run is missing"),
        (["untested"], "untested/timing.jsonl: found no test"),
    ],
)
def test_a_mistake_is_one_sentence(run, runs, words):
    """No run, a folder that is none, a run that was not evaluated: exit code 2, no traceback."""
    (run.parent / "untested").mkdir()
    (run.parent / "untested" / "results.json").write_text((run / "results.json").read_text())
    (run.parent / "untested" / "timing.jsonl").write_text("")
    outcome = summary(run.parent, *runs)
    assert (outcome.returncode, outcome.stdout) == (2, "") and outcome.stderr.startswith("error: "), outcome
    assert words in outcome.stderr and outcome.stderr.count("\n") == 1


def test_every_program_turns_mistakes_into_sentences():
    """Each file that is run as a program, but for those of tests/, has a main() under @entry."""
    patterns = ("*.py", "data/*/*.py", "modeling/**/*.py", "scripts/**/*.py")
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    programs = [path for path in files if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    assert len(programs) > 10
    for path in programs:
        assert "\n@entry\ndef main():" in path.read_text(encoding="utf-8"), path
