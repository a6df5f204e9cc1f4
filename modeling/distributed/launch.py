"""Starting a script in several ranks: processes of OneFlow's distributed engine that share the work.

The user's process becomes the launcher's parent. It passes signals on, waits until every rank has ended, and
says in one sentence why they ended where they should not have. oneflow.distributed.launch ends its ranks by
its process group, so it gets a group of its own.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types

from config import options
from data.engine import load_oneflow
from modeling.cpu.threads import cores
from modeling.distributed.facts import machine_facts
from modeling.distributed.machines import Machines
from modeling.distributed.ranks import RankOptions, local_ranks
from util import EXIT_REPORT_DIR, LAUNCHER, STOPPED, Signals, get_rank, get_world_size, stop, stop_with_parent

load_oneflow()
from oneflow.distributed import launch as oneflow_launch  # noqa: E402

PORT = 29500  # where machines meet unless they are told otherwise: that of oneflow.distributed.launch
REPORTS = ("pid", "err", "json")  # the files of a rank: its number, what C++ printed, its last sentence
TO_SAVE = 600  # seconds that ranks have to end: a step, an evaluation and a save
TO_DIE = 3  # seconds that they have when one of them has ended


def launch_ranks(args):
    """Runs the script in as many ranks as its flags ask for.

    Returns in each of them, and at once where one is enough.

    Args:
        args: the flags of the groups `device` and, of a training script, `training`.
    Raises:
        UserError: flags that no run of ranks can have.
        SystemExit: in the process that launched the ranks, when they have ended.
    """
    ranks, machines = options(RankOptions, args), None
    local = local_ranks(ranks)
    if ranks.num_nodes > 1 and get_world_size() == 1:
        port, facts = ranks.master_port or PORT, machine_facts(vars(args), local)
        machines = Machines(
            ranks.node_rank, ranks.num_nodes, ranks.master_addr, port, ranks.network_timeout, facts
        )
        machines.meet()
    address = ranks.master_addr, ranks.master_port
    launch(local, ranks.num_nodes, ranks.node_rank, *address, machines, _go_on(vars(args)))
    if get_rank() > 0:
        args.resave_ofrecord = False  # the first rank does it


def _go_on(flags):
    """How a run over several machines goes on after one was lost. flags: {name: value}."""
    words = ["python3", *sys.argv]
    if "resume" in flags and not flags["resume_from"]:  # a training script
        words += [] if flags["resume"] else ["--resume"]
        words += [] if flags["model_save_dir"] else ["--model_save_dir", "RUN_FOLDER"]
    return (
        f"What was saved is whole. To go on, on this machine and likewise on the others:\n{shlex.join(words)}"
    )


# --------------------------------------------------------------------------------------- launching


def launch(local, nodes=1, node=0, address="127.0.0.1", port=None, machines=None, go_on=""):
    """Makes this process the parent of `local` ranks that run the same program, and ends with them.

    Returns at once in a rank, and where one rank is all.

    Args:
        nodes, node: machines that run the program together, and the number of this one.
        address, port: where the ranks meet; port None: one that is free on this machine,
            and PORT with several machines.
        machines: the Machines of several, which have met.
        go_on: what to do when one of them was lost.
    """
    if local * nodes == 1 or get_world_size() > 1:
        return
    if port is None:
        port = PORT if nodes > 1 else _free_port(address)
    where = {"nproc_per_node": local, "nnodes": nodes, "node_rank": node}
    where.update(master_addr=address, master_port=port)
    with tempfile.TemporaryDirectory(prefix="meta-kd-ranks-") as folder:
        where["logdir"] = os.path.join(folder, "none")
        flags = [word for name, value in where.items() for word in (f"--{name}", str(value))]
        numbers = range(node * local, (node + 1) * local)
        for name in ("launcher.err", *(f"{number}.{kind}" for number in numbers for kind in REPORTS)):
            pathlib.Path(folder, name).touch()  # now, while a full disk is a sentence of its own
        code, sentence = _run([*flags, *_program()], folder, local, machines), ""
        if machines and machines.unreachable() and code:
            asked = f"{Signals.words()}; " if Signals.asked else "error: "
            code, sentence = STOPPED if Signals.asked else 1, f"{asked}{machines.words()}. {go_on}"
        elif code:
            sentence, code = _explain(pathlib.Path(folder), numbers, local * nodes)
        if machines:
            machines.leave(code, sentence)
        if code:
            stop(sentence, code)
    raise SystemExit(0)


def _free_port(address):
    with socket.socket() as free:
        free.bind((address, 0))
        return free.getsockname()[1]


def _program():
    """The words that start this program again: a script, or a module by -m."""
    main = sys.modules["__main__"]
    name = ("-m", main.__spec__.name) if main.__spec__ else (os.path.abspath(main.__file__),)
    return [*name, *sys.argv[1:]]


def _run(words, folder, local, machines):
    """Runs the launcher to its end and leaves none of its ranks alive; 0 where all went well.

    It passes on that it is told to stop.
    """
    _adopt_orphans()
    parent, launcher = os.getpid(), os.fork()
    if not launcher:
        _be_launcher(words, folder, local, parent)
    patience, code = TO_DIE, 1
    if machines:
        machines.watch(lambda: _kill_group(launcher))
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    except KeyboardInterrupt:
        os.killpg(launcher, signal.SIGINT if Signals.asked == signal.SIGINT else signal.SIGTERM)
        patience = TO_SAVE
    finally:
        _reap(launcher, patience, pathlib.Path(folder), machines)
    return code


def _kill_group(leader):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _adopt_orphans():
    """Ranks whose launcher has gone become children of this process, so that it can wait for them."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER, of Linux


def _be_launcher(words, folder, local, parent):
    """In the forked child: oneflow.distributed.launch in a process group of its own, without a word."""
    try:
        os.setsid()
        stop_with_parent(signal.SIGKILL, parent)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os.environ.update({EXIT_REPORT_DIR: folder, LAUNCHER: str(os.getpid())})
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // local)))
        sys.argv = ["oneflow.distributed.launch", *words]
        # It looks at its ranks once a second, and sleeps on; this way it does so every 20 ms.
        oneflow_launch.time = types.SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 50))
        oneflow_launch.main()
        os._exit(0)
    except subprocess.CalledProcessError:  # a rank has failed, and tells it itself
        pass
    except Exception as error:
        pathlib.Path(folder, "launcher.err").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _reap(launcher, patience, folder, machines):
    """Waits for the launcher and its ranks to end, then kills those that are left.

    It waits `patience` seconds, or TO_DIE after the first rank has ended. It does not wait when it is told to
    stop once more, or where the ranks wait for a machine that is gone.
    """
    until = time.monotonic() + patience
    with contextlib.suppress(ChildProcessError, ProcessLookupError):  # none is left
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < until and not (machines and machines.unreachable()):
                if (ended := os.waitpid(-1, os.WNOHANG)[0]) not in (0, launcher):
                    until = min(until, time.monotonic() + TO_DIE)
                time.sleep(0 if ended else 0.02)
        for file in folder.glob("*.pid"):
            if (number := file.read_text()) and os.path.exists(f"/proc/{number}"):
                file.with_suffix(".err").open("a").write("It did not end by itself when it was told to.\n")
        os.killpg(launcher, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)


def _explain(folder, numbers, total):
    """Why the ranks of this machine ended: (sentence, exit code).

    They are those of the first that failed, or say which one ended without a word. A rank that was stopped
    by the launcher, or that OneFlow stopped when another had gone, is not the one that failed.
    """
    told = {number: (folder / f"{number}.json").read_text(encoding="utf-8") for number in numbers}
    words = [json.loads(text) for text in told.values() if text]
    if not words and (cause := (folder / "launcher.err").read_text()):
        return f"error: the ranks could not be started ({cause}).", 1
    for each in words:
        if each["code"] != STOPPED:
            return each["sentence"], each["code"]
    if Signals.asked:
        return (words[0]["sentence"], words[0]["code"]) if words else (f"{Signals.words()}.", STOPPED)
    noise = {number: folder / f"{number}.err" for number in numbers if not told[number]}
    for number, file in noise.items():
        if not file.stat().st_size:
            return (
                f"error: rank {number} of {total} was killed, perhaps for want of memory, and the run ended "
                "with it: fewer --cpu_processes need less; what was saved is whole.",
                1,
            )
    for number, file in noise.items():
        return (
            f"{file.read_text(errors='replace')}\nerror: OneFlow stopped rank {number} of {total}, and the "
            "run ended with it; what was saved is whole.",
            1,
        )
    return (
        (words[0]["sentence"], words[0]["code"]) if words else ("error: the ranks ended without a word.", 1)
    )
