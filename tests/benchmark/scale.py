"""Growth with the number of texts: every stage on 10 thousand, 100 thousand and a million made-up texts, with
a model of one layer.

Seconds, CPU, peak memory and disk of whole commands; the exponent p of N^p between two numbers of texts that
follow each other.
"""

import json
import math
import os
import pathlib
import shutil
import sys

import numpy as np

from data.tasks import BUILT_IN
from tests.benchmark import SEED, B, T
from tests.benchmark.processes import ROOT, run
from tests.benchmark.tables import digits

TASK = BUILT_IN["senti"]
WORDS, HELDOUT, STEPS, BLOCK = 40, 1000, 100, 10_000  # words of a text on average; texts of dev and test
STAGES = ("preprocess", "meta_teacher", "meta_teacher_eval", "meta_distill")


def measure_growth(folder, counts, cores, note):
    """Runs the four stages at each of the `counts`, with `cores` threads; returns {(stage, count): {seconds,
    cpu, megabytes, disk}}.
    """
    settings = {"groups": ["scale"], "model": None, "size": (1, 32), "reviews": None}
    run([sys.executable, "-m", "tests.benchmark.sandbox", folder, json.dumps(settings)])
    figures = {}
    for count in counts:
        data = folder / str(count)
        write_texts(data, count, folder / "model" / "vocab.txt")
        for stage in STAGES:
            figures[stage, count] = measure_stage(stage, folder, data, cores)
            note(f"{stage}, {count:,} texts: {figures[stage, count]}")
        shutil.rmtree(data)
    return figures


def write_texts(data, count, vocab_file):
    """A data folder with `count` training texts of made-up words, a block at a time."""
    data.mkdir()
    words = np.array(vocab_file.read_text(encoding="utf-8").split()[5:])
    for number, (split, size) in enumerate((("train", count), ("dev", HELDOUT), ("test", HELDOUT))):
        with open(data / f"{split}.tsv", "w", encoding="utf-8") as file:
            file.write("\t".join(TASK.columns) + "\n")
            for start in range(0, size, BLOCK):
                stream = np.random.default_rng([SEED, number, start])
                n = min(BLOCK, size - start)
                lengths = np.clip(stream.lognormal(np.log(WORDS), 0.7, n), 5, 400).astype(int)
                drawn = words[stream.zipf(1.2, lengths.sum()) % len(words)].tolist()
                ends = np.cumsum(lengths).tolist()
                for i, (end, length) in enumerate(zip(ends, lengths.tolist())):
                    domain, label = TASK.domains[i % 4], TASK.labels[i // 4 % 2]
                    file.write(f"{' '.join(drawn[end - length : end])}\t{domain}\t{label}\n")


def measure_stage(stage, folder, data, cores):
    """One command from start to end; stages 2 and 4 make STEPS steps and no evaluation."""
    knowledge, model, teacher = data / "knowledge", folder / "model", folder / "teacher-small"
    run_folder = data / stage
    training = {
        "do_train": True,
        "max_steps": STEPS,
        "batch_size_per_device": B,
        "model_save_dir": run_folder,
    }
    flags = {
        "preprocess": {"model_load_dir": model, "resave_ofrecord": True},
        "meta_teacher": {"model_load_dir": model, **training},
        "meta_teacher_eval": {"model_load_dir": teacher, "knowledge_dir": knowledge},
        "meta_distill": {
            "student_model": model,
            "teacher_model": teacher,
            "knowledge_dir": knowledge,
            **training,
        },
    }[stage]
    before, size = sum(os.times()[2:4]), folder_bytes(data)
    outcome = run_stage(stage, data, flags, cores)
    return {
        "seconds": outcome.seconds,
        "cpu": sum(os.times()[2:4]) - before,
        "megabytes": outcome.megabytes,
        "disk": (folder_bytes(data) - size) / 1e6,
    }


def run_stage(stage, data, flags, threads):
    """The Outcome of one stage's command over the data folder; flags: {name: value}, True for a switch."""
    flags = {"task_name": "senti", "data_dir": data, "seq_length": T, "seed": SEED, **flags}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value) if word is not True]
    return run([sys.executable, ROOT / f"{stage}.py", *words], threads=threads)


def folder_bytes(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())


def growth_table(figures, counts):
    """Lines of Markdown: the figures, and from one number of texts to the next the exponents of CPU and
    memory.
    """
    lines = [
        "| stage | texts | seconds | CPU seconds | CPU ms a text | peak MB | disk MB "
        "| exponent of CPU | of memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        for before, count in zip((None, *counts), counts):
            now = figures[stage, count]
            powers = ["", ""]
            if before:
                powers = [
                    digits(exponent(figures[stage, before][key], now[key], before, count))
                    for key in ("cpu", "megabytes")
                ]
            cells = [now["seconds"], now["cpu"], 1000 * now["cpu"] / count, now["megabytes"], now["disk"]]
            lines.append(
                f"| {stage} | {count:,} | {' | '.join(map(digits, cells))} | {powers[0]} | {powers[1]} |"
            )
    return lines


def exponent(first, second, few, many):
    """p where a figure grows as N^p from `first` at `few` to `second` at `many`."""
    return math.log(second / first) / math.log(many / few)
