"""HyMamba in nnU-Net, small enough to be trained on a CPU."""

from collections.abc import Sequence
from typing import ClassVar

from nnunet_plugins.networks.hymamba import SMALL_WIDTHS
from nnunet_plugins.trainers.HyMambaTrainer import HyMambaTrainer


class HyMambaTrainer_small(HyMambaTrainer):
    """Small HyMamba, short epochs, batches of two: for CPUs and small data.

    1.2 to 3.5 million parameters on plans of four to six stages.
    """

    hyperparameters: ClassVar[dict[str, float]] = HyMambaTrainer.hyperparameters | {
        "initial_lr": 3e-3,
        "num_epochs": 50,
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 10,
        "save_every": 1,
    }
    max_batch_size: ClassVar[int | None] = 2
    widths: ClassVar[Sequence[int]] = SMALL_WIDTHS
