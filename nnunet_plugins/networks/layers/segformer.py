"""Stages of SegFormer's Mix Transformer: overlapping patches, efficient self-attention, Mix-FFN.

Source: Xie et al., "SegFormer", 2021, arXiv:2105.15203, section 3.1; sizes of MiT-B0 to B5 are
those of its table 6.

Shapes: b images (or frames), c channels, h w grid, l = h * w tokens, k heads.
"""

from dataclasses import dataclass

from monai.networks.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.st_mamba import ConvFeedForward, Grid


@dataclass(frozen=True)
class MixTransformer:
    """Sizes of an encoder, finest stage first.

    Args:
        widths: Channels of each stage.
        depths: Transformer blocks of each stage.
        decoder_width: Channels of the decoder that SegFormer gives this encoder.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    decoder_width: int


MIT = {
    "b0": MixTransformer((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": MixTransformer((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": MixTransformer((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": MixTransformer((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": MixTransformer((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": MixTransformer((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
PATCHES = (7, 3, 3, 3)
STRIDES = (4, 2, 2, 2)


class PatchEmbedding(nn.Module):
    """Tokens of overlapping patches, normed.

    Args:
        in_channels: Channels of the image or of the finer stage.
        channels: Channels of a token.
        patch: Pixels a patch spans along each axis, odd.
        stride: Pixels from one patch to the next.
    """

    def __init__(self, in_channels: int, channels: int, patch: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, stride=stride, padding=patch // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, h', w', c'), sizes divided by the stride and rounded up."""
        return self.norm(self.proj(x).movedim(1, -1))


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values are read on a coarser grid.

    Args:
        channels: Channels of a token.
        heads: Heads; they share the channels.
        reduction: Tokens along each axis that one key stands for. Rows and columns that do not
            fill a key are not read, as in SegFormer; a grid smaller than a key gives one.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.reduce: nn.Module | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(channels)
        self.reduction = reduction
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens of a grid (h, w): (b, l, c) -> (b, l, c)."""
        coarse = x
        if self.reduce is not None:
            h, w = grid
            missing = [max(self.reduction - size, 0) for size in grid]
            coarse = x.transpose(1, 2).reshape(len(x), -1, h, w)
            coarse = F.pad(coarse, (0, missing[1], 0, missing[0]))
            # oneDNN's bfloat16 kernel is wrong for channels-last inputs of the kernel's size.
            coarse = self.reduce(coarse.contiguous())
            coarse = self.reduce_norm(coarse.flatten(2).transpose(1, 2))
        heads = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, coarse), (self.value, coarse))
        )  # (b, k, l, c / k) each
        attended = F.scaled_dot_product_attention(*heads)
        return self.proj(attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Efficient self-attention and Mix-FFN, each behind a norm and beside a shortcut.

    Args:
        channels: Channels of a token.
        heads, reduction: As in `EfficientAttention`.
        mlp_ratio: Hidden channels of the Mix-FFN over `channels`.
        drop_path: Chance to drop a branch of an image in training.
    """

    def __init__(
        self, channels: int, heads: int, reduction: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = EfficientAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = ConvFeedForward(channels, round(mlp_ratio * channels), axes=2)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Tokens of a grid (h, w): (b, l, c) -> (b, l, c)."""
        x = x + self.drop_path(self.attention(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x), grid))
