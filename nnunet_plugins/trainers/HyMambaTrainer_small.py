"""HyMamba in nnU-Net, small enough to be trained on a CPU."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.trainers.HyMambaTrainer import HyMambaTrainer


class HyMambaTrainer_small(HyMambaTrainer):
    """Small HyMamba, short epochs, small batches: for CPUs and small data.

    1.2 to 3.5 million parameters on plans of four to six stages. The batch of 3-D plans is cut to
    two patches, and the results' plans say so.
    """

    hyperparameters: ClassVar[dict[str, float]] = HyMambaTrainer.hyperparameters | {
        "initial_lr": 3e-3,
        "num_epochs": 50,
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 10,
        "save_every": 1,
    }
    widths: ClassVar[Sequence[int]] = (16, 16, 32, 64, 80)
    max_batch_size: ClassVar[int] = 2

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's own signature
    ) -> None:
        planned = PlansManager(plans).get_configuration(configuration)
        if len(planned.patch_size) == 3:
            batch_size = min(planned.batch_size, self.max_batch_size)
            plans["configurations"][configuration]["batch_size"] = batch_size
        super().__init__(plans, configuration, fold, dataset_json, device)
