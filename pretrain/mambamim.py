"""MambaMIM: an encoder learns by reconstructing hidden parts of volumes.

Source: Tang et al., "MambaMIM", Medical Image Analysis 2025, arXiv:2408.08070, and its released
code (2024-08-20).

Shapes: b batch, c channels, d h w volume (h w for 2-D), l tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mamba_kernels.scan_order import inverse
from nnunet_plugins.networks.base import plain
from nnunet_plugins.networks.layers.mamba_stage import MambaStage
from nnunet_plugins.networks.layers.visibility import visible_on
from pretrain.decoder import NORMS, ReconstructionDecoder
from pretrain.masking import from_patches, random_visible, to_patches
from pretrain.toki import interpolate

FILLS = ("paper", "as_released", "learned")
"""How hidden tokens are filled: TOKI in two forms (`pretrain.toki`), or one learned token."""
VARIANCE_EPS = 1e-6
"""Added to the variance of a patch, as released."""


class MaskedEncoder(Protocol):
    """What a network's encoder must offer to be pretrained; `HyMamba(...).encoder` does."""

    input_channels: int
    strides: Sequence[Sequence[int]]
    """Down-sampling of every stage along each axis, finest first; the first keeps the grid."""
    channels: Sequence[int | None]
    """Channels that each stage hands on, None where it hands on nothing."""
    mamba: MambaStage
    """What mixes the tokens of the coarsest grid; its scan order is TOKI's."""

    def masked(
        self, x: Tensor, visible: Tensor | None, *, bottom_up: bool = True
    ) -> Sequence[Tensor | None]:
        """Features of every stage, finest first, computed from visible tokens alone."""


@dataclass(frozen=True)
class Reconstruction:
    """What a pass of `MambaMIM` gives."""

    loss: Tensor
    """Mean squared error over the voxels of hidden patches, a scalar."""
    reconstruction: Tensor
    """(b, c, d, h, w) in units of the target: of each patch's standard deviation from its mean if
    patches are normalised, else of the volume."""
    visible: Tensor
    """(b, 1, d_t, h_t, w_t) bool: which tokens were shown."""
    parts: Mapping[str, Tensor]
    """Scalars to log: `patch_mean` is the loss of a predictor that knows the mean of each hidden
    patch and nothing else."""


class MambaMIM(nn.Module):
    """Reconstruction of hidden patches from the visible ones.

    Args:
        network: The network whose `encoder` (a `MaskedEncoder`) learns; its decoder is not used.
        mask_ratio: Share of hidden tokens (the paper's Table 8).
        toki: How hidden tokens of the coarsest grid are filled before decoding, one of `FILLS`.
            "as_released" also lays the filled tokens out as the authors' code does, (l, c) read
            as (c, l) without a transpose.
        skips: Decode with the features of the finer stages too (Table 9); what makes only these
            does not learn otherwise.
        bottom_up: One mask, consistent at every stage of the CNN (Table 9).
        normalize: Normalise each patch of the target, as released; the paper's formula does not.
        finest_skip: Hand the finest stage's features to the decoder too; the released code does
            not, and so never trains what makes them.
        norm: Norm of the decoder, "instance" or (released) "batch".
        decoder_width: Channels of the decoder on the coarsest grid; twice the encoder's if None.

    Raises:
        ValueError: If the network has no such encoder or an option is unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mask_ratio: float = 0.75,
        toki: str = "paper",
        skips: bool = True,
        bottom_up: bool = True,
        normalize: bool = True,
        finest_skip: bool = True,
        norm: str = "instance",
        decoder_width: int | None = None,
    ) -> None:
        super().__init__()
        encoder: Any = getattr(network, "encoder", None)
        if not hasattr(encoder, "masked"):
            raise ValueError(
                f"{type(network).__name__} cannot be pretrained: it needs an `encoder` with the "
                "method `masked` (pretrain.mambamim.MaskedEncoder)"
            )
        if toki not in FILLS or norm not in NORMS:
            raise ValueError(
                f"unknown toki {toki!r} or norm {norm!r}; use one of {', '.join(FILLS)} and one of "
                f"{', '.join(NORMS)}"
            )
        if not 0 < mask_ratio < 1 or (decoder_width is not None and decoder_width < 1):
            raise ValueError(
                f"mask_ratio is {mask_ratio} and decoder_width {decoder_width}; they must be "
                "between 0 and 1, and at least 1"
            )
        self.encoder = encoder  # a MaskedEncoder
        self.mask_ratio, self.toki = mask_ratio, toki
        self.bottom_up, self.normalize = bottom_up, normalize
        channels = list(encoder.channels)
        if not skips:
            channels[:-1] = [None] * (len(channels) - 1)
        if not finest_skip:
            channels[0] = None
        coarsest = channels[-1]
        self.used = [c is not None for c in channels]
        for used, skip in zip(self.used, getattr(encoder, "skips", ()), strict=False):
            skip.requires_grad_(used)  # so that several processes wait for no gradient
        holes = {str(i): c for i, c in enumerate(channels[:-1]) if c and bottom_up}
        axes = len(encoder.strides[0])
        self.holes = nn.ParameterDict({i: _token(c, axes) for i, c in holes.items()})
        if toki != "learned":
            self.transition = nn.Parameter(torch.zeros(coarsest, coarsest))
        if toki != "paper":
            self.token = _token(coarsest, axes)
        self.decoder = ReconstructionDecoder(
            channels[::-1],
            encoder.strides[:0:-1],
            2 * coarsest if decoder_width is None else decoder_width,
            encoder.input_channels,
            norm,
        )

    @property
    def network(self) -> nn.Module:
        """What is handed on: the encoder, its parameters named as in the network."""
        return nn.ModuleDict({"encoder": self.encoder})

    def forward(
        self, volume: Tensor, visible: Tensor | None = None, seed: Tensor | None = None
    ) -> Reconstruction:
        """Volumes (b, c, d, h, w) -> loss, reconstruction (b, c, d, h, w) and what was visible.

        Args:
            volume: What to hide parts of.
            visible: (b, 1, d_t, h_t, w_t) bool, equally many tokens of each sample; drawn if None.
            seed: (b,) integers to draw it from; torch's generator if None.

        Raises:
            ValueError: If the volume does not divide into tokens or `visible` does not fit it.
        """
        volume = plain(volume)
        if volume.shape[1] != self.encoder.input_channels:
            raise ValueError(
                f"the volume has {volume.shape[1]} channels and the encoder was built for "
                f"{self.encoder.input_channels}"
            )
        grid = self.token_grid(volume.shape[2:])
        if visible is None:
            visible = random_visible(len(volume), grid, self.mask_ratio, seed)
        visible = visible.to(volume.device)
        if visible.shape != (len(volume), 1, *grid) or visible.dtype != torch.bool:
            raise ValueError(
                f"visible is {visible.dtype} of shape {tuple(visible.shape)}; a volume of shape "
                f"{tuple(volume.shape)} needs torch.bool of shape {(len(volume), 1, *grid)}"
            )
        shown = visible.flatten(1).sum(1)
        if (shown == 0).any() or (shown == visible[0].numel()).any():
            raise ValueError(
                f"the samples show {shown.tolist()} of {visible[0].numel()} tokens; show at least "
                "one and hide at least one of each"
            )
        reconstruction = self.decode(self.encode(volume, visible), visible)
        loss, patch_mean = self.losses(volume, reconstruction, visible)
        return Reconstruction(loss, reconstruction, visible, {"patch_mean": patch_mean})

    def token_grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens along each axis of a volume of so many voxels (d, h, w).

        Raises:
            ValueError: If the volume has other axes than the encoder or does not divide.
        """
        factors = torch.tensor(self.encoder.strides).prod(0).tolist()
        if len(size) != len(factors) or any(n % f for n, f in zip(size, factors, strict=True)):
            raise ValueError(
                f"volume {tuple(size)} does not divide into tokens of {tuple(factors)} voxels; "
                "use a patch of multiples of these"
            )
        return tuple(n // f for n, f in zip(size, factors, strict=True))

    def encode(self, volume: Tensor, visible: Tensor) -> list[Tensor | None]:
        """Features of every stage from visible tokens, finest first; None where not decoded."""
        shown = volume * visible_on(visible, volume.shape[2:])
        features = self.encoder.masked(shown, visible, bottom_up=self.bottom_up)
        return [f if used else None for f, used in zip(features, self.used, strict=True)]

    def decode(self, features: Sequence[Tensor | None], visible: Tensor) -> Tensor:
        """Fill what is hidden in the features of every stage, then decode: (b, c, d, h, w)."""
        filled = [
            torch.where(visible_on(visible, f.shape[2:]), f, self.holes[str(i)])
            if f is not None and self.bottom_up
            else f
            for i, f in enumerate(features[:-1])
        ]
        coarsest = features[-1]
        assert coarsest is not None
        return self.decoder([self.fill(coarsest, visible), *filled[::-1]])

    def fill(self, features: Tensor, visible: Tensor) -> Tensor:
        """The coarsest features with hidden tokens filled: (b, c, d_t, h_t, w_t) -> the same."""
        grid = features.shape[2:]
        if self.toki != "paper":
            features = torch.where(visible, features, self.token)
        if self.toki == "learned":
            return features
        order = self.encoder.mamba.scan_order(grid, features.device)
        tokens = features.flatten(2).transpose(1, 2)
        filled = interpolate(
            tokens[:, order], visible.flatten(1)[:, order], self.transition, mode=self.toki
        )[:, inverse(order)]
        if self.toki == "as_released":
            return torch.where(visible, features, filled.reshape(features.shape))
        return filled.transpose(1, 2).reshape(features.shape)

    def losses(
        self, volume: Tensor, reconstruction: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean squared error on hidden patches: of the reconstruction, of the patch's mean."""
        grid, hidden = visible.shape[2:], ~visible.flatten(1)
        target = to_patches(at_least_float32(volume), grid)
        centred, spread = self._normalized(target)
        if self.normalize:
            target = centred / spread
            centred = target
        error = to_patches(at_least_float32(reconstruction), grid) - target
        return error[hidden].square().mean(), centred[hidden].square().mean()

    @torch.no_grad()
    def restored(self, volume: Tensor, output: Reconstruction) -> Tensor:
        """The volume with hidden patches as reconstructed, in its own units: (b, c, d, h, w).

        Normalised patches get back their true mean and deviation, which the network did not
        predict: what is to be judged is the structure within a patch.
        """
        grid = output.visible.shape[2:]
        original = to_patches(volume.float(), grid)
        guess = to_patches(output.reconstruction.float(), grid)
        if self.normalize:
            centred, spread = self._normalized(original)
            guess = guess * spread + (original - centred)
        shown = output.visible.flatten(1)[..., None, None]
        return from_patches(torch.where(shown, original, guess), grid, volume.shape[2:])

    def _normalized(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (b, l, c, voxels) less their mean, and their standard deviation."""
        centred = target - target.mean(-1, keepdim=True)
        return centred, (target.var(-1, keepdim=True) + VARIANCE_EPS).sqrt()


def at_least_float32(x: Tensor) -> Tensor:
    """The same values in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _token(channels: int, axes: int) -> nn.Parameter:
    """A learned token that broadcasts over a grid of so many axes, (c, 1, ...)."""
    return nn.Parameter(0.02 * torch.randn(channels, *[1] * axes))
