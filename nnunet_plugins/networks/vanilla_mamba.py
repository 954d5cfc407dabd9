"""VanillaMamba: UNETR with its vision transformer replaced by Vision Mamba.

Source: Tang et al., "MambaMIM", Medical Image Analysis 2025, arXiv:2408.08070, section 3.1 (no
code was released); the host is UNETR (Hatamizadeh et al., 2022, arXiv:2103.10504), built from
MONAI's blocks. The position embedding is computed for any grid where UNETR's is a table.

Shapes: b batch, c channels, d h w volume (h w for 2-D plans), l tokens.
"""

from collections.abc import Sequence

from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from nnunet_plugins.networks.base import SegmentationNetwork
from nnunet_plugins.networks.layers.convolution import conv
from nnunet_plugins.networks.layers.mamba import in_full_precision
from nnunet_plugins.networks.layers.mamba_stage import MambaStage
from nnunet_plugins.networks.layers.visibility import hide

HALVINGS = 4
"""Times UNETR's decoder doubles the grid: a token spans 2**4 = 16 voxels along each axis."""


class VanillaMamba(SegmentationNetwork):
    """Class logits of a volume, from Mamba over 16-voxel patches.

    Parameter names do not depend on `deep_supervision`.

    Args:
        input_channels: Channels of the image, one per modality.
        num_classes: Logit maps, background included.
        strides: As in nnU-Net's plans; only four halvings of every axis can be built, which is
            what None stands for.
        feature_size: Channels of the decoder on the finest grid.
        d_model: Channels of a token.
        depth: Vision Mamba blocks, divisible by 4: the decoder reads four of them.
        d_state: States per channel of a block.
        d_conv: Width of its causal convolution, in tokens.
        expand: Its inner over its outer channels.
        bidirectional: Scan from both ends.
        scan_order: In which order tokens are scanned: one of `mamba_kernels.scan_order`.
        scan_seed: Seed of the "shuffle" order; kept in the state dict.
        deep_supervision: Return the logits of four grids, finest first, not of the finest only.

    Raises:
        ValueError: If `strides` are not four halvings or `depth` does not divide by 4.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]] | None = None,
        feature_size: int = 16,
        d_model: int = 768,
        depth: int = 12,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        bidirectional: bool = True,
        scan_order: str = "raster",
        scan_seed: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        axes = 3 if strides is None else len(strides[0])
        expected = [[1] * axes, *[[2] * axes] * HALVINGS]
        if strides is not None and [list(stride) for stride in strides] != expected:
            raise ValueError(
                f"strides are {[list(s) for s in strides]}; VanillaMamba's tokens span "
                f"{2**HALVINGS} voxels along each axis, so plan a patch of multiples of "
                f"{2**HALVINGS} or use HyMamba, which takes any strides"
            )
        if depth % 4:
            raise ValueError(
                f"depth is {depth}; the decoder reads four blocks: use a multiple of 4"
            )
        super().__init__(input_channels, expected)
        self.encoder = VanillaMambaEncoder(
            input_channels,
            d_model,
            expected,
            MambaStage(
                d_model,
                depth,
                scan_order,
                scan_seed,
                mlp_ratio=0,
                d_state=d_state,
                d_conv=d_conv,
                expand=expand,
                bidirectional=bidirectional,
            ),
        )
        self.decoder = UnetrDecoder(
            axes, input_channels, num_classes, feature_size, d_model, deep_supervision
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Image in, logits out: (b, c, d, h, w) -> (b, k, d, h, w), or a list of four.

        Raises:
            ValueError: If the channels or the grid do not fit the network.
        """
        x = self.checked(x)
        return self.decoder(x, self.encoder(x))


class VanillaMambaEncoder(nn.Module):
    """Four hidden states of Mamba over the patches of an image.

    Args:
        input_channels: Channels of the image.
        d_model: Channels of a token.
        strides: Halvings of each axis, of which a patch is the product.
        mamba: What mixes the tokens; its layers divide by 4.
    """

    def __init__(
        self,
        input_channels: int,
        d_model: int,
        strides: Sequence[Sequence[int]],
        mamba: MambaStage,
    ) -> None:
        super().__init__()
        patch = nn.Conv2d if len(strides[0]) == 2 else nn.Conv3d
        self.embed = patch(input_channels, d_model, 2**HALVINGS, stride=2**HALVINGS)
        self.mamba = mamba
        self.norm = nn.LayerNorm(d_model)
        self.input_channels, self.strides = input_channels, strides
        self.channels = [*[None] * HALVINGS, d_model]

    def forward(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """(b, c, d, h, w) -> four (b, d_model, d/16, h/16, w/16), the last one normed.

        Given `visible`, (b, 1, d/16, h/16, w/16) bool, only those tokens are scanned.
        """
        features = self.mamba(self.embed(x), visible)
        quarter = len(features) // 4
        hidden = features[quarter - 1 :: quarter]
        hidden[-1] = hide(self.norm(hidden[-1].movedim(1, -1)).movedim(-1, 1), visible)
        return hidden

    def masked(
        self, x: Tensor, visible: Tensor | None, *, bottom_up: bool = True
    ) -> list[Tensor | None]:
        """Features of each stage from visible tokens alone: those of the coarsest.

        There is no CNN whose mask could disagree, so `bottom_up` changes nothing.
        """
        return [*[None] * HALVINGS, self(x, visible)[-1]]


class UnetrDecoder(nn.Module):
    """UNETR's decoder: the image and four hidden states to class logits.

    Args:
        axes: Grid axes, 2 or 3.
        input_channels: Channels of the image.
        num_classes: Logit maps.
        feature_size: Channels on the finest grid; they double with each halving.
        d_model: Channels of the hidden states.
        deep_supervision: Return the logits of four grids, finest first, not of the finest only.
    """

    def __init__(
        self,
        axes: int,
        input_channels: int,
        num_classes: int,
        feature_size: int,
        d_model: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = [feature_size * 2**i for i in range(HALVINGS)]
        options = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.image = UnetrBasicBlock(axes, input_channels, widths[0], stride=1, **options)
        self.skips = nn.ModuleList(
            UnetrPrUpBlock(
                axes, d_model, width, num_layer=HALVINGS - 1 - i, stride=1,
                upsample_kernel_size=2, conv_block=True, **options,
            )
            for i, width in enumerate(widths[1:], start=1)
        )  # fmt: skip
        self.ups = nn.ModuleList(
            UnetrUpBlock(axes, wide, narrow, upsample_kernel_size=2, **options)
            for wide, narrow in zip([*widths[1:], d_model], widths, strict=True)
        )
        self.seg_layers = nn.ModuleList(conv(width, num_classes, [1] * axes) for width in widths)

    def forward(self, image: Tensor, hidden: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """(b, c, d, h, w) and four (b, d_model, d/16, h/16, w/16) -> (b, k, d, h, w) or a list."""
        x = hidden[-1]
        maps: list[Tensor] = []
        skips = [in_full_precision(s, h) for s, h in zip(self.skips, hidden[:-1], strict=True)]
        for up, skip in zip(reversed(self.ups[1:]), reversed(skips), strict=True):
            x = in_full_precision(up, x, skip)  # the skips hand Mamba's features on as they are
            maps.insert(0, x)
        maps.insert(0, self.ups[0](x, self.image(image)))
        if not self.deep_supervision:
            return self.seg_layers[0](maps[0])
        return [layer(features) for layer, features in zip(self.seg_layers, maps, strict=True)]
