"""The weights of a model folder put into a model: which are loaded, new or left over."""

import numpy as np

from data.engine import load_oneflow
from data.tasks import OTHER_KINDS
from modeling.bert.config import BertConfig
from modeling.distributed.collective import broadcast_weights
from modeling.meta_kd.classifier import evenly_spaced_layers
from modeling.meta_kd.terms import MAPS
from modeling.snapshots.checks import is_same_task, read_problem
from util import UserError, get_rank

flow = load_oneflow()

LAYERS = "bert.encoder.layer."
MAP_PREFIXES = tuple(f"{name}." for name in MAPS)
CLASS_HEADS = {"classifier.": "one for all domains", "domain_classifiers.": "one for each domain"}
HEADS = (*CLASS_HEADS, "domain_head.", *MAP_PREFIXES, "bert.pooler.")


def load_weights(model, folder, log=None, allow_missing=HEADS, task=None):
    """Puts the arrays of `folder` into `model`, and logs which weights are loaded, new or left over.

    Args:
        model: an initialised module; weights that the folder lacks keep their values.
        log: takes the lines of the report.
        allow_missing: prefixes of the weights that the folder may lack: all heads for a model to train, none
            of one that is resumed.
        task: of a model to train: heads of another shape or another task count as new.
            None: they are an error.
    Raises:
        UserError: another shape, a weight that the folder should have and lacks,
            or one of the encoder too many.
    """
    parameters = dict(model.named_parameters())
    others = other_heads(folder, parameters, task) if task else {}
    arrays = {name: array for name, array in folder.arrays.items() if name not in others}
    missing = [name for name in parameters if name not in arrays]
    left_over = sorted({*folder.arrays, *folder.left_over} - set(parameters))
    _check_names(folder, left_over, [name for name in missing if not name.startswith(allow_missing)])
    for name, parameter in parameters.items():
        if name in arrays:
            if arrays[name].shape != tuple(parameter.shape):
                raise UserError(
                    f"{folder.path}: {name} has the shape {arrays[name].shape}, this model needs "
                    f"{tuple(parameter.shape)}: it is a model of another architecture or task."
                )
            parameter.data.copy_(flow.tensor(np.ascontiguousarray(arrays[name])))
    if log:
        for line in _report(folder, parameters, missing, left_over, others):
            log(line)


def _report(folder, parameters, missing, left_over, others):
    """Yields the lines for the log: the weights that are loaded, new or left over, and why."""
    yield (
        f"weights from {folder.path}: {len(parameters) - len(missing)} loaded, "
        f"{len(missing)} new{_listed(missing)}, {len(left_over)} left over{_listed(left_over)}"
    )
    for reason in sorted(set(others.values())):
        names = ", ".join(name for name in others if others[name] == reason)
        yield f"new though the folder has one: {names} ({reason})"
    there, here = class_heads(folder.arrays), class_heads(parameters)
    if there and there != here:
        yield f"its class heads are left over: found {there}, this model has {here}"
    if folder.widened:
        yield f"{folder.widened} bfloat16 weights widened to float32"


def load_weights_in_ranks(model, folder, allow_missing):
    """`load_weights` from a snapshot that rank 0 alone may have, as a run over machines with files of their
    own does; the other ranks get the weights from it. folder: not looked at in these.
    """
    if get_rank() == 0:
        load_weights(model, folder, allow_missing=allow_missing)
    broadcast_weights(model)


def _check_names(folder, left_over, needed):
    """Raises a UserError where the folder has weights of too many layers, or lacks one `needed`."""
    too_many = [name for name in left_over if name.startswith(LAYERS) and name in folder.arrays]
    if too_many:
        raise UserError(
            f"{folder.path}: it holds {len(too_many)} encoder weights that its config.json does not "
            f"describe, {too_many[0]} first: mend num_hidden_layers there, or take another copy of the model."
        )
    if needed:
        raise UserError(
            f"{folder.path}: {len(needed)} weights of this model are missing, {needed[0]} first: "
            "expected the weights that its config.json describes."
        )


def other_heads(folder, parameters, task):
    """{name: why} of the heads in a folder that are of another shape than here, or for another task."""
    same, problem, found = is_same_task(folder, task), read_problem(folder.path), {}
    for name, array in folder.arrays.items():
        if name in parameters and name.startswith(HEADS[:-1]):  # the pooler is no task's
            shape = tuple(parameters[name].shape)
            if array.shape != shape:
                found[name] = f"there of the shape {array.shape}, here {shape}"
            elif problem:
                found[name] = OTHER_KINDS[problem]
            elif not same:
                found[name] = "of another task"
    return found


def class_heads(names):
    """Which class heads these weights are of, in words; None: none."""
    return next((CLASS_HEADS[head] for head in CLASS_HEADS if any(n.startswith(head) for n in names)), None)


def _listed(names):
    """The names in brackets, for a line of the log; nothing where there are none."""
    return f" ({', '.join(name if name.isprintable() else repr(name) for name in names)})" if names else ""


def keep_layers(folder, wanted):
    """`folder` with `wanted` evenly spaced layers, ending with the last: 3 of 6 -> layers 2, 4, 6."""
    layers = folder.config.num_hidden_layers
    if wanted > layers:
        raise UserError(
            f"--student_layers {wanted}: {folder.path} has {layers} layers: ask for at most as many."
        )
    arrays = {name: array for name, array in folder.arrays.items() if not name.startswith(LAYERS)}
    for new, old in enumerate(evenly_spaced_layers(wanted, layers)):
        prefix = f"{LAYERS}{old - 1}."
        for name, array in folder.arrays.items():
            if name.startswith(prefix):
                arrays[f"{LAYERS}{new}.{name[len(prefix) :]}"] = array
    config = BertConfig.from_dict({**folder.config.to_dict(), "num_hidden_layers": wanted})
    return folder._replace(config=config, arrays=arrays)
