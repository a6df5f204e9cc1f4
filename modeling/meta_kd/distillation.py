"""What a student learns from the meta-teacher's knowledge: the targets of a batch, and the loss.

The loss is a sum over the terms of terms.py.
B examples, T tokens, M classes, H width of the teacher, A heads.
"""

from typing import NamedTuple, Optional

import numpy as np

from data.engine import load_oneflow
from modeling.inference import tensor
from modeling.meta_kd import losses
from modeling.meta_kd.terms import INTERMEDIATE, PREDICTION, TERMS, names_of_phase
from util import UserError

flow = load_oneflow()


class DistillationOptions(NamedTuple):
    """The flags of what a student learns from its teacher, and when."""

    num_epochs: int
    max_steps: Optional[int]
    intermediate_epochs: int
    class_weights: str
    expertise_weight: str
    expertise_spread: float
    attention_match: str
    temperature: float


def active_terms(weights, options):
    """The terms of `weights`, {term: its weight}, without those of weight 0.

    Args:
        options: DistillationOptions.
    Raises:
        UserError: no term at all, a phase without one, weights for the hard labels without these, or two
            phases and --max_steps.
    """
    terms = {name: weight for name, weight in weights.items() if weight > 0}
    if not terms:
        raise UserError("every loss weight is 0, so there is nothing to learn: raise one of them.")
    if options.class_weights != "none" and "hard" not in terms:
        raise UserError(
            f"--class_weights {options.class_weights} weighs hard labels here, and --hard_label_weight is 0: "
            "raise it, or leave --class_weights out."
        )
    if options.intermediate_epochs >= options.num_epochs:
        raise UserError(
            f"--intermediate_epochs {options.intermediate_epochs} leaves none of the "
            f"--num_epochs {options.num_epochs} for the second phase: lower it."
        )
    if options.intermediate_epochs and options.max_steps:
        raise UserError(
            f"--max_steps {options.max_steps} does not say where one phase ends and the next begins: "
            "leave it out, or set --intermediate_epochs 0."
        )
    both = all(names_of_phase(phase, terms) for phase in (PREDICTION, INTERMEDIATE))
    if options.intermediate_epochs and not both:
        raise UserError(
            "--intermediate_epochs needs a loss term for each phase: raise a weight, or set it to 0."
        )
    return terms


def needs_teacher(terms):
    """Whether any of the terms learns from a teacher: all but hard labels do."""
    return set(terms) != {"hard"}


def check_knowledge_covers(terms, manifest, config):
    """Raises a UserError where the knowledge of `manifest` cannot serve a term for a student of `config`."""
    for name in terms:
        if fault := TERMS[name].missing(manifest, config):
            raise UserError(fault)


# --------------------------------------------------------------------------------------- targets


class TeacherTargets(NamedTuple):
    """What the teacher knows of a batch, padded to its T tokens.

    Tensors, but for what the attention term compares with: these are arrays.
    """

    logits: "flow.Tensor"  # [B, M]
    expertise: "flow.Tensor"  # lambda(x), as it is or spread, [B]
    representation: "flow.Tensor"  # [B, H]
    domain_feature: "flow.Tensor"  # [B, H]
    attention: dict  # {student layer: [B, T, T] or [B, A, T, T]}
    hidden: dict  # {student layer: [B, T, H]}
    pair_weights: Optional[np.ndarray]  # [B, T, T], for attention
    token_weights: Optional["flow.Tensor"]  # [B, T], for hidden states
    centring: Optional[np.ndarray]  # [B, T, T], for attention that is centred
    mean_over_heads: bool
    temperature: float


# Where hard labels are all there is to learn from:
NO_TARGETS = TeacherTargets(None, None, None, None, {}, {}, None, None, None, True, 1.0)


def spread_expertise(examples, knowledge, spread):
    """lambda(x) of all training examples, brought to the deviation `spread` around 1, float32 [N].

    lambda is nearly constant (0.63, with a deviation of 0.07, on the Amazon reviews). The paper takes it as
    it is.
    """
    scores, labels = examples["weights"], examples["label"]  # [N]
    expertise = losses.domain_expertise(scores, knowledge.logits(examples["idxs"]), labels)  # [N]
    return losses.spread_weights(expertise, spread)


def make_targets(items, batch, terms, matches, manifest, options, device, expertise=None):
    """The TeacherTargets of a Batch.

    Args:
        items: the knowledge of each example, in the order of the batch.
        terms: the names of the terms that count; matches: {student layer: teacher layer}, both from 1.
        manifest: of the knowledge; options: DistillationOptions.
        expertise: the weights of the examples by `spread_expertise`, float32 [B];
            None: as --expertise_weight says.
    """
    mask, T = batch.input_mask, batch.input_ids.shape[1]
    vectors = ("logits", "representation", "domain_feature")
    logits, representation, feature = (np.stack([item[key] for item in items]) for key in vectors)
    softened = np.stack([item.get("softened", item["logits"]) for item in items])  # the mean of several
    if expertise is None:
        expertise = _expertise(batch, logits, options)
    place = {layer: i for i, layer in enumerate(manifest["layers"])}
    attention, hidden = {}, {}
    for student, teacher in matches.items():
        at = place[teacher]
        if "attention" in terms:
            attention[student] = pad([item["attention"][at] for item in items], T, 2)
        if "hidden" in terms:
            hidden[student] = tensor(pad([item["hidden"][at] for item in items], T, 1), device)
    centred = options.attention_match == "centred" and attention
    return TeacherTargets(
        tensor(softened, device),
        tensor(expertise, device),
        tensor(representation, device),
        tensor(feature, device),
        attention,
        hidden,
        pair_weights=losses.pair_weights(mask) if attention else None,
        token_weights=tensor(losses.token_weights(mask), device) if hidden else None,
        centring=losses.centring_matrix(mask) if centred else None,
        mean_over_heads=manifest["attention_heads"] == "mean",
        temperature=options.temperature,
    )


def _expertise(batch, logits, options):
    """The weights of the examples of a batch as --expertise_weight says, float32 [B]."""
    if options.expertise_weight == "lambda":
        return losses.domain_expertise(batch.weights, logits, batch.label)
    return np.ones(len(logits), np.float32)


def pad(arrays, T, axes):
    """Arrays of one example each, side by side in float32, with zeros up to T.

    Args:
        arrays: B of them.
        axes: 1: each is [n, H], and tokens come first; 2: each is [..., n, n], and tokens are the last two.
    """
    shape = (T, arrays[0].shape[1]) if axes == 1 else (*arrays[0].shape[:-2], T, T)
    result = np.zeros((len(arrays), *shape), np.float32)
    for row, array in zip(result, arrays):
        if axes == 1:
            row[: len(array)] = array
        else:
            row[..., : array.shape[-1], : array.shape[-1]] = array
    return result


# --------------------------------------------------------------------------------------- the loss


def student_loss(model, batch, targets, terms, class_weights=None):
    """mean over the batch of: soft CE + v(y) * hard CE + lambda(x) * the intermediate terms.

    These are attention + representation + hidden + gamma2 * transfer; each of the six has its weight.

    Args:
        batch: a TensorBatch; targets: its TeacherTargets, or NO_TARGETS for the term "hard" alone.
        terms: {name: weight}, the terms that count.
        class_weights: v(y) of each example, a tensor [B]; None: 1.
    Returns:
        the loss, and {term: its batch mean, before its weight, v and lambda}.
    """
    last_hidden = any(TERMS[name].domain_feature for name in terms)
    answers = model(
        batch, tuple(targets.attention), tuple(targets.hidden), targets.mean_over_heads, last_hidden
    )
    values = {name: TERMS[name].value(model, answers, batch, targets) for name in terms}  # each [B]
    loss = 0.0
    for name, value in values.items():
        weights = targets.expertise if TERMS[name].phase == INTERMEDIATE else None
        weights = class_weights if name == "hard" else weights
        loss = loss + terms[name] * losses.batch_mean(value, weights)
    return loss, {name: losses.batch_mean(value) for name, value in values.items()}
