"""What stages 2 and 4 open alike: the run's folder, the model to start from, the first lines of the log."""

import pathlib

import numpy as np

from config import options, require_flag
from data.batches import make_batch
from data.store.files import write_json
from data.tasks import load_task
from modeling.bert.model import init_weights
from modeling.cpu.encoder import choose_encoder
from modeling.distributed.ranks import count_devices
from modeling.inference import select_device
from modeling.reports.model_card import model_card
from modeling.reports.tensorboard import Board
from modeling.snapshots.checks import check_fits_model, check_kind, check_meta, check_task
from modeling.snapshots.folder import read_model
from modeling.snapshots.loading import HEADS, keep_layers, load_weights
from modeling.snapshots.manager import (
    PER_CALL,
    PROGRESS_TYPES,
    SnapshotOptions,
    flags_of_run,
    is_best_entry,
    list_best_snapshots,
)
from modeling.training.loop import TrainingOptions
from modeling.training.run import (
    FIRST_WORDS,
    Run,
    check_own_run,
    check_same_run,
    choose_run_folder,
    version_and_flag_lines,
)
from tokenization import tokenizer_for
from util import UserError, get_rank, get_world_size

KINDS = {"--model_load_dir": "teacher", "--student_model": "student"}  # what the script of a flag trains


def open_model(args, flag: str, layers=None):
    """What a training stage starts from: (Task, ModelFolder, FullTokenizer), which fit each other.

    Args:
        args: the flags of the stage; flag: the name of the one that names the model.
        layers: how many of the model's layers a new run keeps; None: all.
    Raises:
        UserError: see `load_initial_model`; fewer layers of a model that is not trained but evaluated; a
            tokenizer or a length of another model.
    """
    task = load_task(args.task_name, args.data_dir)
    path = args.resume_from or require_flag(args, flag)
    folder = load_initial_model(args, task, path, f"--{flag}")
    if layers and not args.do_train:
        check_is_whole(folder, layers)
    elif layers and not args.resume_from:
        folder = keep_layers(folder, layers)
    tokenizer = tokenizer_for(folder.path, args.vocab_file, args.do_lower_case, args.truncate)
    check_fits_model(folder, task, args.seq_length, tokenizer)
    return task, folder, tokenizer


def load_initial_model(args, task, path, flag):
    """The ModelFolder at `path` that a training script starts from;
    `flag` names it unless --resume_from does.

    Raises:
        UserError: flags that leave nothing to do or need what is not done; --resume_from names no
            snapshot_last; without --do_train, a model that was not trained for this task; a snapshot of
            the other training script, for one that does not start from it but evaluates it or goes on.
    """
    check_is_asked(args, flag)
    folder = read_model(path, "--resume_from" if args.resume_from else flag)
    if args.resume_from:
        check_resumable(folder.meta, path)
    if not args.do_train:
        if folder.meta is None:
            raise UserError(
                f"{flag} {path}: without --do_train it is evaluated as it is, and this model was not trained "
                "here: name a snapshot, or give --do_train."
            )
        check_task(folder.meta, task, path)
    if args.resume_from or not args.do_train:
        check_kind(folder.meta, KINDS[flag], path)
    return folder


def check_is_asked(args, flag):
    """Raises a UserError where there is nothing to do, or a flag needs the training or the evaluation that is
    not asked for; `flag` names the model that is evaluated without --do_train.
    """
    if not (args.do_train or args.do_eval):
        raise UserError(
            "neither --do_train nor --do_eval is given, so there is nothing to do: give one or both."
        )
    if args.resume_from and not args.do_train:
        # its snapshot_last would be evaluated, and its results would replace those of its best snapshot
        raise UserError(
            "--resume and --resume_from go on with a training, and without --do_train there is none: give "
            f"--do_train too, or, to evaluate a run, leave them out and name it by {flag}."
        )
    if not args.do_eval and args.early_stopping_patience:
        raise UserError(
            "--early_stopping_patience counts evaluations on dev, and without --do_eval there are none: give "
            "--do_eval too."
        )
    if not args.do_eval and "select_by" in args.changed:
        raise UserError(
            "--select_by chooses between evaluations on dev, and without --do_eval there are none: give "
            "--do_eval too."
        )


def check_is_whole(folder, layers):
    """Raises a UserError where a snapshot that is only evaluated has not the `layers` of --student_layers."""
    found = folder.config.num_hidden_layers
    if layers != found:
        raise UserError(
            f"--student_layers {layers}: without --do_train {folder.path} is evaluated as it is, and it has "
            f"{found} layers: leave the flag out, or give --do_train."
        )


def check_resumable(meta, path):
    """Raises a UserError where the snapshot at `path`, whose meta.json is `meta`, is none to resume from."""
    if "best" not in (meta or {}):
        raise UserError(
            f"--resume_from {path}: not a snapshot to resume from; name the snapshot_last of a run."
        )
    check_meta({"runners_up": [], **meta}, PROGRESS_TYPES, path)  # older ones have none
    select_by = meta["flags"].get("select_by", "accuracy")  # older ones have none
    for best in list_best_snapshots(meta):
        if not is_best_entry(best, select_by):
            raise UserError(
                f"{pathlib.Path(path, 'meta.json')}: found {best!r:.60} as the best snapshot so far, "
                "expected its name, step and accuracy: resume from another snapshot_last, or start a new "
                "run."
            )


def make_model(args, run, folder, task, build):
    """(the model of a training stage with the weights of `folder`, its device).

    Args:
        folder: a ModelFolder; build: takes what makes an encoder to the DomainClassifier.
    """
    device = select_device(args.device)
    model = build(choose_encoder(args.encoder, device, args.cpu_threads))
    init_weights(model, args.seed, folder.config.initializer_range)
    starts = args.do_train and not args.resume_from
    load_weights(model, folder, run.log, () if args.resume_from else HEADS, task if starts else None)
    model.to(device)
    return model, device


def training_options(args) -> TrainingOptions:
    """The TrainingOptions of the flags."""
    devices = count_devices(args.device, args.gpu_num_per_node, args.num_nodes)
    size = args.batch_size_per_device * devices * args.gradient_accumulation_steps
    return options(TrainingOptions, args, batch_size=size)


def snapshot_options(args) -> SnapshotOptions:
    """The SnapshotOptions of the flags."""
    devices = count_devices(args.device, args.gpu_num_per_node, args.num_nodes)
    return SnapshotOptions(vars(args), args.defaults, args.save_total_limit, args.select_by, devices)


# --------------------------------------------------------------------------------------- the run folder


def open_run(args, evaluated=None):
    """The Run of a training script, locked, with the first lines of its log written.

    Its folder is --model_save_dir, or the one of --resume_from, or a new one named after the time.
    Args:
        evaluated: the folder of the snapshot that is evaluated, and not trained.
    Raises:
        UserError: the folder holds a run already, and this is neither its resumption nor an evaluation
            of its snapshot.
    """
    folder = choose_run_folder(args.model_save_dir, args.resume_from)
    if not args.resume_from:
        if (folder / "snapshot_last").exists() and args.do_train:
            raise UserError(
                f"--model_save_dir {folder}: there is a run in it already: go on with it by "
                f"--resume_from {folder / 'snapshot_last'}, or name another folder."
            )
        check_own_run(folder)
        check_same_run(folder, evaluated)
    run = Run(folder)
    if args.log_dir and get_rank() == 0:
        run.board = Board(args.log_dir)
    for line in (f"{FIRST_WORDS}{folder}", *version_and_flag_lines(args.changed)):
        run.log(line)
    if args.do_train:
        run.clean()
        if not args.resume_from:
            run.forget_after(0)  # of a run that was stopped before its first snapshot
            write_flags(folder, vars(args))
    return run


def model_card_writer(model, count, changed):
    """What takes meta.json to the model card of a run over `count` examples, `changed` being its flags that
    differ from their defaults.
    """
    return lambda meta: model_card(meta, flags_of_run(changed), count, hasattr(model, "classifier"))


def write_flags(folder, flags):
    """Writes the flags {name: value} of a run to flags.json, as --config reads them: all but those of one
    call, and the ranks that there are now.
    """
    kept = {
        name: value for name, value in sorted(flags.items()) if name not in PER_CALL and value is not None
    }
    ranks = {
        "cpu_processes": get_world_size() // flags["num_nodes"],
        "gpu_num_per_node": flags["gpu_num_per_node"],
    }
    if get_rank() == 0:
        write_json(folder / "flags.json", {**kept, **ranks})


# --------------------------------------------------------------------------- the log and meta.json


def describe(run, model, device, splits, task, tokenizer):
    """Logs the model's size, the counts of examples, and the first three training examples
    as the model sees them.
    """
    parameters = sum(int(np.prod(parameter.shape)) for parameter in model.parameters())
    counts = ", ".join(f"{len(arrays['label'])} {split}" for split, arrays in splits.items())
    run.log(
        f"device {device}, {workers(model)}, {parameters:,} parameters; examples: {counts}; "
        f"labels {', '.join(task.labels)}; "
        f"domains {', '.join(task.domains)}"
    )
    first = splits["train"]
    names = (*task.domains, "(unknown domain)")  # of an unlabelled text
    rows = np.arange(min(3, len(first["label"])))
    batch = make_batch(first, rows)
    for row in rows:
        tokens = tokenizer.convert_ids_to_tokens(batch.input_ids[row][batch.input_mask[row] > 0])
        run.log(
            f"example {first['idxs'][row].item()}: {names[first['domain'][row].item()]}, "
            f"{task.labels[first['label'][row].item()]}, score {first['weights'][row].item():.4f}: "
            f"{' '.join(tokens)}"
        )


def workers(model):
    """Who does the work, for the log: ranks and, where the encoder is the CPU's own, its threads."""
    counts = {"rank": get_world_size(), "thread": model.bert.threads.count if model.bert.threads else 0}
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)


def run_facts(task, splits, domains):
    """What meta.json says of the task, enough to use the model without its data, and of what it was trained
    on and chosen by.

    Args:
        splits: {split: Records}; domains: the DomainTable of the run.
    """
    records = splits["train"]
    return {
        "task": task.name,
        "text": task.text,
        "labels": task.labels,
        "domains": task.domains,
        "seen_domains": domains.seen,
        "seq_length": records.seq_length,
        "truncate": records.truncate,
        "content_sha256": records.content_sha256,
        "dev_sha256": splits["dev"].content_sha256,
        "scores": records.scores,
    }
