"""Stage 4: the meta-teacher's knowledge + a BERT to start from -> student snapshots.

The loss is soft CE + mean over the batch of lambda(x) * (attention + representation (+ hidden states) +
gamma2 * transferable knowledge), lambda the domain-expertise weight of the example. The teacher itself is
not loaded.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)
from modeling.meta_kd.terms import add_flags  # isort: skip

FLAGS = (
    config.task,
    config.selection,
    config.model,
    config.device,
    config.training,
    config.knowledge,
    config.distillation,
    add_flags,
    config.card,
    config.prediction,
)
config.check_flags(__name__, __doc__, *FLAGS)  # before OneFlow is imported, which takes seconds

import functools
from typing import NamedTuple, Optional, Union

import numpy as np

from data.batches import make_batch
from data.selection import RecordsOptions, Selection, open_splits, records_line
from data.store.knowledge import Knowledge
from data.unlabelled import unlabelled_examples, with_pseudo_labels
from modeling.distributed.collective import main_rank_first
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, Heldout, tensor, to_device
from modeling.meta_kd.classifier import STUDENT_ONLY, build_student, match_layers
from modeling.meta_kd.distillation import (
    NO_TARGETS,
    DistillationOptions,
    active_terms,
    check_knowledge_covers,
    make_targets,
    needs_teacher,
    spread_expertise,
    student_loss,
)
from modeling.meta_kd.ensemble import Ensemble, open_teachers, terms_in_reach
from modeling.meta_kd.idle_flags import check_student_flags
from modeling.meta_kd.losses import balance_classes
from modeling.meta_kd.terms import INTERMEDIATE, PREDICTION, names_of_phase, term_weights
from modeling.predict import PredictionOptions, predict, wants_prediction
from modeling.snapshots.base_model import CardOptions, base_facts
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.manager import Snapshots, best_snapshot
from modeling.training.calibration import calibrate_snapshot
from modeling.training.evaluation import ReportOptions, evaluate_snapshot
from modeling.training.loop import one_phase, train, two_phases
from modeling.training.stage import (
    describe,
    make_model,
    model_card_writer,
    open_model,
    open_run,
    run_facts,
    snapshot_options,
    training_options,
)
from tokenization import check_same_tokens, describe_tokenizer, tokenizer_for
from util import Signals, UserError, entry


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    if wants_prediction(args):
        return predict(config.options(PredictionOptions, args))
    launch_ranks(args)

    # ------------ data, and what the teacher knows of it
    learning, terms = choose_terms(args)
    task, folder, tokenizer = open_model(args, "student_model", args.student_layers)
    check_teachers_tokens(args, terms, tokenizer)
    where, selection = config.options(RecordsOptions, args), config.options(Selection, args)
    with main_rank_first():
        records, examples, splits = open_splits(where, selection, task, tokenizer)
    domains = DomainTable(len(task.domains), tuple(np.unique(examples["domain"]).tolist()))
    teacher, terms = open_teacher(args, task, records["train"], examples["idxs"], terms, folder.config)
    lines = [describe_tokenizer(tokenizer), *map(records_line, records.values())]
    if args.do_train and args.unlabelled_file:
        more = read_unlabelled(args, task, tokenizer, len(records["train"]), teacher.knowledge)
        examples = with_pseudo_labels(examples, more.examples, teacher.knowledge)
        lines.append(more.line)
    if teacher.knowledge:
        examples.read_beside(teacher.knowledge)
    run = open_run(args, None if args.do_train else folder.path)
    run.log("\n".join(lines))

    # ------------ model
    build = functools.partial(build_student, folder.config, task, teacher.facts["width"], terms)
    model, device = make_model(args, run, folder, task, build)
    describe(run, model, device, {"train": examples, **splits}, task, tokenizer)
    run.log(summarise_knowledge(teacher, terms))
    heldout = Heldout(splits, task, domains, device, args.eval_batch_size_per_device)
    shown = ReportOptions(args.data_dir, args.changed, args.teacher_model)
    if not args.do_train:
        evaluate_snapshot(run, folder, model, heldout, shown)
        return

    # ------------ training
    base = base_facts(folder, config.options(CardOptions, args))
    meta = {"kind": "student", **run_facts(task, records, domains), "base": base}
    meta.update(knowledge_origin(teacher.facts, args.unlabelled_file))
    card = model_card_writer(model, len(examples), args.changed)
    snapshots = Snapshots(run, "student", model, tokenizer, meta, snapshot_options(args), STUDENT_ONLY, card)
    if args.resume_from:
        snapshots.resume(folder)
    make_loss = loss_maker(model, examples, teacher, domains, device, learning)
    options = training_options(args)
    phases = make_phases(options, len(examples), terms, make_loss)
    on_dev = functools.partial(heldout.dev_metrics, model) if args.do_eval else None
    with Signals.patience():
        train(model, examples, phases, options, run, snapshots, on_dev)

    # ------------ test of the best snapshot
    if args.do_eval:
        best = best_snapshot(run)
        if args.calibrate:
            best = calibrate_snapshot(best, model, heldout, run.log)
        evaluate_snapshot(run, best, model, heldout, shown)


class Teacher(NamedTuple):
    """What a student learns from.

    knowledge: of one teacher, or of several; None: it learns from hard labels alone.
    facts: of the knowledge, as its manifest has them: "teacher_sha256", "width", "layers" and more.
    matches: {student layer: teacher layer}, both from 1.
    """

    knowledge: Optional[Union[Knowledge, Ensemble]]
    facts: dict
    matches: dict


def choose_terms(args):
    """The DistillationOptions, and {term: weight} of the loss.

    Raises:
        UserError: see `active_terms` and `check_student_flags`; --calibrate without a run that trains and
            evaluates.
    """
    if args.calibrate and not (args.do_train and args.do_eval):
        raise UserError(
            "--calibrate takes a run that trains and evaluates on dev: give --do_train and --do_eval too."
        )
    learning = config.options(DistillationOptions, args)
    if not args.do_train:  # to evaluate takes no teacher
        return learning, {"hard": 1.0}
    terms = active_terms(term_weights(vars(args)), learning)
    if not args.resume_from:  # a run that has such flags goes on with them
        check_student_flags(args)
    return learning, terms


def check_teachers_tokens(args, terms, tokenizer):
    """Raises a UserError where the student splits texts into other tokens than a teacher."""
    for model in config.require_flag(args, "teacher_model") if needs_teacher(terms) else ():
        teacher = find_snapshot(model)
        if (teacher / "vocab.txt").is_file():
            check_same_tokens(tokenizer, tokenizer_for(teacher))


def loss_maker(model, examples, teacher, domains, device, options):
    """What takes {term: weight} to the loss of a Phase over the examples; options: DistillationOptions."""
    balanced = None
    if options.class_weights == "balanced":
        balanced = balance_classes(np.ones(len(examples)), examples["label"])  # [N]
    spread = None
    if teacher.knowledge and options.expertise_weight == "spread":
        spread = spread_expertise(examples, teacher.knowledge, options.expertise_spread)  # [N]

    def make_loss(terms):
        def loss(rows, epoch):
            batch, targets = make_batch(examples, rows), NO_TARGETS
            if needs_teacher(terms):
                items, facts = teacher.knowledge.read(batch.idxs), teacher.facts
                expertise = None if spread is None else spread[rows]
                targets = make_targets(
                    items, batch, terms, teacher.matches, facts, options, device, expertise
                )
            weights = None if balanced is None else tensor(balanced[rows], device)
            return student_loss(model, to_device(batch, domains, device), targets, terms, weights)

        return loss

    return make_loss


def summarise_knowledge(teacher, terms):
    """A line for the log: from what the student learns, and by which terms."""
    layers = ", ".join(f"{student}: {layer}" for student, layer in teacher.matches.items())
    return (
        f"{teacher.knowledge.summary if teacher.knowledge else 'no teacher'}; "
        f"terms {', '.join(f'{name} x {weight:g}' for name, weight in terms.items())}; "
        f"student layers learn from teacher layers {layers or '(none)'}"
    )


def knowledge_origin(facts, unlabelled_file):
    """What meta.json says of the knowledge that a student learned from."""
    return {
        "teacher_sha256": facts["teacher_sha256"],
        "knowledge": {name: facts.get(name) for name in ("layers", "attention_heads", "vectors")},
        "unlabelled_sha256": facts.get("unlabelled_sha256") if unlabelled_file else None,
    }


def make_phases(options, N, terms, make_loss):
    """The phases of a run over N examples: one with all terms, or with --intermediate_epochs those of the
    layers and then the others.

    Args:
        options: TrainingOptions; make_loss: takes {term: weight} to the loss of a Phase.
    """
    if not options.intermediate_epochs:
        return one_phase(options, N, make_loss(terms))
    early, late = (
        {name: terms[name] for name in names_of_phase(phase, terms)} for phase in (INTERMEDIATE, PREDICTION)
    )
    return two_phases(options, N, make_loss(early), make_loss(late))


def read_unlabelled(args, task, tokenizer, start, knowledge):
    """The texts of --unlabelled_file, Unlabelled, numbered from `start`, which the knowledge must be of."""
    if not knowledge:
        raise UserError(
            "--unlabelled_file: there is no teacher to label these texts where hard labels are all there is "
            "to learn from: leave it out, or raise --soft_label_weight."
        )
    selection = config.options(Selection, args)
    more = unlabelled_examples(args.unlabelled_file, args.seq_length, selection, task, tokenizer, start)
    knowledge.require(unlabelled_sha256=more.sha256)
    return more


def open_teacher(args, task, records, idxs, terms, bert):
    """The Teacher that --teacher_model names, one or several, whose knowledge is of these records and has
    every training example in it; and those of the `terms` that can be learned from it.

    The knowledge has what these need for a student with the BertConfig `bert`.
    """
    if not needs_teacher(terms):
        return Teacher(None, {"teacher_sha256": None, "width": bert.hidden_size, "layers": []}, {}), terms
    knowledge = open_teachers(
        config.require_flag(args, "teacher_model"),
        args.knowledge_dir,
        args.teacher_weights,
        args.temperature,
        task,
        records,
        config.options(RecordsOptions, args).folder,
    )
    knowledge.rows(idxs)
    terms = terms_in_reach(terms, knowledge, args.intermediate_epochs)
    check_knowledge_covers(terms, knowledge.manifest, bert)
    matches = match_layers(knowledge.manifest["layers"], bert.num_hidden_layers)
    return Teacher(knowledge, knowledge.manifest, matches), terms


if __name__ == "__main__":
    main()
