"""AdamW as BERT is fine-tuned with it: decay on matrices alone, linear warm-up,
then a schedule, clipped gradients.
"""

import math

import numpy as np

from data.engine import load_oneflow
from modeling.cpu.optimizer import SLOTS, CpuAdamW
from util import UserError

flow = load_oneflow()


class OneFlowAdamW(flow.optim.AdamW):
    """OneFlow's AdamW over named parameters, with what `CpuAdamW` offers too.

    Args:
        parameters: {name: parameter}; decays: {name: weight decay}.
    """

    def __init__(self, parameters: dict, decays: dict, learning_rate: float):
        self.parameters = parameters
        groups = [
            {
                "params": [parameters[name] for name in parameters if decays[name] == decay],
                "weight_decay": decay,
                "lr": learning_rate,
            }
            for decay in sorted(set(decays.values()), reverse=True)
        ]
        super().__init__(groups)

    def clip(self, max_norm: float) -> float:
        """Scales the gradients so that their common Euclidean norm is at most `max_norm`;
        returns the norm before.
        """
        return flow.nn.utils.clip_grad_norm_(list(self.parameters.values()), max_norm).item()

    def moments(self) -> dict:
        """{"exp_avg.<name>": array, "exp_avg_sq.<name>": array}, for a snapshot."""
        # there is no public way from a parameter to its slots
        return {
            f"{slot}.{name}": self._state[parameter][slot].numpy()
            for name, parameter in self.parameters.items()
            for slot in SLOTS
            if slot in self._state.get(parameter, {})
        }

    def restore(self, moments: dict, steps: int):
        """Puts `moments` back, which `steps` updates made."""
        for name, parameter in self.parameters.items():
            for slot in SLOTS:
                self._state[parameter][slot] = flow.tensor(moments[f"{slot}.{name}"], device=parameter.device)
        self._state["step"] = steps


def make_optimizer(model, learning_rate: float, weight_decay: float, threads=None):
    """AdamW (Loshchilov and Hutter, 2019) over the parameters of `model`, in the order of their names.

    Weight decay acts on matrices and embeddings, not on biases and LayerNorm.
    Args:
        threads: the Threads that do the work in numpy; None: it is OneFlow's.
    """
    parameters = dict(
        sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    )
    decays = {name: 0.0 if is_undecayed(name) else weight_decay for name in parameters}
    if threads is None:
        return OneFlowAdamW(parameters, decays, learning_rate)
    return CpuAdamW(parameters, decays, learning_rate, threads)


def is_undecayed(name):
    """True for the parameters that weight decay leaves alone."""
    return name.endswith("bias") or "LayerNorm" in name


def learning_rate_at(step, total_steps, warmup_proportion, peak, schedule="linear"):
    """peak * (step + 1) / w in the w = warmup_proportion * total_steps first steps; then, by `schedule`,
    "linear" or "cosine" down to 0 after the last, or "constant".

    step counts from 0; every step moves the weights, the first and the last too.
    """
    warmup = round(warmup_proportion * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    left, fall = total_steps - step, max(1, total_steps - warmup)
    if schedule == "constant":
        return peak
    return peak * (1 - math.cos(math.pi * left / fall)) / 2 if schedule == "cosine" else peak * left / fall


def set_learning_rate(optimizer, value):
    """Makes `value` the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def restore_optimizer(optimizer, moments: dict, steps: int):
    """Puts the moments of a snapshot back, which `steps` updates made.

    Raises:
        UserError: a moment is missing, of another shape than its parameter, or not finite.
    """
    for name, parameter in optimizer.parameters.items():
        for slot in SLOTS:
            moment = moments.get(f"{slot}.{name}")
            if moment is None or moment.shape != tuple(parameter.shape) or not np.isfinite(moment).all():
                found = "missing" if moment is None else "of another shape or not finite"
                raise UserError(
                    f"optimizer.safetensors: {slot}.{name} is {found}: resume from another snapshot_last, "
                    "or start a new run."
                )
    optimizer.restore(moments, steps)
