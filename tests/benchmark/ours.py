"""One process of the benchmark: a training step or inference of ours; the last line that it prints is JSON.

python3 -m tests.benchmark.ours step MODEL THREADS            seconds of a step, median; units: its tokens
python3 -m tests.benchmark.ours inference MODEL THREADS       the same of a batch without padding
python3 -m tests.benchmark.ours reviews MODEL THREADS NPZ N   seconds of a pass over N reviews; units: reviews
"""

import json
import statistics
import sys
import tempfile
import time

from util import entry  # isort: skip  (first: it names the BLAS kernel before numpy is loaded)

import numpy as np

import config
from data.batches import make_batch
from data.engine import load_oneflow
from data.tasks import BUILT_IN
from modeling.bert.model import init_weights
from modeling.cpu.encoder import choose_encoder
from modeling.inference import DomainTable, evaluate, to_device
from modeling.meta_kd.classifier import DomainClassifier
from modeling.meta_kd.losses import batch_mean, cross_entropy
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import load_weights
from modeling.training.loop import one_phase, train
from modeling.training.run import Run
from modeling.training.stage import training_options
from tests.benchmark import EVAL_B, SEED, STEPS, B, T

flow = load_oneflow()
TASK, DOMAINS, CPU = BUILT_IN["senti"], DomainTable(4, (0, 1, 2, 3)), flow.device("cpu")


@entry
def main():
    what, path, workers, *rest = sys.argv[1:]
    folder = read_model(path)
    make_encoder = choose_encoder("cpu", CPU, int(workers))
    model = DomainClassifier(folder.config, len(TASK.labels), DOMAINS.K, make_encoder=make_encoder)
    init_weights(model, SEED, folder.config.initializer_range)
    load_weights(model, folder)
    seconds, units = {"step": step, "inference": inference, "reviews": reviews}[what](model, *rest)
    print(json.dumps({"seconds": seconds, "units": units}))


class Unsaved:
    """Stands for the snapshots of a training run, and keeps none."""

    step, best = 0, None

    def save_last(self, *_):
        pass

    name_last = save_last


def step(model):
    """A step of modeling.training.loop.train on batches of B x T tokens without padding.

    It makes the batch, runs forward and backward, clips gradients, updates by AdamW, and writes a line in
    metrics.jsonl. It saves no snapshot.
    """
    arrays, marks = full_length((STEPS + 1) * B, model.bert.config.vocab_size), []
    args = config.parse(
        __doc__,
        config.task,
        config.device,
        config.training,
        argv=[
            "--task_name",
            TASK.name,
            "--data_dir",
            ".",
            "--device",
            "cpu",
            "--num_epochs",
            "1",
            "--batch_size_per_device",
            str(B),
        ],
    )

    def loss(rows, epoch):
        marks.append(time.perf_counter())
        batch = to_device(make_batch(arrays, rows), DOMAINS, CPU)
        return batch_mean(cross_entropy(model(batch).logits, batch.label)), {}

    with tempfile.TemporaryDirectory() as folder:
        options = training_options(args)
        phases = one_phase(options, len(arrays["label"]), loss)
        train(model, arrays, phases, options, Run(folder), Unsaved())
    marks.append(time.perf_counter())
    return statistics.median(np.diff(marks)[1:]), B * T


def inference(model):
    """Class logits of a batch of B x T tokens without padding, as an array."""
    batch, marks = (
        to_device(make_batch(full_length(B, model.bert.config.vocab_size), np.arange(B)), DOMAINS, CPU),
        [],
    )
    model.eval()
    with flow.no_grad():
        for _ in range(STEPS + 1):
            marks.append(time.perf_counter())
            model(batch).logits.numpy()
    marks.append(time.perf_counter())
    return statistics.median(np.diff(marks)[1:]), B * T


def reviews(model, npz, N):
    """A pass as over dev and test: batches of EVAL_B reviews of like length are made, cut and answered."""
    with np.load(npz) as file:
        arrays = {name: file[name][: int(N)] for name in file.files if not name.startswith("batches")}
    first = {name: array[:EVAL_B] for name, array in arrays.items()}
    evaluate(model, first, TASK, EVAL_B, DOMAINS, CPU)
    started = time.perf_counter()
    evaluate(model, arrays, TASK, EVAL_B, DOMAINS, CPU)
    return time.perf_counter() - started, int(N)


def full_length(N, vocab_size):
    """N examples of T random tokens, as records stacked."""
    ids, count = (
        np.random.default_rng(SEED).integers(0, vocab_size, (N, T), np.int32),
        np.arange(N, dtype=np.int32),
    )
    return {
        "input_ids": ids,
        "input_mask": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
        "domain": count % DOMAINS.K,
        "label": count % 2,
        "idxs": count,
        "weights": np.ones(N, np.float32),
    }


if __name__ == "__main__":
    main()
