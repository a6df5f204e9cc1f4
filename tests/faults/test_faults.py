"""Killed, stopped, out of space, side by side: what is left is whole, and the same command goes on well.

A kill -9 leaves the files as they stand. So a run that is watched tells of every kill: its files are kept
before each of its file events (and in the middle of weights), and the command is given again over each of
these states. Real processes and real signals try samples of the same. METAKD_SLOW=1 tries all that is marked
slow, with other samples for another METAKD_SEED.
"""

import argparse
import contextlib
import ctypes
import errno
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, STAGES, Outcome, call, call_process, lay_out, stage_flags, words
from test_stages import CLOCKED, metrics, tree

import data.store.parts
from data.store.knowledge import Knowledge
from data.store.records import Records
from modeling.bert.config import BertConfig
from modeling.snapshots import saving
from modeling.snapshots.folder import read_model
from modeling.snapshots.manager import Snapshots
from modeling.snapshots.saving import save_snapshot
from modeling.training.stage import snapshot_options
from tokenization import tokenizer_for
from util import UserError, read_json

SLOW = bool(os.environ.get("METAKD_SLOW"))
SEED = int(os.environ.get("METAKD_SEED", 0))
TWELVE = {
    "num_epochs": 3,
    "batch_size_per_device": 8,
}  # 32 examples: 12 steps; dev at each second, a snapshot at each third
WRITTEN = {
    "preprocess": "data",
    "meta_teacher": "teacher",
    "meta_teacher_eval": "data",
    "meta_distill": "student",
}
TRAINING = ("meta_teacher", "meta_distill")
slow = pytest.mark.slow

# --------------------------------------------------------------------------------------- what is left

EVENTS = {
    "open",
    "os.rename",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "shutil.rmtree",
}  # as Python's audit hooks name them
_watcher = []


def _audit(event, args):
    if event in EVENTS and _watcher:
        watch = _watcher.pop()  # what it does itself is not watched
        try:
            watch(event, args)
        finally:
            _watcher.append(watch)


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(watch):
    """Calls `watch(event, args)` before every file event of the block.

    Weights also count in the middle, when half of them are written.
    """
    whole = saving.save_file

    def in_halves(arrays, path, **options):
        whole(arrays, path, **options)
        data = pathlib.Path(path).read_bytes()
        pathlib.Path(path).write_bytes(data[: len(data) // 2])
        _audit("open", (str(path), "wb", 0))
        whole(arrays, path, **options)

    saving.save_file = in_halves
    _watcher.append(watch)
    try:
        yield
    finally:
        _watcher.clear()
        saving.save_file = whole


def state_of(folder):
    """The files below `folder`, {relative name: content}; None for a folder, a text for a link's target."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def restore(state, folder):
    """Makes `folder` hold a state and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)


def folder_states(folder, work):
    """All different states of `folder` that a kill at a file event of `work()` leaves, in their order."""
    states, seen = [], set()

    def keep(event=None, args=None):
        state = state_of(folder) if folder.exists() else {}
        key = hash(tuple((name, content) for name, content in state.items() if not name.endswith(CLOCKED)))
        if key not in seen:
            seen.add(key)
            states.append({name: content for name, content in state.items() if not name.endswith(".lock")})

    with watched(keep):
        work()
    keep()
    return states


def half_written(folder):
    """What stands below `folder` under a name that nothing whole has."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob(".*")
        if path.name != ".lock" and not path.name.endswith(".lock")
    )


def assert_whole(folder):
    """Everything below `folder` can be read.

    That is: snapshots, best.json and what it names, records, knowledge and JSON.
    """
    for path in folder.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.name.startswith("snapshot_") or path.is_symlink():
            assert read_model(path).meta["step"] > 0
        elif path.name == "best.json":
            read_model(path.parent / read_json(path, "")["snapshot"])
        elif path.name in ("train", "dev", "test") and path.parent.name == "ofrecord":
            Records(path, path.name).arrays()
        elif path.name.startswith("knowledge-"):
            knowledge = Knowledge(path)
            knowledge.read(knowledge.idxs)
        elif path.suffix == ".json":
            read_json(path, "")


def assert_a_sentence(outcome, *words):
    """One line that begins with error:, exit code 2, no traceback."""
    assert (
        outcome.code == 2
        and outcome.err.startswith("error: ")
        and outcome.err.count("\n") == 1
        and "Traceback" not in outcome.out
    ), outcome.err
    assert all(word in outcome.err for word in words), outcome.err


# --------------------------------------------------------------------------------------- the golden run


class Stage(NamedTuple):
    """A stage of the golden run: its flags, the states that kills leave, and the files at its end."""

    flags: dict
    states: list
    tree: dict


@pytest.fixture(scope="module")
def story(tmp_path_factory, tiny_model, tiny_data):
    """The four stages, watched: (sandbox, {stage: Stage}).

    Stages 2 and 4 have 12 steps; stages 1 and 3 have parts of 8 examples.
    """
    folder, stages, size = (
        lay_out(tmp_path_factory.mktemp("story"), tiny_model, tiny_data),
        {},
        data.store.parts.windows.__defaults__,
    )
    data.store.parts.windows.__defaults__ = (8,)
    for stage in STAGES:
        flags, outcomes = stage_flags(folder, **TWELVE)[stage], []
        if stage in TRAINING:
            flags["resume"] = True

        def run(stage=stage, flags=flags, outcomes=outcomes):
            outcomes.append(call(stage, folder, flags))

        states = folder_states(folder / WRITTEN[stage], run)
        assert outcomes[0].code == 0, outcomes[0].err
        stages[stage] = Stage(flags, states, tree(folder / WRITTEN[stage]))
    assert len(metrics(folder / "teacher")) == len(metrics(folder / "student")) == 12 + 6
    yield folder, stages
    data.store.parts.windows.__defaults__ = size


def sample(items, quick, slow=None):
    """`quick` of them, evenly; `slow` or all of them where METAKD_SLOW is set."""
    count = len(items) if SLOW and slow is None else slow if SLOW else quick
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


@pytest.fixture
def copy(story, tmp_path):
    """A copy of the golden sandbox, to be changed."""
    return shutil.copytree(story[0], tmp_path / "sandbox", symlinks=True)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_file_event_costs_nothing(story, copy, stage):
    """After a kill before any file event of a stage, every file is whole.

    The same command then ends with the golden files and no others.
    """
    folder, states = copy / WRITTEN[stage], story[1][stage].states
    for number, state in enumerate(sample(states, 8)):
        restore(state, folder)
        assert_goes_on(story, copy, stage, (number, sorted(state)))


@pytest.mark.parametrize("stage", TRAINING)
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=slow if step != 7 else ()) for step in range(1, 13)]
)  # each 3 s
def test_a_kill_at_any_step_costs_nothing(story, copy, stage, step):
    """A process that kills itself with SIGKILL at a logged step ends, given again, with the golden files."""
    flags, folder = story[1][stage].flags, copy / WRITTEN[stage]
    shutil.rmtree(folder)
    outcome = call_process(stage, copy, flags, KILLED.format(step=step))
    assert outcome.code == -signal.SIGKILL and metrics(folder)[-1]["step"] == step, outcome.err
    assert_goes_on(story, copy, stage)


KILLED = """
import os, signal
from modeling.training.step_log import StepLog
whole = StepLog.step
def step(self, number, *args):
    whole(self, number, *args)
    if number == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
StepLog.step = step
"""


def assert_goes_on(story, copy, stage, note=None):
    """What is left of a stage is whole, and the same command ends with the golden files and no others."""
    folder = copy / WRITTEN[stage]
    if folder.exists():
        assert_whole(folder)
    outcome = call(stage, copy, story[1][stage].flags)
    assert outcome.code == 0, (note, outcome.err)
    assert tree(folder) == story[1][stage].tree and half_written(folder) == [], note


def test_a_line_of_metrics_that_was_cut_is_written_again(story, copy):
    """A kill or a full disk in a line of metrics.jsonl, after its first byte and before its line end."""
    folder, state = (
        copy / "teacher",
        next(
            state
            for state in story[1]["meta_teacher"].states
            if "snapshot_last" in state and state["metrics.jsonl"].count(b"\n") == 6
        ),
    )
    lines = state["metrics.jsonl"].splitlines(keepends=True)
    for cut in (1, len(lines[-1]) - 1):
        restore({**state, "metrics.jsonl": b"".join(lines[:-1]) + lines[-1][:cut]}, folder)
        assert_goes_on(story, copy, "meta_teacher", cut)


def test_knowledge_is_replaced_at_once(story, copy):
    """Knowledge of other layers replaces the old at once: a kill at any file event leaves one of the two.

    The same command then leaves nothing else.
    """
    flags, folder = {**story[1]["meta_teacher_eval"].flags, "knowledge_layers": "4"}, copy / "data"
    states = folder_states(folder, lambda: call("meta_teacher_eval", copy, flags))
    whole = tree(folder)
    assert whole != story[1]["meta_teacher_eval"].tree
    for number, state in enumerate(sample(states, 8)):
        restore(state, folder)
        assert_whole(folder)
        outcome = call("meta_teacher_eval", copy, flags)
        assert outcome.code == 0 and tree(folder) == whole and half_written(folder) == [], (
            number,
            outcome.err,
        )


# ----------------------------------------------------------------------------- real signals at random moments


def start(folder, stage, flags, **options):
    """A stage as a process of its own, started and no more; parts of 8 examples, as in the golden run."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = '{stage}.py'; "
        "import data.store.parts; data.store.parts.windows.__defaults__ = (8,); "
        f"import {stage}; {stage}.main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *words(flags)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "round", [pytest.param(round, marks=slow if round > 3 else ()) for round in range(20)]
)  # each 4 s
def test_signals_at_random_moments_cost_nothing(story, copy, number, round):
    """Each stage, stopped up to three times in a row at random moments, then ends with the golden files.

    SIGTERM leaves a sentence, and no half-written file of stages 2 and 4.
    """
    stage, stream = STAGES[round % 4], random.Random(f"{SEED} {round} {number}")
    folder, note = copy / WRITTEN[stage], f"METAKD_SEED={SEED}, round {round}"
    restore(story[1][stage].states[0], folder)
    for _ in range(stream.choice((1, 1, 2, 3))):
        process = start(copy, stage, story[1][stage].flags)
        time.sleep(stream.uniform(0.5, 3.5 if stage in TRAINING else 1.8))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert (
            process.returncode in (0, -number)
            or process.returncode == 130
            and err.startswith("stopped by SIGTERM")
            and number == signal.SIGTERM
        )
        assert "Traceback" not in err, (note, err)
        assert number == signal.SIGKILL or stage not in TRAINING or not half_written(folder), (
            note
        )  # stages 1 and 3 keep parts to go on with
        assert_whole(folder)
    assert_goes_on(story, copy, stage, note)


# --------------------------------------------------------------------------------------- side by side


@pytest.mark.parametrize("stage", STAGES)
def test_of_two_runs_at_once_one_is_refused(story, copy, stage):
    """Of two runs that start within 10 ms in one folder, one ends well.

    The other ends well after it, or is told who writes there.
    """
    folder = copy / WRITTEN[stage]
    restore(story[1][stage].states[0], folder)
    both = [start(copy, stage, story[1][stage].flags) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) in ([0, 0], [0, 2]), ends
    assert all(code == 0 or "is writing here" in err and err.count("\n") == 1 for err, code in ends), ends
    assert_goes_on(story, copy, stage)


class Weights:
    """What `save_snapshot` takes for a model, with one weight; no engine behind it."""

    def __init__(self, folder, value):
        self.bert = types.SimpleNamespace(config=BertConfig.from_file(folder / "config.json"))
        self.arrays = {name: np.full_like(array, value) for name, array in read_model(folder).arrays.items()}

    def named_parameters(self):
        return [
            (name, types.SimpleNamespace(numpy=lambda array=array: array))
            for name, array in self.arrays.items()
        ]


def test_a_reader_beside_a_writer_gets_one_version_or_a_sentence(tiny_model, tmp_path):
    """A snapshot that is replaced 60 times while it is read gives meta.json and weights of one time.

    Otherwise a UserError says what happened.
    """
    meta = {"kind": "teacher", "step": 0, "task": "senti", "labels": ["a", "b"], "domains": ["c"]}
    tokenizer, models = tokenizer_for(tiny_model), [Weights(tiny_model, value) for value in range(2)]

    def save(step):
        save_snapshot(tmp_path / "snapshot_last", models[step % 2], tokenizer, {**meta, "step": step})

    save(0)
    writer, read = threading.Thread(target=lambda: [save(step) for step in range(1, 60)]), 0
    writer.start()
    try:
        while writer.is_alive():
            with contextlib.suppress(UserError, FileNotFoundError):
                folder = read_model(tmp_path / "snapshot_last")
                assert {float(array.flat[0]) for array in folder.arrays.values()} == {folder.meta["step"] % 2}
                read += 1
    finally:
        writer.join()
    assert read and read_model(tmp_path / "snapshot_last").meta["step"] == 59 and half_written(tmp_path) == []


def test_the_best_snapshot_changes_at_once(tiny_model, tmp_path):
    """A kill while a better snapshot replaces the best leaves best.json with a whole one.

    No half of a snapshot has a name.
    """
    args = argparse.Namespace(
        device="cpu", num_nodes=1, gpu_num_per_node=1, save_total_limit=1, select_by="accuracy", defaults={}
    )
    meta = {"kind": "teacher", "step": 0, "task": "senti", "labels": ["a", "b"], "domains": ["c"]}
    snapshots = Snapshots(
        types.SimpleNamespace(folder=tmp_path),
        "mft",
        Weights(tiny_model, 1),
        tokenizer_for(tiny_model),
        meta,
        snapshot_options(args),
    )
    snapshots.save_best(1, {"accuracy": 0.5})
    for state in folder_states(tmp_path, lambda: snapshots.save_best(2, {"accuracy": 0.75})):
        restore(state, tmp_path)
        assert "best.json" in state
        assert_whole(tmp_path)
    assert half_written(tmp_path) == [] and len(list(tmp_path.glob("snapshot_best_*"))) == 1


# --------------------------------------------------------------------------------------- another environment


@pytest.mark.parametrize("stage", STAGES)
def test_the_environment_changes_no_byte(story, copy, stage):
    """Another working directory, hash seed, locale and time zone."""
    flags, folder = dict(story[1][stage].flags), copy / WRITTEN[stage]
    restore(story[1][stage].states[0], folder)
    for name in ("data_dir", "model_load_dir", "student_model", "teacher_model", "model_save_dir"):
        if flags.get(name):
            flags[name] = str(copy / flags[name])
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "TZ": "Asia/Kathmandu",
    }
    process = start("/", stage, flags, env=environment)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    given = folder / "flags.json"  # tells paths as they were given
    if given.exists():
        given.write_text(given.read_text().replace(f"{copy}/", ""))
    assert tree(folder) == story[1][stage].tree


# ----------------------------------------------------------------------------------- full and forbidden disks


def limited(size):
    """For preexec_fn: no file may become larger than `size` bytes, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


FULL = [
    ("preprocess", 2000),
    ("meta_teacher_eval", 5000),
    ("meta_teacher", 700),
    ("meta_teacher", 30000),
    ("meta_distill", 4000),
]
MORE = [
    ("preprocess", 300),
    ("meta_teacher_eval", 300),
    ("meta_teacher", 100),
    ("meta_teacher", 4000),
    ("meta_distill", 100),
    ("meta_distill", 700),
    ("meta_distill", 20000),
]


@pytest.mark.parametrize("stage, size", FULL + [pytest.param(*each, marks=slow) for each in MORE])  # each 5 s
def test_a_full_disk_is_a_sentence(story, copy, stage, size):
    """Files that cannot grow beyond a size give one sentence and exit code 2.

    What was there is whole, and with room the command ends well.
    """
    folder, states = copy / WRITTEN[stage], story[1][stage].states
    for state in (states[0], states[len(states) // 2])[not SLOW :]:
        restore(state, folder)
        process = start(copy, stage, story[1][stage].flags, preexec_fn=limited(size))
        _, err = process.communicate(timeout=60)
        assert_a_sentence(Outcome(process.returncode, "", err))
        assert_whole(folder)
    assert_goes_on(story, copy, stage)


def may_write(event, args):
    """Whether a file event takes room: a file opened for writing, a new folder, a new name."""
    if event == "open":
        return (
            isinstance(args[0], (str, os.PathLike))
            and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
            and str(args[0]) != os.devnull
        )
    return event == "os.rename" or event == "os.mkdir" and not os.path.exists(args[0])


@pytest.mark.parametrize("stage", STAGES)
def test_what_the_disk_refuses_is_a_sentence(story, copy, stage):
    """If the n-th new file, folder or name is refused, for room or permission, a sentence says so.

    All files are whole, and the same command ends with the golden files.
    """
    folder, asked = copy / WRITTEN[stage], []

    def attempt(refused, number=None):
        def watch(event, args):
            if may_write(event, args):
                asked.append(str(args[0]))
                if len(asked) == refused:
                    raise OSError(number, os.strerror(number), asked[-1])

        restore(story[1][stage].states[0], folder)
        asked.clear()
        with watched(watch):
            return call(stage, copy, story[1][stage].flags)

    assert attempt(None).code == 0
    for i, refused in enumerate(sample(range(1, len(asked) + 1), 3, 15)):
        number = (errno.ENOSPC, errno.EACCES, errno.EROFS)[i % 3]
        assert_a_sentence(attempt(refused, number), os.strerror(number))
        assert_whole(folder)
        assert_goes_on(story, copy, stage, asked[-1])


def without_privilege():
    """For preexec_fn: root becomes subject to permissions (PR_CAPBSET_DROP of CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(24, 1):
        os._exit(77)


@pytest.mark.parametrize("stage", STAGES)
def test_a_folder_without_permission_is_a_sentence(story, copy, stage):
    """A folder that may be read and not be written: one sentence that names it, and nothing in it changes."""
    folder = copy / ("data/ofrecord" if WRITTEN[stage] == "data" else WRITTEN[stage])
    states = story[1][stage].states
    restore(states[len(states) // 2], copy / WRITTEN[stage])
    before = tree(copy)
    folder.chmod(0o555)
    process = start(copy, stage, story[1][stage].flags, preexec_fn=without_privilege)
    _, err = process.communicate(timeout=60)
    folder.chmod(0o755)
    if process.returncode == 77:
        pytest.skip("permissions do not bind root here")
    assert (
        process.returncode == 2
        and err.startswith("error: ")
        and folder.name in err
        and "Permission denied" in err
    ), err
    assert tree(copy) == before
    assert_goes_on(story, copy, stage)
