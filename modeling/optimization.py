"""AdamW as BERT is fine-tuned with it: decay on matrices alone, linear warm-up, then a schedule, clipped gradients."""

import math

import numpy as np

from util import UserError, load_oneflow

flow = load_oneflow()


def make_optimizer(model, learning_rate, weight_decay):
    """OneFlow's AdamW (Loshchilov and Hutter, 2019) over the parameters of `model`, in the order of their names.

    Weight decay acts on matrices and embeddings, not on biases and LayerNorm.
    """
    named = sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    decayed = [parameter for name, parameter in named if not is_undecayed(name)]
    plain = [parameter for name, parameter in named if is_undecayed(name)]
    groups = [{"params": decayed, "weight_decay": weight_decay, "lr": learning_rate}, {"params": plain, "weight_decay": 0.0, "lr": learning_rate}]
    return flow.optim.AdamW([group for group in groups if group["params"]])


def is_undecayed(name):
    """True for the parameters that weight decay leaves alone."""
    return name.endswith("bias") or "LayerNorm" in name


def learning_rate_at(step, total_steps, warmup_proportion, peak, schedule="linear"):
    """peak * (step + 1) / w in the w = warmup_proportion * total_steps first steps; then, by `schedule`, "linear" or "cosine" down to 0
    after the last, or "constant".

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


def clip_gradients(model, max_norm):
    """Scales the gradients of `model` so that their common Euclidean norm is at most `max_norm`; returns the norm before."""
    return flow.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


# --------------------------------------------------------------------------------------- state, for snapshots

SLOTS = ("exp_avg", "exp_avg_sq")


def optimizer_arrays(optimizer, model):
    """The optimizer's two moments by parameter name: {"exp_avg.<name>": array, "exp_avg_sq.<name>": array}."""
    state = optimizer._state  # oneflow 0.9.0 has no public way from a parameter to its slots
    return {f"{slot}.{name}": state[parameter][slot].numpy()
            for name, parameter in model.named_parameters() for slot in SLOTS if slot in state.get(parameter, {})}


def restore_optimizer(optimizer, model, arrays, step):
    """Puts the moments of `optimizer_arrays` back; `step` is the number of updates that made them.

    Raises:
        UserError: a moment is missing, of another shape than its parameter, or not finite.
    """
    state = optimizer._state
    for name, parameter in model.named_parameters():
        for slot in SLOTS:
            moment = arrays.get(f"{slot}.{name}")
            if moment is None or moment.shape != tuple(parameter.shape) or not np.isfinite(moment).all():
                raise UserError(f"optimizer.safetensors: {slot}.{name} is {'missing' if moment is None else 'of another shape or not finite'}: "
                                "resume from another snapshot_last, or start a new run.")
            state[parameter][slot] = flow.tensor(moment, device=parameter.device)
    state["step"] = step
