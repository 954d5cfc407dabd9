"""From the tokens of frames to logits of their pixels: TransUNet's decoder.

Source: Chen et al., "TransUNet", 2021, arXiv:2102.04306, section 3.2 (cascaded upsampler).

Shapes: b batch, c channels, k classes, t h w clip, f = b * t frames, p pixels of a patch's side.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.frame_heads import NORMS, Norm

FRAMES_AT_ONCE = 16
"""Frames that are decoded together in inference: their finest features are the widest of all."""
WIDTH = 512
"""Channels that the tokens are brought to first."""
STEM_WIDTH = 16
"""Channels of the finest skip; each coarser one has twice as many."""


class DecoderCup(nn.Module):
    """Logits of frames from their tokens: halvings of a patch are undone one by one.

    Args:
        channels: Channels of a token.
        widths: Channels of each block, coarsest first; each block doubles the grid.
        num_classes: Logit maps.
        stem_channels: Channels of the frames that a stem of strided convolutions reads, whose
            features the blocks take as skips; 0 for no skips.
        norm: "batch" as released, which in training mixes frames and clips of a batch, or "layer".
        deep_supervision: Return logits of every block's grid, finest first.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        num_classes: int,
        stem_channels: int = 0,
        norm: Norm = "batch",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        halvings = len(widths)
        skips = [STEM_WIDTH * 2**i for i in range(halvings - 1)] if stem_channels else []
        self.stem = nn.ModuleList(
            convolution(a, b, norm, stride=2)
            for a, b in zip([stem_channels, *skips], skips, strict=False)
        )
        self.widen = convolution(channels, WIDTH, norm)
        beside = [*reversed(skips), 0] if skips else [0] * halvings
        self.blocks = nn.ModuleList(
            UpBlock(a, skip, b, norm)
            for a, skip, b in zip([WIDTH, *widths], beside, widths, strict=False)
        )
        finest, *coarser = reversed(widths)
        self.seg_layers = nn.ModuleList([nn.Conv2d(finest, num_classes, 3, padding=1)])
        self.seg_layers.extend(nn.Conv2d(width, num_classes, 1) for width in coarser)

    def forward(
        self, features: Tensor, frames: Tensor, size: Sequence[int]
    ) -> Tensor | list[Tensor]:
        """Maps of tokens (b, c, t, h / p, w / p) and frames (b, c', t, h, w) -> (b, k, t, *size).

        What the frames were padded by is cut off. With deep supervision a list: logits of this
        grid and of those 2, 4, ... times as coarse, sizes rounded up.
        """
        b, t = features.shape[0], features.shape[2]
        maps, pixels = (
            x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            for x in (features, frames)  # two thirds of the time on a CPU
        )
        at_once = b * t if self.training or torch.is_grad_enabled() else FRAMES_AT_ONCE
        parts = [
            self._decoded(*part)
            for part in zip(*(torch.split(x, at_once) for x in (maps, pixels)), strict=True)
        ]
        logits = []
        for i, grid in enumerate(zip(*parts, strict=True)):
            h, w = (-(-side // 2**i) for side in size)
            whole = torch.cat(grid)[..., :h, :w]
            logits.append(whole.view(b, t, *whole.shape[1:]).transpose(1, 2))
        return logits if self.deep_supervision else logits[0]

    def _decoded(self, x: Tensor, pixels: Tensor) -> list[Tensor]:
        """Frames' logits: (f, c, h / p, w / p) -> (f, k, h, w), and coarser ones if asked."""
        skips = list(self._skips(pixels))
        x, outputs = self.widen(x), []
        for block in self.blocks:
            x = block(x, skips.pop() if skips else None)
            outputs.append(x)
        wanted = len(outputs) if self.deep_supervision else 1
        outputs = outputs[::-1][:wanted]
        return [layer(x) for layer, x in zip(self.seg_layers, outputs, strict=False)]

    def _skips(self, pixels: Tensor) -> Iterator[Tensor]:
        """Features of frames (f, c, h, w) on grids 2, 4, ... times as coarse."""
        for layer in self.stem:
            pixels = layer(pixels)
            yield pixels


class UpBlock(nn.Module):
    """Doubles the grid, takes a skip and convolves twice.

    Args:
        in_channels: Channels of the coarse features.
        skip_channels: Channels of the skip, 0 for none.
        out_channels: Channels out.
        norm: As in `DecoderCup`.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels + skip_channels, out_channels, norm)
        self.conv2 = convolution(out_channels, out_channels, norm)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(f, c, h, w) and a skip (f, c', 2 h, 2 w) -> (f, c'', 2 h, 2 w)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


def convolution(in_channels: int, out_channels: int, norm: Norm, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, NORMS[norm](out_channels), nn.ReLU(inplace=True))
