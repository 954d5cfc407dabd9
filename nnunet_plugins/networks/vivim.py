"""Vivim: SegFormer on each frame of a clip, Mamba over all of its frames.

Source: Yang et al., "Vivim: a Video Vision Mamba for Medical Video Segmentation", 2024,
arXiv:2401.14168, section III, and its released code (commit 2bcd619), whose outputs this equals.

Shapes: b batch, c channels, k classes, t h w clip, s stages.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnunet_plugins.networks.base import SegmentationNetwork
from nnunet_plugins.networks.layers.frame_heads import BoundaryHead, Norm, SegFormerDecoder
from nnunet_plugins.networks.layers.mamba import in_full_precision
from nnunet_plugins.networks.layers.segformer import (
    HEADS,
    MIT,
    PATCHES,
    REDUCTIONS,
    STRIDES,
    PatchEmbedding,
    TransformerBlock,
)
from nnunet_plugins.networks.layers.st_mamba import TemporalMambaLayer

SMALL: dict[str, Any] = {
    "features_per_stage": (16, 32, 80, 128),
    "blocks_per_stage": (1, 1, 2, 1),
    "mamba_depth": 1,
    "decoder_width": 64,
}
"""Options of a network that a CPU can train."""


class Vivim(SegmentationNetwork):
    """Class logits of every frame of a clip; each has seen all frames, in time linear in them.

    Takes clips of any number of frames and of any size. Parameter names do not depend on
    `deep_supervision`. The released code was built for five frames and RGB.

    Args:
        input_channels: Channels of a frame: 3 for colour, 1 for ultrasound.
        num_classes: Logit maps, background included; the released code has one, of the lesion.
        size: SegFormer's encoder, "b0" to "b5"; the paper's is "b3".
        features_per_stage: Channels of each stage, finest first; the encoder's if None.
        blocks_per_stage: Transformer blocks of each stage; the encoder's if None.
        heads: Attention heads of each stage.
        reductions: Tokens along each axis that a key stands for, at each stage.
        mamba_depth: Temporal Mamba layers of each stage; without any this is SegFormer.
        decoder_width: Channels of the decoder; the encoder's if None.
        d_state: States per channel of a Mamba layer.
        d_conv: Width of its causal convolution, in tokens.
        expand: Its inner over its outer channels.
        dt_rank: Rank of its step size projection; a sixteenth of the channels if None.
        combine: Whether its three directions are averaged (released code; the paper does not say)
            or summed.
        mlp_ratio: Hidden over outer channels of all feed-forward networks.
        norm: Of the decoder: "batch" as released, or "layer", which mixes no clips in training.
        dropout: Chance to drop a feature of the decoder in training.
        drop_path: Chance to drop a branch of the last transformer block in training, rising
            linearly from 0 at the first one.
        boundary_layers: Convolutions of a boundary head: 3 in the paper, 1 as released, 0 for none.
        deep_supervision: Return logits of two grids, the clip's and a quarter of it.

    Raises:
        ValueError: If the stages disagree in number, or heads do not divide their channels.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        size: str = "b3",
        features_per_stage: Sequence[int] | None = None,
        blocks_per_stage: Sequence[int] | None = None,
        heads: Sequence[int] = HEADS,
        reductions: Sequence[int] = REDUCTIONS,
        mamba_depth: int = 2,
        decoder_width: int | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        combine: Literal["sum", "mean"] = "mean",
        mlp_ratio: float = 4.0,
        norm: Norm = "batch",
        dropout: float = 0.1,
        drop_path: float = 0.1,
        boundary_layers: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        if size not in MIT:
            raise ValueError(f"unknown size {size!r} of SegFormer; use one of {', '.join(MIT)}")
        widths = features_per_stage or MIT[size].widths
        depths = blocks_per_stage or MIT[size].depths
        _check_stages(widths, depths, heads, reductions)
        super().__init__(input_channels, [(1, 1, 1)])
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        drops = [rates[sum(depths[:s]) : sum(depths[: s + 1])] for s in range(len(depths))]
        mamba = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        layers = range(mamba_depth)
        self.encoder = VivimEncoder(
            VivimStage(
                PatchEmbedding(before, width, patch, stride),
                [TransformerBlock(width, k, r, mlp_ratio, rate) for rate in drop],
                [TemporalMambaLayer(width, mlp_ratio, combine, **mamba) for _ in layers],
            )
            for before, width, patch, stride, k, r, drop in zip(
                (input_channels, *widths), widths, PATCHES, STRIDES, heads, reductions, drops,
                strict=False,
            )
        )  # fmt: skip
        decoder_width = decoder_width or MIT[size].decoder_width
        self.decoder = SegFormerDecoder(
            widths, decoder_width, num_classes, norm, dropout, deep_supervision
        )
        self.boundary = BoundaryHead(widths[0], boundary_layers) if boundary_layers else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Tensor]:
        """Clip in, logits of all frames out: (b, c, t, h, w) -> (b, k, t, h, w).

        With deep supervision a list of two: these logits, and those before interpolation,
        (b, k, t, h / 4, w / 4) rounded up. In training mode a network with a boundary head returns
        a pair: that, and the boundary logits (b, 1, t, h, w).

        Raises:
            ValueError: If the axes or the channels do not fit the network.
        """
        x = self.checked(x)
        features = self.encoder(x)
        logits = self.decoder(features, x.shape[3:])
        if self.boundary is None or not self.training:
            return logits
        return logits, self.boundary(features[0], x.shape[3:])


class VivimEncoder(nn.Module):
    """Features of a clip from every stage, finest first.

    Args:
        stages: Each takes the features of the one before.
    """

    def __init__(self, stages: Iterable["VivimStage"]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, c, t, h, w) -> one (b, c_s, t, h_s, w_s) a stage; the grid is halved at each."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class VivimStage(nn.Module):
    """A temporal Mamba block: patches, transformer blocks on frames, Mamba layers on the clip.

    Args:
        embed: Makes tokens of a frame.
        blocks: Mix the tokens of a frame.
        mamba: Mix the tokens of the clip.
    """

    def __init__(
        self,
        embed: PatchEmbedding,
        blocks: Sequence[TransformerBlock],
        mamba: Sequence[TemporalMambaLayer],
    ) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.mamba = nn.ModuleList(mamba)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c', t, h', w'), sizes divided by the stride and rounded up."""
        b, _, t = x.shape[:3]
        x = in_full_precision(self.embed, x.transpose(1, 2).flatten(0, 1))
        h, w = x.shape[1:3]
        tokens = x.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens, (h, w))
        tokens = tokens.reshape(b, t * h * w, -1)
        for layer in self.mamba:
            tokens = layer(tokens, (t, h, w))
        return tokens.transpose(1, 2).reshape(b, -1, t, h, w)


def _check_stages(
    widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], reductions: Sequence[int]
) -> None:
    stages = len(PATCHES)
    for name, values in (
        ("features_per_stage", widths),
        ("blocks_per_stage", depths),
        ("heads", heads),
        ("reductions", reductions),
    ):
        if len(values) != stages:
            raise ValueError(f"{name} has {len(values)} entries; Vivim has {stages} stages")
    if any(width % k for width, k in zip(widths, heads, strict=True)):
        raise ValueError(
            f"features_per_stage {list(widths)} do not divide by heads {list(heads)}; the heads of "
            "a stage share its channels evenly"
        )
