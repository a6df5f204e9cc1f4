"""How fast a student answers on this machine, beside its teacher: one text, and texts a second by batch.

    python3 -m modeling.speed --model_load_dir output/demo-student output/demo-teacher --data_dir data/DEMO

Texts of test.tsv are timed as --do_predict answers them, from the text to the probabilities. Let the machine
do nothing else meanwhile. speed.html and speed.json go into the first one's run folder, beside report.html,
which has no clock.
"""

import config  # isort: skip  (first: it says what is not installed)
from util import UserError, end_at_once_on_signals, entry, progress  # isort: skip


def parse_flags():
    parser = config.module_parser(__doc__, "modeling.speed")
    parser.add_argument(
        "--model_load_dir",
        nargs="+",
        required=True,
        metavar="DIR",
        help="run folders or snapshots, of one task; the student first",
    )
    parser.add_argument("--data_dir", required=True, help="the task's data, whose test.tsv has the texts")
    config.cpu_threads(parser)
    return parser.parse_args()


if __name__ == "__main__":
    entry(parse_flags)()  # --help and mistakes end here, before OneFlow is imported, which takes seconds
    end_at_once_on_signals()

import pathlib
import platform
import re
import time
from typing import Callable, NamedTuple

import numpy as np

from data.store.files import atomic_file, write_json
from data.tasks import load_task, read_examples, split_path
from modeling.cpu.threads import count_threads
from modeling.predict import PredictionOptions, load_classifier, task_from_meta
from modeling.reports.html import note, page, table
from modeling.snapshots.checks import check_fits_model
from modeling.snapshots.folder import read_model
from modeling.snapshots.weights import weights_size
from tokenization import encode, tokenizer_for

SINGLES, TEXTS = 100, 256  # texts that are timed one by one, and in batches
BATCHES = (8, 32, 128)  # texts to a batch
ROUNDS = 3  # in each of which every model has its turn


class Timed(NamedTuple):
    """A model that is timed: `answer` takes a list of texts, pairs (text, second text or None), to their
    probabilities; `facts` go into speed.json.
    """

    folder: pathlib.Path
    answer: Callable
    facts: dict


@entry
def main():
    args = parse_flags()
    models = [load_model(path, args.cpu_threads) for path in args.model_load_dir]
    tasks = list(dict.fromkeys(model.facts["task"] for model in models))
    if len(tasks) > 1:
        raise UserError(
            f"--model_load_dir: found snapshots of the tasks {', '.join(tasks)}, "
            "expected one task: time them apart."
        )
    examples = read_examples(load_task(tasks[0], args.data_dir), split_path(args.data_dir, "test"))
    texts = [(each.text_a, each.text_b) for each, _ in zip(examples, range(TEXTS))]

    measure(models, texts)
    results = {
        "cpu": cpu_name(),
        "threads": count_threads(args.cpu_threads),
        "texts": len(texts),
        "models": [model.facts for model in models],
    }
    print(*lines(results["models"]), sep="\n")
    run = models[0].folder.parent
    if not (run / "results.json").is_file():
        return print(f"{run}: no run folder, so nothing was written there")
    write_json(run / "speed.json", results)
    with atomic_file(run / "speed.html", "w") as file:
        file.write(speed_page(results))
    print(f"report: {run / 'speed.html'}")


def load_model(path, cpu_threads):
    """The Timed model of a snapshot, or of a run's best one."""
    folder = read_model(path)
    task, seq_length, domains = task_from_meta(folder)
    tokenizer = tokenizer_for(folder.path, truncate=folder.meta.get("truncate", "head"))
    check_fits_model(folder, task, seq_length, tokenizer)
    options = PredictionOptions(path, "-", cpu_threads=cpu_threads, eval_batch_size_per_device=max(BATCHES))
    probabilities = load_classifier(folder, task, domains, options)
    facts = {"kind": folder.meta["kind"], "task": task.name, **weights_size(folder.path)}

    def answer(texts):
        return probabilities([encode(tokenizer, *pair, seq_length) for pair in texts])

    return Timed(folder.path.resolve(), answer, facts)


# --------------------------------------------------------------------------------------- measuring


def measure(models, texts):
    """Adds to the facts of each model p50_ms and p95_ms of one text and texts_per_second, {batch: median}."""
    singles, speeds = [[] for _ in models], [[] for _ in models]
    with progress(total=ROUNDS * len(models), unit="round") as bar:
        for _ in range(ROUNDS):
            for place, model in enumerate(models):
                model.answer(texts[: max(BATCHES)])  # warms up
                singles[place] += time_batches(model, texts[:SINGLES], 1)
                speeds[place].append([len(texts) / sum(time_batches(model, texts, size)) for size in BATCHES])
                bar.update()
    for model, seconds, rounds in zip(models, singles, speeds):
        p50, p95 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95))
        medians = dict(zip(map(str, BATCHES), np.median(rounds, axis=0).tolist()))
        model.facts.update(
            p50_ms=p50, p95_ms=p95, texts_per_second={"1": len(seconds) / sum(seconds), **medians}
        )


def time_batches(model, texts, size):
    """The seconds of each batch of `size` texts, neighbours in test.tsv."""
    seconds = []
    for start in range(0, len(texts), size):
        started = time.perf_counter()
        model.answer(texts[start : start + size])
        seconds.append(time.perf_counter() - started)
    return seconds


def cpu_name():
    """As the system calls it."""
    try:
        return re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.machine()


# --------------------------------------------------------------------------------------- what is shown

HEADER = (
    "model",
    "parameters",
    "MB",
    "p50, ms",
    "p95, ms",
    *(f"texts/s by {size}" for size in (1, *BATCHES)),
)


def cells(facts):
    """The cells of a model's row, texts."""
    speeds = [f"{value:.0f}" for value in facts["texts_per_second"].values()]
    size = (f"{facts['parameters']:,}", f"{facts['bytes'] / 1e6:.1f}")
    return (facts["kind"], *size, f"{facts['p50_ms']:.2f}", f"{facts['p95_ms']:.2f}", *speeds)


def lines(models):
    """The table as lines of a terminal."""
    rows = [HEADER, *map(cells, models)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def speed_page(results):
    """speed.html: the same table, and where it was measured."""
    models = results["models"]
    threads = f"{results['threads']} thread{'s' * (results['threads'] > 1)}"
    where = f"{results['cpu']}, {threads}, the first {results['texts']} texts of test.tsv."
    how = (
        "p50 and p95 are of single texts, texts/s of batches of so many, neighbours in test.tsv, from the "
        f"text to the probabilities as --do_predict answers; {ROUNDS} rounds, in which all models take turns."
    )
    names = [f"{each['kind']}: {each['snapshot']}" for each in models]
    section = [table(HEADER, map(cells, models)), note(how), *map(note, names)]
    return page(f"Speed of the task {models[0]['task']}", where, [("Size and speed", section)])


if __name__ == "__main__":
    main()
