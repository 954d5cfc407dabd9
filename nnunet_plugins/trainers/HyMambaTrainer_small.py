"""HyMamba in nnU-Net, small enough to be trained on a CPU."""

from collections.abc import Sequence
from typing import ClassVar

from nnunet_plugins.mamba_trainer import SHORT_EPOCHS
from nnunet_plugins.networks.hymamba import SMALL_WIDTHS
from nnunet_plugins.trainers.HyMambaTrainer import HyMambaTrainer


class HyMambaTrainer_small(HyMambaTrainer):
    """Small HyMamba, short epochs, batches of two: for CPUs and small data.

    1.2 to 3.5 million parameters on plans of four to six stages.
    """

    hyperparameters: ClassVar[dict[str, float]] = (
        HyMambaTrainer.hyperparameters | SHORT_EPOCHS | {"initial_lr": 3e-3}
    )
    max_batch_size: ClassVar[int | None] = 2
    widths: ClassVar[Sequence[int]] = SMALL_WIDTHS
