"""EndoMamba in nnU-Net, at the published size."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from nnunet_plugins.clip_trainer import ClipTrainer
from nnunet_plugins.networks import EndoMamba


class EndoMambaTrainer(ClipTrainer):
    """nnU-Net training of EndoMamba's segmentation with nnU-Net's loss, for GPUs.

    Plan with `-pl EndoMambaPlanner` and train with `-p nnUNetEndoMambaPlans`. A frame is segmented
    by what came before it alone, so what is trained here also streams.
    """

    hyperparameters: ClassVar[dict[str, float]] = ClipTrainer.hyperparameters | {"initial_lr": 1e-4}
    network_class: ClassVar[type[nn.Module]] = EndoMamba
    sizes: ClassVar[Sequence[str]] = ("tiny", "middle")
