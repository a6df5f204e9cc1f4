"""Fuzzers of everything that reads files.

`python3 -m tests.faults.fuzz --minutes 10` tries each for so long, or those that --only names.

A case is a function of (fuzzer, seed, number) alone: a valid folder of files, changed at random. In most
cases hashes, sizes and counts are then made to fit again, so that the checks behind the hashes are met.

The property: within LIMIT seconds of CPU and ROOM + 10 times the bytes of the files, the reader gives a valid
result or a UserError of one line. Anything else is printed with the command that repeats it.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import pathlib
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
import zlib

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from modeling.training.run import Run
from util import UserError  # noqa: E402  (before numpy: it names the BLAS kernel)

import numpy as np  # isort: skip

from fuzz_folders import make_data, make_knowledge, make_records, make_run, make_texts
from fuzz_readers import read_data, read_knowledge, read_records, read_run, read_texts, read_tokenizer

LIMIT, ROOM = 5, 32 << 20  # seconds of CPU, bytes
WRONG = [
    None,
    [],
    {},
    "",
    "x",
    "a\nb",
    "../x",
    "/etc/passwd",
    "x\0",
    "y" * 500,
    True,
    False,
    -1,
    0,
    1,
    0.5,
    -0.0,
    2**31,
    2**63,
    10**30,
    -(10**30),
    1e308,
    math.inf,
    -math.inf,
    math.nan,
    [[]],
    [{}],
    [1, 1],
    ["x", "x"],
    ["x", None],
    {"x": {"y": [None]}},
    "\ud800",
    "\u2028",
]

# --------------------------------------------------------------------------------------- changes


def with_value(top, place, value):
    """A copy of the JSON value `top` with `value` at a place, which is a tuple of keys.

    The value KeyError removes the key.
    """
    top = json.loads(json.dumps(top))
    inner = top
    for key in place[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return top


def change_bytes(data, stream):
    """Bytes with one thing changed.

    A bit, a byte, a span that is dropped, doubled, blanked, made up or moved, a number of 8 bytes, or the
    end.
    """
    data, size = bytearray(data), len(data)
    start = int(stream.integers(size + 1))
    stop = min(size, start + int(stream.integers(1, 2 + stream.choice([2, 16, size]))))
    kind = int(stream.integers(9))
    if kind <= 1 and start < size:
        data[start] = (
            data[start] ^ 1 << int(stream.integers(8))
            if kind
            else int(stream.choice([0, 9, 10, 13, 34, 92, 127, 128, 195, 239, 255]))
        )
    elif kind == 2:
        del data[start:stop]
    elif kind == 3:
        data[start:start] = data[start:stop] * int(stream.choice([1, 2, 50]))
    elif kind == 4:
        data[start:stop] = bytes(stop - start)
    elif kind == 5:
        data[start:stop] = stream.bytes(stop - start)
    elif kind == 6:
        piece = bytes(data[start:stop])
        del data[start:stop]
        place = int(stream.integers(len(data) + 1))
        data[place:place] = piece
    elif kind == 7:
        data[start : start + 8] = struct.pack(
            "<Q", int(stream.choice([0, 1, 7, 255, 2**31, 2**32 - 1, 2**40, 2**62]))
        )
    else:
        del data[start:]
    return bytes(data)


def change_json(data, stream):
    """JSON with one value, anywhere in it, replaced, dropped, doubled or renamed.

    Now and then its bytes are changed instead.
    """
    if stream.random() < 0.1:
        return change_bytes(data, stream)
    top = json.loads(data)
    place = top
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = keys[int(stream.integers(len(keys)))]
        if isinstance(place[key], (dict, list)) and place[key] and stream.random() < 0.7:
            place = place[key]
            continue
        kind, wrong = stream.random(), WRONG[int(stream.integers(len(WRONG)))]
        if kind < 0.7:
            place[key] = wrong
        elif kind < 0.8:
            del place[key]
        elif isinstance(place, list):
            place.append(place[key] if kind < 0.9 else wrong)
        else:
            place[str(wrong)] = place.pop(key) if kind < 0.9 else place[key]
        break
    return json.dumps(top).encode()


def change_safetensors(data, stream):
    """A safetensors file with a changed JSON head whose length fits again, or with any bytes changed."""
    if stream.random() < 0.3:
        return change_bytes(data, stream)
    (length,) = struct.unpack("<Q", data[:8])
    head = change_json(data[8 : 8 + length], stream)
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def change_values(data, stream):
    """A file of floats with 4 of its bytes, after the head, made NaN, infinite, huge or negative."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    place = start + 4 * int(stream.integers(max(1, (len(data) - start) // 4)))
    return (
        data[:place]
        + struct.pack("<f", stream.choice([np.nan, np.inf, -np.inf, -1.0, 3e38]))
        + data[place + 4 :]
    )


def change_of(name, stream):
    """What changes a file of this name as its format is built."""
    if name.endswith(".json"):
        return change_json
    if name.endswith(".safetensors"):
        return change_safetensors if stream.random() < 0.7 else change_values
    return change_bytes


def vouch_parts(folder):
    """Makes manifest.json of records or knowledge say the sizes and hashes that its files have."""
    path = folder / "manifest.json"
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError, AttributeError):
        manifest = json.loads(path.read_bytes())
        for part in manifest["parts"]:
            data = (folder / part["file"]).read_bytes()
            part.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        if "offsets_sha256" in manifest:
            manifest["offsets_sha256"] = hashlib.sha256((folder / "offsets.npy").read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest))


def rehash_snapshot(folder):
    """Makes manifest.json of a snapshot say the hashes that its files have."""
    path = folder / "manifest.json"
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError, AttributeError):
        manifest = json.loads(path.read_bytes())
        for name in set(manifest["sha256"]) & set(os.listdir(folder)):
            manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest))


# --------------------------------------------------------------------------------------- fuzzers

MAKERS = {  # {folder: what makes it, of its path and that of the data}
    "records": make_records,
    "knowledge": lambda folder, data: make_knowledge(folder),
    "run": make_run,
    "texts": lambda folder, data: make_texts(folder),
}
READERS = {  # {fuzzer: (folder of the valid files, that of the changed ones in it, their names, vouch, read)}
    "records": ("records", "", "train.of_record-*", vouch_parts, read_records),
    "manifests": ("records", "", "manifest.json", vouch_parts, read_records),
    "knowledge": ("knowledge", "", "*", vouch_parts, read_knowledge),
    "tsv": ("data", "", "*", None, read_data),
    "task": ("data", "", "task.json", None, read_data),
    "texts": ("texts", "", "*", None, read_texts),
    "tokenizer": ("run", "snapshot_last", "tokenizer.json", None, read_tokenizer),
    "snapshot": ("run", "snapshot_last", "*", rehash_snapshot, read_run),
}


class Fuzzer:
    """One reader and the valid folder that its cases begin with.

    Args:
        name: a key of READERS; place: a folder to work in.
    """

    def __init__(self, name, place):
        self.name, self.folder = name, place / "case"
        kind, self.inner, self.pattern, self.vouch, self.read = READERS[name]
        self.valid = place / kind
        make_data(place / "data") if not (place / "data").exists() else None
        if kind != "data":
            MAKERS[kind](self.valid, place / "data")
        self.files = {
            str(path.relative_to(self.valid)): path.read_bytes()
            for path in self.valid.rglob("*")
            if path.is_file()
        }
        self.changed = sorted(
            str(path.relative_to(self.valid))
            for path in (self.valid / self.inner).glob(self.pattern)
            if path.is_file()
        )
        if name == "snapshot":
            self.changed.append("best.json")

    def make(self, seed, number):
        """Writes the files of a case."""
        stream = np.random.default_rng([zlib.crc32(self.name.encode()), seed, number])
        files = dict(self.files)
        for _ in range(int(stream.choice([1, 1, 1, 2, 4]))):
            name = self.changed[int(stream.integers(len(self.changed)))]
            change = change_of(name, stream)
            with contextlib.suppress(
                ValueError, TypeError, struct.error, AttributeError, IndexError
            ):  # what was broken before
                files[name] = change(files[name], stream)
        self.write(files, vouched=stream.random() < 0.8)
        return sum(map(len, files.values()))

    def write(self, files, vouched):
        """Writes {name: content}, hashes, sizes and counts made to fit where they are `vouched` for."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, data in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
        if self.vouch and vouched:
            self.vouch(self.folder / self.inner)

    def run(self, seed, number):
        """Tries a case. Returns whether it was refused; raises what should not have come."""
        size = self.make(seed, number)
        tracemalloc.start()
        try:
            refused, peak = self.read_in_time()
        finally:
            tracemalloc.stop()
        assert peak < 10 * size + ROOM, f"{peak} bytes of memory for files of {size}"
        return refused

    def read_in_time(self):
        """Reads the files that stand there. Returns whether they were refused, and the peak of traced memory.

        Raises:
            Exception: what should not have come, a TimeoutError after LIMIT seconds among it.
        """
        refused = False
        signal.signal(signal.SIGPROF, self._too_long)  # of CPU: other work on the machine is no hang
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            load = self.read(self.folder)
            peak = self._peak()
            if load:
                load()
        except UserError as error:
            peak = self._peak()
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, (
                f"a sentence of more than a line: {error!r:.300}"
            )
            refused = True
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return refused, peak

    @staticmethod
    def _peak():
        """The most memory since the trace began.

        It ends the trace, which the engine's threads must not meet, and gives 0 where there is none.
        """
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    @staticmethod
    def _too_long(number, frame):
        raise TimeoutError(f"more than {LIMIT} seconds of CPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for each fuzzer")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS), help="which fuzzers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    args, run, faults = parser.parse_args(), Run(), 0
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY)
    )  # what C++ and Rust allocate is limited too
    for name in args.only:
        with tempfile.TemporaryDirectory() as place:
            fuzzer, until, number, refused = (
                Fuzzer(name, pathlib.Path(place)),
                time.monotonic() + 60 * args.minutes,
                args.start,
                0,
            )
            while time.monotonic() < until:
                try:
                    refused += fuzzer.run(args.seed, number)
                except Exception:
                    faults += 1
                    run.log(
                        f"{traceback.format_exc()}python3 -m tests.faults.fuzz "
                        f"--only {name} --seed {args.seed} --start {number}"
                    )
                number += 1
            run.log(
                f"{name}: {number - args.start} cases in {args.minutes:g} minutes, "
                f"{refused} refused, the rest read; {faults} faults so far"
            )
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
