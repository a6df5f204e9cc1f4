"""Speed and memory of this suite, beside PyTorch's where it is asked for, as Markdown tables.

    python3 -m tests.benchmark --against torch --torch_python torch-env/bin/python \\
        --model models/MiniLM --reviews sorted_data_acl

Every measurement is a process of its own. Each round runs all of them, one after the other, so that a
machine whose speed drifts does so for all. A ratio is taken within each round. Progress and every single
figure go to standard error.
"""

import argparse
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

from tests.benchmark import B
from tests.benchmark.bench import Bench
from tests.benchmark.groups import GROUPS
from tests.benchmark.processes import ROOT, Failed, Load, run
from tests.benchmark.scale import growth_table, measure_growth
from tests.benchmark.tables import digits, measurements_table, median_and_range, ratios_table

LEGEND = "Each figure is the median of as many processes as there are rounds."


def parse(argv=None):
    """The flags of the benchmark, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--against", choices=("torch",), help="measure PyTorch with transformers' BERT beside it"
    )
    parser.add_argument(
        "--torch_python",
        help="the Python of an environment that has both (default: this one)",
        default=sys.executable,
    )
    parser.add_argument(
        "--model", help="a BERT folder (default: random weights, see --size, and a made-up vocabulary)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(6, 384),
        metavar=("LAYERS", "WIDTH"),
        help="of random weights (default: 6 384)",
    )
    parser.add_argument(
        "--reviews",
        help="the folder sorted_data_acl, or a data folder of one text column such as the demo's "
        "(default: made-up texts with as many words as the reviews)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=600,
        help=f"reviews of an epoch, {2 * B} or more (default: %(default)s)",
    )
    parser.add_argument(
        "--growth",
        type=int,
        nargs=2,
        default=(500, 8000),
        metavar=("FEW", "MANY"),
        help="examples of the growth table; MANY also of the records (default: 500 8000)",
    )
    parser.add_argument(
        "--scale",
        type=int,
        nargs="+",
        default=(10_000, 100_000, 1_000_000),
        metavar="TEXTS",
        help="numbers of texts of --only scale, rising (default: 10000 100000 1000000)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes per measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=2,
        help="threads of both sides, beside one (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*GROUPS, "scale"),
        default=list(GROUPS),
        help="groups to measure (default: all but scale, which takes an hour and stands alone)",
    )
    args = parser.parse_args(argv)
    if args.examples < 2 * B or min(args.rounds, args.cores, *args.growth, *args.size) < 1:
        parser.error(f"--examples begins at {2 * B}, all other numbers at 1")
    if "scale" in args.only and args.only != ["scale"]:
        parser.error("--only scale stands alone: measure other groups by another call")
    for name in ("model", "reviews"):
        path = getattr(args, name)
        if path and not pathlib.Path(path).exists():
            parser.error(f"--{name} {path}: there is no such folder")
        setattr(args, name, path and os.path.abspath(path))
    return args


def main():
    args, load = parse(), Load()
    with tempfile.TemporaryDirectory(prefix="meta-kd-benchmark-") as folder:
        if args.only == ["scale"]:
            return print_growth(args, pathlib.Path(folder), load)
        bench = Bench(args, pathlib.Path(folder))
        groups = [make(bench) for name, make in GROUPS.items() if name in args.only]
        try:
            opening = opening_line(args)
            note("preparing")
            bench.prepare()
        except Failed as error:
            sys.exit(f"error: {error}")
        figures, failed = measure(groups, args.rounds)
    print("\n".join([opening, *texts_lines(args, bench.facts), load.line(), LEGEND]))
    for group in groups:
        print(f"\n**{group.name.capitalize()}.** {group.words}\n")
        print(
            "\n".join(
                [*measurements_table(group.measures, figures, group.unit), *knowledge_lines(group, figures)]
            )
        )
    print(
        "\n**Ratios.** Seconds or peak memory of two measurements of one round, "
        "the first over the second; median over the rounds.\n"
    )
    print("\n".join(ratios_table([ratio for group in groups for ratio in group.ratios], figures)))
    sys.exit(int(failed))


def print_growth(args, folder, load):
    """--only scale: its own texts, model and table."""
    figures = measure_growth(folder, args.scale, args.cores, note)
    print("\n".join([opening_line(args), load.line(), "", *growth_table(figures, args.scale)]))


def measure(groups, rounds):
    """Runs every measurement in turn, `rounds` times over.

    Returns:
        {Key: [figures of each round]}, without measurements that failed; whether any did.
    """
    figures, failed = {}, set()
    for number in range(rounds):
        for group in groups:
            for key, function in group.measures.items():
                if key in failed or (group.once and number):
                    continue
                try:
                    figures.setdefault(key, []).append(function())
                    note(f"round {number + 1}/{rounds}: {', '.join(map(str, key))}: {figures[key][-1]}")
                except Failed as error:
                    failed.add(key)
                    figures.pop(key, None)
                    note(f"failed: {', '.join(map(str, key))}: {error}")
    return figures, bool(failed)


# --------------------------------------------------------------------------------------- words


def opening_line(args):
    """Machine, versions, commit."""
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    versions = [f"OneFlow {version(sys.executable, 'oneflow')}"]
    if args.against:
        versions += [
            f"{name} {version(args.torch_python, package)}"
            for name, package in (("PyTorch", "torch"), ("transformers", "transformers"))
        ]
    return (
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; {', '.join(versions)}; "
        f"commit {commit or 'unknown'}; rounds: {args.rounds}."
    )


def version(python, package):
    """The version of a package in the environment of `python`."""
    return run(
        [python, "-c", f"import importlib.metadata; print(importlib.metadata.version({package!r}))"]
    ).out.strip()


def texts_lines(args, facts):
    """What model and what texts were measured on."""
    name = pathlib.Path(args.model).name if args.model else "random weights, as no --model is named"
    yield f"Model: {facts['model']}, {name}."
    length = (
        f"; of the first {args.examples}, {facts['tokens']:.0f} tokens on average, {facts['cut']:.0%} cut"
        if "tokens" in facts
        else ""
    )
    made_up = "made-up words, as many as Amazon reviews have, as no --reviews are named"
    yield f"Texts: {f'of {args.reviews}' if args.reviews else made_up}{length}."


def knowledge_lines(group, figures):
    """How much disk knowledge takes, where a group has measured it."""
    for key in group.measures:
        sizes = [run["bytes"] for run in figures.get(key, ()) if "bytes" in run]
        if sizes:
            yield f"\nKnowledge of {key.what}: {digits(median_and_range(sizes).median / 1000)} kB an example."


def note(words):
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
