"""Which samples a step takes: a function of seed, epoch and step, for any number of processes."""

import signal
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretrain.settings import Settings

Batch = Mapping[str, Tensor]


class Samples(Protocol):
    """A dataset whose samples are functions of its seed, the epoch and their index alone."""

    def __len__(self) -> int:
        """Samples of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Give the samples of this epoch from now on."""

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        """A sample's tensors by name."""


def steps_per_epoch(samples: int, settings: Settings, processes: int) -> int:
    """Optimiser steps of an epoch; samples that do not fill a batch wait for another epoch.

    Raises:
        ValueError: If there are fewer samples than a batch holds, or if the batch does not split
            evenly into processes and parts.
    """
    size, parts = settings.batch_size, settings.accumulate
    if size % (processes * parts):
        raise ValueError(
            f"batch_size is {size}; it must be a multiple of {processes * parts}, "
            f"{processes} processes times {parts} accumulated parts"
        )
    if samples < size:
        raise ValueError(
            f"an epoch has {samples} samples and a batch {size}; lower batch_size or take more "
            "samples an epoch"
        )
    return samples // size


def epoch_batches(
    samples: int, settings: Settings, epoch: int, rank: int = 0, processes: int = 1
) -> list[list[int]]:
    """Indices one process loads in an epoch, shuffled by seed and epoch.

    Every step's batch is the same for any number of processes; each takes its share of it.

    Returns:
        `accumulate` lists for each step of the epoch.
    """
    steps = steps_per_epoch(samples, settings, processes)
    order = np.random.default_rng([settings.seed, epoch]).permutation(samples)
    batches = order[: steps * settings.batch_size].reshape(steps, processes, -1)
    return batches[:, rank].reshape(steps * settings.accumulate, -1).tolist()


def load(
    dataset: Samples, batches: list[list[int]], workers: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of these indices, in order, in memory the device can fetch from."""
    loader: DataLoader[Any] = DataLoader(
        cast("Dataset[Any]", dataset),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_interrupts_to_the_trainer,
    )
    return iter(loader)


def seed_of(*numbers: int) -> int:
    """One seed from several numbers; other numbers give another one."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _leave_interrupts_to_the_trainer(worker: int) -> None:
    """Let Ctrl-C, which reaches every process of a terminal, end the step before the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
