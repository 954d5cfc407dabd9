"""EndoMamba: Mamba inside each frame of an endoscopic video, then Mamba from past to present.

Source: Tian et al., "EndoMamba: An Efficient Foundation Model for Endoscopic Videos via
Hierarchical Pre-training", 2025, and its released code (commit debd20a), whose outputs
this equals.

Shapes: b batch, c channels, k classes, t h w clip, n patches of a frame, v visible ones of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnunet_plugins.networks.base import SegmentationNetwork
from nnunet_plugins.networks.layers.decoder_cup import DecoderCup
from nnunet_plugins.networks.layers.frame_heads import Norm
from nnunet_plugins.networks.layers.frame_tokens import (
    frame_sinusoid,
    padded_to,
    resized_position,
)
from nnunet_plugins.networks.layers.mamba import in_full_precision
from nnunet_plugins.networks.layers.rms_mamba import EPS, MambaLayers, SpatialLayer, TemporalLayer
from nnunet_plugins.networks.layers.token_heads import FrameClassifier, LandmarkHead, Pool

Head = Literal["segmentation", "classification", "phase", "localization"]
Output = Tensor | list[Tensor] | tuple[Tensor, Tensor]
State = tuple[Tensor, ...]
"""What the frames so far leave behind: the next frame's index, (b,) int64, then of each temporal
layer the last inputs of its convolution, (b, e, d_conv - 1), and the state of its scan, (b, e,
d_state), float32, or float64 in a float64 network; e = expand * d_model."""


@dataclass(frozen=True)
class Size:
    """Sizes of a backbone.

    Args:
        d_model: Channels of a token.
        depth: Layers, of which the first half is spatial.
    """

    d_model: int
    depth: int


SIZES = {"tiny": Size(192, 24), "small": Size(384, 24), "middle": Size(576, 32)}
POOLS: dict[str, Pool] = {"classification": "cls", "phase": "mean", "localization": "mean"}
INIT_STD = 0.02
SMALL: dict[str, Any] = {
    "d_model": 96,
    "depth": 8,
    "decoder_widths": (64, 48, 32, 16),
    "skips": True,
}
"""Options of a segmentation network that a CPU can train."""


class EndoMamba(SegmentationNetwork):
    """Answers for every frame of a video, each from that frame and those before it.

    A clip at once (`forward`) or as its frames come (`step`) gives the same answers. Frames of any
    size: they are padded to whole patches by repeating their last row and column, and logit maps
    are cropped again. Parameter names do not depend on `deep_supervision`.

    Heads, and what `forward` gives back for a clip (b, c, t, h, w):

    - "segmentation": class logits (b, k, t, h, w).
    - "classification": class logits (b, t, k), read off the class token; those of the whole clip
      are `clip_logits`.
    - "phase": class logits (b, t, k), read off the mean of a frame's tokens.
    - "localization": visibility logits and positions of k landmarks, (b, t, k, 2) each. The
      sigmoid of the former is what the released code gives.

    Args:
        input_channels: Channels of a frame: 3 for colour.
        num_classes: Logits, or landmarks.
        size: "tiny", "small" (the published one) or "middle".
        head: What is asked about a frame.
        d_model: Channels of a token; those of `size` if None.
        depth: Layers, the first half spatial; those of `size` if None.
        image_size: Frame size that the position embedding is learned on; it is interpolated for
            others.
        patch_size: Pixels of a patch's side; for segmentation a power of two.
        d_state: States per channel of a layer.
        d_conv: Width of its causal convolution, in tokens.
        expand: Its inner over its outer channels.
        dt_rank: Rank of its step size projection; a sixteenth of the channels if None.
        pool: What a frame-wise head reads: "mean" of the tokens or "cls"; if None that of the head.
        decoder_widths: Channels of the segmentation decoder's blocks, coarsest first, one for each
            halving that makes a patch.
        skips: Whether that decoder also sees the frame through a small convolutional stem. The
            paper's does not; the released skips scramble the order of tokens.
        norm: Of that decoder: "batch" as released, or "layer", which mixes no frames in training.
        dropout: Chance to drop a feature before the head in training.
        drop_path: Chance to drop the last layer's branch in training, rising linearly from 0.
        deep_supervision: Return logits of every decoder grid, finest first.

    Raises:
        ValueError: If a size or head is unknown, or options do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        size: str = "small",
        head: Head = "segmentation",
        d_model: int | None = None,
        depth: int | None = None,
        image_size: Sequence[int] = (224, 224),
        patch_size: int = 16,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        pool: Pool | None = None,
        decoder_widths: Sequence[int] = (256, 128, 64, 16),
        skips: bool = False,
        norm: Norm = "batch",
        dropout: float = 0.0,
        drop_path: float = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        if head not in ("segmentation", *POOLS):
            known = ", ".join(("segmentation", *POOLS))
            raise ValueError(f"unknown head {head!r} of EndoMamba; use one of {known}")
        super().__init__(input_channels, [(1, 1, 1)])
        self.encoder = EndoMambaBackbone(
            input_channels, size, d_model, depth, image_size, patch_size, d_state, d_conv, expand,
            dt_rank, drop_path,
        )  # fmt: skip
        d_model = self.encoder.d_model
        self.dropout = nn.Dropout(dropout)
        self.decoder: DecoderCup | None = None
        self.head: FrameClassifier | LandmarkHead | None = None
        if head == "segmentation":
            _check_decoder(patch_size, decoder_widths)
            stem_channels = input_channels if skips else 0
            self.decoder = DecoderCup(
                d_model, decoder_widths, num_classes, stem_channels, norm, deep_supervision
            )
        elif deep_supervision or skips:
            raise ValueError(
                f"deep_supervision and skips are of the segmentation head, not of {head!r}; "
                "leave them out"
            )
        elif head == "localization":
            self.head = LandmarkHead(d_model, num_classes, pool or POOLS[head], dropout)
        else:
            self.head = FrameClassifier(d_model, num_classes, pool or POOLS[head])

    def forward(self, x: Tensor) -> Output:
        """Clip in, answers for all frames out: (b, c, t, h, w) -> as the class says.

        Raises:
            ValueError: If the axes or the channels do not fit the network.
        """
        return self.step(x)[0]

    def step(self, x: Tensor, state: State | None = None) -> tuple[Output, State]:
        """Answers for the frames that come next, and the state that they leave.

        A function of its arguments alone, so that it can be exported. Any cut of a video into steps
        gives what `forward` gives on the whole, to rounding.

        Args:
            x: As many frames as there are, (b, c, t, h, w), one at least.
            state: Left by the frames before; None, or `initial_state`, before the first one.

        Raises:
            ValueError: If the axes or the channels do not fit the network.
        """
        x = self.checked(x)
        tokens, state = self.encoder.step(x, state)
        return self._answers(tokens, x), state

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first frame of so many videos."""
        return self.encoder.initial_state(batch)

    def clip_logits(self, x: Tensor) -> Tensor:
        """Class logits of whole clips, of a frame-wise head: (b, c, t, h, w) -> (b, k).

        Their mean over time, which is the linear layer on the mean token: the released
        classification of clips.

        Raises:
            ValueError: If the head has no logits of frames.
        """
        if not isinstance(self.head, FrameClassifier):
            raise ValueError(
                'only heads "classification" and "phase" have logits of clips; build one of them'
            )
        logits = self(x)
        assert isinstance(logits, Tensor)
        return logits.mean(1)

    def _answers(self, tokens: Tensor, x: Tensor) -> Output:
        """Tokens (b, t, 1 + n, c) of frames (b, c', t, h, w) through the head."""
        tokens = self.dropout(tokens)
        if self.head is not None:
            return self.head(tokens)
        assert self.decoder is not None
        frames = padded_to(x, self.encoder.patch_size)
        grid = self.encoder.grid_of(frames)
        maps = tokens[:, :, 1:].reshape(*tokens.shape[:2], *grid, -1).movedim(-1, 1)
        return self.decoder(maps, frames, x.shape[3:])


class EndoMambaBackbone(nn.Module):
    """Tokens of every frame, which know that frame and those before it.

    Args:
        input_channels: Channels of a frame.
        size: "tiny", "small" or "middle".
        d_model: Channels of a token; those of `size` if None.
        depth: Layers, the first half spatial; those of `size` if None.
        image_size: Frame size that the position embedding is learned on.
        patch_size: Pixels of a patch's side.
        d_state: States per channel of a layer.
        d_conv: Width of its causal convolution, in tokens.
        expand: Its inner over its outer channels.
        dt_rank: Rank of its step size projection; a sixteenth of the channels if None.
        drop_path: Chance to drop the last layer's branch in training, rising linearly from 0.

    Raises:
        ValueError: If the size is unknown or the depth below 2.
    """

    def __init__(
        self,
        input_channels: int = 3,
        size: str = "small",
        d_model: int | None = None,
        depth: int | None = None,
        image_size: Sequence[int] = (224, 224),
        patch_size: int = 16,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        drop_path: float = 0.1,
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r} of EndoMamba; use one of {', '.join(SIZES)}")
        d_model, depth = d_model or SIZES[size].d_model, depth or SIZES[size].depth
        if depth < 2:
            raise ValueError(f"depth is {depth}; EndoMamba needs a spatial and a temporal layer")
        super().__init__()
        self.d_model, self.patch_size = d_model, patch_size
        self.state_sizes = [(expand * d_model, d_conv - 1), (expand * d_model, d_state)]
        self.spatial = depth // 2
        self.grid = [-(-side // patch_size) for side in image_size]
        patch = (1, patch_size, patch_size)
        self.patch_embed = nn.Conv3d(input_channels, d_model, patch, stride=patch)
        self.cls_token = nn.Parameter(INIT_STD * torch.randn(1, 1, d_model))
        places = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(INIT_STD * torch.randn(1, places, d_model))
        mixer = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "dt_rank": dt_rank}
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        kinds = [SpatialLayer] * self.spatial + [TemporalLayer] * (depth - self.spatial)
        self.layers = MambaLayers(
            kind(d_model, rate, **mixer) for kind, rate in zip(kinds, rates, strict=True)
        )
        self.norm_f = nn.RMSNorm(d_model, eps=EPS)
        with torch.no_grad():  # as Mamba: the residual stream sums `depth` branches
            for name, p in self.layers.named_parameters():
                if name.endswith("out_proj.weight"):
                    p.div_(depth**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of all frames, the class token first: (b, c', t, h, w) -> (b, t, 1 + n, c)."""
        return self.step(x)[0]

    def step(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens of the frames that come next, and the state that they leave.

        Args:
            x: As many frames as there are, (b, c', t, h, w), one at least.
            state: Left by the frames before; None, or `initial_state`, before the first one.

        Returns:
            (b, t, 1 + n, c) and the state.
        """
        index = self._start(len(x), x.device) if state is None else state[0]
        patches = self._patches(x, index)
        cls = (self.cls_token + self.pos_embed[:, :1]).to(patches.dtype)
        cls = cls.expand(*patches.shape[:2], 1, -1)
        tokens, layers = self._mixed(torch.cat([cls, patches], dim=2), state)
        return tokens, (index + x.shape[2], *layers)

    def visible_features(self, x: Tensor, visible: Tensor) -> Tensor:
        """Tokens of visible patches alone, in causal order, as pretraining needs them.

        There is no class token, and what is hidden is not computed.

        Args:
            x: (b, c', t, h, w).
            visible: (b, t, n) bool over patches, row by row; as many of each frame of the batch.

        Returns:
            (b, t * v, c), frame after frame.

        Raises:
            ValueError: If the patches are others, or not equally many are visible in all frames.
        """
        patches = self._patches(x, self._start(len(x), x.device))
        if visible.shape != patches.shape[:3]:
            raise ValueError(
                f"visible is {tuple(visible.shape)} and the clip has {tuple(patches.shape[:3])} "
                "patches (batch, frames, patches of a frame); make it for this clip"
            )
        counts = visible.sum(2)
        count = int(counts.max())
        if count == 0 or not bool((counts == count).all()):
            raise ValueError(
                f"frames have {int(counts.min())} to {count} visible patches; "
                "show equally many of each, at least one"
            )
        chosen = patches[visible].view(*patches.shape[:2], count, -1)
        return self._mixed(chosen, None)[0].flatten(1, 2)

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first frame of so many videos, on the device of the weights."""
        weight = self.norm_f.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        zeros = [
            torch.zeros(batch, *sizes, dtype=dtype, device=weight.device)
            for _ in range(len(self.layers) - self.spatial)
            for sizes in self.state_sizes
        ]
        return (self._start(batch, weight.device), *zeros)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of frames (..., h, w)."""
        h, w = x.shape[-2:]
        return -(-h // self.patch_size), -(-w // self.patch_size)

    def _start(self, batch: int, device: torch.device) -> Tensor:
        """Indices of first frames, (b,)."""
        return torch.zeros(batch, dtype=torch.int64, device=device)

    def _patches(self, x: Tensor, index: Tensor) -> Tensor:
        """Embedded patches with place and time: (b, c', t, h, w), (b,) -> (b, t, n, c)."""
        x = padded_to(x, self.patch_size)
        tokens = in_full_precision(self.patch_embed, x).flatten(3).permute(0, 2, 3, 1)
        places = resized_position(self.pos_embed, self.grid, self.grid_of(x))[:, 1:]
        frames = index.unsqueeze(1) + torch.arange(x.shape[2], device=index.device)
        times = frame_sinusoid(frames, self.d_model).unsqueeze(2)
        return tokens + places.to(tokens.dtype) + times.to(tokens.dtype)

    def _mixed(self, x: Tensor, state: State | None) -> tuple[Tensor, list[Tensor]]:
        """Tokens (b, t, l, c) through all layers, and the states that temporal layers leave."""
        b, t, l, _ = x.shape
        x = self.layers.within_frames(x.flatten(0, 1)).view(b, t * l, -1)
        before = None if state is None else list(zip(state[1::2], state[2::2], strict=True))
        x, after = self.layers.along_time(x, before)
        return self.norm_f(x).view(b, t, l, -1), [part for own in after for part in own]


def _check_decoder(patch_size: int, widths: Sequence[int]) -> None:
    if 2 ** len(widths) != patch_size:
        halvings = log2(patch_size)
        raise ValueError(
            f"patches of {patch_size} pixels are halved {halvings:g} times and decoder_widths has "
            f"{len(widths)} entries; a segmentation decoder needs a power of two and one entry for "
            "each halving"
        )
