"""One process of the benchmark: `python3 -m tests.benchmark.ours training|inference` prints seconds per step and peak memory as JSON."""

import json
import resource
import sys
import time

from util import load_oneflow  # isort: skip  (first: it names the BLAS kernel before numpy is loaded)

import numpy as np

from data.batches import Batch
from modeling.bert import BertConfig, init_weights
from modeling.heads import DomainClassifier
from modeling.inference import DomainTable, to_device
from modeling.losses import cross_entropy
from modeling.optimization import clip_gradients, make_optimizer
from tests.benchmark import SIZES, STEPS, B, T

flow = load_oneflow()


def main():
    config = BertConfig(**SIZES)
    model = DomainClassifier(config, 2, 4)
    init_weights(model, 0, 0.02)
    optimizer, device = make_optimizer(model, 5e-5, 0.01), flow.device("cpu")
    ids = np.random.default_rng(0).integers(1000, config.vocab_size, (B, T), np.int32)
    batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids), *(np.arange(B, dtype=np.int32) % 2,) * 3, np.ones(B, np.float32))
    batch = to_device(batch, DomainTable(4, (0, 1, 2, 3)), device)

    def training(step):
        model.dropouts.key(0, step)
        loss = cross_entropy(model(batch).logits, batch.label).mean()
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model, 1.0)
        optimizer.step()
        return loss.item()

    def inference(step):
        with flow.no_grad():
            return model(batch).logits.numpy()

    model.train(sys.argv[1] == "training")
    seconds = []
    for step in range(STEPS + 1):
        started = time.perf_counter()
        {"training": training, "inference": inference}[sys.argv[1]](step)
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds[1:], "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
