"""The encoder for CPUs: all of `BertModel` as one node of OneFlow's graph, on all cores.

Letters: B batch, T tokens, H hidden, L layers, N rows (tokens).
"""

import functools
from typing import NamedTuple

import numpy as np

from data.engine import load_oneflow
from modeling.bert.model import BertModel, EncoderOutput
from modeling.cpu.dropout import ShardDropout
from modeling.cpu.layers import merge_rows
from modeling.cpu.shard import TABLES, Shard
from modeling.cpu.threads import OrderedSums, Threads, count_threads
from util import UserError

flow = load_oneflow()
# What flow.autograd.Function.apply calls:
make_node = flow._oneflow_internal.autograd.AutogradFunctionBase.apply

SHARD_TOKENS = 512  # real tokens that are worth a shard; a run and its snapshots keep to it
PROJECTIONS = ("query", "key", "value")


class CpuBertModel(BertModel):
    """A BertModel whose work is done in numpy, on the memory of its parameters, by `threads`."""

    def __init__(self, config, masks, threads: Threads):
        super().__init__(config, masks)
        self.threads, self._arrays = threads, None
        # the node's one input: the parameters' gradients pass the engine by
        self.anchor = flow.zeros(1, requires_grad=True)

    def forward(
        self,
        input_ids,
        attention_mask,
        token_type_ids,
        scores_of=(),
        hidden_of=(),
        mean_over_heads=False,
        last_hidden=True,
    ) -> EncoderOutput:
        """As `BertModel.forward`; hidden states and scores are 0 at padding."""
        wait_for_engine()
        ids, mask, segments = (tensor.numpy() for tensor in (input_ids, attention_mask, token_type_ids))
        wanted = Wanted(
            tuple(scores_of),
            tuple(hidden_of),
            mean_over_heads,
            last_hidden or self.config.num_hidden_layers in hidden_of,
        )
        work = Pass(self, ids, mask, segments, wanted, saving=flow.is_grad_enabled())
        if not work.saving:
            return wanted.as_output(work.forward())
        outputs = make_node("CpuBertModel", work.forward, work.backward, self.anchor)
        return wanted.as_output(outputs if isinstance(outputs, tuple) else (outputs,))

    def arrays(self) -> dict:
        """{name: array} of the parameters, in their own memory.

        To see a tensor as an array waits for a thread of the engine, so it is done once: whoever changes
        parameters does so in place, as optimizers and `data.copy_` do.
        """
        if self._arrays is None:
            self._arrays = {name: parameter.detach().numpy() for name, parameter in self.named_parameters()}
        return self._arrays

    def _apply(self, function):  # `to` and the like may move the parameters elsewhere
        self._arrays = None
        return super()._apply(function)


def choose_encoder(encoder: str, device, cpu_threads="auto"):
    """What makes the encoder that --encoder names on `device`:
    a function from (BertConfig, DropoutMasks) to a BertModel.

    auto: the CPU's own on a CPU. Args: cpu_threads: their number, or "auto".
    Raises:
        UserError: the CPU's own on another device.
    """
    if device.type != "cpu" and encoder == "cpu":
        raise UserError(
            f"--encoder cpu: the device is {device}: leave the flag out, or run on the CPU by --device cpu."
        )
    if device.type != "cpu" or encoder == "oneflow":
        return BertModel
    return functools.partial(CpuBertModel, threads=Threads(count_threads(cpu_threads)))


def wait_for_engine():
    """Waits until OneFlow has done what it was told, so that numpy sees it in memory."""
    flow._oneflow_internal.eager.Sync()


class Wanted(NamedTuple):
    """The outputs that a call asks for; see `BertModel.forward`."""

    scores_of: tuple
    hidden_of: tuple
    mean_over_heads: bool
    last_hidden: bool

    def names(self):
        """A name for each output, in the order in which the node has them."""
        last = [("last_hidden", None)] if self.last_hidden else []
        return [
            ("pooled", None),
            *last,
            *(("hidden", n) for n in self.hidden_of),
            *(("scores", n) for n in self.scores_of),
        ]

    def make_arrays(self, B, T, config):
        """{name: array}, with zeros where padding stays."""
        H, parts = config.hidden_size, 1 if self.mean_over_heads else config.num_attention_heads
        shapes = {"pooled": (B, H), "last_hidden": (B, T, H), "hidden": (B, T, H), "scores": (B, parts, T, T)}
        return {name: np.zeros(shapes[name[0]], np.float32) for name in self.names()}

    def as_output(self, tensors):
        """The tensors of `names` as an EncoderOutput."""
        found = dict(zip(self.names(), tensors))
        scores = {
            n: found["scores", n].squeeze(1) if self.mean_over_heads else found["scores", n]
            for n in self.scores_of
        }
        return EncoderOutput(
            found["pooled", None],
            found.get(("last_hidden", None)),
            {n: found["hidden", n] for n in self.hidden_of},
            scores,
        )


# --------------------------------------------------------------------------------------- the whole batch


def split_batch(lengths: np.ndarray) -> list:
    """The examples of a batch, int [B] real tokens each, in shards that are alike in work:
    a list of int arrays.

    S shards take every S-th example of the batch sorted by length. S is a power of two: 2, or so many that
    each has SHARD_TOKENS tokens. It knows nothing of threads: with any number of them the results are the
    same.
    """
    S = 2
    while 2 * S * SHARD_TOKENS <= lengths.sum():
        S *= 2
    order = np.argsort(-lengths, kind="stable")
    return [order[k::S] for k in range(min(S, len(lengths)))]


class Pass:
    """A batch on its way through the encoder and, where gradients are asked for, back.

    The context that OneFlow 0.9.0 offers to keep things in gives every attribute away with one reference too
    few, which ends in a segmentation fault: what the way back needs is kept here instead, which lives as long
    as the node has its methods.
    """

    def __init__(self, model, ids, mask, segments, wanted, saving):
        self.model, self.wanted, self.saving, self.shape = model, wanted, saving, mask.shape
        lengths = mask.sum(axis=1)
        if model.training:
            model.masks.open_batch(lengths)
        weights = fuse_projections(model.arrays(), model.config.num_hidden_layers)
        self.shards = []
        for number, examples in enumerate(split_batch(lengths)):
            dropout = ShardDropout([model.masks.streams[i] for i in examples] if model.training else None)
            self.shards.append(
                Shard(
                    number,
                    examples,
                    lengths[examples],
                    ids,
                    segments,
                    weights,
                    model.config,
                    dropout,
                    wanted,
                    saving,
                )
            )

    def forward(self, context=None, anchor=None):
        """A tensor for each of the `wanted` names."""
        outputs = self.wanted.make_arrays(*self.shape, self.model.config)
        self.model.threads.run([functools.partial(shard.forward, outputs) for shard in self.shards])
        return tuple(map(flow.from_numpy, outputs.values()))

    def backward(self, context, *gradients):
        """Takes the gradient of each output; adds to those of the parameters."""
        wait_for_engine()
        doutputs = dict(zip(self.wanted.names(), (gradient.numpy() for gradient in gradients)))
        sums, threads = OrderedSums(), self.model.threads
        threads.run([functools.partial(shard.backward, doutputs, sums) for shard in self.shards])
        parameters = dict(self.model.named_parameters())
        for name, array in split_projections(sums):
            add_gradient(parameters[name], array)
        drows = np.concatenate([shard.embeddings.drows for shard in self.shards])
        jobs = []
        for i, table in enumerate(TABLES):
            places = np.concatenate([shard.embeddings.places[i] for shard in self.shards])
            parameter = parameters[f"embeddings.{table}_embeddings.weight"]
            jobs.append(functools.partial(add_rows, parameter, places, drows))
        threads.run(jobs)
        self.shards = None
        return flow.zeros(1)


def fuse_projections(arrays, L):
    """The weights with those of queries, keys and values side by side,
    under the name of the module that they belong to.
    """
    fused = dict(arrays)
    for layer in range(L):
        name = f"encoder.layer.{layer}.attention.self"
        for kind in ("weight", "bias"):
            fused[f"{name}.{kind}"] = np.concatenate(
                [arrays[f"{name}.{part}.{kind}"] for part in PROJECTIONS]
            )
    return fused


def split_projections(sums):
    """Yields name and gradient of each parameter, those of queries, keys and values apart again."""
    for name, total in sums.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("attention.self"):
            for part, array in zip(PROJECTIONS, np.split(total.total, len(PROJECTIONS))):
                yield f"{module}.{part}.{kind}", array
        else:
            yield name, total.total


def add_gradient(parameter, array):
    """Adds to the gradient of a parameter, whose memory the array becomes where there is none."""
    if parameter.grad is None:
        parameter.grad = flow.from_numpy(array)
    else:
        gradient = parameter.grad.numpy()
        gradient += array


def add_rows(parameter, places, drows):
    """Adds rows [N, H] to those at `places` [N] of a table's gradient;
    several that go to one place are merged before.
    """
    merged, rows = merge_rows(places, drows)
    if parameter.grad is None:
        parameter.grad = flow.from_numpy(np.zeros(parameter.shape, np.float32))
    parameter.grad.numpy()[merged] += rows
