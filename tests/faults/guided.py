"""Fuzzing that is led by the lines that a case reaches, with atheris, in an environment of its own:

    python3.10 -m venv atheris-env && atheris-env/bin/pip install atheris==2.3.0
    PYTHONPATH=.venv/lib/python3.10/site-packages atheris-env/bin/python -m tests.faults.guided --minutes 10

A case is one file of a valid folder, replaced: byte 0 says which of those that the fuzzer changes, byte 1
whether the hashes are made to fit, the rest is its content. What reaches a new line is kept and changed on,
in half of the cases by libFuzzer and in half with the format in mind. The property is that of
tests.faults.fuzz, but for memory. Each kind of fault is told once, its case kept in --findings;
`--repeat FILE` tries one again.
"""

import argparse
import contextlib
import pathlib
import struct
import subprocess
import sys
import tempfile
import traceback

try:
    import atheris
except ModuleNotFoundError:
    atheris = None

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

OURS = ["data", "modeling", "tokenization", "util"]
with atheris.instrument_imports(include=OURS) if atheris else contextlib.nullcontext():
    import util  # noqa: F401  (before numpy: it names the BLAS kernel)
    import fuzz  # isort: skip

import numpy as np  # noqa: E402

SMALL = 4096  # bytes by which a case may be longer than the longest file it begins with


class Guided:
    """The cases of one fuzzer. Args: findings: a folder for those that fail."""

    def __init__(self, name, place, findings):
        self.fuzzer, self.findings, self.told, self.count = fuzz.Fuzzer(name, place), findings, set(), 0
        self.names = self.fuzzer.changed

    def seeds(self):
        """A case for each valid file, that changes nothing."""
        return [bytes([i, 1]) + self.fuzzer.files[name] for i, name in enumerate(self.names)]

    def try_case(self, case):
        """Reads the folder of a case; a fault of a new kind is told and kept."""
        name = self.names[case[0] % len(self.names)] if case else self.names[0]
        self.count += 1
        self.fuzzer.write({**self.fuzzer.files, name: case[2:]}, vouched=bool(case[1:2] != b"\0"))
        try:
            self.fuzzer.read_in_time()
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, place.filename, place.lineno)
            if kind not in self.told:
                self.told.add(kind)
                path = self.findings / f"{self.fuzzer.name}-{len(self.told)}"
                path.write_bytes(case)
                print(f"FAULT in {name}, kept as {path}\n{traceback.format_exc()}", flush=True)

    def mutate(self, case, max_size, seed):
        """Another case: its content changed as its format is built, or by libFuzzer."""
        stream, case = np.random.default_rng(seed), case if len(case) > 2 else self.seeds()[0]
        name, head, body = self.names[case[0] % len(self.names)], case[:2], case[2:]
        if stream.random() < 0.5:
            change = fuzz.change_of(name, stream)
            with contextlib.suppress(ValueError, TypeError, struct.error, AttributeError, IndexError):
                return (head + change(body, stream))[:max_size]
        return head + atheris.Mutate(body, max(1, max_size - 2))


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10, help="for each fuzzer")
    parser.add_argument("--only", nargs="+", choices=fuzz.READERS, default=list(fuzz.READERS))
    parser.add_argument("--findings", type=pathlib.Path, default="findings", help="a folder for what fails")
    parser.add_argument("--repeat", type=pathlib.Path, metavar="FILE", help="try one case of --only again")
    return parser.parse_args()


def main():
    args = parse()
    if atheris is None:
        sys.exit(
            "error: atheris is not installed for this Python: see the first lines of tests/faults/guided.py."
        )
    args.findings.mkdir(parents=True, exist_ok=True)
    if len(args.only) > 1:  # libFuzzer ends its process
        words = ["--minutes", args.minutes, "--findings", args.findings]
        for name in args.only:
            command = [sys.executable, "-m", "tests.faults.guided", "--only", name, *map(str, words)]
            subprocess.run(command, cwd=HERE.parents[1], check=True)
        return
    with tempfile.TemporaryDirectory() as place:
        guided = Guided(args.only[0], pathlib.Path(place), args.findings.absolute())
        if args.repeat:
            return guided.try_case(args.repeat.read_bytes())
        corpus = pathlib.Path(place, "corpus")
        corpus.mkdir()
        for i, case in enumerate(guided.seeds()):
            (corpus / str(i)).write_bytes(case)
        longest = max(map(len, guided.seeds())) + SMALL
        limits = [f"-max_total_time={60 * args.minutes:.0f}", f"-max_len={longest}", "-rss_limit_mb=4096"]
        told = ["-timeout=60", "-report_slow_units=60", f"-artifact_prefix={guided.findings}/"]
        atheris.Setup(
            [sys.argv[0], *limits, *told, str(corpus)],
            guided.try_case,
            custom_mutator=guided.mutate,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
