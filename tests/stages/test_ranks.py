"""Several ranks: the numbers of one rank, and the same bytes where rounding allows.

They speak with one voice and leave no process behind.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, best, call_process, lay_out, stage_flags, words
from test_stages import metrics, tree

from data.store.knowledge import Knowledge
from data.store.parts import PART
from modeling.distributed import collective, launch
from modeling.distributed.ranks import RankOptions, count_devices, local_ranks
from util import UserError

TWO = {"cpu_processes": 2}


# --------------------------------------------------------------------------------------- how many


def test_one_rank_unless_more_are_asked_for():
    """One process uses all cores by threads."""
    assert [local_ranks(RankOptions("cpu", cpu_processes=number)) for number in (None, 1, 3)] == [1, 1, 3]


def test_cores_are_those_that_the_process_may_use():
    """Bound to one core it counts one."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert launch.cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


@pytest.mark.parametrize(
    "changed, sentence",
    [({"node_rank": 2, "num_nodes": 2}, "the last is 1"), ({"gpu_num_per_node": 2}, "no GPU")],
)
def test_ranks_that_cannot_be_are_refused(changed, sentence):
    """A machine beyond the last, GPUs on a CPU."""
    with pytest.raises(UserError, match=sentence):
        local_ranks(RankOptions("cpu", **changed))


def test_a_step_takes_a_batch_for_each_device():
    """A GPU is a device, and so are the CPUs of a machine, however many ranks share them."""
    assert [count_devices("cpu", gpu_num_per_node=1, num_nodes=number) for number in (1, 3)] == [1, 3]


def test_shares_are_the_batch_and_even(monkeypatch):
    """Every row goes to one rank; shares differ by one row at most, and rows of all lengths are in each."""
    shares = []
    monkeypatch.setattr(collective, "get_world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(collective, "get_rank", lambda number=number: number)
        shares.append(collective.share(np.arange(10)).tolist())
    assert sorted(sum(shares, [])) == list(range(10)) and [len(share) for share in shares] == [4, 3, 3]
    assert shares[0] == [0, 3, 6, 9]


# --------------------------------------------------------------------------------------- the same results


@pytest.fixture(scope="module")
def still(tmp_path_factory, tiny_model, tiny_data):
    """A sandbox after stage 1, with a model without dropout, whose masks would differ.

    It has more training examples than a part holds.
    """
    folder = lay_out(tmp_path_factory.mktemp("still"), tiny_model, tiny_data)
    config = json.loads((folder / "bert" / "config.json").read_text())
    (folder / "bert" / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    )
    header, *lines = (folder / "data" / "train.tsv").read_text().splitlines()
    lines = [line.replace("\t", f" {'very ' * (i % 5)}\t", 1) for i, line in enumerate(lines * 20)]
    (folder / "data" / "train.tsv").write_text("\n".join([header, *lines]) + "\n")
    assert len(lines) > 2 * PART
    assert run(folder, "preprocess")["code"] == 0
    return folder


def run(folder, stage, **changed):
    """Runs a stage and returns its Outcome as a dict, whose error stands in the report of a failed test."""
    outcome = call_process(stage, folder, {**stage_flags(folder)[stage], **changed})
    if outcome.code:
        print(outcome.err)
    return outcome._asdict()


FEW = {"train_example_num": 32, "num_epochs": 2, "eval_every_step_num": 3}


@pytest.fixture(scope="module")
def single(still):
    """A teacher that one rank has trained, and its knowledge."""
    assert run(still, "meta_teacher", **FEW)["code"] == 0
    assert run(still, "meta_teacher_eval", knowledge_dir="single")["code"] == 0
    return still


def test_stage_1_writes_the_same_bytes(still):
    """Records and scores of two ranks are those of one, byte for byte; nothing else lies beside them."""
    before = tree(still / "data")
    assert run(still, "preprocess", ofrecord_dir="two", **TWO)["code"] == 0
    assert {
        name.partition("/")[2]: digest for name, digest in before.items() if name.startswith("ofrecord")
    } == tree(still / "two")


def test_stage_3_writes_the_same_bytes(single):
    """One set of parts in order, byte for byte that of one rank; three ranks too."""
    for number in (2, 3):
        assert (
            run(single, "meta_teacher_eval", knowledge_dir=f"by{number}", cpu_processes=number)["code"] == 0
        )
        assert tree(single / f"by{number}") == tree(single / "single")
    assert len(Knowledge(single / "single").manifest["parts"]) == 3


@pytest.mark.parametrize("batch, number", [(7, 2), (31, 2), (8, 3)])
def test_gradients_are_averaged_by_examples(single, batch, number):
    """Losses, gradient norms and accuracies of a run are those of one rank.

    Ranks share a batch unevenly, and a last one leaves a rank with nothing (32 examples in batches of 31).
    """
    found = []
    for count in (1, number):
        name = f"t-{batch}-{count}"
        assert (
            run(
                single,
                "meta_teacher",
                **FEW,
                batch_size_per_device=batch,
                cpu_processes=count,
                model_save_dir=name,
            )["code"]
            == 0
        )
        found.append(metrics(single / name))
    assert len(found[0]) == len(found[1]) > 0
    for one, several in zip(*found):
        assert one.keys() == several.keys()
        for key in one.keys() - {"dev", "phase"}:
            assert several[key] == pytest.approx(one[key], rel=2e-4), (one["step"], key)


def test_students_and_phases_too(single):
    """Distillation in two phases, of which the first leaves parameters unused."""
    found = []
    for count in (1, 2):
        name = f"s-{count}"
        outcome = run(
            single,
            "meta_distill",
            **{**FEW, "train_example_num": 33},
            intermediate_epochs=1,
            knowledge_dir="single",
            cpu_processes=count,
            model_save_dir=name,
        )
        assert outcome["code"] == 0
        found.append([line for line in metrics(single / name) if "dev" not in line])
    assert [line["phase"] for line in found[0]] == ["intermediate"] * 5 + ["prediction"] * 5
    for one, two in zip(*found):
        assert all(two[key] == pytest.approx(one[key], rel=1e-3) for key in one.keys() - {"phase"}), one[
            "step"
        ]


def test_two_machines_take_a_batch_each(single):
    """Two machines with batches of 4 have the losses of one with batches of 8.

    They are two commands with --num_nodes 2 over the loopback address.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {**stage_flags(single)["meta_teacher"], **FEW}
    assert (
        run(single, "meta_teacher", **FEW, batch_size_per_device=8, model_save_dir="one-machine")["code"] == 0
    )
    both = [
        start(
            single,
            "meta_teacher",
            {
                **flags,
                "batch_size_per_device": 4,
                "model_save_dir": "machines",
                "num_nodes": 2,
                "node_rank": node,
                "master_port": port,
            },
        )
        for node in (0, 1)
    ]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[1][0] == "" and "2 ranks" in ends[0][0]
    for one, two in zip(metrics(single / "one-machine"), metrics(single / "machines")):
        assert all(two[key] == pytest.approx(one[key], rel=2e-4) for key in one.keys() - {"phase", "dev"}), (
            one["step"]
        )


# ----------------------------------------------------------------------------- one voice, and no process left


def start(folder, stage, flags):
    """A stage as a process that goes on beside the test."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{stage}.py"), *words(flags)],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def family(folder):
    """The processes of Python that work in `folder`: {process number: rank, or None of those that launch}."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.readlink(path / "cwd") == str(folder.resolve())
                and b"python" in (path / "cmdline").read_bytes()
            ):
                place = dict(
                    word.split(b"=", 1)
                    for word in (path / "environ").read_bytes().split(b"\0")
                    if b"=" in word
                ).get(b"RANK")
                found[int(path.name)] = None if place is None else int(place)
        except OSError:  # it has ended meanwhile, or is not ours
            pass
    return found


@pytest.fixture
def long_run(sandbox):
    """A training of two ranks that would take minutes, past its first save: (sandbox, process, its flags)."""
    flags = {
        **stage_flags(sandbox)["meta_teacher"],
        **TWO,
        "model_save_dir": "long",
        "num_epochs": 2000,
        "save_every_step_num": 5,
    }
    process = start(sandbox, "meta_teacher", flags)
    until = time.monotonic() + 60
    while (
        not (sandbox / "long" / "snapshot_last" / "manifest.json").exists()
        and time.monotonic() < until
        and process.poll() is None
    ):
        time.sleep(0.05)
    yield sandbox, process, flags
    for each in family(sandbox):
        os.kill(each, signal.SIGKILL)


def assert_none_left(folder):
    until = time.monotonic() + 20
    while (left := family(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_a_sentence(long_run, number):
    """It is named, the exit code is not 0, no process stays, and the last snapshot is whole."""
    folder, process, _ = long_run
    (victim,) = (each for each, place in family(folder).items() if place == number)
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 1
        and err.startswith(f"error: rank {number} of 2 was killed")
        and err.count("\n") == 1
    ), err
    assert_none_left(folder)
    assert (folder / "long" / "snapshot_last" / "manifest.json").exists()


def test_no_rank_outlives_the_process_that_the_user_started(long_run):
    """kill -9 of it ends the ranks."""
    folder, process, _ = long_run
    process.kill()
    process.communicate(timeout=60)
    assert_none_left(folder)


@pytest.mark.parametrize("number, asked", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "the user")])
def test_a_signal_saves_and_tells_how_to_go_on(long_run, number, asked):
    """SIGTERM or Ctrl-C: exit code 130, the step is saved, and a command resumes with as many ranks."""
    folder, process, flags = long_run
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    step = json.loads((folder / "long" / "snapshot_last" / "meta.json").read_text())["step"]
    assert process.returncode == 130 and err.startswith(
        f"stopped by {asked} after step {step}, which is saved."
    ), err
    assert err.rstrip().endswith("--resume_from long/snapshot_last") and "--model_save_dir" not in err
    assert_none_left(folder)


def test_a_stopped_run_goes_on_to_the_same_bytes(sandbox):
    """Two ranks, stopped by SIGTERM and resumed without naming ranks, end with the bytes of one go."""
    flags = {**stage_flags(sandbox)["meta_teacher"], **TWO, "num_epochs": 12, "save_every_step_num": 1000}
    assert call_process("meta_teacher", sandbox, {**flags, "model_save_dir": "whole"}).code == 0
    process = start(sandbox, "meta_teacher", {**flags, "model_save_dir": "cut"})
    until = time.monotonic() + 60
    while (
        len(metrics(sandbox / "cut") if (sandbox / "cut" / "metrics.jsonl").exists() else ()) < 10
        and time.monotonic() < until
    ):
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    again = {**flags, "model_save_dir": None, "cpu_processes": None, "resume_from": "cut/snapshot_last"}
    refused = call_process("meta_teacher", sandbox, {**again, "cpu_processes": 1})
    assert refused.code == 2 and "had 2 ranks" in refused.err
    assert call_process("meta_teacher", sandbox, again).code == 0
    assert tree(sandbox / "cut") == tree(sandbox / "whole")


def test_a_mistake_is_one_sentence_of_one_rank(golden):
    """What every rank finds is said once, with exit code 2, and launcher and engine add nothing."""
    for stage, flag in (
        ("meta_teacher", "model_load_dir"),
        ("preprocess", "model_load_dir"),
        ("meta_distill", "student_model"),
    ):
        new = {"model_save_dir": "new"} if stage != "preprocess" else {}
        outcome = call_process(stage, golden, {**stage_flags(golden)[stage], **TWO, **new, flag: "nowhere"})
        sentence = (
            f"--{flag} nowhere: there is no such folder; models are not fetched by name: download one and "
            "name its folder."
        )
        assert tuple(outcome) == (2, "", f"error: {sentence}\n") or outcome.out.count("commit") == 1
        assert outcome.err == f"error: {sentence}\n"


def test_a_file_in_the_place_of_a_folder_ends_all_ranks(sandbox):
    """Rank 0 alone writes, and finds it; the other, which waits for it, ends too."""
    (sandbox / "file").write_text("")
    flags = {**stage_flags(sandbox)["meta_teacher"], **TWO, "model_save_dir": "file"}
    outcome = call_process("meta_teacher", sandbox, flags)
    assert (
        outcome.code == 2
        and outcome.err.count("\n") == 1
        and "file: a file has the name of this folder" in outcome.err
    )


def test_ranks_agree_on_the_folder_of_a_run_that_was_given_none(sandbox):
    """One folder output/model_save-<time> has all of the run; rank 0 reads the best snapshot there."""
    outcome = call_process(
        "meta_teacher", sandbox, {**stage_flags(sandbox)["meta_teacher"], **TWO, "model_save_dir": None}
    )
    assert outcome.code == 0, outcome.err
    (folder,) = (sandbox / "output").iterdir()
    assert best(folder).exists() and (folder / "results.json").exists()


def test_the_engines_own_launcher_starts_the_scripts_too(sandbox):
    """The engine's launcher gives the same files as --cpu_processes 2.

    It is: python3 -m oneflow.distributed.launch --nproc_per_node 2 meta_teacher.py ...
    """
    flags = {**stage_flags(sandbox)["meta_teacher"], "cpu_processes": None}
    command = [
        sys.executable,
        "-m",
        "oneflow.distributed.launch",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29541",
        str(ROOT / "meta_teacher.py"),
    ]
    done = subprocess.run(
        [*command, *words({**flags, "model_save_dir": "theirs"})],
        cwd=sandbox,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert call_process("meta_teacher", sandbox, {**flags, **TWO, "model_save_dir": "ours"}).code == 0
    assert tree(sandbox / "theirs") == tree(sandbox / "ours")
    assert best(sandbox / "theirs").name == best(sandbox / "ours").name
