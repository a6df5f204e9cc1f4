"""The stages with each encoder and any number of threads; faults and Ctrl-C amid work."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, STAGES, call, call_process, lay_out, stage_flags, words
from test_stages import Stop, metrics, tree

from modeling.bert.model import flow
from modeling.cpu.encoder import choose_encoder
from modeling.training.step_log import StepLog
from util import UserError


def run(folder, stage, **changed):
    """Runs a stage over a sandbox in this process; it has to end well."""
    outcome = call(stage, folder, {**stage_flags(folder)[stage], **changed})
    assert outcome.code == 0, outcome.err
    return outcome


def test_both_encoders_train_the_same_model(golden, tmp_path, tiny_model, tiny_data):
    """All four stages on OneFlow's own operators: every loss, norm and accuracy within 1e-3 of the CPU's
    encoder.
    """
    other = lay_out(tmp_path / "oneflow", tiny_model, tiny_data)
    for stage in STAGES:
        run(other, stage, encoder="oneflow")
    for name in ("teacher", "student"):
        expected, found = metrics(golden / name), metrics(other / name)
        assert len(expected) == len(found) > 0
        for one, two in zip(expected, found):
            assert one.keys() == two.keys()
            for key in one.keys() - {"dev", "phase"}:
                assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-3), (name, one["step"], key)
            if "dev" in one:
                assert two["dev"]["accuracy"] == pytest.approx(one["dev"]["accuracy"], abs=1e-3)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_leave_the_same_bytes(golden, tmp_path, tiny_model, tiny_data, threads):
    """Records, scores, knowledge, snapshots and reports of all four stages are those of as many threads as
    there are cores.
    """
    other = lay_out(tmp_path / "threads", tiny_model, tiny_data)
    for stage in STAGES:
        run(other, stage, cpu_threads=threads)
    assert tree(other) == tree(golden)


def test_a_run_goes_on_with_other_threads(golden, sandbox, monkeypatch):
    """Broken off with one thread and resumed with three: the bytes of a run at one go with as many as there
    are cores.
    """
    shutil.rmtree(sandbox / "teacher")
    whole, flags = StepLog.step, stage_flags(sandbox)["meta_teacher"]

    def step(self, number, *args):
        whole(self, number, *args)
        if number == 7:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "step", step)
        with pytest.raises(Stop):
            call("meta_teacher", sandbox, {**flags, "cpu_threads": 1})
    outcome = call(
        "meta_teacher", sandbox, {**flags, "resume_from": "teacher/snapshot_last", "cpu_threads": 3}
    )
    assert outcome.code == 0, outcome.err
    assert tree(sandbox / "teacher") == tree(golden / "teacher")


def test_the_cpus_encoder_needs_a_cpu():
    """A sentence that names the flag."""
    with pytest.raises(UserError, match="--encoder cpu: the device is cuda:0"):
        choose_encoder("cpu", flow.device("cuda:0"))


# --------------------------------------------------------------------------------------- faults

BROKEN = """
from modeling.cpu.attention import SelfAttention
from util import UserError
def {method}(*arguments):
    raise {error}("no more of this")
SelfAttention.{method} = {method}
"""


@pytest.mark.parametrize("method", ["forward", "backward"])
@pytest.mark.parametrize("error, code", [("UserError", 2), ("ValueError", 1)])
def test_a_kernel_that_raises_ends_the_run(sandbox, method, error, code):
    """In whichever thread, with its words and an exit code, and no process stays behind."""
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "cpu_threads": 2}
    outcome = call_process("meta_teacher", sandbox, flags, BROKEN.format(method=method, error=error))
    last = outcome.err.strip().splitlines()[-1]
    expected = "error: no more of this" if error == "UserError" else "ValueError: no more of this"
    assert (outcome.code, last) == (code, expected)


SLOW = """
import time
from modeling.cpu.attention import SelfAttention
forward = SelfAttention.forward
def slow(self, qkv):
    print("at work", flush=True)
    time.sleep(0.2)
    return forward(self, qkv)
SelfAttention.forward = slow
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_threads_are_at_work(sandbox, times):
    """Once: the step is finished and saved. Twice: the run ends at once. Both with a sentence and exit code
    130.
    """
    flags = {**stage_flags(sandbox)["meta_teacher"], "model_save_dir": "new", "cpu_threads": 2}
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'meta_teacher.py'\n"
        f"{SLOW}\n"
        "import meta_teacher; meta_teacher.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words(flags)],
        cwd=sandbox,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while "at work" not in process.stdout.readline():
        pass
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.startswith("stopped by the user"), err
    assert (sandbox / "new" / "snapshot_last").exists() == (times == 1)
