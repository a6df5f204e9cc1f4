"""Prints a Markdown table of finished runs.

    python3 -m scripts.summary output/demo-teacher output/demo-student

Accuracy in percent on test, per domain, over the domains and over all examples; parameters; size of the
weights; speed on test.
"""

import pathlib

from config import module_parser
from modeling.reports.markdown import markdown_table
from modeling.reports.run_files import read_json_lines
from util import UserError, entry, read_json


def row(folder):
    """The cells of a run, {column: text}.

    Raises:
        UserError: the folder has no results, or not the speed of their test.
    """
    folder = pathlib.Path(folder)
    results = read_json(folder / "results.json", "the results of a run")
    timings = read_json_lines(folder / "timing.jsonl")
    speeds = [each["examples_per_second"] for each in timings if each["event"] == "test"]
    if not speeds:
        raise UserError(
            f"{folder / 'timing.jsonl'}: found no test, expected its speed: evaluate the run by --do_eval."
        )
    test = results["test"]
    return {
        "run": folder.name,
        **{name: f"{100 * value:.1f}" for name, value in test["domains"].items()},
        "average": f"{100 * test['domain_average']:.1f}",
        "all": f"{100 * test['accuracy']:.1f}",
        "parameters": f"{results['parameters'] / 1e6:.1f} M",
        "file": f"{results['bytes'] / 1e6:.0f} MB",
        "examples/s": f"{speeds[-1]:.0f}",
    }


@entry
def main():
    parser = module_parser(__doc__, "scripts.summary")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder with the results of --do_eval")
    rows = [row(folder) for folder in parser.parse_args().runs]
    print(markdown_table([*rows[0]], (each.values() for each in rows)), end="")


if __name__ == "__main__":
    main()
