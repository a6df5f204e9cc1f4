"""The same as ours.py with PyTorch and transformers' BERT, in an environment that has them."""

import json
import os
import resource
import sys
import time

import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.benchmark import SIZES, STEPS, B, T


def main():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    ids, labels = torch.randint(1000, SIZES["vocab_size"], (B, T)), torch.arange(B) % 2
    mask = torch.ones_like(ids)

    def training():
        loss = model(ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def inference():
        with torch.no_grad():
            return model(ids, attention_mask=mask).logits.numpy()

    model.train(sys.argv[1] == "training")
    seconds = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        {"training": training, "inference": inference}[sys.argv[1]]()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds[1:], "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
