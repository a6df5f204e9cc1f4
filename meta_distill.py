"""Stage 4: the meta-teacher's knowledge + a BERT to start from -> student snapshots.

The loss is soft CE + mean over the batch of lambda(x) * (attention + representation (+ hidden states) + gamma2 * transferable
knowledge), lambda the domain-expertise weight of the example. The teacher itself is not loaded.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)
from modeling.meta_kd.terms import INTERMEDIATE, PREDICTION, add_flags, names_of_phase  # isort: skip

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

import numpy as np

from data.batches import make_batch
from data.selection import open_splits, records_folder, records_line
from data.tasks import load_task
from data.unlabelled import unlabelled_examples, with_pseudo_labels
from modeling.bert.model import init_weights
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import main_rank_first
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, evaluate, select_device, tensor, to_device
from modeling.meta_kd.classifier import STUDENT_ONLY, build_student, match_layers
from modeling.meta_kd.distillation import (
    NO_TARGETS,
    active_terms,
    check_knowledge_covers,
    make_targets,
    needs_teacher,
    spread_expertise,
    student_loss,
)
from modeling.meta_kd.ensemble import open_teachers, terms_in_reach
from modeling.meta_kd.losses import balance_classes
from modeling.predict import predict, wants_prediction
from modeling.snapshots.base_model import base_facts
from modeling.snapshots.best import find_snapshot
from modeling.snapshots.folder import (
    HEADS,
    check_fits_model,
    keep_layers,
    load_weights,
)
from modeling.snapshots.manager import Snapshots, best_snapshot
from modeling.training.calibration import calibrate_snapshot
from modeling.training.evaluation import evaluate_snapshot
from modeling.training.loop import one_phase, train, two_phases
from modeling.training.stage import describe, load_initial_model, model_card_writer, open_run, run_facts
from tokenization import check_same_tokens, describe_tokenizer, tokenizer_for
from util import Signals, UserError, entry


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    if wants_prediction(args):
        return predict(args)
    launch_ranks(args)

    if args.calibrate and not (args.do_train and args.do_eval):
        raise UserError(
            "--calibrate takes a run that trains and evaluates on dev: give --do_train and --do_eval too."
        )

    # ------------ data
    terms = active_terms(args) if args.do_train else {"hard": 1.0}  # to evaluate takes no teacher
    task = load_task(args.task_name, args.data_dir)
    folder = load_initial_model(
        args, task, args.resume_from or config.require_flag(args, "student_model"), "--student_model"
    )
    if args.student_layers and not args.resume_from:
        folder = keep_layers(folder, args.student_layers)
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    for model in config.require_flag(args, "teacher_model") if needs_teacher(terms) else ():
        if ((teacher := find_snapshot(model)) / "vocab.txt").is_file():
            check_same_tokens(tokenizer, tokenizer_for(teacher))
    with main_rank_first():
        records, examples, heldout = open_splits(args, task, tokenizer)
    domains = DomainTable(len(task.domains), tuple(np.unique(examples["domain"]).tolist()))
    knowledge, terms = open_knowledge(args, task, records["train"], examples["idxs"], terms, folder.config)
    if args.do_train and args.unlabelled_file:
        examples = with_unlabelled(args, task, tokenizer, records["train"], examples, knowledge)
    if knowledge:
        examples.read_beside(knowledge)
    teacher_facts = (
        knowledge.manifest
        if knowledge
        else {"teacher_sha256": None, "width": folder.config.hidden_size, "layers": []}
    )
    run = open_run(args, None if args.do_train else folder.path)
    run.log("\n".join([describe_tokenizer(tokenizer), *map(records_line, records.values())]))

    # ------------ model
    device = select_device(args.device)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    model = build_student(folder.config, task, teacher_facts["width"], terms, make_encoder)
    init_weights(model, args.seed, folder.config.initializer_range)
    starts = args.do_train and not args.resume_from
    load_weights(model, folder, run.log, () if args.resume_from else HEADS, task if starts else None)
    model.to(device)
    describe(run, model, device, {"train": examples, **heldout}, task, tokenizer)
    matches = match_layers(teacher_facts["layers"], folder.config.num_hidden_layers)
    run.log(summarise_knowledge(knowledge, terms, matches))
    if not args.do_train:
        evaluate_snapshot(run, folder, model, task, heldout, args, domains, device)
        return

    # ------------ training
    meta = {
        "kind": "student",
        **run_facts(task, records, domains),
        "base": base_facts(folder, args),
        "teacher_sha256": teacher_facts["teacher_sha256"],
        "knowledge": {name: teacher_facts.get(name) for name in ("layers", "attention_heads")},
        "unlabelled_sha256": teacher_facts.get("unlabelled_sha256") if args.unlabelled_file else None,
    }
    snapshots = Snapshots(
        run, "student", model, tokenizer, meta, args, STUDENT_ONLY, model_card_writer(model, examples, args)
    )
    if args.resume_from:
        snapshots.resume(folder)

    balanced = (
        balance_classes(np.ones(len(examples)), examples["label"])
        if args.class_weights == "balanced"
        else None
    )
    spread = None
    if knowledge and args.expertise_weight == "spread":
        spread = spread_expertise(examples, knowledge, args.expertise_spread)

    def make_loss(terms):
        def loss(rows, epoch):
            batch = make_batch(examples, rows)
            targets = NO_TARGETS
            if needs_teacher(terms):
                expertise = None if spread is None else spread[rows]
                items = knowledge.read(batch.idxs)
                targets = make_targets(items, batch, terms, matches, teacher_facts, args, device, expertise)
            weights = None if balanced is None else tensor(balanced[rows], device)
            return student_loss(model, to_device(batch, domains, device), targets, terms, weights)

        return loss

    def on_dev():
        return evaluate(model, heldout["dev"], task, args.eval_batch_size_per_device, domains, device)

    with Signals.patience():
        train(
            model,
            examples,
            make_phases(args, len(examples["label"]), terms, make_loss),
            args,
            run,
            snapshots,
            on_dev if args.do_eval else None,
        )

    # ------------ test of the best snapshot
    if args.do_eval:
        best = best_snapshot(run)
        if args.calibrate:
            best = calibrate_snapshot(best, model, heldout["dev"], task, args, domains, device)
        evaluate_snapshot(run, best, model, task, heldout, args, domains, device)


def summarise_knowledge(knowledge, terms, matches):
    """A line for the log: from what the student learns, and by which terms."""
    return (
        f"{knowledge.summary if knowledge else 'no teacher'}; "
        f"terms {', '.join(f'{name} x {weight:g}' for name, weight in terms.items())}; "
        f"student layers learn from teacher layers {', '.join(f'{s}: {t}' for s, t in matches.items()) or '(none)'}"
    )


def make_phases(args, N, terms, make_loss):
    """The phases of a run over N examples: one with all terms, or with --intermediate_epochs those of the layers and then the others.

    Args:
        make_loss: takes {term: weight} to the loss of a Phase.
    """
    if not args.intermediate_epochs:
        return one_phase(args, N, make_loss(terms))
    early, late = (
        {name: terms[name] for name in names_of_phase(phase, terms)} for phase in (INTERMEDIATE, PREDICTION)
    )
    return two_phases(args, N, make_loss(early), make_loss(late))


def with_unlabelled(args, task, tokenizer, records, examples, knowledge):
    """The training examples and, after them, the texts of --unlabelled_file as the teacher labels them."""
    if not knowledge:
        raise UserError(
            "--unlabelled_file: there is no teacher to label these texts where hard labels are all there is to learn from: "
            "leave it out, or raise --soft_label_weight."
        )
    more, content = unlabelled_examples(args, task, tokenizer, len(records))
    knowledge.require(unlabelled_sha256=content)
    return with_pseudo_labels(examples, more, knowledge)


def open_knowledge(args, task, records, idxs, terms, bert):
    """The Knowledge of the teachers that --teacher_model names, made from these records, with every training
    example in it, and those of the `terms` that can be learned from it.

    It has what these need for a student with the BertConfig `bert`; None where they need no teacher.
    """
    if not needs_teacher(terms):
        return None, terms
    knowledge = open_teachers(
        config.require_flag(args, "teacher_model"),
        args.knowledge_dir,
        args.teacher_weights,
        args.temperature,
        task,
        records,
        records_folder(args),
    )
    knowledge.rows(idxs)
    terms = terms_in_reach(terms, knowledge)
    check_knowledge_covers(terms, knowledge.manifest, bert)
    return knowledge, terms


if __name__ == "__main__":
    main()
