"""Stage 2: OFRecord files -> a meta-teacher, trained over all domains on what transfers between them.

The loss is the mean over the batch of t(x) * CE(class) + gamma1 * CE(corrupted domain), t(x) the prototype score of stage 1.
"""

import sys

if sys.flags.isolated:  # python3 -I: it has not put the folder of this script on the path
    sys.path.insert(0, __file__.rpartition("/")[0] or ".")

import config  # isort: skip  (first: it says what is not installed)

FLAGS = (
    config.task,
    config.selection,
    config.model,
    config.device,
    config.training,
    config.teacher,
    config.card,
    config.prediction,
)
config.check_flags(__name__, __doc__, *FLAGS)  # before OneFlow is imported, which takes seconds

import functools

import numpy as np

from data.batches import corrupted_domains, make_batch
from data.selection import examples_facts, open_splits, records_line
from data.tasks import load_task
from modeling.bert.model import init_weights
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.collective import main_rank_first
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, evaluate, select_device, tensor, to_device
from modeling.meta_kd.classifier import build_teacher, class_head_kind
from modeling.meta_kd.losses import balance_classes, batch_mean, cross_entropy, instance_weights
from modeling.predict import predict, wants_prediction
from modeling.snapshots.base_model import base_facts
from modeling.snapshots.folder import HEADS, check_fits_model, load_weights, teacher_meta
from modeling.snapshots.manager import Snapshots, best_snapshot
from modeling.training.evaluation import evaluate_snapshot
from modeling.training.loop import one_phase, train
from modeling.training.stage import describe, load_initial_model, model_card_writer, open_run, run_facts
from tokenization import describe_tokenizer, tokenizer_for
from util import Signals, entry


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    if wants_prediction(args):
        return predict(args)
    launch_ranks(args)

    # ------------ data
    task = load_task(args.task_name, args.data_dir)
    folder = load_initial_model(
        args, task, args.resume_from or config.require_flag(args, "model_load_dir"), "--model_load_dir"
    )
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    with main_rank_first():
        records, examples, heldout = open_splits(args, task, tokenizer)
    seen = (
        np.unique(examples["domain"]).tolist()
        if args.do_train
        else teacher_meta(folder.meta, task, folder.path)["seen_domains"]
    )
    domains = DomainTable(len(task.domains), tuple(seen))
    run = open_run(args, None if args.do_train else folder.path)
    run.log("\n".join([describe_tokenizer(tokenizer), *map(records_line, records.values())]))
    if not examples_facts(examples["idxs"]).items() <= records["train"].scores.items():
        run.log(
            "note: the prototype scores were made of other training examples than these: run preprocess.py with the same flags first"
        )

    # ------------ model
    device = select_device(args.device)
    class_heads = args.class_heads if args.do_train else class_head_kind(folder)
    make_encoder = choose_encoder(args.encoder, device, args.cpu_threads)
    model = build_teacher(folder.config, task, args.domain_loss_weight > 0, class_heads, make_encoder)
    init_weights(model, args.seed, folder.config.initializer_range)
    starts = args.do_train and not args.resume_from
    load_weights(model, folder, run.log, () if args.resume_from else HEADS, task if starts else None)
    model.to(device)
    describe(run, model, device, {"train": examples, **heldout}, task, tokenizer)
    if not args.do_train:
        evaluate_snapshot(run, folder, model, task, heldout, args, domains, device)
        return

    # ------------ training
    meta = {
        "kind": "teacher",
        **run_facts(task, records, domains),
        "base": base_facts(folder, args),
        "domain_head": args.domain_loss_weight > 0,
    }
    snapshots = Snapshots(
        run, "mft", model, tokenizer, meta, args, card=model_card_writer(model, examples, args)
    )
    if args.resume_from:
        snapshots.resume(folder)
    weights = instance_weights(examples["weights"].reshape(-1), args.weight_scaling, args.weight_spread)
    if args.class_weights == "balanced":
        weights = balance_classes(weights, examples["label"].reshape(-1))

    @functools.lru_cache(1)
    def corrupted(epoch):
        return corrupted_domains(examples["domain"], args.seed, epoch)

    def loss(rows, epoch):
        batch = to_device(make_batch(examples, rows), domains, device)
        return teacher_loss(model, batch, weights[rows], corrupted(epoch)[rows], args.domain_loss_weight)

    def on_dev():
        return evaluate(model, heldout["dev"], task, args.eval_batch_size_per_device, domains, device)

    if args.domain_loss_weight and len(domains.seen) == 1:
        run.log(
            "note: with a single domain to train on, the domain head has nothing to learn: --domain_loss_weight 0 leaves it out"
        )
    elif args.domain_loss_weight:
        run.log(
            f"a domain head that ignores its input has a loss of log {len(domains.seen)} = {np.log(len(domains.seen)):.4f}"
        )
    with Signals.patience():
        train(
            model,
            examples,
            one_phase(args, len(weights), loss),
            args,
            run,
            snapshots,
            on_dev if args.do_eval else None,
        )

    # ------------ test of the best snapshot
    if args.do_eval:
        evaluate_snapshot(run, best_snapshot(run), model, task, heldout, args, domains, device)


def teacher_loss(model, batch, weights, corrupted, domain_loss_weight):
    """mean of t(x) * CE(class logits, y), plus gamma1 * mean of CE(domain logits, z).

    Args:
        batch: a TensorBatch of B examples.
        weights: instance weights t(x), float32 [B].
        corrupted: corrupted domain labels z, int [B].
        domain_loss_weight: gamma1; 0: the model has no domain head.
    Returns:
        the loss, and {"class", "domain"}: its parts, before gamma1.
    """
    answers, device = model(batch, last_hidden=domain_loss_weight > 0), batch.label.device
    parts = {"class": batch_mean(cross_entropy(answers.logits, batch.label), tensor(weights, device))}
    loss = parts["class"]
    if domain_loss_weight:
        logits = model.domain_head.domain_logits(model.domain_feature(answers.encoder, batch))
        parts["domain"] = batch_mean(cross_entropy(logits, tensor(corrupted.astype(np.int64), device)))
        loss = loss + domain_loss_weight * parts["domain"]
    return loss, parts


if __name__ == "__main__":
    main()
