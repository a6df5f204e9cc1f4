"""Stage 2: OFRecord files -> a meta-teacher, trained over all domains on what transfers between them.

The loss is the mean over the batch of t(x) * CE(class) + gamma1 * CE(corrupted domain), t(x) the prototype
score of stage 1.
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
from data.selection import RecordsOptions, Selection, examples_facts, open_splits, records_line
from modeling.distributed.collective import main_rank_first
from modeling.distributed.launch import launch_ranks
from modeling.inference import DomainTable, Heldout, tensor, to_device
from modeling.meta_kd.classifier import build_teacher, class_head_kind
from modeling.meta_kd.idle_flags import check_teacher_flags
from modeling.meta_kd.losses import balance_classes, batch_mean, cross_entropy, instance_weights
from modeling.predict import PredictionOptions, predict, wants_prediction
from modeling.snapshots.base_model import CardOptions, base_facts
from modeling.snapshots.checks import teacher_meta
from modeling.snapshots.manager import Snapshots, best_snapshot
from modeling.training.evaluation import ReportOptions, evaluate_snapshot
from modeling.training.loop import one_phase, train
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
from tokenization import describe_tokenizer
from util import Signals, UserError, entry


@entry
def main():
    args = config.parse(__doc__, *FLAGS)
    if wants_prediction(args):
        return predict(config.options(PredictionOptions, args))
    launch_ranks(args)

    # ------------ data
    check_class_weights(args)
    if args.do_train and not args.resume_from:  # a run that has such flags goes on with them
        check_teacher_flags(args)
    task, folder, tokenizer = open_model(args, "model_load_dir")
    where, selection = config.options(RecordsOptions, args), config.options(Selection, args)
    with main_rank_first():
        records, examples, splits = open_splits(where, selection, task, tokenizer)
    seen = (
        np.unique(examples["domain"]).tolist()
        if args.do_train
        else teacher_meta(folder.meta, task, folder.path)["seen_domains"]
    )
    domains = DomainTable(len(task.domains), tuple(seen))
    run = open_run(args, None if args.do_train else folder.path)
    run.log("\n".join([describe_tokenizer(tokenizer), *map(records_line, records.values())]))
    note_other_scores(run, examples, records["train"], folder)

    # ------------ model
    class_heads = args.class_heads if args.do_train else class_head_kind(folder)

    def build(make_encoder):
        return build_teacher(folder.config, task, args.domain_loss_weight > 0, class_heads, make_encoder)

    model, device = make_model(args, run, folder, task, build)
    describe(run, model, device, {"train": examples, **splits}, task, tokenizer)
    heldout = Heldout(splits, task, domains, device, args.eval_batch_size_per_device)
    shown = ReportOptions(args.data_dir, args.changed)
    if not args.do_train:
        evaluate_snapshot(run, folder, model, heldout, shown)
        return

    # ------------ training
    base = base_facts(folder, config.options(CardOptions, args))
    meta = {"kind": "teacher", **run_facts(task, records, domains), "base": base}
    meta["domain_head"] = args.domain_loss_weight > 0
    card = model_card_writer(model, len(examples), args.changed)
    snapshots = Snapshots(run, "mft", model, tokenizer, meta, snapshot_options(args), card=card)
    if args.resume_from:
        snapshots.resume(folder)
    weights = training_weights(examples, args.weight_scaling, args.weight_spread, args.class_weights)
    loss = make_loss(model, examples, weights, domains, device, args.seed, args.domain_loss_weight)
    if args.domain_loss_weight:
        explain_domain_loss(run, examples["domain"])
    options = training_options(args)
    on_dev = functools.partial(heldout.dev_metrics, model) if args.do_eval else None
    with Signals.patience():
        train(model, examples, one_phase(options, len(examples), loss), options, run, snapshots, on_dev)

    # ------------ test of the best snapshot
    if args.do_eval:
        evaluate_snapshot(run, best_snapshot(run), model, heldout, shown)


def check_class_weights(args):
    """Raises a UserError where classes shall weigh the same by scores that may add up to nothing in one."""
    if args.do_train and (args.class_weights, args.weight_scaling) == ("balanced", "raw"):
        raise UserError(
            "--class_weights balanced scales the weights of each class, and --weight_scaling raw takes them "
            "as they are, below 0 too: leave one of them out."
        )


def note_other_scores(run, examples, records, folder):
    """Says in the log where the prototype scores are of other training examples than the chosen ones, or of
    another pretrained model than that of `folder`, a ModelFolder.
    """
    if folder.meta is None and records.scores.get("encoder_sha256") != folder.sha256:
        run.log(
            f"note: the prototype scores were made by another model than {folder.path}: give stages 1 and 2 "
            "the same one (--model_load_dir; MODEL of the scripts)"
        )
    if not examples_facts(examples["idxs"]).items() <= records.scores.items():
        run.log(
            "note: the prototype scores were made of other training examples than these: run preprocess.py "
            "with the same flags first"
        )


def explain_domain_loss(run, domain):
    """Says in the log what loss a domain head has that gives every text the domains' shares p:
    -sum over domains of p * log p.

    The targets of an epoch are the domains of the training examples in another order, so that this is its
    mean over an epoch, whatever the order. Args: domain: of the training examples, int [N].
    """
    shares = np.unique(domain, return_counts=True)[1] / len(domain)  # [K] of the K domains that are seen
    K, entropy = len(shares), -(shares * np.log(shares)).sum()
    if K == 1:
        run.log(
            "note: with a single domain to train on, the domain head has nothing to learn: "
            "--domain_loss_weight 0 leaves it out (stage 4 then needs --transfer_loss_weight 0)"
        )
    else:
        run.log(
            f"a domain head that ignores its input has a loss of {entropy:.4f} at best, the entropy of the "
            f"{K} domains of the training examples (log {K} = {np.log(K):.4f} where they are even)"
        )


def training_weights(examples, weight_scaling, weight_spread, class_weights):
    """The instance weights t(x) of the training examples, float32 [N], from their prototype scores."""
    weights = instance_weights(examples["weights"], weight_scaling, weight_spread)
    if class_weights == "balanced":
        weights = balance_classes(weights, examples["label"])
    return weights


def make_loss(model, examples, weights, domains, device, seed, domain_loss_weight):
    """The loss of a Phase: takes (rows of the examples, epoch) to (loss, {name of a part: its value})."""

    @functools.lru_cache(1)
    def corrupted(epoch):
        return corrupted_domains(examples["domain"], seed, epoch)

    def loss(rows, epoch):
        batch = to_device(make_batch(examples, rows), domains, device)
        return teacher_loss(model, batch, weights[rows], corrupted(epoch)[rows], domain_loss_weight)

    return loss


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
