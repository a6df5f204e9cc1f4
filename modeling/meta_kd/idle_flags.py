"""Flags of a training that would change nothing, beside others: refused, lest a result is taken for theirs.

OneFlow is not loaded by this module, so that scripts.reproduce can ask it before anything runs.
"""

from modeling.meta_kd.terms import INTERMEDIATE, TERMS, names_of_phase, term_weights
from util import UserError


def check_teacher_flags(args):
    """Raises a UserError where a flag of stage 2 was given that does not count.

    args: the flags, with `changed`, those that are not at their defaults.
    """
    if "weight_spread" in args.changed and args.weight_scaling != "spread":
        raise UserError(
            f"--weight_spread {args.weight_spread:g} counts with --weight_scaling spread, and that is "
            f"{args.weight_scaling}: give it too, or leave --weight_spread out."
        )


def check_student_flags(args):
    """Raises a UserError where a flag of stage 4 was given that does not count; args: as above."""
    terms = [name for name, weight in term_weights(vars(args)).items() if weight > 0]
    if "expertise_spread" in args.changed and args.expertise_weight != "spread":
        raise UserError(
            f"--expertise_spread {args.expertise_spread:g} counts with --expertise_weight spread, and that "
            f"is {args.expertise_weight}: give it too, or leave --expertise_spread out."
        )
    if "expertise_weight" in args.changed and not names_of_phase(INTERMEDIATE, terms):
        weights = ", ".join(f"--{TERMS[name].flag}" for name in names_of_phase(INTERMEDIATE, TERMS))
        raise UserError(
            f"--expertise_weight {args.expertise_weight} weighs the examples in terms that are all left out "
            f"({weights} are 0): raise one, or leave --expertise_weight out."
        )
    if "temperature" in args.changed and "soft" not in terms:
        raise UserError(
            f"--temperature {args.temperature:g} softens the teacher's answers, and --soft_label_weight is "
            "0: raise it, or leave --temperature out."
        )
    if "attention_match" in args.changed and "attention" not in terms:
        raise UserError(
            f"--attention_match {args.attention_match} compares attention scores, and "
            "--attention_loss_weight is 0: raise it, or leave --attention_match out."
        )
    _check_teacher_weights(args, terms)


def _check_teacher_weights(args, terms):
    """Raises a UserError where --teacher_weights has nothing to weigh."""
    if "teacher_weights" not in args.changed:
        return
    if terms == ["hard"]:
        raise UserError(
            "--teacher_weights weighs what teachers know, and the student learns from hard labels alone: "
            "raise --soft_label_weight, or leave --teacher_weights out."
        )
    if len(args.teacher_model or ()) == 1:
        raise UserError(
            "--teacher_weights weighs several teachers, and --teacher_model names one: name more, or leave "
            "--teacher_weights out."
        )
