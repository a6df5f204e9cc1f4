"""What is measured, against what, and what is to be reached: a Group for each table."""

import functools

from tests.benchmark import EVAL_B, B, T
from tests.benchmark.tables import Key, Ratio

OURS, PYTORCH = "ours", "PyTorch"


class Group:
    """Measurements that make a table.

    Args:
        name: that of --only.
        words: what the times hold.
        unit: what is counted per second.
        once: measured in the first round alone.
    Attributes: `measures`, {Key: a function that measures}; `ratios`.
    """

    def __init__(self, name, words, unit, once=False):
        self.name, self.words, self.unit, self.once, self.measures, self.ratios = (
            name,
            words,
            unit,
            once,
            {},
            [],
        )

    def measure(self, what, side, workers, function, /, *args, **more):
        """Adds a measurement, and returns its Key."""
        key = Key(self.name, what, side, workers)
        self.measures[key] = functools.partial(function, *args, **more)
        return key

    def ratio(self, words, over, under, target="", figure="seconds"):
        """Adds a ratio of two measurements."""
        self.ratios.append(Ratio(words, over, under, figure, target))


def step(bench):
    group = Group(
        "step",
        f"{B} x {T} tokens without padding. Training step: forward, backward, clipping, AdamW; ours by "
        "`modeling.training.loop.train`, which also makes the batch and writes a line of metrics. "
        "Inference: class logits as an array.",
        "tokens",
    )
    ours, what = {}, "training step"
    for n in bench.workers:
        ours[n] = group.measure(what, OURS, n, bench.process, "ours", "step", bench.model, n, workers=n)
        if bench.against:
            theirs = group.measure(what, PYTORCH, n, bench.torch, "step", bench.model, workers=n)
            group.ratio(
                f"training step, {pair(n)}", ours[n], theirs, "at most 1.25" if n == 1 else "at most 1.05"
            )
            group.ratio(
                f"peak memory of a training step, {pair(n)}", ours[n], theirs, "at most 1.3", "megabytes"
            )
    if bench.cores > 1:
        group.ratio(
            f"training step, 1 thread over {bench.cores}",
            ours[1],
            ours[bench.cores],
            "at least 1.8" if bench.cores == 2 else "",
        )
    batch = group.measure("inference", OURS, 1, bench.process, "ours", "inference", bench.model, 1)
    if bench.against:
        theirs = group.measure("inference", PYTORCH, 1, bench.torch, "inference", bench.model)
        group.ratio(f"inference without padding, {pair(1)}", batch, theirs)
    return group


def inference(bench):
    group = Group(
        "inference",
        f"Class logits of reviews, {EVAL_B} to a batch. Ours: as on dev and test, batches of like length, "
        f"made, cut and logits gathered, metrics. PyTorch: padded to {T} and made beforehand. The model is "
        "warm. One worker does half of the reviews.",
        "reviews",
    )
    for n in bench.workers:
        count, what = bench.workload(n), f"{bench.workload(n)} reviews"
        ours = group.measure(
            what, OURS, n, bench.process, "ours", "reviews", bench.model, n, bench.npz, count, workers=n
        )
        if bench.against:
            theirs = group.measure(
                what,
                f"{PYTORCH}, padded",
                n,
                bench.torch,
                "reviews",
                bench.model,
                bench.npz,
                count,
                workers=n,
            )
            group.ratio(f"inference over reviews, {pair(n)}, padded", ours, theirs, "at most 0.8")
    return group


def teacher(bench):
    group = Group(
        "teacher",
        "An epoch of training on reviews. Ours: `meta_teacher.py --do_train`, both heads, from the end of "
        "the first step to the end of the last, by its timing.jsonl, batches made and every step logged. "
        "PyTorch: a plain classifier, tensors made beforehand; grouped: with the same rows in a batch as "
        "ours, cut as ours. The first step, where memory is laid out, counts by its tokens as the others "
        f"do on every side. One worker does half of the reviews. Batches of {B}.",
        "reviews",
    )
    for n in bench.workers:
        count = bench.workload(n)
        ours = group.measure(f"{count} reviews", f"{OURS}, meta-teacher", n, bench.teacher_epoch, count, n)
        for how, target in (("padded", "at most 0.85"), ("grouped", "at most 1.05")) if bench.against else ():
            theirs = group.measure(
                f"{count} reviews",
                f"{PYTORCH}, {how}",
                n,
                bench.torch,
                "epoch",
                bench.model,
                bench.npz,
                count,
                how,
                workers=n,
            )
            group.ratio(f"meta-teacher epoch, {pair(n)}, {how}", ours, theirs, target)
    return group


def distillation(bench):
    group = Group(
        "distillation",
        "An epoch of distilling a student of 3 layers. Ours: `meta_distill.py --do_train` with all its "
        "terms, from knowledge that stage 3 wrote once (its time is not in here; the growth table has it), "
        "timed as the meta-teacher's epoch. PyTorch: the teacher run in every step (no gradients, eval "
        "mode), all padded; soft cross-entropy and squared error of attention and pooled vector. Read "
        "alone: the knowledge of all batches read and decoded, nothing else, from the system's cache, on "
        "one core.",
        "reviews",
    )
    for name, words, count, target in (
        ("narrow", "teacher of the model's size", bench.examples, "at most 0.6"),
        ("wide", "12 x 768 teacher", bench.third, "at most 0.25"),
    ):
        what, n = f"{words}, {count} reviews", bench.cores
        ours = group.measure(what, OURS, n, bench.student_epoch, count, n, name)
        if bench.against:
            teacher = bench.folder / f"teacher-{name}"
            theirs = group.measure(
                what,
                f"{PYTORCH}, padded",
                n,
                bench.torch,
                "distillation",
                bench.model,
                bench.npz,
                count,
                teacher,
                workers=n,
            )
            group.ratio(f"distillation epoch, {words}, {pair(n)}", ours, theirs, target)
        read = group.measure(
            what,
            "ours, knowledge read alone",
            1,
            bench.process,
            "files",
            "knowledge",
            bench.folder / f"knowledge-{name}",
            bench.npz,
            count,
        )
        group.ratio(f"knowledge read over the epoch, {words}", read, ours)
    return group


def records(bench):
    group = Group(
        "records",
        "Records on one core: train.tsv tokenised and written, without scores; all of them read, checked "
        "and stacked. Start-up is not in the time.",
        "reviews",
    )
    count = bench.growth[-1]
    write, _ = _records(group, bench, count)
    group.ratio(
        f"{count:,} reviews tokenised and written, seconds", write, None, "at most 6" if count == 8000 else ""
    )
    return group


def growth(bench):
    few, many = bench.growth
    group = Group(
        "growth",
        f"From {few:,} to {many:,} examples: whole commands of stages 1 and 3 with a model of 3 layers on "
        f"{bench.cores} threads, start-up, records and knowledge included. Records as above, in processes "
        "that do nothing else. Measured in the first round alone.",
        "reviews",
        once=True,
    )
    model, keys = bench.folder / "teacher-small", {}
    for count in (few, many):
        keys[count] = {
            "stage 1": group.measure(
                f"stage 1, {count:,} reviews", OURS, bench.cores, bench.stage_1, count, model
            ),
            "stage 3": group.measure(
                f"stage 3, {count:,} reviews",
                OURS,
                bench.cores,
                bench.stage_3,
                count,
                model,
                bench.folder / "knowledge-small",
            ),
            **dict(zip(("records written", "records read"), _records(group, bench, count))),
        }
    for what in keys[few]:
        group.ratio(
            f"peak memory, {what}, {many:,} over {few:,}",
            keys[many][what],
            keys[few][what],
            "at most 1.1" if "stage" in what else "",
            "megabytes",
        )
        group.ratio(f"time, {what}, {many:,} over {few:,}", keys[many][what], keys[few][what])
    return group


def _records(group, bench, count):
    data, out, reviews = (
        bench.folder / str(count),
        bench.folder / "records" / str(count),
        f"{count:,} reviews",
    )
    return (
        group.measure(
            f"records written, {reviews}", OURS, 1, bench.process, "files", "write", data, bench.model, out
        ),
        group.measure(f"records read, {reviews}", OURS, 1, bench.process, "files", "read", out),
    )


def pair(workers):
    """2 threads each."""
    return f"{workers} thread{'s' * (workers > 1)} each"


def prediction(bench):
    count, n = bench.growth[-1], bench.cores
    group = Group(
        "prediction",
        f"Lines of text to probabilities with a model of 3 layers, cut at {T} tokens: whole commands, "
        "start-up included. Ours: `--do_predict --output_file`. ONNX Runtime: float32, tokenised by the "
        f"tokenizers library, batches of {EVAL_B} grouped by length; the export is not in its time.",
        "texts",
    )
    ours = group.measure(f"{count:,} texts", OURS, n, bench.predict, count)
    if bench.against:
        theirs = group.measure(f"{count:,} texts", "ONNX Runtime", n, bench.onnx_predict, count)
        group.ratio(f"prediction, {pair(n)}, grouped", ours, theirs, "at most 1.0")
    return group


GROUPS = {
    "step": step,
    "inference": inference,
    "teacher": teacher,
    "distillation": distillation,
    "records": records,
    "growth": growth,
    "prediction": prediction,
}
