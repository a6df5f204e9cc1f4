"""What stands around the loop of a training script: its folder, the model to start from, the snapshots that are kept, the results."""

import json
import os
import pathlib
import re
import shlex
import sys
import time

import numpy as np

from data.batches import make_batch
from data.store.files import atomic_file, open_own, remove_folder, write_json
from data.store.manifest import is_count
from data.tasks import read_examples, split_path
from modeling.cpu.encoder import SHARD_TOKENS
from modeling.distributed.collective import barrier, broadcast
from modeling.distributed.launch import devices
from modeling.inference import class_logits, logits_metrics
from modeling.meta_kd.classifier import STUDENT_ONLY
from modeling.meta_kd.losses import softmax
from modeling.reports.acceptance import class_figures, compare
from modeling.reports.model_card import model_card
from modeling.reports.run_report import read_predictions, run_page, teacher_predictions, write_report
from modeling.reports.tensorboard import Board
from modeling.snapshots.best import RUN_FILES, best_snapshot_path, is_snapshot_name, name_best
from modeling.snapshots.folder import check_meta, check_task, load_weights, read_model, save_snapshot
from modeling.snapshots.rewrite import rewrite_card
from modeling.training.calibration import calibration_figures, calibration_sentence
from modeling.training.loop import metrics_line
from modeling.training.run import Run, new_run_folder, version_and_flag_lines
from util import UserError, get_rank, get_world_size, sha256

PATHS = {
    "data_dir",
    "ofrecord_dir",
    "vocab_file",
    "do_lower_case",
    "model_load_dir",
    "student_model",
    "teacher_model",
    "knowledge_dir",
    "unlabelled_file",
}  # their content counts
CHANGEABLE = {
    "eval_batch_size_per_device",
    "save_every_step_num",
    "save_total_limit",
    "log_every_step_num",
    "device",
    "calibrate",
    "card_base_model",
    "card_license",
    "card_language",
    "encoder",
}  # may differ when a run is resumed
PER_CALL = {
    "resume",
    "resume_from",
    "model_save_dir",
    "resave_ofrecord",
    "cpu_threads",
    "cpu_processes",
    "gpu_num_per_node",
    "num_nodes",
    "node_rank",
    "master_addr",
    "master_port",
    "network_timeout",
    "config",
    "log_dir",
    "do_predict",
    "predict_file",
    "predict_format",
    "text_column",
    "min_confidence",
    "output_file",
    "changed",
    "defaults",
}  # of one call, not of the run
PROGRESS_TYPES = {
    "flags": "an object",
    "best": "an object or null",
    "runners_up": "a list",
}  # of a snapshot_last
FACTS = {
    "content_sha256": "other training texts",
    "dev_sha256": "other dev texts",
    "teacher_sha256": "another teacher",
    "knowledge": "knowledge of other layers or heads",
    "scores": "other prototype scores",
    "unlabelled_sha256": "other unlabelled texts",
    "base": "another base model in its card",
    "ranks": "another number of ranks",
    "shard_tokens": "batches in shards of another size",
}  # in words
ABSENT_IN_OLD = {
    "dev_sha256",
    "knowledge",
    "base",
    "shard_tokens",
}  # facts that the snapshots of earlier versions do not have
FIRST_WORDS = "run folder: "  # of a log.txt
END = ", since the learning rate has to fall to 0 at its end"


class Snapshots:
    """The snapshots of a run: `snapshot_last`, and `snapshot_best_<kind>_model_<task>_dev_<accuracy>`, one or --save_total_limit of them,
    the best named in best.json.

    Args:
        run, kind: a Run with a folder; "mft" or "student".
        model, tokenizer: what is saved.
        meta: facts for meta.json: task, labels, domains, and the like.
        args: the flags, kept in meta.json; a resumed run must have the same.
        left_out: prefixes of the weights that the best snapshot does without.
        card: takes the content of a best snapshot's meta.json to the text of its README.md; None: it has none.
    """

    def __init__(self, run, kind, model, tokenizer, meta, args, left_out=(), card=None):
        self.run, self.kind, self.model, self.tokenizer, self.left_out, self.card = (
            run,
            kind,
            model,
            tokenizer,
            left_out,
            card,
        )
        flags = {name: value for name, value in sorted(vars(args).items()) if name not in PATHS | PER_CALL}
        sharing = {"ranks": get_world_size(), "devices": devices(args), "shard_tokens": SHARD_TOKENS}
        self.meta, self.step = {**meta, **sharing, "flags": flags}, 0
        self.limit, self.defaults, self.kept = (
            args.save_total_limit,
            args.defaults,
            [],
        )  # kept: the best first

    @property
    def best(self):
        """Name, step and accuracy of the best snapshot so far, or None."""
        return self.kept[0] if self.kept else None

    def resume(self, folder):
        """Goes on where the snapshot_last in `folder`, a ModelFolder, stood, and says which harmless flags differ. A flag that is younger
        than the run had its default there.

        Raises:
            UserError: a flag, the data or the number of ranks would make it another run; the sentence has the old and the new value.
        """
        meta, path = folder.meta, folder.path
        ours = json.loads(json.dumps(self.meta))  # as meta.json gives it back: lists for tuples
        new = ours["flags"]
        old = {**{name: self.defaults[name] for name in new if name in self.defaults}, **meta["flags"]}
        differ = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        for name in differ:
            if name not in CHANGEABLE:
                raise UserError(
                    f"--resume_from {path}: that run had --{name} {old.get(name)}, this one has {new.get(name)}, and would end "
                    f"elsewhere{END if name in ('num_epochs', 'max_steps') else ''}: give the same flags, or start a new run."
                )
        for key, value in ours.items():
            if meta.get(key) != value and key != "flags" and (key in meta or key not in ABSENT_IN_OLD):
                was, now = (json.dumps(each, ensure_ascii=False)[:60] for each in (meta.get(key), value))
                raise UserError(
                    f"{path}: that run had {FACTS.get(key, 'another')} ({key} {was}, now {now}): bring back what it had, or start a "
                    "new run."
                )
        if differ:
            self.run.log(
                "resumed with other flags: "
                + ", ".join(f"--{name} {new.get(name)} instead of {old.get(name)}" for name in differ)
            )
        self.step, self.kept = meta["step"], list_best_snapshots(meta)
        self.run.forget_after(self.step)

    def resume_command(self):
        """The command line that goes on with this run."""
        words, kept = iter(sys.argv), []
        for word in words:
            if word in ("--model_save_dir", "--resume_from"):
                next(words, None)
            elif word != "--resume" and not word.startswith(("--model_save_dir=", "--resume_from=")):
                kept.append(word)
        return shlex.join(["python3", *kept, "--resume_from", str(self.run.folder / "snapshot_last")])

    def save_best(self, step, metrics):
        """Saves the model where its accuracy on dev is among the best so far, and none that is kept has the same."""
        accuracy = metrics["accuracy"]
        prefix = f"snapshot_best_{self.kind}_model_{self.meta['task']}_dev_"
        name = f"{prefix}{accuracy!r}"
        found = {"snapshot": name, "step": step, "accuracy": accuracy}
        ranked = sorted([*self.kept, found], key=lambda each: -each["accuracy"])[: self.limit]
        if found not in ranked or accuracy in [each["accuracy"] for each in self.kept]:
            return
        self.kept = ranked
        if get_rank() == 0:
            meta = {**self.meta, "step": step, "dev": metrics}
            save_snapshot(
                self.run.folder / name,
                self.model,
                self.tokenizer,
                meta,
                self.left_out,
                card=self.card and self.card(meta),
            )
            name_best(self.run.folder, self.best)
            ours = re.compile(rf"{re.escape(prefix)}[0-9.e-]+")  # a copy with another name stays
            kept = {each["snapshot"] for each in self.kept}
            for other in list(self.run.folder.iterdir()):
                if ours.fullmatch(other.name) and other.name not in kept and not other.is_symlink():
                    remove_folder(other)
        barrier()

    def save_last(self, step, optimizer):
        """Saves model, optimizer and progress, all that a resumed run needs."""
        if get_rank() == 0:
            progress = {"step": step, "best": self.best, "runners_up": self.kept[1:]}
            save_snapshot(
                self.run.folder / "snapshot_last",
                self.model,
                self.tokenizer,
                {**self.meta, **progress},
                optimizer=optimizer.moments(),
            )
        barrier()

    def name_last(self, step):
        """Without an evaluation on dev the last snapshot counts as the best."""
        if get_rank() == 0:
            name_best(self.run.folder, {"snapshot": "snapshot_last", "step": step})
        barrier()


def list_best_snapshots(meta):
    """The best snapshots that the meta.json of a snapshot_last tells of, the best first."""
    return [meta["best"], *meta.get("runners_up", [])] if meta["best"] is not None else []


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
        "content_sha256": records.content_sha256,
        "dev_sha256": splits["dev"].content_sha256,
        "scores": records.scores,
    }


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
    folder = read_model(path, "--resume_from" if args.resume_from else flag)
    if args.resume_from:
        if "best" not in (folder.meta or {}):
            raise UserError(
                f"--resume_from {path}: not a snapshot to resume from; name the snapshot_last of a run."
            )
        check_meta({"runners_up": [], **folder.meta}, PROGRESS_TYPES, path)  # older ones have none
        for best in list_best_snapshots(folder.meta):
            if not _is_kept(best):
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


def changed_flags(args):
    """{name: value} of the flags that differ from their defaults and are part of the run; paths are not."""
    return {name: value for name, value in sorted(args.changed.items()) if name not in PATHS | PER_CALL}


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


def evaluate_snapshot(run, folder, model, task, splits, args, domains, device):
    """Evaluates a snapshot on dev and test; writes results.json, predictions.tsv and report.html into the run folder.

    Args:
        folder: the ModelFolder of the snapshot, whose weights `model` takes.
        splits: {"dev": stacked records, "test": stacked records}.
    Returns:
        the content of results.json: snapshot, parameters, bytes of the weights, metrics on dev and test.
    """
    load_weights(model, folder, allow_missing=("domain_head.", *STUDENT_ONLY))
    lines = [("split", "idxs", "domain", "label", "predicted", *task.labels)]
    results = {
        "task": task.name,
        "snapshot": folder.path.name,
        "parameters": sum(array.size for array in folder.arrays.values()),
        "bytes": (folder.path / "model.safetensors").stat().st_size,
    }
    all_logits, labels = {}, {split: arrays["label"].reshape(-1) for split, arrays in splits.items()}
    for split, arrays in splits.items():
        started = time.monotonic()
        all_logits[split] = logits = class_logits(
            model, arrays, task, args.eval_batch_size_per_device, domains, device
        )
        results[split] = logits_metrics(logits, arrays, task)
        lines += predictions(logits, arrays, task, split)
        run.timing(
            event=split,
            examples_per_second=round(results[split]["examples"] / (time.monotonic() - started), 2),
        )
        run.log(f"{folder.path.name} | {split} {metrics_line(results[split])}")
    results["calibration"] = calibration_figures(all_logits, labels, folder.meta)
    if get_rank() == 0:
        with atomic_file(run.folder / "predictions.tsv", "w") as file:
            file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
        results.update(acceptance_figures(run.folder, task, getattr(args, "teacher_model", None)))
        results["predictions_sha256"] = sha256(run.folder / "predictions.tsv")
        write_json(run.folder / "results.json", results)
        write_report(
            run,
            run.folder / "report.html",
            run_page,
            run.folder,
            folder.meta,
            changed_flags(args),
            getattr(args, "teacher_model", None),
            read_test_texts(task, args.data_dir, len(labels["test"])),
        )
        if folder.path.resolve().parent == run.folder.resolve():
            rewrite_card(folder.path, calibration_sentence(results["calibration"]))
    return results


def acceptance_figures(folder, task, teacher_model):
    """For results.json: the figures of each class on dev and test, and the comparison with the teacher, None without one."""
    rows = {split: read_predictions(folder / "predictions.tsv", split) for split in ("dev", "test")}
    taught = teacher_predictions(teacher_model, task.name)
    return {
        "classes": {split: class_figures(each, task.labels) for split, each in rows.items()},
        "against_teacher": compare(rows["test"], taught),
    }


def read_test_texts(task, data_dir, count):
    """The texts of test.tsv, a pair's with a bar between them; None where it does not have `count` of them or cannot be read."""
    try:
        examples = list(read_examples(task, split_path(data_dir, "test")))
    except UserError:
        return None
    texts = [" | ".join(text for text in (each.text_a, each.text_b) if text) for each in examples]
    return texts if len(texts) == count else None


def predictions(logits, arrays, task, split):
    """Yields the line of each record for predictions.tsv: split, idxs, domain, label, predicted label, probability of each label.

    logits: [N, M] of the records stacked in `arrays`.
    """
    columns = (arrays[name].reshape(-1) for name in ("idxs", "domain", "label"))
    for idxs, domain, label, row in zip(*columns, softmax(logits)):
        yield (
            split,
            idxs,
            task.domains[domain],
            task.labels[label],
            task.labels[row.argmax()],
            *(f"{value:.6f}" for value in row),
        )


def best_snapshot(run):
    """The ModelFolder of the best snapshot of a run."""
    return read_model(best_snapshot_path(run.folder))


def _is_kept(value):
    """Whether a value of meta.json tells of a best snapshot."""
    return (
        isinstance(value, dict)
        and value.keys() == {"snapshot", "step", "accuracy"}
        and is_snapshot_name(value["snapshot"])
        and is_count(value["step"])
        and type(value["accuracy"]) in (int, float)
        and 0 <= value["accuracy"] <= 1
    )
