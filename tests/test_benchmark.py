"""The benchmark: its arithmetic on made-up figures, and the command on a tiny model, without PyTorch."""

import subprocess
import sys

import pytest

from data.batches import epoch_batches
from data.store.knowledge import Knowledge
from tests.benchmark import disk, processes, without_first
from tests.benchmark.__main__ import measure, parse
from tests.benchmark.bench import Bench
from tests.benchmark.groups import GROUPS, Group
from tests.benchmark.tables import (
    Key,
    Ratio,
    digits,
    measurements_table,
    median_and_range,
    met,
    ratios_table,
    spread_of_ratio,
)

OURS, THEIRS = (Key("step", "training", side, 2) for side in ("ours", "PyTorch"))
FIGURES = {
    OURS: [{"seconds": s, "units": 600, "megabytes": 100} for s in (2.0, 3.0, 8.0)],
    THEIRS: [{"seconds": s, "units": 600, "megabytes": 80} for s in (1.0, 6.0, 2.0)],
}


def test_a_ratio_is_the_median_of_the_rounds_pairs():
    """2, 0.5 and 4: their median is not the ratio 3/2 of the medians."""
    assert spread_of_ratio(Ratio("", OURS, THEIRS), FIGURES) == (2.0, 0.5, 4.0)
    assert spread_of_ratio(Ratio("", OURS, THEIRS, "megabytes"), FIGURES) == (1.25, 1.25, 1.25)


def test_a_ratio_without_a_denominator_is_the_figure_itself():
    assert spread_of_ratio(Ratio("", OURS, None), FIGURES) == (3.0, 2.0, 8.0)


def test_a_ratio_to_what_failed_is_none_and_stands_as_failed():
    ratio = Ratio("ours over theirs", OURS, THEIRS, target="at most 1.05")
    assert spread_of_ratio(ratio, {OURS: FIGURES[OURS]}) is None
    assert (
        ratios_table([ratio], {OURS: FIGURES[OURS]})[-1] == "| ours over theirs | failed | | at most 1.05 | |"
    )


def test_the_median_of_an_even_number_lies_between_the_middle_two():
    assert median_and_range([4.0, 1.0, 2.0, 9.0]) == (3.0, 1.0, 9.0)


@pytest.mark.parametrize(
    "value, target, reached",
    [
        (1.05, "at most 1.05", True),
        (1.06, "at most 1.05", False),
        (1.8, "at least 1.8", True),
        (1.79, "at least 1.8", False),
    ],
)
def test_a_target_is_met_up_to_its_limit(value, target, reached):
    assert met(value, target) == reached


@pytest.mark.parametrize(
    "value, words", [(0.01234, "0.0123"), (0.5, "0.500"), (1.2345, "1.23"), (99.95, "100"), (1234.5, "1,234")]
)
def test_three_digits_count(value, words):
    assert digits(value) == words


def test_the_tables_hold_medians_spread_speed_and_memory():
    assert (
        measurements_table([OURS], FIGURES, "reviews")[-1]
        == "| training | ours | 2 | 3.00 | 2.00 to 8.00 | 200 | 100 |"
    )
    assert ratios_table([Ratio("a over b", OURS, THEIRS, target="at most 1.05")], FIGURES)[-1] == (
        "| a over b | 2.00 | 0.500 to 4.00 | at most 1.05 | no |"
    )


def test_the_first_step_counts_by_its_tokens():
    """A step of 100 tokens left out of 100 + 300: the other three quarters are scaled to the whole."""
    assert without_first([100, 100, 200]) == pytest.approx(400 / 300)


def test_a_failed_measurement_is_left_out_and_the_others_go_on(capsys):
    """Every round runs all that has not failed, in one order; a group of `once` has one round."""
    calls = []

    def good(name):
        calls.append(name)
        return {"seconds": 1.0}

    def bad():
        calls.append("bad")
        raise processes.Failed("no memory")

    each, once = Group("each", "", "reviews"), Group("once", "", "reviews", once=True)
    keys = [
        each.measure("a", "ours", 1, good, "a"),
        each.measure("b", "ours", 1, bad),
        once.measure("c", "ours", 1, good, "c"),
    ]
    figures, failed = measure([each, once], 2)
    assert calls == ["a", "bad", "c", "a"]
    assert failed and {key: len(runs) for key, runs in figures.items()} == {keys[0]: 2, keys[2]: 1}
    assert "no memory" in capsys.readouterr().err


def test_peak_memory_is_that_of_the_largest_processes():
    """A process that starts two which hold 200 and 100 MB: of one process the larger counts, of two both."""
    code = (
        "import subprocess, sys\nhold = 'import time; held = bytes([1]) * {}000000; time.sleep(0.6)'\n"
        "started = [subprocess.Popen([sys.executable, '-c', hold.format(n)]) for n in (200, 100)]\n"
        "for one in started: one.wait()"
    )
    one, two = (processes.run([sys.executable, "-c", code], processes=n).megabytes for n in (1, 2))
    assert 200 < one < 250
    assert 300 < two < 370


def test_a_command_that_fails_says_why():
    with pytest.raises(processes.Failed, match="ended with 3: out of luck"):
        processes.run(
            [sys.executable, "-c", "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"]
        )


def test_every_target_of_the_comparison_is_a_ratio(tmp_path):
    """The limits that were set for two cores stand in the table that a whole run against PyTorch prints."""
    bench = Bench(parse(["--against", "torch"]), tmp_path)
    targets = [ratio.target for make in GROUPS.values() for ratio in make(bench).ratios]
    for target in (
        "at most 1.05",
        "at most 1.25",
        "at most 0.85",
        "at most 0.8",
        "at most 0.6",
        "at most 0.25",
        "at least 1.8",
        "at most 1.3",
        "at most 1.1",
        "at most 6",
    ):
        assert target in targets


def test_the_command_prints_its_tables():
    """A tiny model, one core, one round: every group asked for has its table, with figures alone in it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmark",
            "--size",
            "2",
            "32",
            "--cores",
            "1",
            "--rounds",
            "1",
            "--examples",
            "48",
            "--growth",
            "20",
            "40",
            "--only",
            "step",
            "teacher",
            "records",
        ],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "random weights",
        "made-up words",
        "**Step.**",
        "**Teacher.**",
        "**Records.**",
        "**Ratios.**",
    ):
        assert words in done.stdout
    rows = [line.split(" | ") for line in done.stdout.splitlines() if "| ours" in line]
    assert [row[0] for row in rows] == [
        "| training step",
        "| inference",
        "| 48 reviews",
        "| records written, 40 reviews",
        "| records read, 40 reviews",
    ]
    assert all(float(row[3]) > 0 and float(row[6].rstrip(" |").replace(",", "")) > 50 for row in rows)
    assert "failed" not in done.stdout


def test_an_epoch_from_disk_reads_every_review_once(tmp_path, monkeypatch):
    """Each batch is waited for, and between them they ask for all the reviews, and none twice."""
    lengths, asked = disk.draw_lengths(60), []
    disk.make_knowledge(tmp_path / "knowledge", lengths)
    knowledge = Knowledge(tmp_path / "knowledge")
    read = knowledge.read
    monkeypatch.setattr(knowledge, "read", lambda rows: asked.extend(rows) or read(rows))
    batches = epoch_batches(lengths, 24, 0, 0)
    seconds, waits = disk.read_epoch(knowledge, tmp_path.glob("knowledge/*"), batches, pause=0)
    assert sorted(asked) == list(range(60)) and len(waits) == 3 and 0 < sum(waits) <= seconds
