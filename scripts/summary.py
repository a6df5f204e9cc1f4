"""Prints a Markdown table of finished runs.

    python3 scripts/summary.py output/demo-teacher output/demo-student

Accuracy in percent on test, per domain, over the domains and over all examples; parameters; size of the
weights; speed on test.
"""

import json
import pathlib
import sys


def row(folder):
    """The cells of a run, {column: text}."""
    folder = pathlib.Path(folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    timings = map(json.loads, (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines())
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
    for cells in (rows[0].keys(), ["---"] * len(rows[0]), *(each.values() for each in rows)):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
