"""The student's loss terms, an entry each: flags, phases, maps, heads and checks follow from the table.

To add one: a pure function in losses.py, a function here that hands it what student and teacher say, and an
entry. OneFlow is not loaded by this module, so that --help need not wait for it.

B examples, H width of the teacher, L layers.
"""

import dataclasses
from typing import Callable, Optional

import config

# Phases; terms of the latter are weighted by lambda(x):
PREDICTION, INTERMEDIATE = ("prediction", "intermediate")


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of the loss.

    value: from (student, its ClassifierOutput, TensorBatch, TeacherTargets) to a tensor [B], one value per
    example.
    phase: PREDICTION or INTERMEDIATE.
    flag, default, help: of its weight.
    missing: from (manifest of the knowledge, the student's BertConfig) to what is to be done where this
        knowledge cannot serve the term, a sentence, or None where it can.
    projected: whether it compares vectors of the student's width with the teacher's, through a learned map
        where these differ.
    domain_feature: whether the student needs its domain head for it.
    """

    name: str
    value: Callable
    phase: str
    flag: str
    default: float
    help: str
    missing: Callable = lambda manifest, bert: None
    projected: bool = False
    domain_feature: bool = False

    @property
    def map_name(self) -> Optional[str]:
        """The student's module that maps its vectors to the teacher's width; None: the term has none."""
        return f"{self.name}_map" if self.projected else None


# --------------------------------------------------------------------------------------- their values


def _losses():
    from modeling.meta_kd import losses  # it loads OneFlow

    return losses


def _project(model, name, values):
    """`values` through the student's map of that name, or as they are where both are of one width."""
    return getattr(model, name)(values) if hasattr(model, name) else values


def soft(model, answers, batch, targets):
    return _losses().soft_cross_entropy(answers.logits, targets.logits, targets.temperature)


def hard(model, answers, batch, targets):
    return _losses().cross_entropy(answers.logits, batch.label)


def attention(model, answers, batch, targets):
    student = [answers.encoder.scores[layer] for layer in targets.attention]
    teacher = list(targets.attention.values())
    return _losses().attention_loss(student, teacher, targets.pair_weights, targets.centring)


def representation(model, answers, batch, targets):
    student = _project(model, "representation_map", answers.encoder.pooled)  # [B, H]
    return _losses().squared_error(student, targets.representation)


def hidden(model, answers, batch, targets):
    student = [_project(model, "hidden_map", answers.encoder.hidden[layer]) for layer in targets.hidden]
    return _losses().hidden_loss(student, list(targets.hidden.values()), targets.token_weights)


def transfer(model, answers, batch, targets):
    student = _project(model, "transfer_map", model.domain_feature(answers.encoder, batch))  # [B, H]
    return _losses().squared_error(student, targets.domain_feature)


# --------------------------------------------------------------------------------------- what they need


def _attention_missing(manifest, bert):
    heads = manifest["attention_heads"]
    if not manifest["layers"]:
        return (
            "--attention_loss_weight: the knowledge holds answers and vectors alone: set it to 0, or run "
            "meta_teacher_eval.py with --knowledge_layers."
        )
    if heads not in ("mean", bert.num_attention_heads):
        return (
            f"the knowledge holds the scores of each of {heads} heads, and the student has "
            f"{bert.num_attention_heads}: run meta_teacher_eval.py with --attention_heads mean."
        )
    return None


def _hidden_missing(manifest, bert):
    if manifest["hidden_states"]:
        return None
    return (
        "--hidden_loss_weight: the knowledge holds no hidden states: run meta_teacher_eval.py with "
        "--hidden_states."
    )


def _transfer_missing(manifest, bert):
    if manifest["domain_feature"]:
        return None
    return (
        "--transfer_loss_weight: this teacher was trained with --domain_loss_weight 0 and has no domain "
        "feature to pass on: set --transfer_loss_weight 0, or train a teacher with its domain head."
    )


# --------------------------------------------------------------------------------------- the table

_ALL = (
    Term(
        "soft", soft, PREDICTION, "soft_label_weight", 1.0, "the soft cross-entropy with the teacher's logits"
    ),
    Term("hard", hard, PREDICTION, "hard_label_weight", 0.0, "the cross-entropy with the gold labels"),
    Term(
        "attention",
        attention,
        INTERMEDIATE,
        "attention_loss_weight",
        0.1,
        "the attention term, whose raw scores are large: at 1 it is ten times all others together",
        missing=_attention_missing,
    ),
    Term(
        "representation",
        representation,
        INTERMEDIATE,
        "representation_loss_weight",
        1.0,
        "the representation term",
        projected=True,
    ),
    Term(
        "hidden",
        hidden,
        INTERMEDIATE,
        "hidden_loss_weight",
        0.0,
        "the hidden-states term; needs knowledge with --hidden_states",
        missing=_hidden_missing,
        projected=True,
    ),
    Term(
        "transfer",
        transfer,
        INTERMEDIATE,
        "transfer_loss_weight",
        0.3,
        "the transferable-knowledge term, gamma2",
        missing=_transfer_missing,
        projected=True,
        domain_feature=True,
    ),
)
TERMS = {term.name: term for term in _ALL}
MAPS = tuple(term.map_name for term in _ALL if term.projected)  # modules of the student


def add_flags(parser):
    """The weight of each term, a flag group of `config.parse`."""
    group = parser.add_argument_group("weights of the terms of the student's loss (0: leave a term out)")
    for term in _ALL:
        group.add_argument(f"--{term.flag}", type=config.weight, default=term.default, help=f"of {term.help}")


def term_weights(flags: dict) -> dict:
    """{term: its weight} by the flags {name: value}, those of weight 0 as well."""
    return {name: flags[term.flag] for name, term in TERMS.items()}


def names_of_phase(phase: str, names) -> list:
    """Those of the term names that belong to a phase, in their order."""
    return [name for name in names if TERMS[name].phase == phase]
