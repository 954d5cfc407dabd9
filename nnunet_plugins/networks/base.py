"""What every segmentation network of volumes has in common: its refusals."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_plugins.networks.weights import fit


def plain(x: Tensor) -> Tensor:
    """The same values without what a subclass of tensors carries along, and overrides.

    A tracer's own subclass stays: torch.export records by it.
    """
    return x if type(x) is Tensor or torch.compiler.is_compiling() else x.as_subclass(Tensor)


class SegmentationNetwork(nn.Module):
    """A network from images to class logits that says clearly what it cannot take.

    Args:
        input_channels: Channels of the image, one per modality.
        strides: Down-sampling along each axis of every stage, as in nnU-Net's plans.
    """

    def __init__(self, input_channels: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.divisor = tuple(prod(axis) for axis in zip(*strides, strict=True))

    def checked(self, x: Tensor) -> Tensor:
        """The image as a plain tensor, also of MONAI's subclass; refuses what cannot be taken.

        Raises:
            ValueError: If the axes, the channels or the grid do not fit.
        """
        name, axes = type(self).__name__, len(self.divisor)
        if x.ndim != axes + 2:
            raise ValueError(
                f"{name} takes (batch, channels, {axes} grid axes), got shape {tuple(x.shape)}"
            )
        if x.shape[1] != self.input_channels:
            raise ValueError(
                f"the image has {x.shape[1]} channels and this {name} was built for "
                f"{self.input_channels}; give one file per channel, as in its training set"
            )
        if any(size % d or size == 0 for size, d in zip(x.shape[2:], self.divisor, strict=True)):
            raise ValueError(
                f"grid {tuple(x.shape[2:])} cannot be divided by {self.divisor}, the product of "
                f"the strides of {name}; pad each axis to a multiple or build it with fewer strides"
            )
        return plain(x)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights as torch does; a strict misfit is one sentence and changes nothing.

        Raises:
            RuntimeError: If `strict` and the state dict is not of this network.
        """
        report = fit(self, state_dict)
        if strict and not report.complete:
            raise RuntimeError(
                f"these weights are not of this {type(self).__name__}: {report}; give the "
                "checkpoint of the same trainer and plans"
            )
        return super().load_state_dict(state_dict, strict, assign)
