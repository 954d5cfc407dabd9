"""HyMamba: a MedNeXt CNN over the fine grids, Mamba over the coarsest, a U-shaped decoder.

Source: Tang et al., "MambaMIM", Medical Image Analysis 2025, arXiv:2408.08070, section 3.1, and
its released code (2024-08-20), whose network this equals with `bidirectional=False`; the paper
asks for a standard Vision Mamba, which is bidirectional and the default here.

Shapes: b batch, c channels, d h w volume (h w for 2-D plans), l tokens, s stages.
"""

from collections.abc import Sequence

from monai.networks.blocks import UnetrUpBlock
from torch import Tensor, nn

from nnunet_plugins.networks.base import SegmentationNetwork
from nnunet_plugins.networks.layers.convolution import (
    MedNeXtBlock,
    ResidualBlock,
    channels_last_on_cpu,
    conv,
)
from nnunet_plugins.networks.layers.mamba import in_full_precision
from nnunet_plugins.networks.layers.mamba_stage import MambaStage
from nnunet_plugins.networks.layers.visibility import hide

PAPER_WIDTHS = (32, 64, 128, 192, 384)
"""Channels of each stage in the paper, finest first."""
SMALL_WIDTHS = (16, 16, 32, 64, 80)
"""Channels of a network small enough to be trained on a CPU."""


class HyMamba(SegmentationNetwork):
    """Class logits of a volume, from a hybrid of CNN and Mamba.

    Built from an nnU-Net plan's strides, so that any patch nnU-Net plans can be halved, along
    each axis as often as the plan says. Parameter names do not depend on `deep_supervision`.

    Args:
        input_channels: Channels of the image, one per modality.
        num_classes: Logit maps, background included.
        strides: Down-sampling of each stage along each axis; the first stage keeps the grid.
            Halving every axis at every later stage if None.
        features_per_stage: Channels of each stage, finest first; the paper's if None.
        kernel_sizes: Convolution kernels of each stage, odd; 3 everywhere if None.
        blocks_per_stage: MedNeXt blocks of each stage after the first; 2, and 1 on the coarsest
            grid, if None.
        expansions: Hidden over outer channels of the blocks of each stage after the first; 2 and
            then 4 if None.
        mamba_depth: Mamba layers on the coarsest grid.
        d_state: States per channel of a Mamba layer.
        d_conv: Width of its causal convolution, in tokens.
        expand: Its inner over its outer channels.
        dt_rank: Rank of its step size projection; a sixteenth of the channels if None.
        mlp_ratio: Hidden over outer channels of the feed-forward part of a Mamba layer.
        bidirectional: Scan from both ends (the paper) or from the first token (released code).
        scan_order: In which order tokens are scanned: one of `mamba_kernels.scan_order`
            (the paper's Table 10).
        scan_seed: Seed of the "shuffle" order; kept in the state dict.
        deep_supervision: Return the logits of every grid but the coarsest, not of the finest only.

    Raises:
        ValueError: If the stages disagree in number or the first one is strided.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]] | None = None,
        features_per_stage: Sequence[int] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        blocks_per_stage: Sequence[int] | None = None,
        expansions: Sequence[int] | None = None,
        mamba_depth: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        mlp_ratio: float = 2.0,
        bidirectional: bool = True,
        scan_order: str = "raster",
        scan_seed: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        if strides is None:
            stages = len(features_per_stage or PAPER_WIDTHS)
            strides = [(1, 1, 1), *[(2, 2, 2)] * (stages - 1)]
        stages = len(strides)
        widths = tuple(features_per_stage or stage_widths(PAPER_WIDTHS, stages))
        kernels = kernel_sizes or [[3] * len(strides[0])] * stages
        blocks = blocks_per_stage or [2] * (stages - 2) + [1]
        expansions = expansions or [2] + [4] * (stages - 2)
        _check_stages(strides, widths, kernels, blocks, expansions)
        super().__init__(input_channels, strides)
        self.encoder = HyMambaEncoder(
            input_channels,
            widths,
            strides,
            kernels,
            blocks,
            expansions,
            MambaStage(
                widths[-1],
                mamba_depth,
                scan_order,
                scan_seed,
                mlp_ratio=mlp_ratio,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                dt_rank=dt_rank,
                bidirectional=bidirectional,
            ),
        )
        self.decoder = HyMambaDecoder(num_classes, widths, strides, kernels, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Image in, logits out: (b, c, d, h, w) -> (b, k, d, h, w).

        With deep supervision a list of logits, finest first, one for each stage but the coarsest.

        Raises:
            ValueError: If the channels or the grid do not fit the network.
        """
        x = self.checked(x)
        return self.decoder(self.encoder(x))


class HyMambaEncoder(nn.Module):
    """Feature maps of a volume, finest first; the coarsest has seen the whole volume.

    Args:
        input_channels: Channels of the image.
        widths, strides, kernels, blocks, expansions: As in `HyMamba`, none of them None.
        mamba: What mixes the coarsest features, as `MambaStage` does.
    """

    def __init__(
        self,
        input_channels: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        blocks: Sequence[int],
        expansions: Sequence[int],
        mamba: nn.Module,
    ) -> None:
        super().__init__()
        outs = skip_widths(widths)
        self.stem = nn.Sequential(
            conv(input_channels, widths[0], kernels[0]), conv(widths[0], outs[0], kernels[0])
        )
        self.stages = nn.ModuleList(
            EncoderStage(width, out, stride, kernel, depth, expansion)
            for width, out, stride, kernel, depth, expansion in zip(
                widths[1:], outs[1:] + outs[-1:], strides[1:], kernels[1:], blocks, expansions,
                strict=True,
            )
        )  # fmt: skip
        self.skips = nn.ModuleList(
            ResidualBlock(out, out, kernel) for out, kernel in zip(outs, kernels, strict=False)
        )
        self.mamba = mamba
        self.input_channels, self.strides = input_channels, strides
        self.channels = [*outs, outs[-1]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, c, d, h, w) -> one (b, c_s, d_s, h_s, w_s) for each stage, finest first."""
        return self.masked(x, None)

    def masked(self, x: Tensor, visible: Tensor | None, *, bottom_up: bool = True) -> list[Tensor]:
        """The same features, computed from visible tokens alone and zero at the others.

        Args:
            x: (b, c, d, h, w), zero in hidden tokens.
            visible: (b, 1, d_t, h_t, w_t) bool over the tokens of the coarsest grid.
            bottom_up: Keep the mask at every stage, as a sparse CNN does (the paper's bottom-up
                masking); else hidden tokens are zeros to the CNN and left out by Mamba only.
        """
        shown = visible if bottom_up else None
        first = hide(channels_last_on_cpu(self.stem[0](x)), shown)
        features = [hide(self.stem[1](first), shown)]
        for stage in self.stages:
            features.append(stage(features[-1], shown))
        skips = [skip(f, shown) for skip, f in zip(self.skips, features, strict=False)]
        return [*skips, self.mamba(features[-1], visible)[-1]]


class EncoderStage(nn.Module):
    """Down-sample, mix with MedNeXt blocks, widen for the next stage: (b, c, ...) -> (b, c', ...).

    Args:
        channels: Channels in.
        out_channels: Channels out; the last stage keeps its width and needs no convolution.
        stride: Max-pooling along each axis.
        kernel: Kernel of the convolutions.
        depth: MedNeXt blocks.
        expansion: Their hidden over outer channels.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        stride: Sequence[int],
        kernel: Sequence[int],
        depth: int,
        expansion: int,
    ) -> None:
        pool = (nn.MaxPool2d, nn.MaxPool3d)[len(stride) - 2]
        super().__init__()
        self.pool = pool(tuple(stride))
        self.blocks = nn.Sequential(
            *(MedNeXtBlock(channels, expansion, kernel) for _ in range(depth))
        )
        if out_channels != channels:
            self.widen = conv(channels, out_channels, kernel)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """(b, c, d, h, w) -> (b, c', d', h', w'); zeros where `visible` is False."""
        x = self.pool(x)  # hidden voxels are zero and stay so
        for block in self.blocks:
            x = hide(block(x), visible)
        return hide(self.widen(x), visible) if hasattr(self, "widen") else x


class HyMambaDecoder(nn.Module):
    """Class logits from the encoder's features, on every grid but the coarsest.

    Args:
        num_classes: Logit maps.
        widths, strides, kernels: As in `HyMamba`, none of them None.
        deep_supervision: Return the logits of all these grids, not of the finest only.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        axes, outs = len(strides[0]), skip_widths(widths)
        self.ups = nn.ModuleList(
            UnetrUpBlock(
                axes, wide, narrow, tuple(kernel), tuple(stride), norm_name="instance",
                res_block=True,
            )
            for wide, narrow, kernel, stride in zip(
                outs[1:] + outs[-1:], outs, kernels[:-1], strides[1:], strict=True
            )
        )  # fmt: skip
        self.refine = ResidualBlock(outs[0], widths[0], kernels[0])
        point = [1] * axes
        self.seg_layers = nn.ModuleList(
            conv(width, num_classes, point) for width in [widths[0], *outs[1:]]
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """One (b, c_s, d_s, h_s, w_s) for each stage, finest first -> (b, k, d, h, w) or a list."""
        x = features[-1]
        maps: list[Tensor] = []
        for up, skip in zip(reversed(self.ups), reversed(features[:-1]), strict=True):
            x = up(x, skip) if maps else in_full_precision(up, x, skip)
            maps.insert(0, x)
        maps[0] = self.refine(maps[0])
        if not self.deep_supervision:
            return self.seg_layers[0](maps[0])
        return [layer(features) for layer, features in zip(self.seg_layers, maps, strict=True)]


def stage_widths(widths: Sequence[int], stages: int) -> tuple[int, ...]:
    """Channels for any number of stages: `widths` cut short, or with its last one repeated."""
    return (*widths, *[widths[-1]] * stages)[:stages]


def skip_widths(widths: Sequence[int]) -> list[int]:
    """Channels in which a stage hands on its features: those of the next coarser stage."""
    return list(widths[1:])


def _check_stages(
    strides: Sequence[Sequence[int]],
    widths: Sequence[int],
    kernels: Sequence[Sequence[int]],
    blocks: Sequence[int],
    expansions: Sequence[int],
) -> None:
    stages = len(strides)
    if stages < 2 or any(step != 1 for step in strides[0]):
        raise ValueError(
            f"strides are {[list(s) for s in strides]}; HyMamba needs at least two stages, the "
            "first keeping the grid: use a patch that can be halved at least once"
        )
    for name, values, expected in (
        ("features_per_stage", widths, stages),
        ("kernel_sizes", kernels, stages),
        ("blocks_per_stage", blocks, stages - 1),
        ("expansions", expansions, stages - 1),
    ):
        if len(values) != expected:
            raise ValueError(
                f"{name} has {len(values)} entries; {stages} strides ask for {expected}"
            )
