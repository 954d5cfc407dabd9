"""Convolutional blocks of HyMamba's CNN: MedNeXt and residual blocks with a norm over channels.

Shapes: b batch, c channels, then 2 or 3 axes of the grid.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.visibility import hide


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    groups: int = 1,
    bias: bool = True,
) -> nn.Module:
    """A convolution that keeps the grid, over the kernel's two or three axes (odd sizes)."""
    layer: Callable[..., nn.Module] = (nn.Conv2d, nn.Conv3d)[len(kernel_size) - 2]
    padding = tuple(size // 2 for size in kernel_size)
    return layer(
        in_channels, out_channels, tuple(kernel_size), padding=padding, groups=groups, bias=bias
    )


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """The same features; on a CPU with the channels of a voxel side by side in memory.

    Convolutions keep that layout for all that follows. Norms over channels then need no copies,
    and a training step takes about two thirds of the time. Other devices are left alone.
    """
    if x.device.type != "cpu":
        return x
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=layout)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each voxel.

    Args:
        channels: Channels of the features.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b, c, ...)."""
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class MedNeXtBlock(nn.Module):
    """Depthwise convolution, norm, channel mixing, beside a shortcut.

    Source: Roy et al., "MedNeXt", 2023, arXiv:2303.09975; norm over channels as in HyMamba.

    Args:
        channels: Channels in and out.
        expansion: Hidden channels over `channels`.
        kernel_size: Voxels the depthwise kernel spans along each axis.
    """

    def __init__(self, channels: int, expansion: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        point = [1] * len(kernel_size)
        self.depthwise = conv(channels, channels, kernel_size, groups=channels)
        self.norm = ChannelNorm(channels)
        self.expand = conv(channels, expansion * channels, point)
        self.reduce = conv(expansion * channels, channels, point)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b, c, ...)."""
        return x + self.reduce(F.gelu(self.expand(self.norm(self.depthwise(x)))))


class ResidualBlock(nn.Module):
    """Two convolutions with norms beside a shortcut, LeakyReLU 0.01 after each.

    Args:
        in_channels: Channels in.
        out_channels: Channels out; where they differ, the shortcut is projected and normed.
        kernel_size: Voxels a kernel spans along each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, kernel_size)
        self.norm1 = ChannelNorm(out_channels)
        self.conv2 = conv(out_channels, out_channels, kernel_size)
        self.norm2 = ChannelNorm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                conv(in_channels, out_channels, [1] * len(kernel_size)), ChannelNorm(out_channels)
            )

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(b, c_in, ...) -> (b, c_out, ...); zeros where `visible`, a coarser mask, is False."""
        y = hide(F.leaky_relu(self.norm1(self.conv1(x))), visible)
        return hide(F.leaky_relu(self.norm2(self.conv2(y)) + self.shortcut(x)), visible)
