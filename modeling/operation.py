"""The seam between OneFlow's graph and arithmetic in numpy with gradients by hand; and dropout as a function of a key."""

import numpy as np

from util import load_oneflow, random_stream

flow = load_oneflow()
nn = flow.nn
_apply = flow._oneflow_internal.autograd.AutogradFunctionBase.apply  # what flow.autograd.Function.apply calls


def by_hand(tensor):
    """True where Operations work in numpy: on a CPU, whose memory they share with OneFlow."""
    return tensor.device.type == "cpu"


class Operation:
    """One step of the network; an instance serves one call and keeps what its gradient needs.

    forward: arrays -> array, and backward: array -> an array per input, are numpy in the memory of the tensors, for CPUs: numpy's
    OpenBLAS multiplies twice as fast as the older one in OneFlow's wheel where there is AVX-512, its elementwise loops are
    vectorised, and a whole example or block of rows stays in the cache from one loop to the next.
    formula: tensors -> tensor, the same in OneFlow's own operators, is for every other device.
    """

    saving = False  # whether a gradient may be asked for

    def __call__(self, *tensors):
        return Chain(lambda run, *inputs: (run(self, *inputs),))(*tensors)[0]


class Chain:
    """Operations as one node of OneFlow's graph.

    wire(run, *inputs) -> a tuple of outputs says how they hang together; run(operation, *values) does one.
    views: the arrays of the last inputs, where they are at hand.
    """

    def __init__(self, wire, views=()):
        self.wire, self.views = wire, views

    def __call__(self, *tensors):
        """The outputs as a tuple of tensors."""
        if not by_hand(tensors[0]):
            return tuple(self.wire(lambda operation, *inputs: operation.formula(*inputs), *tensors))
        self.saving = flow.is_grad_enabled()
        outputs = _apply("Chain", self._forward, self._backward, *tensors)
        return (outputs,) if isinstance(outputs, flow.Tensor) else tuple(outputs)

    # The context that OneFlow 0.9.0 offers to keep things in gives every attribute away with one reference too few, which ends
    # in a segmentation fault: what a gradient needs is kept in the instance instead, which lives as long as its methods.

    def _forward(self, context, *tensors):
        arrays = *(tensor.numpy() for tensor in tensors[: len(tensors) - len(self.views)]), *self.views
        inputs, tape = [_Value(array) for array in arrays], []

        def run(operation, *values):
            operation.saving = self.saving
            result = _Value(operation.forward(*(value.array for value in values)))
            if self.saving:
                tape.append((operation, values, result))
            return result

        outputs = self.wire(run, *inputs)
        results = [output.array for output in outputs]
        for value in (*inputs, *(result for _, _, result in tape)):
            value.array = None  # an operation has kept what it needs
        self.inputs, self.outputs, self.tape = inputs, outputs, tape
        return tuple(map(flow.from_numpy, results))

    def _backward(self, context, *gradients):
        for output, gradient in zip(self.outputs, gradients):
            output.add(np.ascontiguousarray(gradient.numpy()))
        while self.tape:
            operation, values, result = self.tape.pop()
            if result.gradient is not None:
                for value, gradient in zip(values, operation.backward(result.gradient)):
                    value.add(gradient)
            result.gradient = None
        return tuple(flow.from_numpy(value.gradient) for value in self.inputs)


class _Value:
    """An array between two operations, and the sum of the gradients that have come back to it."""

    def __init__(self, array):
        self.array, self.gradient = array, None

    def add(self, gradient):
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class Block(nn.Module):
    """A module whose work is one Chain over its inputs and all its parameters, in the order of their names in __init__.

    To see a tensor as an array waits for a thread of the engine, milliseconds where cores are contended. So the arrays of the
    parameters are taken once: whoever changes them does so in place, as optimizers and `data.copy_` do, and whoever uses blocks
    calls `settle` after that and before.
    """

    _parameters_seen = ()

    def chain(self, wire, *inputs):
        """The outputs of `wire` as a tuple."""
        parameters = tuple(self.parameters())
        if not by_hand(inputs[0] if inputs else parameters[0]):
            return Chain(wire)(*inputs, *parameters)
        if len(parameters) != len(self._parameters_seen) or any(a is not b for a, b in zip(parameters, self._parameters_seen)):
            self._parameters_seen, self._views = parameters, [parameter.detach().numpy() for parameter in parameters]
        return Chain(wire, self._views)(*inputs, *parameters)

    def _apply(self, function):  # `to` and the like may move the parameters elsewhere
        self._parameters_seen = ()
        return super()._apply(function)


def settle():
    """Waits until the engine has done what it was told, such as an optimizer's step."""
    flow._oneflow_internal.eager.Sync()


# --------------------------------------------------------------------------------------- dropout


class Dropouts:
    """Where the dropout masks of one model come from: each is a function of (seed, step, rank, ranks, number of the site).

    `key` opens a step; within it the sites are numbered in the order in which the forward pass reaches them. Nothing lives on
    from step to step, so that a resumed run draws what the first would have.
    """

    def __init__(self):
        self.key(0, 0)

    def key(self, seed, step, rank=0, ranks=1):
        """Opens step `step` of rank `rank` of `ranks`."""
        self._key, self._site = (seed, step, rank, ranks), 0

    def kept(self, size, rate):
        """[size] of bool: False with probability `rate`, to the nearest 1/65536."""
        seed, *rest = self._key
        stream, self._site = random_stream(seed, "dropout", *rest, self._site), self._site + 1
        bits = stream.bit_generator.random_raw((size + 3) // 4).view(np.uint16)[:size]
        return bits >= round(rate * 65536)


class Dropout(nn.Module):
    """Dropout with the masks of `dropouts`; the identity in eval mode and at rate 0."""

    def __init__(self, rate, dropouts):
        super().__init__()
        self.rate, self.dropouts = rate, dropouts

    def kept(self, size):
        """The mask of one call, [size] of bool, or None where nothing is dropped."""
        return self.dropouts.kept(size, self.rate) if self.training and self.rate else None

    def forward(self, x):
        kept = self.kept(x.numel())
        return x if kept is None else x * scaled(kept, self.rate, x.device).reshape(x.shape)


def gain(rate):
    """What the kept values are multiplied by: 1 / (1 - rate), with the rate that `Dropouts` really has."""
    return np.float32(65536 / (65536 - round(rate * 65536)))


def scaled(kept, rate, device):
    """The mask as a factor: `kept` of bool -> a float32 tensor of 0 and gain(rate)."""
    return flow.from_numpy(np.multiply(kept, gain(rate), dtype=np.float32)).to(device)
