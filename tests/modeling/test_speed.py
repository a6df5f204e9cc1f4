"""modeling.speed: it times models, leaves the report alone, and answers nothing that it was not asked."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_stages import tree

from modeling.speed import BATCHES, SINGLES, Timed, measure


def run_speed(folder, *models):
    command = [sys.executable, "-m", "modeling.speed", "--data_dir", folder / "data", "--model_load_dir"]
    return subprocess.run([*command, *models], cwd=ROOT, capture_output=True, text=True)


def test_both_are_timed_beside_the_report(sandbox):
    """Sizes as in results.json, times above zero, in speed.json and on the page; the run's files stay."""
    before = tree(sandbox)
    done = run_speed(sandbox, sandbox / "student", sandbox / "teacher")
    assert done.returncode == 0, done.stderr
    found = json.loads((sandbox / "student" / "speed.json").read_text())["models"]
    for run, facts in zip(("student", "teacher"), found):
        results = json.loads((sandbox / run / "results.json").read_text())
        assert facts["kind"] == run and facts.keys() >= {"p50_ms", "p95_ms"}
        assert all(facts[key] == results[key] for key in ("snapshot", "parameters", "bytes"))
        assert 0 < facts["p50_ms"] <= facts["p95_ms"] and min(facts["texts_per_second"].values()) > 0
        assert f"<td>{facts['p50_ms']:.2f}</td>" in (sandbox / "student" / "speed.html").read_text()
    for name in ("speed.json", "speed.html"):
        (sandbox / "student" / name).unlink()
    assert tree(sandbox) == before


def test_every_text_is_answered_once_a_round_in_batches_of_each_size():
    """The numbers come of the texts that they tell of: some texts one by one, all of them by each size."""
    sizes = []

    def answer(texts):
        sizes.append(len(texts))
        return np.zeros((len(texts), 2))

    model = Timed(None, answer, {})
    measure([model], [("a", None)] * 130)
    for size in BATCHES:
        assert sizes.count(size) >= 3 * (130 // size)
    assert sizes.count(1) == 3 * SINGLES and model.facts["texts_per_second"].keys() == {
        "1",
        *map(str, BATCHES),
    }


@pytest.mark.parametrize("missing", ["snapshot", "data"])
def test_what_is_not_there_is_told(sandbox, missing):
    """One sentence and exit code 2."""
    if missing == "data":
        (sandbox / "data" / "test.tsv").unlink()
    done = run_speed(sandbox, sandbox / ("student" if missing == "data" else "nothing"))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
