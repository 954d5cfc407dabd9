"""Mamba over the tokens of a clip, in time and in space: Vivim's temporal Mamba layer.

Source: Yang et al., "Vivim", 2024, arXiv:2401.14168, sections III-C2 and III-D.

Shapes: b batch, c channels, t h w clip, l = t * h * w tokens, frame after frame.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.mamba import MambaMixer

Grid = Sequence[int]


class TemporalMambaLayer(nn.Module):
    """A mixer that scans a clip in three directions and a feed-forward network with a convolution.

    Each is behind a norm and beside a shortcut (Eq. 5).

    Args:
        channels: Channels of the tokens.
        mlp_ratio: Hidden channels of the feed-forward network over `channels`.
        combine: Whether the directions are averaged (released code) or summed.
        mixer: Sizes of `MambaMixer`.
    """

    def __init__(
        self,
        channels: int,
        mlp_ratio: float = 4.0,
        combine: Literal["sum", "mean"] = "mean",
        **mixer: int | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mamba = MambaMixer(channels, interleaved=True, combine=combine, **mixer)  # type: ignore[arg-type]
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = ConvFeedForward(channels, round(mlp_ratio * channels), axes=3)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens of a clip on a grid (t, h, w): (b, l, c) -> (b, l, c)."""
        x = x + self.mamba(self.norm1(x), grid[0])
        return x + self.mlp(self.norm2(x), grid)


class ConvFeedForward(nn.Module):
    """Widen, look at the neighbours with a depthwise 3-wide convolution, GELU, narrow.

    On frames this is SegFormer's Mix-FFN (Xie et al., 2021, arXiv:2105.15203), on clips Vivim's
    detail-specific feed-forward.

    Args:
        channels: Channels of the tokens.
        hidden: Channels in between.
        axes: Axes of the grid, 2 for frames and 3 for clips.
    """

    def __init__(self, channels: int, hidden: int, axes: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = convolution(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens of a grid: (b, l, c) -> (b, l, c)."""
        x = self.fc1(x).transpose(1, 2).unflatten(2, tuple(grid))
        trained = torch.is_grad_enabled() and x.device.type == "cpu"
        if trained and isinstance(self.dwconv, nn.Conv3d):
            x = _frame_by_frame(self.dwconv, x)
        else:
            x = self.dwconv(x)
        return self.fc2(F.gelu(x.flatten(2).transpose(1, 2)))


def _frame_by_frame(convolution: nn.Conv3d, clip: Tensor) -> Tensor:
    """A depthwise 3x3x3 convolution by three of frames: (b, c, t, h, w) -> the same.

    On CPUs the backward pass of 2-D convolutions is two to six times as fast as that of 3-D ones.
    """
    frames = clip.transpose(1, 2)
    shape, channels = frames.shape, convolution.groups
    before, same, after = (
        F.conv2d(frames.flatten(0, 1), tap, bias, padding=1, groups=channels).view(shape)
        for tap, bias in zip(
            convolution.weight.unbind(2), (None, convolution.bias, None), strict=True
        )
    )
    y = same.clone()
    y[:, 1:] += before[:, :-1]
    y[:, :-1] += after[:, 1:]
    return y.transpose(1, 2)
