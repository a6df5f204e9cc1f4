"""A training step and inference, ours and PyTorch's, one thread each: medians of interleaved processes, as a Markdown table.

Each round starts a process for every measurement, one after the other, so that a machine whose speed drifts drifts for all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from tests.benchmark import STEPS, B, T


def measure(python, module, what, threads):
    """Runs one process; returns {"seconds": [per step], "megabytes": peak}."""
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    result = subprocess.run([python, "-m", f"tests.benchmark.{module}", what], env={**os.environ, **variables}, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: {module} {what} failed: {result.stderr.strip().splitlines()[-1] if result.stderr.strip() else result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--against", choices=("torch",), help="measure PyTorch with transformers' BERT beside it")
    parser.add_argument("--torch_python", default=sys.executable, help="the Python of an environment that has both (default: this one)")
    parser.add_argument("--rounds", type=int, default=5, help="processes per measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (default: %(default)s)")
    args = parser.parse_args()

    sides = [("ours", sys.executable, "ours")] + ([("PyTorch", args.torch_python, "with_torch")] if args.against else [])
    cells = {(what, side): [] for what in ("training", "inference") for side, _, _ in sides}
    for _ in range(args.rounds):
        for what, side in cells:
            _, python, module = next(each for each in sides if each[0] == side)
            cells[what, side].append(measure(python, module, what, args.threads))
    print(f"6 layers x 384, 12 heads, {B} x {T} tokens, {args.threads} thread(s), {args.rounds} rounds of {STEPS} steps")
    print("| step | side | median s | min to max | tokens/s | peak MB | ratio to PyTorch |\n|---|---|---|---|---|---|---|")
    for (what, side), runs in cells.items():
        seconds = [statistics.median(run["seconds"]) for run in runs]
        median = statistics.median(seconds)
        ratio = ""
        if args.against and side == "ours":
            pairs = [a / statistics.median(other["seconds"]) for a, other in zip(seconds, cells[what, "PyTorch"])]
            ratio = f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
        print(f"| {what} | {side} | {median:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {B * T / median:.0f} "
              f"| {statistics.median(run['megabytes'] for run in runs):.0f} | {ratio} |")


if __name__ == "__main__":
    main()
