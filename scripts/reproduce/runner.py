"""Runs the steps of a plan, several at a time, and says how far it is."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Collection, Iterable
from typing import Optional

from data.store.files import remove_folder, write_json
from data.tasks import Task
from scripts.reproduce import outcomes
from scripts.reproduce.plan import Step, base
from scripts.reproduce.rows import Row
from scripts.reproduce.state import (
    all_steps,
    is_finished,
    read_step_record,
    resolve_command,
    step_data,
    survey,
)
from util import stop_with_parent

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1


def git_commit() -> Optional[str]:
    """The commit of the code, None where git does not say."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


class Job:
    """A step that is running. What it prints goes to `<step>.out`."""

    def __init__(self, step: Step, args: Namespace):
        self.step, self.started = step, time.monotonic()
        self.path, self.out = base(args) / f"{step.name}.json", base(args) / f"{step.name}.out"
        command = resolve_command(step)
        earlier = {"seconds": 0.0, **read_step_record(step, args)}
        facts = {"command": command, "commit": git_commit(), "data": step_data(step, args)}
        self.record = {**earlier, **facts}
        write_json(self.path, self.record)
        parent = os.getpid()
        with open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / command[1]), *command[2:]],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=lambda: stop_with_parent(signal.SIGTERM, parent),
            )

    def close(self) -> None:
        """Notes the time that the step took, once it has ended."""
        done = self.process.wait() == 0
        self.record["seconds"] = round(self.record["seconds"] + time.monotonic() - self.started, 1)
        write_json(self.path, {**self.record, "done": done})

    def last_line(self) -> str:
        lines = self.out.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


class Runner:
    """Runs every step of the rows that is not finished, `args.jobs` at a time.

    What needs a step that failed is left out; `failed` has the names of the steps that did.
    """

    def __init__(self, rows: list[Row], task: Task, args: Namespace):
        self.rows, self.task, self.args = rows, task, args
        self.running, self.failed = {}, set()
        self.steps, self.choices, self.finished = survey(rows, task, args)
        remove_resume_files(self.finished, args)

    def run(self) -> set[str]:
        """Runs them, and returns the names of those that failed. What stops it stops its jobs, saved."""
        try:
            while self.start_jobs():
                time.sleep(POLL_SECONDS)
                for name in [name for name, job in self.running.items() if job.process.poll() is not None]:
                    self.end_job(self.running.pop(name))
        except BaseException:
            stop_all(self.running.values())
            raise
        return self.failed

    def start_jobs(self) -> bool:
        """Starts steps whose needs are finished while there are free places. False: there is nothing left."""
        known = {*self.running, *self.finished, *self.failed}
        waiting = [step for name, step in self.steps.items() if name not in known]
        ready = [step for step in waiting if self.finished.issuperset(step.needs)]
        for step in ready[: self.args.jobs - len(self.running)]:
            self.running[step.name] = Job(step, self.args)
        return bool(self.running)

    def end_job(self, job: Job) -> None:
        """Takes note of a job whose process has ended, and prints a line on it."""
        job.close()
        name = job.step.name
        if job.process.returncode != 0 or not is_finished(job.step, self.args):
            self.failed.add(name)
            words = f"{name} failed: {job.last_line()} ({job.out} has the rest)"
            print(words, file=sys.stderr, flush=True)
            return
        self.steps, self.choices, self.finished = survey(
            self.rows, self.task, self.args, self.finished | {name}, self.running
        )
        remove_resume_files([name], self.args)
        steps = all_steps(self.rows, self.task, self.args, self.choices)
        print(progress_line(job, steps, self.finished, self.args), flush=True)


def remove_resume_files(names: Iterable[str], args: Namespace) -> None:
    """Removes what only the resumption of a run would need (275 MB with MiniLM) from the finished ones."""
    for last in (base(args) / name / "snapshot_last" for name in names):
        if last.exists():
            remove_folder(last)


def stop_all(jobs: Iterable[Job]) -> None:
    """Has the jobs save and end, and waits for them."""
    for job in jobs:
        job.process.terminate()
    for job in jobs:
        job.close()


def progress_line(job: Job, steps: dict[str, Step], finished: Collection, args: Namespace) -> str:
    name, dev = job.step.name, ""
    if job.step.trains:
        dev = f" dev {100 * outcomes.dev_accuracy([base(args) / name]):.1f}"
    left = clock(eta(steps, finished, args))
    return f"{len(finished)}/{len(steps)} steps | {name}{dev} | {job.record['seconds']:.0f} s | eta {left}"


def eta(steps: dict[str, Step], finished: Collection, args: Namespace) -> float:
    """Seconds until all steps are finished, `args.jobs` at a time.

    Each takes the mean time of the finished steps of its stage, or of all where there is none.
    """
    seconds = {}
    for name in finished:
        seconds.setdefault(steps[name].stage, []).append(read_step_record(steps[name], args)["seconds"])
    everything = list(itertools.chain.from_iterable(seconds.values()))
    times = [seconds.get(step.stage, everything) for name, step in steps.items() if name not in finished]
    return sum(sum(each) / len(each) for each in times) / args.jobs


def clock(seconds: float) -> str:
    """45s, 3m10s, or 2h05m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
