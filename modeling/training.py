"""The one training loop, of stages 2 and 4, and the snapshots that it keeps."""

import json
import math
import pathlib
import shlex
import shutil
import sys
import time
from typing import Callable, NamedTuple

import numpy as np

from data.batches import epoch_batches
from modeling.collective import averaged, barrier, of_first, shared_loss
from modeling.inference import evaluate
from modeling.optimization import clip_gradients, learning_rate_at, make_optimizer, optimizer_arrays, restore_optimizer, set_learning_rate
from modeling.ranks import devices
from modeling.snapshot import check_task, load_weights, read_model, read_optimizer, save_snapshot
from util import Run, Signals, UserError, load_oneflow, new_run_folder, opening_lines, progress, rank, ranks, read_json, write_json

flow = load_oneflow()

HARMLESS = {"resume_from", "model_save_dir", "resave_ofrecord", "eval_batch_size_per_device", "save_every_step_num",
            "log_every_step_num", "device", "cpu_processes", "gpu_num_per_node", "num_nodes", "node_rank", "master_addr", "master_port",
            "changed"}  # flags that may differ between a run and its resumption


class Phase(NamedTuple):
    """A stretch of training with an optimizer and a schedule of its own.

    name: stands in the log. first, last: its steps, first <= step < last. selects: whether the best snapshot may come from it.
    loss: takes (rows of the training arrays, epoch) to (the loss to go down, {name of a part: its batch mean}), scalar tensors.
    """

    name: str
    first: int
    last: int
    loss: Callable
    selects: bool = True


def two_phases(args, N, first_loss, second_loss):
    """The phases of a run over N examples: `first_loss` for --intermediate_epochs, then `second_loss`, which alone selects the best."""
    steps = math.ceil(N / batch_size(args))
    change, end = args.intermediate_epochs * steps, args.num_epochs * steps
    return [Phase("intermediate", 0, change, first_loss, selects=False), Phase("prediction", change, end, second_loss)]


def one_phase(args, N, loss):
    """A run over N examples with one loss from beginning to end."""
    return [Phase("joint", 0, args.num_epochs * math.ceil(N / batch_size(args)), loss)]


def batch_size(args):
    """Examples of a training step, over all devices and ranks."""
    return args.batch_size_per_device * devices(args)


def train(model, lengths, phases, args, run, snapshots, on_dev=None):
    """Trains `model` in place, from the step where `snapshots` stands to the end of the last phase.

    Args:
        model: a DomainClassifier.
        lengths: real tokens of each training example, int [N].
        phases: one Phase after the other.
        on_dev: gives the metrics on dev; None: no evaluation, and the last snapshot counts as the best.
    Raises:
        UserError: a loss that is not finite; the snapshots stay as they were.
    """
    size, end = batch_size(args), phases[-1].last
    steps_per_epoch = math.ceil(len(lengths) / size)
    log, batches = StepLog(run, args.log_every_step_num, snapshots.step, end), None
    model.train()
    prepare_gradients(model)
    share_of_loss, device = shared_loss(model), next(model.parameters()).device
    for phase in phases:
        if snapshots.step >= phase.last:
            continue
        optimizer = make_optimizer(model, args.learning_rate, args.weight_decay_rate)
        if snapshots.step > phase.first:
            restore_optimizer(optimizer, model, read_optimizer(args.resume_from), snapshots.step - phase.first)
        for step in range(max(snapshots.step, phase.first), phase.last):
            epoch, position = divmod(step, steps_per_epoch)
            if position == 0 or batches is None:
                batches = epoch_batches(lengths, size, args.seed, epoch)
            rate = learning_rate_at(step - phase.first, phase.last - phase.first, args.warmup_proportion, args.learning_rate)
            set_learning_rate(optimizer, rate)
            model.dropouts.key(args.seed, step, rank(), ranks())

            values = share_of_loss(phase.loss, batches[position], epoch)
            optimizer.zero_grad()
            values["loss"].backward()
            norm = clip_gradients(model, args.max_grad_norm)
            optimizer.step()

            done = step + 1
            values = {name: value.item() for name, value in values.items()}
            values = averaged({**values, "gradient_norm": norm.item(), "stop": bool(Signals.asked)}, device)
            stop = values.pop("stop") > 0  # some rank was told to
            log.step(done, epoch, phase.name, batches[position], rate, values)
            if on_dev and phase.selects and (done % args.eval_every_step_num == 0 or done == phase.last):
                metrics = on_dev()
                log.evaluation(done, metrics)
                snapshots.keep_best(done, metrics)
            if done % args.save_every_step_num == 0 or done == phase.last or stop:
                snapshots.keep_last(done, optimizer)
            if stop:
                raise KeyboardInterrupt(f"{Signals.words()} after step {done}, which is saved. To go on:\n"
                                        f"{resume_command(run.folder)}")
    log.close()
    if not on_dev:
        snapshots.name_last(end)


def resume_command(folder):
    """The command line that goes on with the run in `folder`."""
    words, kept = iter(sys.argv), []
    for word in words:
        if word in ("--model_save_dir", "--resume_from"):
            next(words, None)
        elif not word.startswith(("--model_save_dir=", "--resume_from=")):
            kept.append(word)
    return shlex.join(["python3", *kept, "--resume_from", str(folder / "snapshot_last")])


def prepare_gradients(model):
    """Zeros, not None, where a phase uses no part of the model: in a resumed run as in a whole one. With several ranks
    DistributedDataParallel gives gradients a place of its own, and zeros where they are not used."""
    for parameter in model.parameters():
        parameter.grad = flow.zeros_like(parameter) if ranks() == 1 else None


class StepLog:
    """Writes each step to metrics.jsonl and, every few steps, a line of averages over examples with speed and ETA."""

    def __init__(self, run, every, step, end):
        self.run, self.every, self.end = run, every, end
        self.bar = progress(total=end, initial=step, unit="step")
        self._open(step)

    def _open(self, step):
        self.from_step, self.since, self.examples, self.totals = step, time.monotonic(), 0, {}

    def step(self, step, epoch, phase, rows, rate, values):
        """Takes the numbers of a step, the same in every rank. UserError where one is not finite."""
        if not all(np.isfinite(value) for value in values.values()):
            broken = [name for name, value in values.items() if not np.isfinite(value)]
            raise UserError(f"step {step}: {', '.join(broken)} is not finite, in the batch of the training examples "
                            f"{', '.join(map(str, rows))}: the snapshots of this run stay; start another with a lower --learning_rate.")
        self.run.metric(step=step, epoch=epoch, phase=phase, examples=len(rows), lr=rate, **values)
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value * len(rows)
        self.examples += len(rows)
        self.bar.update()
        if step % self.every == 0 or step == self.end:
            self._line(step, rate)

    def _line(self, step, rate):
        seconds = time.monotonic() - self.since
        speed, eta = self.examples / seconds, (self.end - step) * seconds / (step - self.from_step)
        width = len(str(self.end))
        parts = " | ".join(f"{name} {total / self.examples:.4f}" for name, total in self.totals.items())
        self.run.say(f"step {step:0{width}}/{self.end} | {parts} | lr {rate:.1e} | {speed:.0f} ex/s | eta {duration(eta)}")
        self.run.timing(event="steps", step=step, examples_per_second=round(speed, 2))
        self._open(step)

    def evaluation(self, step, metrics):
        """Takes the metrics on dev after a step."""
        self.run.metric(step=step, dev=metrics)
        self.run.say(f"step {step:0{len(str(self.end))}}/{self.end} | dev {metrics_line(metrics)}")

    def close(self):
        self.bar.close()


class Snapshots:
    """The snapshots of a run: `snapshot_best_<kind>_model_<task>_dev_<accuracy>`, one, named in best.json, and `snapshot_last`.

    Args:
        run, kind: a Run with a folder; "mft" or "student".
        model, tokenizer: what is saved.
        meta: facts for meta.json: task, labels, domains, and the like.
        args: the flags, kept in meta.json; a resumed run must have the same.
        left_out: prefixes of the weights that the best snapshot does without.
    """

    def __init__(self, run, kind, model, tokenizer, meta, args, left_out=()):
        self.run, self.kind, self.model, self.tokenizer, self.left_out = run, kind, model, tokenizer, left_out
        flags = {name: value for name, value in sorted(vars(args).items()) if name not in HARMLESS}
        self.meta, self.step, self.best = {**meta, "ranks": ranks(), "devices": devices(args), "flags": flags}, 0, None

    def resume(self, folder):
        """Goes on where the snapshot_last in `folder`, a ModelFolder, stood. UserError where a flag that decides the run differs."""
        meta, path = folder.meta, folder.path
        ours = json.loads(json.dumps(self.meta))  # as meta.json gives it back: lists for tuples
        # the number of ranks is among them: with another one the dropout masks and the last bits of sums would differ
        for name, value in ours["flags"].items():
            old = meta["flags"].get(name)
            if old != value:
                raise UserError(f"--resume_from {path}: that run had --{name} {old}, this one has {value}: give the same flags.")
        for key, value in ours.items():
            if meta.get(key) != value and key != "flags":
                raise UserError(f"--resume_from {path}: that run had other {key.replace('_', ' ')} than there are now "
                                f"({key} in its meta.json): bring back what it had, or start a new run.")
        self.step, self.best = meta["step"], meta["best"]
        self.run.forget_after(self.step)

    def keep_best(self, step, metrics):
        """Saves the model where its accuracy on dev is above the best so far."""
        if self.best and metrics["accuracy"] <= self.best["accuracy"]:
            return
        name = f"snapshot_best_{self.kind}_model_{self.meta['task']}_dev_{metrics['accuracy']!r}"
        self.best = {"snapshot": name, "step": step, "accuracy": metrics["accuracy"]}
        if rank() == 0:
            save_snapshot(self.run.folder / name, self.model, self.tokenizer, {**self.meta, "step": step, "dev": metrics}, self.left_out)
            write_json(self.run.folder / "best.json", self.best)
            for other in self.run.folder.glob(f"snapshot_best_{self.kind}_model_*"):
                if other.name != name:
                    shutil.rmtree(other)
        barrier()

    def keep_last(self, step, optimizer):
        """Saves model, optimizer and progress, all that a resumed run needs."""
        if rank() == 0:
            save_snapshot(self.run.folder / "snapshot_last", self.model, self.tokenizer,
                          {**self.meta, "step": step, "best": self.best}, optimizer=optimizer_arrays(optimizer, self.model))
        barrier()

    def name_last(self, step):
        """Without an evaluation on dev the last snapshot counts as the best."""
        if rank() == 0:
            write_json(self.run.folder / "best.json", {"snapshot": "snapshot_last", "step": step})
        barrier()


def metrics_line(metrics):
    """Metrics of `inference.evaluate` for a log line, in percent."""
    domains = " ".join(f"{name} {100 * value:.1f}" for name, value in metrics["domains"].items())
    return (f"accuracy {100 * metrics['accuracy']:.2f} | {domains} | domain average {100 * metrics['domain_average']:.2f} | "
            f"macro-F1 {100 * metrics['macro_f1']:.2f}")


def duration(seconds):
    """3m10s, or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"


def run_facts(task, records, domains):
    """What meta.json says of the task, enough to use the model without its data, and of what it was trained on.

    Args:
        records: the Records of the training split; domains: the DomainTable of the run.
    """
    return {"task": task.name, "text": task.text, "labels": task.labels, "domains": task.domains, "seen_domains": domains.seen,
            "seq_length": records.seq_length, "content_sha256": records.content_sha256, "scores": records.scores}


def starting_model(args, task, path, flag):
    """The ModelFolder at `path` that a training script starts from; `flag` names it unless --resume_from does.

    Raises:
        UserError: neither --do_train nor --do_eval; --resume_from names no snapshot_last; without --do_train, a model that was not
            trained for this task.
    """
    if not (args.do_train or args.do_eval):
        raise UserError("neither --do_train nor --do_eval is given, so there is nothing to do: give one or both.")
    folder = read_model(path, "--resume_from" if args.resume_from else flag)
    if args.resume_from and "best" not in (folder.meta or {}):
        raise UserError(f"--resume_from {path}: not a snapshot to resume from; name the snapshot_last of a run.")
    if not args.do_train:
        if folder.meta is None:
            raise UserError(f"{flag} {path}: without --do_train it is evaluated as it is, and this model was not trained here: "
                            "name a snapshot, or give --do_train.")
        check_task(folder.meta, task, path)
    return folder


def open_run(args):
    """The Run of a training script, locked, with the first lines of its log written.

    Its folder is --model_save_dir, or the one of --resume_from, or a new one named after the time.
    Raises:
        UserError: the folder holds a run already, and this is not its resumption.
    """
    if args.resume_from:
        folder = pathlib.Path(args.resume_from).resolve().parent
        if args.model_save_dir and pathlib.Path(args.model_save_dir).resolve() != folder:
            raise UserError(f"--resume_from {args.resume_from}: that run goes on in its own folder, {folder}, and --model_save_dir names "
                            f"{args.model_save_dir}: leave --model_save_dir out.")
    else:
        folder = pathlib.Path(args.model_save_dir) if args.model_save_dir else new_run_folder(of_first(time.time()))
        if (folder / "snapshot_last").exists() and args.do_train:
            raise UserError(f"--model_save_dir {folder}: there is a run in it already: go on with it by "
                            f"--resume_from {folder / 'snapshot_last'}, or name another folder.")
    run = Run(folder)
    if args.do_train and not args.resume_from:
        run.forget_after(0)  # of a run that was stopped before its first snapshot
    for line in (f"run folder: {folder}", *opening_lines(args)):
        run.say(line)
    return run


def describe(run, model, device, splits, task, tokenizer):
    """Logs the model's size, the counts of examples, and the first three training examples as the model sees them."""
    parameters = sum(int(np.prod(parameter.shape)) for parameter in model.parameters())
    counts = ", ".join(f"{len(arrays['label'])} {split}" for split, arrays in splits.items())
    run.say(f"device {device}, {ranks()} rank{'s' * (ranks() > 1)}, {parameters:,} parameters; examples: {counts}; labels {', '.join(task.labels)}; "
            f"domains {', '.join(task.domains)}")
    first = splits["train"]
    for row in range(min(3, len(first["label"]))):
        tokens = tokenizer.convert_ids_to_tokens(first["input_ids"][row][first["input_mask"][row] > 0])
        run.say(f"example {first['idxs'][row].item()}: {task.domains[first['domain'][row].item()]}, {task.labels[first['label'][row].item()]}, "
                f"score {first['weights'][row].item():.4f}: {' '.join(tokens)}")


def test_best(run, folder, model, task, splits, args, domains, device):
    """Evaluates a snapshot on dev and test; writes results.json into the run folder.

    Args:
        folder: the ModelFolder of the snapshot, whose weights `model` takes.
        splits: {"dev": stacked records, "test": stacked records}.
    Returns:
        the content of results.json: snapshot, parameters, bytes of the weights, metrics on dev and test.
    """
    load_weights(model, folder)
    results = {"task": task.name, "snapshot": folder.path.name, "parameters": sum(array.size for array in folder.arrays.values()),
               "bytes": (folder.path / "model.safetensors").stat().st_size}
    for split, arrays in splits.items():
        started = time.monotonic()
        results[split] = evaluate(model, arrays, task, args.eval_batch_size_per_device, domains, device)
        run.timing(event=split, examples_per_second=round(results[split]["examples"] / (time.monotonic() - started), 2))
        run.say(f"{folder.path.name} | {split} {metrics_line(results[split])}")
    if rank() == 0:
        write_json(run.folder / "results.json", results)
    return results


def best_snapshot(run):
    """The ModelFolder of the best snapshot of a run."""
    return read_model(run.folder / read_json(run.folder / "best.json", "the name of the best snapshot")["snapshot"])
