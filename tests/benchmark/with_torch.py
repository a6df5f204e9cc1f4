"""One process of PyTorch's side, with transformers' BERT. The last line that it prints is JSON.

    python3 -m tests.benchmark.with_torch step MODEL
    python3 -m tests.benchmark.with_torch inference MODEL
    python3 -m tests.benchmark.with_torch reviews MODEL NPZ N
    python3 -m tests.benchmark.with_torch epoch MODEL NPZ N padded|grouped
    python3 -m tests.benchmark.with_torch distillation MODEL NPZ N TEACHER

step: seconds of a step, median; units: its tokens.
inference: the same of a batch without padding.
reviews: seconds of a pass over N reviews, padded to T.
epoch: seconds of an epoch of training.
distillation: the same, padded, with the teacher run in each step.

Threads by OMP_NUM_THREADS.
"""

import json
import os
import statistics
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BertForSequenceClassification, BertModel

from tests.benchmark import EVAL_B, SEED, STEPS, B, T, without_first


def main():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(SEED)
    what, path, *rest = sys.argv[1:]
    seconds, units = {
        "step": step,
        "inference": inference,
        "reviews": reviews,
        "epoch": epoch,
        "distillation": distillation,
    }[what](path, *rest)
    print(json.dumps({"seconds": seconds, "units": units}))


def step(path):
    """Forward, backward, gradients clipped, AdamW, on a batch of B x T tokens without padding."""
    model = classifier(path)
    batch = (*full_length(model.config.vocab_size), torch.arange(B) % 2)
    return statistics.median(timed(trainer(model, make_loss(model)), [batch] * (STEPS + 1))[1:]), B * T


def inference(path):
    """Class logits of a batch of B x T tokens without padding."""
    model = classifier(path).eval()
    return statistics.median(
        timed(answerer(model), [full_length(model.config.vocab_size)] * (STEPS + 1))[1:]
    ), B * T


def reviews(path, npz, N):
    """Class logits of N reviews, EVAL_B to a batch, in their order."""
    batches = pad(npz, int(N), EVAL_B)
    answer = answerer(classifier(path).eval())
    answer(*batches[0])
    return sum(timed(answer, batches)), int(N)


def epoch(path, npz, N, how):
    """An epoch of training a classifier, cross-entropy alone.

    Batches are in the order of the reviews and padded to T (`padded`), or have the same rows as ours and are
    cut to the longest (`grouped`). The first step counts as the others do, by its tokens.
    """
    batches, model = (pad(npz, int(N), B) if how == "padded" else grouped(npz, int(N))), classifier(path)
    return whole_epoch(trainer(model, make_loss(model)), batches), int(N)


def distillation(path, npz, N, teacher):
    """An epoch of distilling a student of 3 layers, padded to T, with the teacher run in each step.

    The loss: soft cross-entropy, and mean squared errors of attention in 3 layers and of the pooled vector.
    Attention is the mean over heads after the softmax, as transformers gives it.
    """
    teacher = Answering(teacher).eval()
    student = Answering(path, layers=3, width=teacher.bert.config.hidden_size)
    every = teacher.bert.config.num_hidden_layers // 3

    def loss(ids, mask, labels):
        with torch.no_grad():
            logits, attention, pooled = teacher(ids, mask)
        answer, own, vector = student(ids, mask)
        loss = -(F.softmax(logits, -1) * F.log_softmax(answer, -1)).sum(-1).mean() + F.mse_loss(
            student.map(vector), pooled
        )
        return (
            loss
            + sum(
                F.mse_loss(one.mean(1), other.mean(1))
                for one, other in zip(own, attention[every - 1 :: every])
            )
            / 3
        )

    return whole_epoch(trainer(student, loss), pad(npz, int(N), B)), int(N)


class Answering(torch.nn.Module):
    """A BERT with a class head that also gives attention.

    A student of another width than `width` has a map to that. Attention comes from the eager formula alone:
    transformers' fused one does not give it.
    """

    def __init__(self, path, layers=None, width=None):
        super().__init__()
        self.bert = BertModel.from_pretrained(
            path, attn_implementation="eager", **({"num_hidden_layers": layers} if layers else {})
        )
        H = self.bert.config.hidden_size
        self.classifier = torch.nn.Linear(H, 2)
        self.map = torch.nn.Identity() if width in (None, H) else torch.nn.Linear(H, width, bias=False)

    def forward(self, ids, mask):  # -> [B, M], a list of [B, A, T, T], [B, H]
        outputs = self.bert(input_ids=ids, attention_mask=mask, output_attentions=True)
        return (
            self.classifier(F.dropout(outputs.pooler_output, 0.1, self.training)),
            outputs.attentions,
            outputs.pooler_output,
        )


def classifier(path):
    return BertForSequenceClassification.from_pretrained(path, num_labels=2)


def make_loss(model):
    return lambda ids, mask, labels: model(input_ids=ids, attention_mask=mask, labels=labels).loss


def trainer(model, make_loss):
    """A function that trains `model` by one step on a batch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)

    def train(*batch):
        loss = make_loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return train


def answerer(model):
    """A function that gives the class logits of a batch."""

    def answer(ids, mask, labels=None):
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask).logits.numpy()

    return answer


def full_length(vocab_size):
    ids = torch.randint(0, vocab_size, (B, T))
    return ids, torch.ones_like(ids)


def pad(npz, N, size):
    """The first N reviews in batches of `size`, in order, padded to T: a list of (ids, mask, labels)."""
    return [batch_of(npz, np.arange(i, min(i + size, N)), T) for i in range(0, N, size)]


def grouped(npz, N):
    """The batches of our epoch over the first N reviews, cut to the longest of each."""
    with np.load(npz) as file:
        return [batch_of(npz, rows[rows >= 0]) for rows in file[f"batches_{N}"]]


def batch_of(npz, rows, width=None):
    with np.load(npz) as file:
        ids, mask, labels = (
            torch.from_numpy(file[name][rows]).long() for name in ("input_ids", "input_mask", "label")
        )
    width = width or int(mask.sum(1).max())
    return ids[:, :width].contiguous(), mask[:, :width].contiguous(), labels


def timed(function, batches):
    """Seconds that `function` takes on each batch."""
    seconds = []
    for batch in batches:
        started = time.perf_counter()
        function(*batch)
        seconds.append(time.perf_counter() - started)
    return seconds


def whole_epoch(train, batches):
    """Seconds of an epoch, the first step counted by its tokens as the others."""
    return sum(timed(train, batches)[1:]) * without_first([ids.numel() for ids, *_ in batches])


if __name__ == "__main__":
    main()
