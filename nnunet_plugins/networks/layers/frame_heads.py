"""From features of a clip's frames to logits: SegFormer's decoder and the boundary head.

Both run in the dtype of their weights, outside autocast: what Mamba gives back is not normed, and
in a trained network it exceeds the largest float16.

Shapes: b batch, c channels, k classes, t h w clip, s stages, finest first.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_kernels.dispatch import without_autocast
from nnunet_plugins.networks.layers.convolution import ChannelNorm

Norm = Literal["batch", "layer"]
FRAMES_AT_ONCE = 16
"""Frames that the decoder takes together in inference: its features are the widest of all."""
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": ChannelNorm}


class SegFormerDecoder(nn.Module):
    """Class logits from features of every stage, brought to the finest grid and fused.

    SegFormer projects each stage to `width` channels, interpolates, concatenates and fuses with a
    1x1 convolution. Projections and interpolation commute, so here each stage's projection is
    multiplied with its part of the fusion and applied on the stage's own grid: the same numbers to
    rounding, for a twentieth of the work. The parameters stay SegFormer's.
    Source: Xie et al., "SegFormer", 2021, arXiv:2105.15203, section 3.2.

    Args:
        widths: Channels of each stage.
        width: Channels that are fused.
        num_classes: Logit maps.
        norm: "batch" as in SegFormer, which in training mixes frames and clips of a batch, or
            "layer", over the channels of a pixel, which mixes nothing and needs no statistics.
        dropout: Chance to drop a fused feature in training.
        deep_supervision: Return logits on the finest grid of the features too.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        num_classes: int,
        norm: Norm,
        dropout: float,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.project = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.fuse = nn.Conv2d(len(widths) * width, width, 1, bias=False)
        self.norm = NORMS[norm](width)
        self.dropout = nn.Dropout(dropout)
        self.seg_layers = nn.ModuleList([nn.Conv2d(width, num_classes, 1)])

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """One (b, c_s, t, h_s, w_s) a stage -> (b, k, t, h, w) for size (h, w).

        With deep supervision a list: these logits, and those on the finest grid of the features.
        """
        at_once = features[0].shape[2]
        if not (self.training or torch.is_grad_enabled()):
            at_once = FRAMES_AT_ONCE
        parts = zip(*(torch.split(x, at_once, dim=2) for x in features), strict=True)
        with without_autocast(features[0].device):
            coarse = torch.cat([self._classified(part) for part in parts], dim=2)
            logits = _resized(coarse.transpose(1, 2).flatten(0, 1), size)
        logits = _to_clip(logits, len(coarse))
        return [logits, coarse] if self.deep_supervision else logits

    def _classified(self, features: Sequence[Tensor]) -> Tensor:
        """One (b, c_s, t, h_s, w_s) a stage -> logits (b, k, t, h_0, w_0)."""
        fused = F.relu(self.norm(self.fused(features)))
        return _to_clip(self.seg_layers[0](self.dropout(fused)), len(features[0]))

    def fused(self, features: Sequence[Tensor]) -> Tensor:
        """One (b, c_s, t, h_s, w_s) a stage -> (b * t, c, h_0, w_0), before norm."""
        return reduce(torch.add, self._projected(features))

    def _projected(self, features: Sequence[Tensor]) -> Iterator[Tensor]:
        """What each stage adds to the fused features: (b * t, c, h_0, w_0) each."""
        grid = features[0].shape[3:]
        parts = self.fuse.weight.flatten(1).chunk(len(features), dim=1)  # coarsest first
        for feature, project, part in zip(features, self.project, reversed(parts), strict=True):
            assert isinstance(project, nn.Linear)
            x = feature.movedim(1, -1).flatten(0, 1).to(part.dtype)
            x = F.linear(x, part @ project.weight, part @ project.bias)
            yield _resized(x.movedim(-1, 1), grid)


class BoundaryHead(nn.Module):
    """Logits of a lesion's boundary, from features of the finest stage; for training only.

    Source: Vivim's auxiliary boundary head has three convolutions in the paper (section III-E) and
    one, 1x1, in its released code.

    Args:
        channels: Channels of the features.
        depth: Convolutions: 3x3 with ReLU but for the last, which is 1x1.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        hidden = [
            layer
            for _ in range(depth - 1)
            for layer in (nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """(b, c, t, h', w') -> (b, 1, t, h, w) for size (h, w)."""
        frames = features.transpose(1, 2).flatten(0, 1)
        with without_autocast(features.device):
            logits = _resized(self.layers(frames.to(next(self.parameters()).dtype)), size)
        return _to_clip(logits, features.shape[0])


def _resized(frames: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation, as in SegFormer: (b * t, c, h', w') -> (b * t, c, h, w)."""
    if frames.shape[2:] == tuple(size):
        return frames
    return F.interpolate(frames, tuple(size), mode="bilinear", align_corners=False)


def _to_clip(frames: Tensor, batch: int) -> Tensor:
    """(b * t, c, h, w) -> (b, c, t, h, w)."""
    return frames.view(batch, -1, *frames.shape[1:]).transpose(1, 2)
