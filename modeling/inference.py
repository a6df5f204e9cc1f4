"""The one pass of a model over records: of stages 1 and 3, of evaluation and of prediction."""

import contextlib
import os
from typing import NamedTuple

import numpy as np

from data.batches import as_examples, content_mask, domain_mix, lengths, make_batch
from data.engine import load_oneflow
from data.tasks import Task
from modeling.distributed.collective import all_reduce_sum
from modeling.meta_kd.losses import token_weights
from modeling.metrics import classification_metrics
from util import get_rank, get_world_size

flow = load_oneflow()


class TensorBatch(NamedTuple):
    """A Batch on the device. int32 [B, T] three times; content_weights float32 [B, T], 1/n at the n tokens
    of the text; domain_mix float32 [B, K]; label int64 [B]; `host`, the Batch itself.
    """

    input_ids: "flow.Tensor"
    input_mask: "flow.Tensor"
    segment_ids: "flow.Tensor"
    content_weights: "flow.Tensor"
    domain_mix: "flow.Tensor"
    label: "flow.Tensor"
    host: tuple


class DomainTable(NamedTuple):
    """How many domains a model knows, and which of them it was trained on."""

    K: int
    seen: tuple


def to_device(batch, domains, device):
    """A Batch as a TensorBatch; `domains` is a DomainTable."""
    tokens = (tensor(array, device) for array in (batch.input_ids, batch.input_mask, batch.segment_ids))
    content = token_weights(content_mask(batch.input_mask, batch.segment_ids))
    return TensorBatch(
        *tokens,
        tensor(content, device),
        tensor(domain_mix(batch.domain, *domains), device),
        tensor(batch.label.astype(np.int64), device),
        batch,
    )


def tensor(array, device):
    """A NumPy array as a tensor on `device`; the engine needs its values side by side."""
    return flow.tensor(np.ascontiguousarray(array), device=device)


def select_device(name):
    """The device that --device names. auto: cuda where it is there; of several GPUs the one of this rank."""
    if name == "auto":
        name = "cuda" if flow.cuda.is_available() else "cpu"
    return flow.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name)


def infer(model, block, batch_size, domains, device, answer):
    """One item per record of a block, in record order.

    Args:
        model: in eval mode for the time of the pass.
        block: Examples, or {name: array [n, ...]}; those of like length share a batch.
        batch_size: records to a batch.
        domains: a DomainTable.
        answer: takes (model, TensorBatch) to a list of one item per record of the batch.
    """
    block = as_examples(block)
    items = [None] * len(block)
    with eval_mode(model):
        for rows in batch_by_length(block, batch_size):
            for row, item in zip(rows, answer(model, to_device(make_batch(block, rows), domains, device))):
                items[row] = item
    return items


def batch_by_length(block, batch_size):
    """The rows of a block of records, the longest first, in batches: a list of int arrays."""
    order = np.argsort(-lengths(block), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@contextlib.contextmanager
def eval_mode(model):
    """Eval mode and no gradients for the time of a block."""
    training = model.training
    model.eval()
    try:
        with flow.no_grad():
            yield
    finally:
        model.train(training)


def evaluate(model, examples, task, batch_size, domains, device):
    """Metrics of a classifier over Examples, or records stacked in {name: [N, ...]}; see
    `classification_metrics`.
    """
    examples = as_examples(examples)
    return logits_metrics(class_logits(model, examples, task, batch_size, domains, device), examples, task)


def class_logits(model, examples, task, batch_size, domains, device):
    """The class logits of N examples, as `evaluate` takes them: float32 [N, M], the same in every rank; the
    ranks take turns at batches.
    """
    examples = as_examples(examples)
    logits = np.zeros((len(examples), len(task.labels)), np.float32)
    with eval_mode(model):
        for rows in batch_by_length(examples, batch_size)[get_rank() :: get_world_size()]:
            logits[rows] = model(
                to_device(make_batch(examples, rows), domains, device), last_hidden=False
            ).logits.numpy()
    return all_reduce_sum(logits, device)


class Heldout(NamedTuple):
    """The dev and test examples of a run, and how a model is run over them.

    splits: {"dev": Examples, "test": Examples}; domains: the DomainTable of the model.
    """

    splits: dict
    task: Task
    domains: DomainTable
    device: "flow.device"
    batch_size: int

    def logits(self, model, split: str) -> np.ndarray:
        """The class logits of a split, float32 [N, M]; see `class_logits`."""
        return class_logits(model, self.splits[split], self.task, self.batch_size, self.domains, self.device)

    def dev_metrics(self, model) -> dict:
        """Metrics on dev; see `classification_metrics`."""
        return evaluate(model, self.splits["dev"], self.task, self.batch_size, self.domains, self.device)


def logits_metrics(logits, examples, task):
    """`classification_metrics` of the class logits [N, M] of Examples."""
    return classification_metrics(logits.argmax(axis=1), examples["label"], examples["domain"], task)
