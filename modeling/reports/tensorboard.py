"""TensorBoard event files, where one of the two packages that write them is installed."""


class Board:
    """The numbers of metrics.jsonl as scalars of TensorBoard in the folder `log_dir`.

    Event files have times in them, and a run that is resumed adds a file: what was written of its later steps
    before is hidden by it.
    """

    def __init__(self, log_dir):
        self.log_dir, self._writer = log_dir, None

    def add(self, step, **values):
        """Takes a line of metrics.jsonl."""
        if self._writer is None:
            self._writer = _writer_class()(self.log_dir, purge_step=step)
        for name, value in _numbers(values if "dev" in values else {"train": values}):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def _writer_class():
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


def _numbers(values, prefix=""):
    """Yields (name, number) of nested values, {"dev": {"accuracy": 0.5}} as dev/accuracy."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value
