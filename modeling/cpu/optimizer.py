"""AdamW in numpy, on all cores and in the memory of the parameters.
What it does is what OneFlow's AdamW does.
"""

import math
from typing import NamedTuple

import numpy as np

from modeling.cpu.encoder import wait_for_engine
from modeling.cpu.threads import Threads

# Elements that are worked on at a time: all that a step needs of them stays in a core's cache
PIECE = 1 << 15
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
SLOTS = ("exp_avg", "exp_avg_sq")  # the two moments, as OneFlow and PyTorch name them


class Piece(NamedTuple):
    """Up to PIECE elements of a parameter, flat: their values, gradients and moments;
    and the decay of the parameter.
    """

    values: np.ndarray
    gradient: np.ndarray
    exp_avg: np.ndarray
    exp_avg_sq: np.ndarray
    decay: float


class CpuAdamW:
    """AdamW (Loshchilov and Hutter, 2019) over named parameters.

    Args:
        parameters: {name: parameter}; decays: {name: weight decay}.
        threads: who does the work. The results do not depend on how many they are.
    """

    def __init__(self, parameters: dict, decays: dict, learning_rate: float, threads: Threads):
        self.parameters, self.decays, self.threads = parameters, decays, threads
        self.param_groups = [{"lr": learning_rate}]
        self.steps, self._scale = 0, 1.0
        self.values = {name: parameter.detach().numpy().reshape(-1) for name, parameter in parameters.items()}
        self.exp_avg, self.exp_avg_sq = (
            {name: np.zeros_like(values) for name, values in self.values.items()} for _ in range(2)
        )

    def zero_grad(self, set_to_none=True):
        """Forgets the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def clip(self, max_norm: float) -> float:
        """The Euclidean norm of all gradients; the next step takes them scaled
        so that it is at most `max_norm`.

        The sums of squares of fixed pieces are added exactly, so that their order does not matter.
        """
        self._gradients = self._read_gradients()
        pieces = [
            gradient[i : i + PIECE]
            for gradient in self._gradients.values()
            for i in range(0, gradient.size, PIECE)
        ]
        squares = self.threads.each(
            lambda some: [float(np.dot(piece, piece)) for piece in some], self._share(pieces)
        )
        norm = math.sqrt(math.fsum(square for some in squares for square in some))
        self._scale = min(1.0, max_norm / (norm + 1e-6))
        return norm

    def step(self):
        """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) +
        eps) + decay w).
        """
        gradients = self._gradients or self._read_gradients()
        self.steps += 1
        pieces = [
            Piece(
                *(
                    array[i : i + PIECE]
                    for array in (self.values[name], gradient, self.exp_avg[name], self.exp_avg_sq[name])
                ),
                self.decays[name],
            )
            for name, gradient in gradients.items()
            for i in range(0, gradient.size, PIECE)
        ]
        self.threads.each(self._update, self._share(pieces))
        self._gradients, self._scale = None, 1.0

    _gradients = None

    def _read_gradients(self):
        wait_for_engine()
        return {
            name: parameter.grad.numpy().reshape(-1)
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }

    def _share(self, pieces):
        """The pieces in as many lists as there are threads, alike in work."""
        return [pieces[k :: self.threads.count] for k in range(self.threads.count)]

    def _update(self, pieces):
        rate = self.param_groups[0]["lr"]
        first, second = 1 - BETA1**self.steps, math.sqrt(1 - BETA2**self.steps)
        change, buffer = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
        scale = np.float32(self._scale)
        for piece in pieces:
            update, scaled = change[: piece.values.size], buffer[: piece.values.size]
            np.multiply(piece.gradient, scale, out=scaled)  # g, clipped

            # m = b1 m + (1 - b1) g, and v likewise of g^2
            m, v = piece.exp_avg, piece.exp_avg_sq
            m *= np.float32(BETA1)
            m += np.multiply(scaled, np.float32(1 - BETA1), out=update)
            scaled *= scaled
            v *= np.float32(BETA2)
            v += np.multiply(scaled, np.float32(1 - BETA2), out=scaled)

            # w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
            np.sqrt(v, out=scaled)
            scaled *= np.float32(1 / second)
            scaled += np.float32(EPS)
            np.divide(m, scaled, out=update)
            update *= np.float32(rate / first)
            if piece.decay:
                update += np.multiply(piece.values, np.float32(rate * piece.decay), out=scaled)
            np.subtract(piece.values, update, out=piece.values)

    def moments(self) -> dict:
        """{"exp_avg.<name>": array, "exp_avg_sq.<name>": array}, for a snapshot."""
        slots = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {
            f"{slot}.{name}": array.reshape(self.parameters[name].shape)
            for name in self.parameters
            for slot, arrays in slots.items()
            for array in [arrays[name]]
        }

    def restore(self, moments: dict, steps: int):
        """Puts `moments` back, which `steps` updates made."""
        for slot, arrays in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            for name, array in arrays.items():
                array[:] = moments[f"{slot}.{name}"].reshape(-1)
        self.steps = steps
