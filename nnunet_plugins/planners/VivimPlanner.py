"""nnU-Net plans for training Vivim on video."""

from typing import ClassVar

from torch import nn

from nnunet_plugins.clip_planner import ClipPlanner
from nnunet_plugins.networks import Vivim


class VivimPlanner(ClipPlanner):
    """Clips of whole frames whose training step with Vivim fits a GPU; plans nnUNetVivimPlans."""

    network_class: ClassVar[type[nn.Module]] = Vivim
    plans_name: ClassVar[str] = "nnUNetVivimPlans"

    @classmethod
    def build_network(cls, channels: int, classes: int) -> nn.Module:
        """Vivim at the paper's size, with its boundary head."""
        return Vivim(channels, classes, boundary_layers=3)
