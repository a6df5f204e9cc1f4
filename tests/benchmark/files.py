"""One process of the benchmark, on one core: records and knowledge on disk. The last line printed is JSON.

    python3 -m tests.benchmark.files write DATA_DIR MODEL OUT
    python3 -m tests.benchmark.files read OUT
    python3 -m tests.benchmark.files knowledge FOLDER NPZ N

write: train.tsv tokenised and written as records, without scores.
read: all of them read, checked and stacked.
knowledge: the knowledge of the batches of an epoch over N reviews read.
"""

import json
import pathlib
import sys
import time

import util  # noqa: F401  isort: skip  (first: it names the BLAS kernel before numpy is loaded)

import numpy as np

from data.store.knowledge import Knowledge
from data.store.records import Records
from data.store.writing import resave
from data.tasks import BUILT_IN
from tests.benchmark import T
from tokenization import tokenizer_for


def main():
    what, *words = sys.argv[1:]
    print(json.dumps({"write": write, "read": read, "knowledge": knowledge}[what](*words)))


def write(data_dir, model, out):
    started = time.perf_counter()
    tokenizer = tokenizer_for(pathlib.Path(model))
    records = resave(BUILT_IN["senti"], data_dir, out, "train", tokenizer, T, scored=False)
    return {"seconds": time.perf_counter() - started, "units": len(records)}


def read(out):
    started = time.perf_counter()
    arrays = Records(out, "train").arrays()
    return {"seconds": time.perf_counter() - started, "units": len(arrays["label"])}


def knowledge(folder, npz, N):
    """Seconds of reading alone; the files were opened and checked before, and lie in the system's cache."""
    reader = Knowledge(folder)
    with np.load(npz) as file:
        batches = [rows[rows >= 0] for rows in file[f"batches_{N}"]]
    started = time.perf_counter()
    for rows in batches:
        reader.read(rows)
    seconds, size = (
        time.perf_counter() - started,
        sum(path.stat().st_size for path in pathlib.Path(folder).iterdir()),
    )
    return {"seconds": seconds, "units": int(N), "bytes": size / len(reader)}


if __name__ == "__main__":
    main()
