"""The log of a training loop: metrics of each step in metrics.jsonl, and a line every few steps."""

import time

import numpy as np

from util import UserError, progress


class StepLog:
    """Writes each step to metrics.jsonl and, every few steps, a line of averages with speed and ETA."""

    def __init__(self, run, every, step, end):
        self.run, self.every, self.end = run, every, end
        self.bar = progress(total=end, initial=step, unit="step")
        self._open(step)

    def _open(self, step):
        self.from_step, self.since, self.examples, self.totals = step, time.monotonic(), 0, {}

    def step(self, step, epoch, phase, idxs, rate, values):
        """Takes the numbers of a step over the examples `idxs`, the same in every rank. UserError where one
        is not finite.
        """
        if not all(np.isfinite(value) for value in values.values()):
            broken = [name for name, value in values.items() if not np.isfinite(value)]
            raise UserError(
                f"step {step}: {', '.join(broken)} is not finite, in the batch of the training examples "
                f"{', '.join(map(str, idxs))}: the snapshots of this run stay; start another with a lower "
                "--learning_rate."
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
            f"step {step:0{width}}/{self.end} | {parts} | lr {rate:.1e} | {speed:.0f} ex/s | eta "
            f"{duration(eta)}"
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
        f"accuracy {100 * metrics['accuracy']:.2f} | {domains} | domain average "
        f"{100 * metrics['domain_average']:.2f} | macro-F1 {100 * metrics['macro_f1']:.2f}"
    )


def duration(seconds):
    """3m10s, or 2h05m."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes >= 60 else f"{minutes}m{seconds:02}s"
