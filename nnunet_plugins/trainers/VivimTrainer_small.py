"""Vivim in nnU-Net, small enough to be trained on a CPU."""

from collections.abc import Sequence
from typing import Any, ClassVar

from nnunet_plugins.mamba_trainer import SHORT_EPOCHS
from nnunet_plugins.networks.vivim import SMALL
from nnunet_plugins.trainers.VivimTrainer import VivimTrainer


class VivimTrainer_small(VivimTrainer):
    """Small Vivim, short epochs, two clips of at most five frames a step: for CPUs."""

    hyperparameters: ClassVar[dict[str, float]] = (
        VivimTrainer.hyperparameters | SHORT_EPOCHS | {"initial_lr": 1e-3}
    )
    sizes: ClassVar[Sequence[str]] = ()
    max_batch_size: ClassVar[int | None] = 2
    max_frames: ClassVar[int | None] = 5
    network_options: ClassVar[dict[str, Any]] = VivimTrainer.network_options | SMALL
