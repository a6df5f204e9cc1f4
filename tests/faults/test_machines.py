"""Two machines that lose each other: two network namespaces with addresses of their own and a virtual cable
between them.

It takes root and iproute2, and is skipped with its reason where they are not there. The namespaces go
whatever happens.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, lay_out, stage_flags, words
from test_ranks import assert_none_left, family
from test_stages import metrics, tree

from modeling.distributed.facts import machine_facts
from modeling.distributed.machines import Machines
from util import UserError

slow = pytest.mark.slow  # each starts two or four processes of the engine, 10 s
FIRST, SECOND = "10.77.0.1", "10.77.0.2"
TIMEOUT = 8  # seconds of --network_timeout here
LONG = {"num_epochs": 2000, "save_every_step_num": 5, "eval_every_step_num": 1000}


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


class Cable:
    """Two namespaces and what connects them."""

    def __init__(self):
        self.names = [f"metakd-{os.getpid()}-{k}" for k in (0, 1)]

    def lay(self):
        """The reason why it cannot be; None when it is there."""
        if os.geteuid() != 0 or not shutil.which("ip"):
            return "namespaces take root and iproute2"
        a, b = self.names
        done = [ip("netns", "add", name) for name in self.names]
        done.append(ip("link", "add", "va", "netns", a, "type", "veth", "peer", "name", "vb", "netns", b))
        for name, link, address in ((a, "va", FIRST), (b, "vb", SECOND)):
            done.append(ip("-n", name, "addr", "add", f"{address}/24", "dev", link))
            done += [ip("-n", name, "link", "set", each, "up") for each in ("lo", link)]
        failed = [each.stderr.strip() for each in done if each.returncode]
        return f"no namespaces here: {failed[0]}" if failed else None

    def remove(self):
        for name in self.names:
            for number in ip("netns", "pids", name).stdout.split():
                os.kill(int(number), signal.SIGKILL)
            ip("netns", "del", name)

    def set(self, up):
        """Plugs the cable in or pulls it."""
        assert ip("-n", self.names[0], "link", "set", "va", "up" if up else "down").returncode == 0

    def start(self, node, folder, stage, flags):
        """A stage on one of the machines."""
        return subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                self.names[node],
                sys.executable,
                str(ROOT / f"{stage}.py"),
                *words(flags),
            ],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture(scope="module")
def network():
    cable = Cable()
    try:
        reason = cable.lay()
        if reason:
            pytest.skip(reason)
        yield cable
    finally:
        cable.remove()


@pytest.fixture
def cable(network):
    """The cable, plugged in."""
    network.set(True)
    yield network
    network.set(True)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_model, tiny_data):
    """A sandbox after stage 1."""
    folder = lay_out(tmp_path_factory.mktemp("scored"), tiny_model, tiny_data)
    done = subprocess.run(
        [sys.executable, str(ROOT / "preprocess.py"), *words(stage_flags(folder)["preprocess"])], cwd=folder
    )
    assert done.returncode == 0
    return folder


@pytest.fixture
def shared(scored, tmp_path):
    """A copy of it, which both machines see."""
    folder = shutil.copytree(scored, tmp_path / "shared")
    yield folder
    for number in family(folder):
        os.kill(number, signal.SIGKILL)


def machine(node, folder, **changed):
    """The flags of stage 2 on a machine."""
    return {
        **stage_flags(folder)["meta_teacher"],
        "batch_size_per_device": 4,
        "model_save_dir": "run",
        "num_nodes": 2,
        "node_rank": node,
        "master_addr": FIRST,
        "network_timeout": TIMEOUT,
        "resave_ofrecord": None,
        **changed,
    }


MACHINE_FLAGS = ("batch_size_per_device", "model_save_dir", "num_nodes", "node_rank", "master_addr")


def start_both(cable, folder, **changed):
    return [cable.start(node, folder, "meta_teacher", machine(node, folder, **changed)) for node in (0, 1)]


def wait_for_steps(folder, both, count=6):
    """Waits until the run in `folder`/run has saved, and made `count` steps."""
    until = time.monotonic() + 60
    path = folder / "run" / "metrics.jsonl"
    while not (
        path.exists()
        and path.read_text().count("\n") > count
        and (folder / "run" / "snapshot_last" / "manifest.json").exists()
    ):
        assert time.monotonic() < until and all(process.poll() is None for process in both), [
            process.communicate(timeout=10) for process in both
        ]
        time.sleep(0.05)


def ends(both, seconds):
    """(exit codes, errors) of both, within `seconds`."""
    until = time.monotonic() + seconds
    errors = [process.communicate(timeout=max(0.1, until - time.monotonic()))[1] for process in both]
    return [process.returncode for process in both], errors


def without_waiting(error):
    """The lines that are not about whom a machine waits for."""
    return [line for line in error.splitlines() if not line.startswith("waiting for machine")]


def test_a_pulled_cable_ends_both_sides_and_the_run_goes_on(cable, shared):
    """Each names the machine that it lost and the command; nothing is left running or locked; the same files
    as at one go.
    """
    few = {"num_epochs": 12, "save_every_step_num": 3}
    both = start_both(cable, shared, **few, model_save_dir="whole")
    assert ends(both, 90)[0] == [0, 0]
    both = start_both(cable, shared, **{**few, "num_epochs": 12})
    wait_for_steps(shared, both)
    cable.set(False)
    codes, errors = ends(both, TIMEOUT + 10)
    assert codes == [1, 1], errors
    for error, other in zip(errors, (f"machine 1 ({SECOND})", f"machine 0 ({FIRST})")):
        lines = without_waiting(error)
        assert lines[0].startswith(f"error: {other} was not heard of for {TIMEOUT} seconds"), error
        assert lines[1].startswith("python3 ") and lines[1].endswith("--resume") and len(lines) == 2, error
    assert_none_left(shared)
    cable.set(True)
    both = start_both(cable, shared, **few, resume=True)
    codes, errors = ends(both, 90)
    assert codes == [0, 0], errors
    assert tree(shared / "run") == tree(shared / "whole")


HARD = {
    "soft_label_weight": 0,
    "hard_label_weight": 1,
    **{f"{name}_loss_weight": 0 for name in ("attention", "representation", "transfer")},
}  # of stage 4, without a teacher


def distill(node, folder, **changed):
    """The flags of stage 4 on a machine, on hard labels, with --calibrate."""
    own = {**stage_flags(folder)["meta_distill"], **HARD, "student_layers": None, "teacher_model": None}
    of_machines = {name: machine(node, folder)[name] for name in MACHINE_FLAGS}
    return {**own, **of_machines, "calibrate": True, **changed}


@pytest.mark.parametrize(
    "stage, make_flags", [("meta_distill", distill), pytest.param("meta_teacher", machine, marks=slow)]
)
def test_machines_with_copies_of_the_files_end_as_those_that_share_them(
    cable, shared, tmp_path, stage, make_flags
):
    """Machine 0 alone has the run folder; the other takes part in the test of a snapshot that it has not."""
    copies = [shutil.copytree(shared, tmp_path / f"machine-{node}") for node in (0, 1)]
    for folders in ([shared, shared], copies):
        both = [
            cable.start(node, folder, stage, make_flags(node, folder)) for node, folder in enumerate(folders)
        ]
        codes, errors = ends(both, 120)
        assert codes == [0, 0], errors
    assert tree(copies[0] / "run") == tree(shared / "run")
    assert (copies[0] / "run" / "results.json").exists() and not (copies[1] / "run").exists()
    if stage == "meta_distill":
        assert json.loads((copies[0] / "run" / "results.json").read_text())["calibration"]["folded"]


@slow
def test_a_machine_that_is_switched_off_ends_the_other(cable, shared):
    """All of its processes killed, its address gone and back: the other says so at once, and the same two
    commands go on.
    """
    both = start_both(cable, shared, **LONG)
    wait_for_steps(shared, both)
    for number in ip("netns", "pids", cable.names[1]).stdout.split():
        os.kill(int(number), signal.SIGKILL)
    ip("-n", cable.names[1], "addr", "del", f"{SECOND}/24", "dev", "vb")
    codes, errors = ends(both, TIMEOUT + 10)
    assert codes == [1, -signal.SIGKILL]
    assert f"machine 1 ({SECOND})" in errors[0] and "--resume" in errors[0], errors[0]
    assert_none_left(shared)
    ip("-n", cable.names[1], "addr", "add", f"{SECOND}/24", "dev", "vb")
    steps = metrics(shared / "run")[-1]["step"]
    both = start_both(cable, shared, **LONG, resume=True)
    wait_for_steps(shared, both, steps + 3)
    for process in both:
        process.send_signal(signal.SIGTERM)
    assert ends(both, 60)[0] == [130, 130]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=slow)])
def test_a_signal_is_heard_while_the_cable_is_out(cable, shared, number):
    """SIGTERM and Ctrl-C, just after the cable was pulled and long before the timeout: the end comes within
    10 seconds.
    """
    both = start_both(cable, shared, **{**LONG, "network_timeout": 300})
    wait_for_steps(shared, both)
    cable.set(False)
    time.sleep(1)
    for process in both:
        process.send_signal(number)
    codes, errors = ends(both, 10)
    assert codes == [130, 130] and all("was not heard of for" in error for error in errors), errors
    assert_none_left(shared)


@slow
def test_a_slow_cable_trains_to_the_same_bytes(cable, shared):
    """50 ms and 1% loss: slower, and nothing else."""
    slow = [
        "tc",
        "-n",
        cable.names[0],
        "qdisc",
        "add",
        "dev",
        "va",
        "root",
        "netem",
        "delay",
        "50ms",
        "loss",
        "1%",
    ]
    assert ends(start_both(cable, shared, model_save_dir="whole"), 90)[0] == [0, 0]
    done = subprocess.run(slow, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no slow cables here: {done.stderr.strip()}")
    try:
        codes, errors = ends(start_both(cable, shared), 200)
    finally:
        subprocess.run(["tc", "-n", cable.names[0], "qdisc", "del", "dev", "va", "root"], capture_output=True)
    assert codes == [0, 0], errors
    assert tree(shared / "run") == tree(shared / "whole")


def test_an_address_where_nobody_is(cable, shared):
    """Each side says for whom it waits, and ends with a sentence within the timeout."""
    both = [
        cable.start(
            node, shared, "meta_teacher", machine(node, shared, master_addr=address, network_timeout=3)
        )
        for node, address in ((0, FIRST), (1, "10.77.0.9"))
    ]
    codes, errors = ends(both, 25)
    assert codes == [2, 2]
    for error, whom in zip(errors, ("machine 1, on port 29501", "machine 0 at 10.77.0.9, port 29501")):
        lines = error.splitlines()
        assert len(lines) == 2 and lines[0].startswith(f"waiting for {whom}"), error
        assert lines[1].startswith(
            f"error: waited 3 seconds (--network_timeout) for {whom}, and none came"
        ), error
    assert not (shared / "run").exists()


@pytest.mark.parametrize("port", [pytest.param(29500, marks=slow), 29501])
def test_a_port_that_is_taken(cable, shared, port):
    """By something that listens there: machine 0 says so, and machine 1 does not take it for machine 0."""
    program = (
        f"import socket, time; taken = socket.create_server(('{FIRST}', {port})); print(1, flush=True); "
        "time.sleep(60)"
    )
    taken = subprocess.Popen(
        ["ip", "netns", "exec", cable.names[0], sys.executable, "-c", program], stdout=subprocess.PIPE
    )
    try:
        taken.stdout.readline()
        codes, errors = ends(start_both(cable, shared, network_timeout=4), 25)
    finally:
        taken.kill()
    assert codes == [2, 2] and f"machine 0 cannot listen on port {port} there" in errors[0], errors
    assert errors[1].splitlines()[-1].startswith("error: "), errors


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"seed": 7}, "machine 1 (10.77.0.2) differs from machine 0 in --seed: found 7, expected 1"),
        pytest.param(
            *({"cpu_processes": 2}, "differs from machine 0 in --cpu_processes: found 2, expected 1"),
            marks=slow,
        ),
        pytest.param(
            *({"num_nodes": 3}, "differs from machine 0 in --num_nodes: found 3, expected 2"), marks=slow
        ),
        ({"data_dir": "other"}, "differs from machine 0 in train.tsv of --data_dir: found SHA-256"),
    ],
)
def test_machines_that_differ_are_told_on_both_sides(cable, shared, changed, words):
    """Flags, ranks and data: the same sentence on both, and nothing is written."""
    shutil.copytree(shared / "data", shared / "other")
    lines = (shared / "other" / "train.tsv").read_text().splitlines()
    (shared / "other" / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
    both = [
        cable.start(0, shared, "meta_teacher", machine(0, shared)),
        cable.start(1, shared, "meta_teacher", machine(1, shared, **changed)),
    ]
    codes, errors = ends(both, 30)
    assert codes == [2, 2] and all(words in error for error in errors), errors
    assert not (shared / "run").exists()


# --------------------------------------------------------------------------------------- without namespaces


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet(count, timeout=5.0, **facts):
    """`count` Machines over the loopback address that have met, or the errors of those that could not."""
    port = free_port()
    machines = [
        Machines(node, count, "127.0.0.1", port, timeout, {"code": "a", **facts.get(f"of{node}", {})})
        for node in range(count)
    ]
    errors = [None] * count

    def run(node):
        try:
            machines[node].meet()
        except UserError as error:
            errors[node] = str(error)

    threads = [threading.Thread(target=run, args=(node,)) for node in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return machines, errors


def test_three_machines_hear_of_one_that_is_gone():
    """Machine 2 closes without a word: machine 0 and, by it, machine 1 say which it was."""
    machines, errors = meet(3)
    assert errors == [None] * 3
    lost = [threading.Event() for _ in machines]
    for each, event in zip(machines[:2], lost):
        each.watch(event.set)
    machines[2].peers[0].connection.close()
    assert all(event.wait(15) for event in lost[:2])
    assert "machine 2" in machines[0].words() and "machine 2" in machines[1].words()


def test_code_that_differs_is_told():
    """By both, in the same words."""
    _, errors = meet(2, of1={"code": "b"})
    assert errors[0] == errors[1] and "differs from machine 0 in code: found b, expected a" in errors[0]


def model_folder(path, shards=("model",), **files):
    """A folder with the files of a model; of each only the name and the bytes count here."""
    path.mkdir(parents=True)
    for name in shards:
        (path / f"{name}.safetensors").write_text("weights")
    for name in ("config", "tokenizer"):
        (path / f"{name}.json").write_text(files.get(name, "{}"))
    return path


def differences(flag, one, other):
    """What two machines would be told to differ in, one naming `one`, the other `other` by a flag."""
    facts = [machine_facts({flag: value}, 1) for value in (one, other)]
    assert facts[0].keys() == facts[1].keys()
    return {what for what in facts[0] if facts[0][what] != facts[1][what]}


@pytest.mark.parametrize("flag", ["model_load_dir", "student_model", "teacher_model"])
def test_the_models_of_run_folders_are_compared(tmp_path, flag):
    """A run folder is its best snapshot, by its own name or the run's; another one's weights are told.

    So it is for each of several teachers.
    """
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        weights = model_folder(run / "snapshot_best_x") / "model.safetensors"
        weights.write_text(f"weights of {run.name}")
        (run / "best.json").write_text('{"snapshot": "snapshot_best_x"}')
    first, second = map(str, runs)
    assert differences(flag, first, second) == {f"model.safetensors of --{flag}"}
    assert not differences(flag, first, f"{first}/snapshot_best_x")
    if flag == "teacher_model":
        assert differences(flag, [first, first], [first, second]) == {f"model.safetensors of --{flag}"}


def test_a_tokenizer_and_shards_that_differ_are_told(tmp_path):
    """Each by its name, though a folder has neither vocab.txt nor model.safetensors."""
    shards = ("model-00001-of-00002", "model-00002-of-00002")
    one = model_folder(tmp_path / "one", shards)
    other = model_folder(tmp_path / "other", shards, tokenizer='{"version": "1.0"}')
    assert differences("model_load_dir", one, other) == {"tokenizer.json of --model_load_dir"}
    (other / f"{shards[1]}.safetensors").write_text("others")
    assert "the shards of --model_load_dir" in differences("model_load_dir", one, other)


def test_ends_that_are_well_are_no_loss():
    """A machine that says that it has ended with 0 is waited for no longer."""
    machines, _ = meet(2, timeout=1.0)
    gone = threading.Event()
    machines[0].watch(gone.set)
    machines[1].leave(0, "")
    assert not gone.wait(3) and machines[0].loss is None and not machines[0].unreachable()
    machines[0].leave(0, "")


def test_what_calls_and_is_no_machine_is_not_taken_in():
    """A caller that says nothing, nonsense or something else: the machines meet all the same."""
    port = free_port()
    first = Machines(0, 2, "127.0.0.1", port, 10, {})
    second = Machines(1, 2, "127.0.0.1", port, 10, {})
    thread = threading.Thread(target=first.meet)
    thread.start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"suite": 1}\n', b"\xff\n", b""):
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", first.watch_port), timeout=1) as caller:
                    caller.sendall(noise)
                break
            except OSError:
                time.sleep(0.05)
    second.meet()
    thread.join(10)
    assert not thread.is_alive() and [peer.number for peer in first.peers] == [1]
