"""What stages 2 and 4 open alike: the run's folder, the model to start from, the first lines of the log."""

import os
import pathlib
import time

import numpy as np

from data.batches import make_batch
from data.store.files import open_own, write_json
from modeling.distributed.collective import broadcast
from modeling.reports.model_card import model_card
from modeling.reports.tensorboard import Board
from modeling.snapshots.best import RUN_FILES
from modeling.snapshots.folder import check_meta, check_task, read_model
from modeling.snapshots.manager import (
    PER_CALL,
    PROGRESS_TYPES,
    changed_flags,
    is_best_entry,
    list_best_snapshots,
)
from modeling.training.run import Run, new_run_folder, version_and_flag_lines
from util import UserError, get_rank, get_world_size

FIRST_WORDS = "run folder: "  # of a log.txt


def load_initial_model(args, task, path, flag):
    """The ModelFolder at `path` that a training script starts from; `flag` names it unless --resume_from does.

    Raises:
        UserError: neither --do_train nor --do_eval; patience with evaluations that nobody makes; --resume_from names no snapshot_last;
            without --do_train, a model that was not trained for this task.
    """
    if not (args.do_train or args.do_eval):
        raise UserError(
            "neither --do_train nor --do_eval is given, so there is nothing to do: give one or both."
        )
    if not args.do_eval and args.early_stopping_patience:
        raise UserError(
            "--early_stopping_patience counts evaluations on dev, and without --do_eval there are none: give --do_eval too."
        )
    if not args.do_eval and "select_by" in args.changed:
        raise UserError(
            "--select_by chooses between evaluations on dev, and without --do_eval there are none: give --do_eval too."
        )
    folder = read_model(path, "--resume_from" if args.resume_from else flag)
    if args.resume_from:
        if "best" not in (folder.meta or {}):
            raise UserError(
                f"--resume_from {path}: not a snapshot to resume from; name the snapshot_last of a run."
            )
        check_meta({"runners_up": [], **folder.meta}, PROGRESS_TYPES, path)  # older ones have none
        select_by = folder.meta["flags"].get("select_by", "accuracy")  # older ones have none
        for best in list_best_snapshots(folder.meta):
            if not is_best_entry(best, select_by):
                raise UserError(
                    f"{pathlib.Path(path, 'meta.json')}: found {best!r:.60} as the best snapshot so far, expected its name, step "
                    "and accuracy: resume from another snapshot_last, or start a new run."
                )
    if not args.do_train:
        if folder.meta is None:
            raise UserError(
                f"{flag} {path}: without --do_train it is evaluated as it is, and this model was not trained here: "
                "name a snapshot, or give --do_train."
            )
        check_task(folder.meta, task, path)
    return folder


def open_run(args, evaluated=None):
    """The Run of a training script, locked, with the first lines of its log written.

    Its folder is --model_save_dir, or the one of --resume_from, or a new one named after the time.
    Args:
        evaluated: the folder of the snapshot that is evaluated, and not trained.
    Raises:
        UserError: the folder holds a run already, and this is neither its resumption nor an evaluation of its snapshot.
    """
    if args.resume_from:
        folder = pathlib.Path(args.resume_from).resolve().parent
        if args.model_save_dir and pathlib.Path(args.model_save_dir).resolve() != folder:
            raise UserError(
                f"--resume_from {args.resume_from}: that run goes on in its own folder, {folder}, and --model_save_dir names "
                f"{args.model_save_dir}: leave --model_save_dir out."
            )
    else:
        folder = (
            pathlib.Path(args.model_save_dir)
            if args.model_save_dir
            else new_run_folder(broadcast(time.time()))
        )
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
    for line in (f"{FIRST_WORDS}{folder}", *version_and_flag_lines(args)):
        run.log(line)
    if args.do_train:
        run.clean()
        if not args.resume_from:
            run.forget_after(0)  # of a run that was stopped before its first snapshot
            write_flags(folder, args)
    return run


def check_same_run(folder, evaluated):
    """Refuses to write the results of a snapshot, the folder `evaluated`, over those of another run."""
    if evaluated is None or not (folder / "best.json").exists():
        return
    if evaluated.resolve().parent != folder.resolve():
        raise UserError(
            f"--model_save_dir {folder}: it holds another run, whose results this evaluation of {evaluated} would replace: "
            "name another folder."
        )


def check_own_run(folder):
    """Refuses a folder with files of the names that a run writes, where its log.txt does not say that a run has written them."""
    try:
        with open_own(folder / "log.txt", "r") as file:
            if file.readline().startswith(FIRST_WORDS):
                return
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        pass
    theirs = [name for name in RUN_FILES if os.path.lexists(folder / name) and (folder / name).stat().st_size]
    if theirs and get_rank() == 0:
        raise UserError(
            f"--model_save_dir {folder}: it holds {', '.join(theirs)}, which no run has written and this one would replace: "
            "name another folder."
        )


def model_card_writer(model, examples, args):
    """What takes meta.json to the model card of a run over `examples`, {name: [N, ...]}."""
    return lambda meta: model_card(
        meta, changed_flags(args), len(examples["label"]), hasattr(model, "classifier")
    )


def write_flags(folder, args):
    """Writes the flags of a run to flags.json, as --config reads them: all but those of one call, and the ranks that there are now."""
    flags = {
        name: value
        for name, value in sorted(vars(args).items())
        if name not in PER_CALL and value is not None
    }
    if get_rank() == 0:
        write_json(
            folder / "flags.json",
            {
                **flags,
                "cpu_processes": get_world_size() // args.num_nodes,
                "gpu_num_per_node": args.gpu_num_per_node,
            },
        )


def describe(run, model, device, splits, task, tokenizer):
    """Logs the model's size, the counts of examples, and the first three training examples as the model sees them."""
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
            f"example {first['idxs'][row].item()}: {names[first['domain'][row].item()]}, {task.labels[first['label'][row].item()]}, "
            f"score {first['weights'][row].item():.4f}: {' '.join(tokens)}"
        )


def workers(model):
    """Who does the work, for the log: ranks and, where the encoder is the CPU's own, its threads."""
    counts = {"rank": get_world_size(), "thread": model.bert.threads.count if model.bert.threads else 0}
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)


def run_facts(task, splits, domains):
    """What meta.json says of the task, enough to use the model without its data, and of what it was trained on and chosen by.

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
