"""Threads that work on parts of a step side by side,
and sums that do not depend on which of them comes first.
"""

import collections
import concurrent.futures
import functools
import os
import pathlib
import threading

import numpy as np


class Threads:
    """A pool of `count` threads. numpy lets other threads run while it multiplies and loops over arrays."""

    def __init__(self, count: int = 1):
        self.count = count
        # numpy's warnings are per thread; who asks for the work looks at its results
        quiet = functools.partial(np.seterr, over="ignore", invalid="ignore", divide="ignore")
        self._pool = concurrent.futures.ThreadPoolExecutor(count, initializer=quiet) if count > 1 else None

    def run(self, jobs: list) -> list:
        """Does the jobs, functions without arguments, side by side; their results in order.

        Where one raises, its exception passes when all have come to an end: no thread works on after the step
        was given up. So it is where Ctrl-C ends the wait.
        """
        if self._pool is None or len(jobs) < 2:
            return [job() for job in jobs]
        futures = [self._pool.submit(job) for job in jobs]
        try:
            concurrent.futures.wait(futures)
        finally:
            for future in futures:
                future.cancel()
            concurrent.futures.wait(futures)
        return [future.result() for future in futures]

    def each(self, function, items) -> list:
        """[function(item) for item in items], side by side."""
        return self.run([lambda item=item: function(item) for item in items])


class OrderedSum:
    """((part 0 + part 1) + part 2) + ...: always in this order, to the last bit,
    though the parts come from different threads.

    A part that comes early waits for those before it; whoever brings the one that is due adds up what has
    come by then.
    """

    def __init__(self):
        self.total = None
        self._due, self._waiting, self._busy, self._lock = 0, {}, False, threading.Lock()

    def add(self, number: int, part):
        """Hands over part `number`, an array, which the sum may change."""
        with self._lock:
            self._waiting[number] = part
            if self._busy:
                return  # the thread that is adding will see it
            self._busy = True
        while (part := self._next()) is not None:
            if self.total is None:
                self.total = part
            else:
                self.total += part

    def _next(self):
        """The part that is due, or None, after which another thread may add."""
        with self._lock:
            part = self._waiting.pop(self._due, None)
            self._due, self._busy = self._due + (part is not None), part is not None
            return part


class OrderedSums(collections.defaultdict):
    """OrderedSums by name."""

    def __init__(self):
        super().__init__(OrderedSum)
        self._lock = threading.Lock()

    def add(self, name: str, number: int, part):
        with self._lock:
            found = self[name]
        found.add(number, part)


def count_threads(asked) -> int:
    """How many threads --cpu_threads asks for; "auto": OMP_NUM_THREADS where it is set, else one a core."""
    if asked != "auto":
        return asked
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(limit)) if limit.isdigit() and int(limit) else cores()


def cores() -> int:
    """The CPU cores that this process may use: those it is bound to,
    and no more than its control group pays for.
    """
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no such group, or "max"
        return count
