"""Prints a Markdown table of finished runs.

    python3 -m scripts.summary output/demo-teacher output/demo-student

Accuracy in percent on test, per domain, over the domains and over all examples; parameters; size of the
weights; speed on test.
"""

import pathlib
import sys

from modeling.reports.markdown import markdown_table
from modeling.reports.run_files import read_json_lines
from util import read_json


def row(folder):
    """The cells of a run, {column: text}."""
    folder = pathlib.Path(folder)
    results = read_json(folder / "results.json", "the results of a run")
    timings = read_json_lines(folder / "timing.jsonl")
    speed = [each["examples_per_second"] for each in timings if each["event"] == "test"][-1]
    test = results["test"]
    return {
        "run": folder.name,
        **{name: f"{100 * value:.1f}" for name, value in test["domains"].items()},
        "average": f"{100 * test['domain_average']:.1f}",
        "all": f"{100 * test['accuracy']:.1f}",
        "parameters": f"{results['parameters'] / 1e6:.1f} M",
        "file": f"{results['bytes'] / 1e6:.0f} MB",
        "examples/s": f"{speed:.0f}",
    }


def main():
    rows = [row(folder) for folder in sys.argv[1:]]
    print(markdown_table([*rows[0]], (each.values() for each in rows)), end="")


if __name__ == "__main__":
    main()
