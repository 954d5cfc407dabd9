"""Networks of a bundle that are more than one class with its arguments."""

from collections.abc import Sequence

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

from nnunet_plugins.bundle.plan import Plan


class FoldEnsemble(nn.Module):
    """Networks of several folds as one, with one state dict.

    `NNUNetInferer` runs its members one after the other over whole volumes, as nnU-Net does.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Mean of the members' logits: (b, c, d, h, w) -> (b, k, d, h, w)."""
        return torch.stack([member(x) for member in self.members]).mean(0)


def network_of_trainer(trainer: str, plan: Plan) -> nn.Module:
    """The network that an nnU-Net trainer builds for prediction.

    Raises:
        ValueError: If there is no such trainer here.
    """
    cls = recursive_find_trainer_class_by_name(trainer)
    if cls is None:
        raise ValueError(f"nnU-Net finds no trainer {trainer!r} here; install where it comes from")
    return cls.build_network_architecture(
        plan.plans,
        plan.configuration,
        len(plan.channels),
        plan.outputs,
        enable_deep_supervision=False,
    )
