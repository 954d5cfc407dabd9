"""Vivim in nnU-Net, at the paper's size."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from nnunet_plugins.clip_trainer import ClipTrainer
from nnunet_plugins.losses import VivimLoss, default_regressor
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.layers.segformer import MIT


class VivimTrainer(ClipTrainer):
    """nnU-Net training of Vivim with the boundary-aware affine constraint, for GPUs.

    Plan with `-pl VivimPlanner` and train with `-p nnUNetVivimPlans`. The loss is the paper's
    Eq. 9: cross-entropy and IoU, 0.3 affine constraint, 0.3 boundary.
    """

    hyperparameters: ClassVar[dict[str, float]] = ClipTrainer.hyperparameters | {"initial_lr": 1e-4}
    network_class: ClassVar[type[nn.Module]] = Vivim
    sizes: ClassVar[Sequence[str]] = tuple(MIT)
    network_options: ClassVar[dict[str, Any]] = {"boundary_layers": 3}

    def _build_loss(self) -> nn.Module:
        """Eq. 9 of the paper; in validation the segmentation term alone."""
        labels = self.label_manager
        loss = VivimLoss(
            default_regressor(),
            num_classes=labels.num_segmentation_heads,
            ignore_label=labels.ignore_label,
        )
        return loss.to(self.device)
