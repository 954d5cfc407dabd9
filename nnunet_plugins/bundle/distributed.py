"""Several processes for `torchrun`: NCCL where there are GPUs, Gloo on CPUs."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn

from nnunet_plugins.bundle.training import KeepBest, KeepTraining, Pretrained, is_first_process

EVERYWHERE = (ValidationHandler, LrScheduleHandler, Pretrained, KeepTraining, KeepBest)
"""Handlers of all processes; the others only report, which the first one does."""


def process_device() -> torch.device:
    """Device of this process; joins the others on the first call.

    Raises:
        RuntimeError: If this process was not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise RuntimeError(
            "multi_gpu_train.json is for several processes; start it with torchrun "
            "--standalone --nproc_per_node=2 -m monai.bundle run ..."
        )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return device


def distributed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with averaged gradients; coarse heads without supervision have none."""
    return nn.parallel.DistributedDataParallel(
        network.to(device),
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=True,
    )


def handlers_here(handlers: Sequence[Any]) -> list[Any]:
    """Of these handlers, those for this process."""
    return [h for h in handlers if is_first_process() or isinstance(h, EVERYWHERE)]
