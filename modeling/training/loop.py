"""The one training loop, of stages 2 and 4."""

import math
from typing import Callable, NamedTuple, Optional

import numpy as np

from data.batches import as_examples, epoch_batches
from data.engine import load_oneflow
from modeling.distributed.collective import all_reduce_gradients, all_reduce_mean, share, shared_loss
from modeling.snapshots.folder import read_optimizer
from modeling.training.optimization import (
    learning_rate_at,
    make_optimizer,
    restore_optimizer,
    set_learning_rate,
)
from modeling.training.step_log import StepLog
from util import Signals, get_rank, get_world_size

flow = load_oneflow()


class Phase(NamedTuple):
    """A stretch of training with an optimizer and a schedule of its own.

    name: stands in the log.
    first, last: its steps, first <= step < last.
    loss: takes (rows of the training arrays, epoch) to (the loss to go down, {name of a part: its batch
        mean}), scalar tensors.
    selects: whether the best snapshot may come from it.
    """

    name: str
    first: int
    last: int
    loss: Callable
    selects: bool = True


class TrainingOptions(NamedTuple):
    """The flags of the training loop, and what follows from them.

    batch_size: examples of a step, over all devices and ranks, and all batches whose gradients it adds up.
    """

    batch_size: int
    gradient_accumulation_steps: int
    num_epochs: int
    max_steps: Optional[int]
    learning_rate: float
    lr_schedule: str
    warmup_proportion: float
    weight_decay_rate: float
    max_grad_norm: float
    seed: int
    log_every_step_num: int
    eval_every_step_num: int
    save_every_step_num: int
    early_stopping_patience: Optional[int]
    select_by: str
    resume_from: Optional[str]
    intermediate_epochs: int = 0


def two_phases(options, N, first_loss, second_loss):
    """The phases of a run over N examples: `first_loss` for --intermediate_epochs, then `second_loss`.

    The second alone selects the best snapshot.
    """
    steps = math.ceil(N / options.batch_size)
    change, end = options.intermediate_epochs * steps, options.num_epochs * steps
    return [
        Phase("intermediate", 0, change, first_loss, selects=False),
        Phase("prediction", change, end, second_loss),
    ]


def one_phase(options, N, loss):
    """A run over N examples with one loss from beginning to end, by --num_epochs or --max_steps."""
    steps = options.max_steps or options.num_epochs * math.ceil(N / options.batch_size)
    return [Phase("joint", 0, steps, loss)]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # StepLog.step tells what is not finite
def train(model, examples, phases, options, run, snapshots, on_dev=None):
    """Trains `model` in place, from the step where `snapshots` stands to the end of the last phase, or until
    dev is no better for long.

    Args:
        model: a DomainClassifier.
        examples: the training Examples, N of them.
        phases: one Phase after the other; none but the last selects.
        options: TrainingOptions.
        on_dev: gives the metrics on dev; None: no evaluation, and the last snapshot counts as the best.
    Raises:
        UserError: a loss or gradient that is not finite; the snapshots stay as they were.
        KeyboardInterrupt: the run was told to stop, and has saved.
    """
    log = StepLog(run, options.log_every_step_num, snapshots.step, phases[-1].last)
    trainer = Trainer(model, as_examples(examples), options, log)
    model.train()
    for phase in phases:
        if snapshots.step < phase.last and not should_stop_early(snapshots.best, snapshots.step, options):
            train_phase(trainer, phase, snapshots, on_dev)
    log.close()
    if not on_dev:
        snapshots.name_last(phases[-1].last)


def train_phase(trainer, phase, snapshots, on_dev):
    """The steps of one Phase that are left, with evaluations and snapshots; see `train`."""
    options, log = trainer.options, trainer.log
    optimizer = trainer.start(phase, snapshots.step)
    for step in range(max(snapshots.step, phase.first), phase.last):
        # one step: gradients of the batch, clipping, AdamW, a line in the log
        stop, done = trainer.step(phase, step, optimizer), step + 1
        last = done == phase.last

        # dev chooses the best snapshot
        if on_dev and phase.selects and (done % options.eval_every_step_num == 0 or last):
            metrics = on_dev()
            log.evaluation(done, metrics)
            snapshots.save_best(done, metrics)

        # snapshot_last, from which a run goes on
        enough = should_stop_early(snapshots.best, done, options)
        if done % options.save_every_step_num == 0 or last or stop or enough:
            snapshots.save_last(done, optimizer)
        if stop:
            raise KeyboardInterrupt(
                f"{Signals.words()} after step {done}, which is saved. To go on:\n"
                f"{snapshots.resume_command()}"
            )
        if enough:
            log.run.log(
                f"no better {options.select_by.replace('_', ' ')} on dev in "
                f"{options.early_stopping_patience} evaluations: the run ends with step {done}"
            )
            break


class Trainer:
    """The steps of a run: which examples a step takes, its gradients, and what the optimizer makes of them.

    Args:
        model, examples, options: as of `train`; log: the StepLog.
    """

    def __init__(self, model, examples, options, log):
        self.model, self.examples, self.options, self.log = model, examples, options, log
        self.idxs, self.device = examples["idxs"], next(model.parameters()).device
        self.steps_per_epoch = math.ceil(len(self.idxs) / options.batch_size)
        self.share_of_loss, self.batches = shared_loss(model), None

    def start(self, phase, done):
        """The optimizer of a phase, of which the run has made the steps up to `done`."""
        options, model = self.options, self.model
        optimizer = make_optimizer(
            model, options.learning_rate, options.weight_decay_rate, model.bert.threads
        )
        if done > phase.first:
            restore_optimizer(optimizer, read_optimizer(options.resume_from), done - phase.first)
        return optimizer

    def step(self, phase, step, optimizer):
        """Makes the step `step` of all, counted from 0. Returns whether some rank was told to stop."""
        options = self.options
        epoch, rows = self.open_batch(step)
        rate = learning_rate_at(
            step - phase.first,
            phase.last - phase.first,
            options.warmup_proportion,
            options.learning_rate,
            options.lr_schedule,
        )
        set_learning_rate(optimizer, rate)
        self.model.masks.open_step(options.seed, step, get_rank(), get_world_size())

        values = accumulate_gradients(
            self.share_of_loss, phase.loss, rows, epoch, options, self.model, optimizer
        )
        norm = optimizer.clip(options.max_grad_norm)
        optimizer.step()

        values = {name: value.item() for name, value in values.items()}
        values = all_reduce_mean({**values, "gradient_norm": norm, "stop": bool(Signals.asked)}, self.device)
        stop = values.pop("stop") > 0
        self.log.step(step + 1, epoch, phase.name, self.idxs[rows], rate, values)
        return stop

    def open_batch(self, step):
        """(epoch, the rows of the batch of `step`); those of the next one are read ahead."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if position == 0 or self.batches is None:
            self.batches = epoch_batches(
                self.examples.lengths, self.options.batch_size, self.options.seed, epoch
            )
        if position + 1 < len(self.batches):
            self.examples.prefetch(share(self.batches[position + 1]))
        return epoch, self.batches[position]


def should_stop_early(best, step, options):
    """Whether --early_stopping_patience evaluations or more, up to that of `step`, came after the `best` one:
    {"step", ...}, or None.

    It is a function of what snapshot_last holds, so that a resumed run ends where a whole one does.
    """
    if not (options.early_stopping_patience and best):
        return False
    every = options.eval_every_step_num
    return step // every - best["step"] // every >= options.early_stopping_patience


def accumulate_gradients(share_of_loss, make_loss, rows, epoch, options, model, optimizer):
    """Puts the gradients of a step's mean loss in place of those before: zeros, not None, where a phase uses
    no part of the model, in a resumed run as in a whole one.

    The `rows` are worked on in the batches of --gradient_accumulation_steps, one after the other, each
    weighted by its examples and with dropout masks of its own. DistributedDataParallel gives gradients a
    place of their own, and would go on adding to them if they were set to None; what it has averaged before,
    the same in all ranks, it leaves as it is.

    Returns:
        this rank's share in the loss and its parts, {name: scalar without gradient}.
    """
    optimizer.zero_grad(set_to_none=get_world_size() == 1 or bool(model.bert.threads))
    size, values = options.batch_size // options.gradient_accumulation_steps, {}
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
