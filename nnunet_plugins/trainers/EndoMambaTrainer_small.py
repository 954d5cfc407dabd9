"""EndoMamba in nnU-Net, small enough to be trained on a CPU."""

from collections.abc import Sequence
from typing import Any, ClassVar

from nnunet_plugins.mamba_trainer import SHORT_EPOCHS
from nnunet_plugins.networks.endomamba import SMALL
from nnunet_plugins.trainers.EndoMambaTrainer import EndoMambaTrainer


class EndoMambaTrainer_small(EndoMambaTrainer):
    """Small EndoMamba, short epochs, two clips of at most eight frames a step: for CPUs."""

    hyperparameters: ClassVar[dict[str, float]] = (
        EndoMambaTrainer.hyperparameters | SHORT_EPOCHS | {"initial_lr": 1e-3}
    )
    sizes: ClassVar[Sequence[str]] = ()
    max_batch_size: ClassVar[int | None] = 2
    max_frames: ClassVar[int | None] = 8
    network_options: ClassVar[dict[str, Any]] = EndoMambaTrainer.network_options | SMALL
