"""Hierarchical decoding: from the features of every stage back to the volume.

Source: Tang et al., "MambaMIM", Medical Image Analysis 2025, arXiv:2408.08070, Algorithm 2.
"""

from collections.abc import Sequence

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from nnunet_plugins.networks.layers.convolution import conv

NORMS = {"instance": ("instance", {"affine": True}), "batch": "batch"}


class ReconstructionDecoder(nn.Module):
    """A volume from one feature map a stage, the coarsest grid first.

    Args:
        channels: Channels of each stage's features, coarsest first; None where a stage has none,
            and the features of the next coarser one are up-sampled alone.
        strides: Down-sampling that led to each stage but the last, coarsest first.
        width: Channels on the coarsest grid; halved with each finer one.
        out_channels: Channels of the volume.
        norm: "instance", which does not mix samples, or "batch" as released.
    """

    def __init__(
        self,
        channels: Sequence[int | None],
        strides: Sequence[Sequence[int]],
        width: int,
        out_channels: int,
        norm: str,
    ) -> None:
        super().__init__()
        axes = len(strides[0])
        widths = [max(width >> level, 1) for level in range(len(channels))]
        cube = [3] * axes
        self.projections = nn.ModuleList(
            conv(own, wide, [1] * axes if level == 0 else cube) if own else nn.Identity()
            for level, (own, wide) in enumerate(zip(channels, widths, strict=True))
        )
        self.ups = nn.ModuleList(
            UpBlock(wide, narrow, stride, norm)
            for wide, narrow, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.fusions = nn.ModuleList(
            double_conv(2 * wide, wide, axes, norm) if own else nn.Identity()
            for own, wide in zip(channels[1:], widths[1:], strict=True)
        )
        self.head = conv(widths[-1], out_channels, [1] * axes)

    def forward(self, features: Sequence[Tensor | None]) -> Tensor:
        """One (b, c_s, d_s, h_s, w_s) or None a stage, coarsest first -> (b, c, d, h, w)."""
        x = self.projections[0](features[0])
        stages = zip(self.ups, self.projections[1:], self.fusions, features[1:], strict=True)
        for up, project, fuse, own in stages:
            x = up(x)
            if own is not None:
                x = fuse(torch.cat([x, project(own)], dim=1))
        return self.head(x)


class UpBlock(nn.Sequential):
    """A transposed convolution onto the finer grid, then two convolutions.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        stride: Factor by which each axis grows.
        norm: As in `ReconstructionDecoder`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Sequence[int], norm: str
    ) -> None:
        axes, step = len(stride), tuple(stride)
        transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 2]
        super().__init__(
            transposed(in_channels, in_channels, step, step),  # type: ignore[arg-type]
            double_conv(in_channels, out_channels, axes, norm),
        )


def double_conv(in_channels: int, out_channels: int, axes: int, norm: str) -> nn.Sequential:
    """Twice convolution, norm and ReLU: (b, c_in, ...) -> (b, c_out, ...).

    The convolutions have no bias, for a norm would take it away.
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            conv(channels, out_channels, [3] * axes, bias=False),
            get_norm_layer(NORMS[norm], spatial_dims=axes, channels=out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
