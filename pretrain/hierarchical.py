"""Hierarchical video pretraining: hidden patches from visible ones, and the features of a teacher.

Source: Tian et al., "EndoMamba: An Efficient Foundation Model for Endoscopic Videos via
Hierarchical Pre-training", 2025, and its released code (commit debd20a), whose losses this equals.

Shapes: b batch, c channels, t h w clip, n patches of a frame, row by row, v visible ones of them.
Tokens stand in causal order: frame after frame.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.imagenet import IMAGENET_MEAN, IMAGENET_STD
from nnunet_plugins.networks import EndoMambaBackbone
from nnunet_plugins.networks.base import plain
from pretrain.mambamim import at_least_float32
from pretrain.masking import from_patches, to_patches
from pretrain.teachers.interface import Teacher, resampled
from pretrain.tubes import tube_visible
from pretrain.video_decoder import VideoDecoder

STD_EPS = 1e-6
"""Added to the standard deviation of a patch, as released."""


@dataclass(frozen=True)
class Prediction:
    """What a pass of `HierarchicalPretraining` gives."""

    loss: Tensor
    """Reconstruction and, with a teacher, weighted alignment; a scalar."""
    predicted: Tensor
    """(b, t * (n - v), pixels of a patch, c): hidden patches, in units of each one's standard
    deviation from its mean, channel by channel."""
    visible: Tensor
    """(b, t, n) bool: which patches were shown."""
    parts: Mapping[str, Tensor]
    """Scalars to log: `reconstruction`, the mean squared error; `patch_mean`, that of a predictor
    that knows each hidden patch's mean and nothing else; with a teacher `alignment`, one less the
    cosine between features of visible patches and the teacher's."""


class HierarchicalPretraining(nn.Module):
    """Two tiers: pixels of hidden patches are reconstructed, features of visible ones guided.

    Clips are RGB in [0, 1]. The backbone sees them less `mean` and over `std`; the network that is
    handed on has absorbed this into its patch embedding, and gives the same features for clips in
    [0, 1] as they are, which is what nnU-Net trains on.

    There is no class token in pretraining: it is frozen as it is, and its place is set to zeros, as
    `endomamba_from_released` does.

    Args:
        backbone: Trained in place.
        mask_ratio: Share of hidden patches.
        decoder_width: Channels of the decoder.
        decoder_depth: Its blocks.
        decoder_heads: Heads of its attention.
        teacher: Whose features guide; none if None. It is not trained and not in the state dict.
            If its features have another width than the backbone's, a learned projection of the
            latter is compared, which is not handed on.
        alignment_weight: Of the second tier in the loss.
        mean: Of each channel, in [0, 1].
        std: Of each channel.

    Raises:
        ValueError: If an option is out of range or the channels are not those of the backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: EndoMambaBackbone,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 192,
        decoder_depth: int = 4,
        decoder_heads: int = 3,
        teacher: Teacher | None = None,
        alignment_weight: float = 0.25,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1 or alignment_weight < 0:
            raise ValueError(
                f"mask_ratio is {mask_ratio} and alignment_weight {alignment_weight}; they must be "
                "between 0 and 1, and not negative"
            )
        self.channels = backbone.patch_embed.in_channels
        if not len(mean) == len(std) == self.channels or min(std) <= 0:
            raise ValueError(
                f"the backbone takes {self.channels} channels, mean has {len(mean)} entries and "
                f"std {len(std)}; give one of each for every channel, std above 0"
            )
        self.backbone, self.mask_ratio = backbone, mask_ratio
        self.teacher, self.alignment_weight = teacher, alignment_weight
        for name, values in {"mean": mean, "std": std}.items():
            broadcasting = torch.tensor(values).view(-1, 1, 1, 1)
            self.register_buffer(name, broadcasting, persistent=False)
        backbone.cls_token.requires_grad_(False)  # processes wait for no gradient of it
        with torch.no_grad():
            backbone.pos_embed[:, 0].zero_()  # no gradient reaches it, and decay leaves zeros
        pixels = self.channels * backbone.patch_size**2
        self.decoder = VideoDecoder(
            backbone.d_model, decoder_width, decoder_depth, decoder_heads, pixels
        )
        self.projection: nn.Module = nn.Identity()
        if teacher is not None and teacher.channels != backbone.d_model:
            self.projection = nn.Linear(backbone.d_model, teacher.channels)

    @property
    def network(self) -> nn.Module:
        """What is handed on: the backbone as `encoder`, for clips in [0, 1]; a copy."""
        encoder = copy.deepcopy(self.backbone)
        absorb_normalization(encoder.patch_embed, self.mean.flatten(), self.std.flatten())
        return nn.ModuleDict({"encoder": encoder})

    def forward(
        self,
        clip: Tensor,
        visible: Tensor | None = None,
        seed: Tensor | None = None,
        **place: Tensor,
    ) -> Prediction:
        """Clips (b, c, t, h, w) in [0, 1] -> loss, prediction of hidden patches, what was visible.

        Args:
            clip: What to hide parts of.
            visible: (b, t, n) bool, as many patches of each frame of the batch; drawn if None.
            seed: (b,) integers to draw it from; torch's generator if None.
            place: What else the dataset says of each clip; teachers may ask where in its video it
                was taken.

        Raises:
            ValueError: If the clip does not divide into patches or `visible` does not fit it.
        """
        clip = plain(clip)
        t, h, w = self.token_grid(clip.shape[1:])
        if visible is None:
            visible = tube_visible(len(clip), t, h * w, self.mask_ratio, seed)
        visible = visible.to(clip.device)
        features = self.encode(clip, visible)
        if features.shape[1] == t * h * w:
            raise ValueError(f"all {h * w} patches of each frame are visible; hide at least one")
        predicted = self.decoder(features, visible).unflatten(-1, (-1, self.channels))
        reconstruction, patch_mean = self.losses(clip, predicted, visible)
        parts = {"reconstruction": reconstruction, "patch_mean": patch_mean}
        loss = reconstruction
        if self.teacher is not None:
            wanted = resampled(self.teacher.tokens(clip, **place), (t, h, w)).flatten(1, 3)
            wanted = wanted[visible.flatten(1)].view(*features.shape[:2], -1)
            guided = at_least_float32(self.projection(features))
            cosine = F.cosine_similarity(guided, wanted.to(guided.dtype), dim=-1)
            parts["alignment"] = (1 - cosine).mean()
            loss = loss + self.alignment_weight * parts["alignment"]
        return Prediction(loss, predicted, visible, parts)

    def token_grid(self, size: Sequence[int]) -> tuple[int, int, int]:
        """Frames, rows and columns of patches of a clip of this size (c, t, h, w).

        Raises:
            ValueError: If it has other axes or channels, or frames do not divide into patches.
        """
        patch = self.backbone.patch_size
        if len(size) != 4 or size[0] != self.channels or size[2] % patch or size[3] % patch:
            raise ValueError(
                f"a clip of shape {tuple(size)} cannot be pretrained on; give (channels, frames, "
                f"height, width) with {self.channels} channels and sides that {patch} divides"
            )
        return size[1], size[2] // patch, size[3] // patch

    def encode(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Features of visible patches alone: (b, c, t, h, w), (b, t, n) -> (b, t * v, channels)."""
        normalized = (clip - self.mean.to(clip.dtype)) / self.std.to(clip.dtype)
        return self.backbone.visible_features(normalized, visible)

    def losses(self, clip: Tensor, predicted: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error on hidden patches: of the prediction, of the patch's mean."""
        centred, spread = _normalized(self.patches(clip))
        target = (centred / spread)[~visible.flatten(1)].view(predicted.shape)
        error = at_least_float32(predicted) - target
        return error.square().mean(), target.square().mean()

    def patches(self, clip: Tensor) -> Tensor:
        """The pixels of each token: (b, c, t, h, w) -> (b, t * n, pixels, c)."""
        grid = self.token_grid(clip.shape[1:])
        return to_patches(at_least_float32(clip), grid).transpose(2, 3)

    @torch.no_grad()
    def restored(self, clip: Tensor, output: Prediction) -> Tensor:
        """The clip with hidden patches as predicted: (b, c, t, h, w) in [0, 1], and beyond.

        They get back their true mean and deviation, which the network did not predict: what is to
        be judged is the structure within a patch.
        """
        patches = self.patches(clip)
        centred, spread = _normalized(patches)
        hidden = ~output.visible.flatten(1)
        guess = output.predicted.flatten(0, 1).to(patches.dtype)
        patches = patches.clone()
        patches[hidden] = guess * spread[hidden] + (patches - centred)[hidden]
        grid = self.token_grid(clip.shape[1:])
        return from_patches(patches.transpose(2, 3), grid, clip.shape[2:])


@torch.no_grad()
def absorb_normalization(convolution: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Let a convolution of clips do what was done before it: subtract means, divide by deviations.

    Exact where it pads no zeros, as in a patch embedding: weight / std, and the bias less
    weight * mean / std summed over each filter.

    Args:
        convolution: Changed in place; with a bias.
        mean: Of each input channel, (c,).
        std: Of each input channel, (c,).
    """
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    exact = weight.double() / std.double().view(shape)
    shift = (exact * mean.double().view(shape)).flatten(1).sum(1)
    bias.copy_(bias.double() - shift)
    weight.copy_(exact)


def _normalized(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Patches (b, l, pixels, c) less their mean, and what they are divided by."""
    centred = patches - patches.mean(2, keepdim=True)
    return centred, patches.std(2, keepdim=True) + STD_EPS
