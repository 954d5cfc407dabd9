"""HyMamba in nnU-Net, at the paper's widths."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from nnunet_plugins.mamba_trainer import MambaTrainer
from nnunet_plugins.networks import HyMamba
from nnunet_plugins.networks.hymamba import PAPER_WIDTHS, stage_widths


class HyMambaTrainer(MambaTrainer):
    """nnU-Net training of HyMamba with the paper's widths, for GPUs.

    Plan with `-pl HyMambaPlanner` and train with `-p nnUNetHyMambaPlans` for patches and batches
    that fit the memory of a GPU; any other 2d or 3d plans work as they are.
    """

    network_class: ClassVar[type[nn.Module]] = HyMamba
    widths: ClassVar[Sequence[int]] = PAPER_WIDTHS
    """Channels of each stage, finest first; the last is repeated for deeper plans."""

    @classmethod
    def network_arguments(cls, architecture: dict[str, Any]) -> dict[str, Any]:
        """The plan's stages, at this trainer's widths."""
        arguments = super().network_arguments(architecture)
        widths = stage_widths(cls.widths, len(arguments["strides"]))
        return arguments | {"features_per_stage": widths}
