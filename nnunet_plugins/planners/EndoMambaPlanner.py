"""nnU-Net plans for training EndoMamba on video."""

from typing import ClassVar

from torch import nn

from nnunet_plugins.clip_planner import ClipPlanner
from nnunet_plugins.networks import EndoMamba


class EndoMambaPlanner(ClipPlanner):
    """Clips of whole frames whose training step fits a GPU; plans nnUNetEndoMambaPlans."""

    network_class: ClassVar[type[nn.Module]] = EndoMamba
    plans_name: ClassVar[str] = "nnUNetEndoMambaPlans"

    @classmethod
    def build_network(cls, channels: int, classes: int) -> nn.Module:
        """EndoMamba at the published size, with its segmentation head."""
        return EndoMamba(channels, classes)
