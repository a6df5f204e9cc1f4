"""How many ranks share the work, by the flags and the devices that there are."""

import pathlib
from typing import NamedTuple, Optional

from data.engine import load_oneflow
from util import UserError, read_json

flow = load_oneflow()

MOST = 1024  # ranks of one machine; a snapshot that says more is broken


class RankOptions(NamedTuple):
    """The flags that say how many ranks share the work, and where they meet."""

    device: str = "auto"
    gpu_num_per_node: int = 1
    cpu_processes: Optional[int] = None
    num_nodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: Optional[int] = None
    network_timeout: float = 120.0
    resume_from: Optional[str] = None


def count_devices(device: str, gpu_num_per_node: int, num_nodes: int) -> int:
    """How many batches of --batch_size_per_device a step takes: one for a GPU, or the CPUs of a machine."""
    return num_nodes * (gpu_num_per_node if _on_gpus(device) else 1)


def _on_gpus(device):
    return device == "cuda" or device == "auto" and flow.cuda.is_available()


def local_ranks(options: RankOptions) -> int:
    """How many ranks this machine takes part with."""
    gpus, nodes = options.gpu_num_per_node, options.num_nodes
    if options.node_rank >= nodes:
        raise UserError(f"--node_rank {options.node_rank}: of --num_nodes {nodes} the last is {nodes - 1}.")
    if _on_gpus(options.device):
        if gpus > flow.cuda.device_count():
            raise UserError(f"--gpu_num_per_node {gpus}: OneFlow finds {flow.cuda.device_count()} GPUs here.")
        return gpus
    if gpus > 1:
        raise UserError(
            f"--gpu_num_per_node {gpus}: there is no GPU to run on; --cpu_processes is the flag for CPUs."
        )
    if options.resume_from:
        return _resumed_ranks(options)
    return options.cpu_processes or 1


def _resumed_ranks(options):
    """The ranks of the run that --resume_from names, on this machine; what is wrong with the snapshot is said
    where it is read.
    """
    folder = options.resume_from
    try:
        meta = read_json(pathlib.Path(folder, "meta.json"), "the description of the snapshot")
        total = meta["ranks"]
        local = max(1, int(total) // options.num_nodes)
    except (UserError, KeyError, TypeError, ValueError):
        return 1
    if local > MOST:
        return 1
    if options.cpu_processes not in (None, local):
        raise UserError(
            f"--resume_from {folder}: that run had {total} ranks, and with --cpu_processes "
            f"{options.cpu_processes} it would become another one: leave the flag out."
        )
    return local
