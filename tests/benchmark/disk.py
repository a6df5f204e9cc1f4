"""How fast the knowledge of many reviews is read when none of it is in memory, in the order of an epoch.

    python3 -m tests.benchmark.disk --reviews 100000 --folder DIR

Makes knowledge of made-up reviews (three maps of attention, vectors of 384: 67 kB a review), opens it, has
the system forget it, and reads an epoch's batches as the training loop does, the next one asked for ahead.
Nothing but knowledge is read; --pause stands for what a student computes.
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np

from data.batches import epoch_batches
from data.store.knowledge import Knowledge
from data.store.knowledge_writer import KnowledgeWriter
from tests.benchmark import SEED, B, T

LAYERS, WIDTH, CLASSES, PART = [2, 4, 6], 384, 2, 1024  # of a teacher like MiniLM; reviews of a part
WORST = 99  # percentile of the waits that is told
FACTS = {
    "teacher_sha256": "0" * 64,
    "content_sha256": "1" * 64,
    "layers": LAYERS,
    "width": WIDTH,
    "hidden_states": False,
    "domain_feature": True,
    "attention_heads": "mean",
    "vectors": "float32",
}


def draw_lengths(reviews):
    """Real tokens of each review, 95 on average and 128 at most, as the Amazon reviews have. int [N]."""
    stream = np.random.default_rng(SEED)
    return np.clip(stream.lognormal(np.log(110), 0.6, reviews), 8, T).astype(int)


def make_knowledge(folder, lengths):
    """Knowledge of random values in a folder."""
    stream = np.random.default_rng(SEED)
    vector = stream.standard_normal(WIDTH).astype(np.float32)
    maps = stream.standard_normal(len(LAYERS) * T * T).astype(np.float32)

    def item(number, n):
        attention = maps[: len(LAYERS) * n * n].reshape(len(LAYERS), n, n)
        vectors = {"logits": vector[:CLASSES], "representation": vector, "domain_feature": vector}
        return {"idxs": number, **vectors, "attention": attention}

    writer = KnowledgeWriter(folder, FACTS)
    writer.begin()
    starts = range(0, len(lengths), PART)
    for part, start in enumerate(starts):
        chosen = enumerate(lengths[start : start + PART].tolist(), start)
        writer.write(part, (item(number, n) for number, n in chosen))
    writer.finish(len(starts))


def read_epoch(knowledge, parts, batches, pause):
    """Reads the batches, B int arrays each, with a pause after each for what a student would compute.

    Returns:
        seconds in all, and those that each batch was waited for.
    """
    forget(parts)
    waits, start = [], time.perf_counter()
    for number, rows in enumerate(batches):
        if number + 1 < len(batches):
            knowledge.prefetch(batches[number + 1])
        begin = time.perf_counter()
        knowledge.read(rows)
        waits.append(time.perf_counter() - begin)
        time.sleep(pause)
    return time.perf_counter() - start, waits


def forget(parts):
    """Has the system drop what it keeps of the files in memory."""
    for path in parts:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what waits to be written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read():
    """Bytes that this process has had from disks."""
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--folder", required=True, help="on the disk; the knowledge is made in it once")
    parser.add_argument("--reviews", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=600, help="of the epoch that are read")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a student computes a batch")
    args = parser.parse_args()
    folder, lengths = pathlib.Path(args.folder, f"{args.reviews}"), draw_lengths(args.reviews)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        make_knowledge(folder, lengths)
    parts = sorted(folder.glob("knowledge.of_record-*"))
    size = sum(path.stat().st_size for path in parts)

    forget(parts)
    start = time.perf_counter()
    knowledge = Knowledge(folder)
    seconds = time.perf_counter() - start
    print(f"opened and hashed: {size / 1e9:.2f} GB in {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")

    batches, before = epoch_batches(lengths, B, SEED, 0)[: args.batches], bytes_read()
    seconds, waits = read_epoch(knowledge, parts, batches, args.pause)
    reviews, read = sum(map(len, batches)), bytes_read() - before
    print(
        f"{len(batches)} batches of {B}: {reviews / seconds:.0f} reviews/s, {read / 1e6 / seconds:.1f} MB/s "
        f"from the disk, {read / reviews / 1e3:.0f} kB a review of {size / len(lengths) / 1e3:.0f} kB; a "
        f"batch waits {1e3 * np.median(waits):.1f} ms, {1e3 * np.percentile(waits, WORST):.0f} ms at worst "
        "of 100"
    )


if __name__ == "__main__":
    sys.exit(main())
