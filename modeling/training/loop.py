"""The one training loop, of stages 2 and 4."""

import math
import time
from typing import Callable, NamedTuple

import numpy as np

from data.batches import as_examples, epoch_batches
from modeling.distributed.collective import all_reduce_gradients, all_reduce_mean, share, shared_loss
from modeling.distributed.launch import devices
from modeling.snapshots.folder import read_optimizer
from modeling.training.optimization import (
    learning_rate_at,
    make_optimizer,
    restore_optimizer,
    set_learning_rate,
)
from util import Signals, UserError, get_rank, get_world_size, load_oneflow, progress

flow = load_oneflow()


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
    return [
        Phase("intermediate", 0, change, first_loss, selects=False),
        Phase("prediction", change, end, second_loss),
    ]


def one_phase(args, N, loss):
    """A run over N examples with one loss from beginning to end, by --num_epochs or --max_steps."""
    return [Phase("joint", 0, args.max_steps or args.num_epochs * math.ceil(N / batch_size(args)), loss)]


def batch_size(args):
    """Examples of a training step, over all devices and ranks, and all batches whose gradients it adds up."""
    return args.batch_size_per_device * devices(args) * args.gradient_accumulation_steps


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # StepLog.step tells what is not finite
def train(model, examples, phases, args, run, snapshots, on_dev=None):
    """Trains `model` in place, from the step where `snapshots` stands to the end of the last phase, or until dev is no better for long.

    Args:
        model: a DomainClassifier.
        examples: the training Examples, N of them.
        phases: one Phase after the other; none but the last selects.
        on_dev: gives the metrics on dev; None: no evaluation, and the last snapshot counts as the best.
    Raises:
        UserError: a loss or gradient that is not finite; the snapshots stay as they were. KeyboardInterrupt: the run was told to
            stop, and has saved.
    """
    examples = as_examples(examples)
    size, end, idxs = batch_size(args), phases[-1].last, examples["idxs"]
    steps_per_epoch = math.ceil(len(idxs) / size)
    log, batches = StepLog(run, args.log_every_step_num, snapshots.step, end), None
    model.train()
    share_of_loss, device = shared_loss(model), next(model.parameters()).device
    for phase in phases:
        if snapshots.step >= phase.last or should_stop_early(snapshots.best, snapshots.step, args):
            continue
        optimizer = make_optimizer(model, args.learning_rate, args.weight_decay_rate, model.bert.threads)
        if snapshots.step > phase.first:
            restore_optimizer(optimizer, read_optimizer(args.resume_from), snapshots.step - phase.first)
        for step in range(max(snapshots.step, phase.first), phase.last):
            epoch, position = divmod(step, steps_per_epoch)
            if position == 0 or batches is None:
                batches = epoch_batches(examples.lengths, size, args.seed, epoch)
            rate = learning_rate_at(
                step - phase.first,
                phase.last - phase.first,
                args.warmup_proportion,
                args.learning_rate,
                args.lr_schedule,
            )
            set_learning_rate(optimizer, rate)
            if position + 1 < len(batches):
                examples.prefetch(share(batches[position + 1]))
            model.masks.open_step(args.seed, step, get_rank(), get_world_size())

            values = accumulate_gradients(
                share_of_loss, phase.loss, batches[position], epoch, args, model, optimizer
            )
            norm = optimizer.clip(args.max_grad_norm)
            optimizer.step()

            done = step + 1
            values = {name: value.item() for name, value in values.items()}
            values = all_reduce_mean({**values, "gradient_norm": norm, "stop": bool(Signals.asked)}, device)
            stop = values.pop("stop") > 0  # some rank was told to
            log.step(done, epoch, phase.name, idxs[batches[position]], rate, values)
            if on_dev and phase.selects and (done % args.eval_every_step_num == 0 or done == phase.last):
                metrics = on_dev()
                log.evaluation(done, metrics)
                snapshots.save_best(done, metrics)
            enough = should_stop_early(snapshots.best, done, args)
            if done % args.save_every_step_num == 0 or done == phase.last or stop or enough:
                snapshots.save_last(done, optimizer)
            if stop:
                raise KeyboardInterrupt(
                    f"{Signals.words()} after step {done}, which is saved. To go on:\n{snapshots.resume_command()}"
                )
            if enough:
                run.log(
                    f"no better {args.select_by.replace('_', ' ')} on dev in {args.early_stopping_patience} evaluations: "
                    f"the run ends with step {done}"
                )
                break
    log.close()
    if not on_dev:
        snapshots.name_last(end)


def should_stop_early(best, step, args):
    """Whether --early_stopping_patience evaluations or more, up to that of `step`, came after the `best` one: {"step", ...}, or None.

    It is a function of what snapshot_last holds, so that a resumed run ends where a whole one does.
    """
    if not (args.early_stopping_patience and best):
        return False
    return (
        step // args.eval_every_step_num - best["step"] // args.eval_every_step_num
        >= args.early_stopping_patience
    )


def accumulate_gradients(share_of_loss, make_loss, rows, epoch, args, model, optimizer):
    """Puts the gradients of a step's mean loss in place of those before: zeros, not None, where a phase uses no part of the model, in a
    resumed run as in a whole one.

    The `rows` are worked on in the batches of --gradient_accumulation_steps, one after the other, each weighted by its examples and
    with dropout masks of its own. DistributedDataParallel gives gradients a place of their own, and would go on adding to them if
    they were set to None; what it has averaged before, the same in all ranks, it leaves as it is.
    Returns:
        this rank's share in the loss and its parts, {name: scalar without gradient}.
    """
    optimizer.zero_grad(set_to_none=get_world_size() == 1 or bool(model.bert.threads))
    size, values = batch_size(args) // args.gradient_accumulation_steps, {}
    for start in range(0, len(rows), size):
        part = share_of_loss(make_loss, rows[start : start + size], epoch, len(rows))
        part["loss"].backward()
        values = {
            name: values[name] + value.detach() if values else value.detach() for name, value in part.items()
        }
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = flow.zeros_like(parameter)
    if model.bert.threads:
        all_reduce_gradients(model)
    return values


class StepLog:
    """Writes each step to metrics.jsonl and, every few steps, a line of averages over examples with speed and ETA."""

    def __init__(self, run, every, step, end):
        self.run, self.every, self.end = run, every, end
        self.bar = progress(total=end, initial=step, unit="step")
        self._open(step)

    def _open(self, step):
        self.from_step, self.since, self.examples, self.totals = step, time.monotonic(), 0, {}

    def step(self, step, epoch, phase, idxs, rate, values):
        """Takes the numbers of a step over the examples `idxs`, the same in every rank. UserError where one is not finite."""
        if not all(np.isfinite(value) for value in values.values()):
            broken = [name for name, value in values.items() if not np.isfinite(value)]
            raise UserError(
                f"step {step}: {', '.join(broken)} is not finite, in the batch of the training examples "
                f"{', '.join(map(str, idxs))}: the snapshots of this run stay; start another with a lower --learning_rate."
            )
        self.run.metric(step=step, epoch=epoch, phase=phase, examples=len(idxs), lr=rate, **values)
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value * len(idxs)
        self.examples += len(idxs)
        self.bar.update()
        if step % self.every == 0 or step == self.end:
            self._line(step, rate)

    def _line(self, step, rate):
        seconds = time.monotonic() - self.since
        speed, eta = self.examples / seconds, (self.end - step) * seconds / (step - self.from_step)
        width = len(str(self.end))
        parts = " | ".join(f"{name} {total / self.examples:.4f}" for name, total in self.totals.items())
        self.run.log(
            f"step {step:0{width}}/{self.end} | {parts} | lr {rate:.1e} | {speed:.0f} ex/s | eta {duration(eta)}"
        )
        self.run.timing(event="steps", step=step, examples_per_second=round(speed, 2))
        self._open(step)

    def evaluation(self, step, metrics):
        """Takes the metrics on dev after a step."""
        self.run.metric(step=step, dev=metrics)
        self.run.log(f"step {step:0{len(str(self.end))}}/{self.end} | dev {metrics_line(metrics)}")

    def close(self):
        self.bar.close()


def metrics_line(metrics):
    """Metrics of `inference.evaluate` for a log line, in percent."""
    domains = " ".join(f"{name} {100 * value:.1f}" for name, value in metrics["domains"].items())
    return (
        f"accuracy {100 * metrics['accuracy']:.2f} | {domains} | domain average {100 * metrics['domain_average']:.2f} | "
        f"macro-F1 {100 * metrics['macro_f1']:.2f}"
    )


def duration(seconds):
    """3m10s, or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"
