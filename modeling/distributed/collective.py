"""What ranks do together: shares of a batch, averages over examples, sums of arrays. With one rank each is
what it says, at no cost.
"""

import contextlib

import numpy as np

from data.engine import load_oneflow
from util import get_rank, get_world_size, progress

flow = load_oneflow()


def barrier():
    """Waits, without using the core, until every rank is here."""
    if get_world_size() > 1:
        flow.comm.barrier()


def share(rows):
    """The rows of a batch that this rank works on.

    With the rows sorted by length, every rank gets its part of long and short ones.
    """
    return rows[get_rank() :: get_world_size()]


def all_reduce_sum(array, device):
    """The sum over the ranks of arrays of one shape and type; exact where all but one hold zero."""
    if get_world_size() == 1:
        return array
    tensor = flow.tensor(np.ascontiguousarray(array), device=device)
    flow.comm.all_reduce(tensor)
    return tensor.numpy()


def broadcast(number, device="cpu"):
    """The number that rank 0 has, in every rank."""
    return all_reduce_sum(np.array([number if get_rank() == 0 else 0], np.float64), device)[0]


def broadcast_weights(model):
    """Gives the model of every rank the weights that it has in rank 0."""
    if get_world_size() == 1:
        return
    for parameter in model.parameters():
        mine = parameter.numpy()
        found = all_reduce_sum(mine if get_rank() == 0 else np.zeros_like(mine), parameter.device)
        if get_rank() > 0:
            parameter.data.copy_(flow.tensor(found))


class SharedLoss(flow.nn.Module):
    """This rank's share in the loss of a step, so that DistributedDataParallel averages gradients by
    examples, not by ranks.

    Args:
        model: whose gradients the ranks average.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, make_loss, rows, epoch, count):
        """Of `rows`, a part of a batch of `count`: {"loss": scalar that gradients flow from, name of a part:
        scalar}; their mean over the ranks, summed over the parts, is the mean over the batch. A rank without
        an example of an uneven part takes one at weight 0.
        """
        mine = share(rows)
        loss, parts = make_loss(mine if len(mine) else rows[:1], epoch)
        weight = len(mine) * get_world_size() / count
        return {"loss": loss * weight, **{name: part.detach() * weight for name, part in parts.items()}}


def shared_loss(model):
    """A SharedLoss. Where there are several ranks, and the encoder is OneFlow's own,
    it averages gradients over them.
    """
    module = SharedLoss(model)
    if get_world_size() == 1 or model.bert.threads:
        return module
    return flow.nn.parallel.DistributedDataParallel(module)


def all_reduce_gradients(model):
    """Averages the gradients over the ranks, as DistributedDataParallel would,
    which does not see those made in numpy.
    """
    if get_world_size() > 1:
        for parameter in model.parameters():
            flow.comm.all_reduce(parameter.grad)
            parameter.grad /= get_world_size()


def all_reduce_mean(numbers, device):
    """{name: number} -> {name: float}, the mean over the ranks; one exchange for all of them."""
    values = all_reduce_sum(np.array(list(numbers.values()), np.float32), device) / get_world_size()
    return dict(zip(numbers, map(float, values)))


def share_over_ranks(pieces, count, do, what):
    """Has the ranks take turns at numbered pieces of work, and waits until all have done theirs.

    Args:
        pieces: an iterable of Examples, in all `count` records; do: takes (number, block); what: stands
            beside the progress bar.
    Returns:
        how many pieces there were.
    Raises:
        KeyboardInterrupt: the rank was told to stop; the sentence says that what is done is kept.
    """
    number = -1
    with progress(total=count, unit="example", desc=what) as bar:
        try:
            for number, block in enumerate(pieces):
                if number % get_world_size() == get_rank():
                    do(number, block)
                bar.update(len(block))
        except KeyboardInterrupt as stopped:
            raise KeyboardInterrupt(
                f"{stopped} The parts that are done are kept: the same command goes on with them."
            ) from None
    barrier()
    return number + 1


@contextlib.contextmanager
def main_rank_first():
    """Lets rank 0 go through a block before the others do: what it writes there, they read."""
    if get_rank() > 0:
        barrier()
    yield
    if get_rank() == 0:
        barrier()
