"""How a process leaves its group, as it must before Python ends."""

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401, imported later, it would hold the group in its defaults
from torch import nn


def leave_group(network: nn.Module) -> None:
    """Destroy the process group, if there is one, with the threads that served it.

    Gloo's threads let go of Python objects some time after a reduction is done, and torch aborts
    if Python ends before. Only when nothing holds the group any more are they waited for.

    Args:
        network: Has been trained. If a `DistributedDataParallel`, only what it wraps can be used
            afterwards.
    """
    if isinstance(network, nn.parallel.DistributedDataParallel):
        del network.reducer, network.logger, network.process_group
    if dist.is_initialized():
        dist.destroy_process_group()
