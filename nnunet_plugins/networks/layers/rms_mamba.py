"""Layers of EndoMamba: RMSNorm and a Mamba mixer beside a shortcut, without a feed-forward network.

Source: Tian et al., "EndoMamba", 2025; Gu & Dao, "Mamba", 2023, arXiv:2312.00752.

Shapes: b batch, f frames of all clips, l tokens, c channels.
"""

from collections.abc import Sequence

from monai.networks.layers import DropPath
from torch import Tensor, nn

from nnunet_plugins.networks.layers.mamba import MambaMixer, State

EPS = 1e-5
"""Of RMSNorm, as released."""


class SpatialLayer(nn.Module):
    """Mixes the tokens of each frame, from both ends.

    Args:
        channels: Channels of the tokens.
        drop_path: Chance to skip a frame in training.
        mixer: Sizes of `MambaMixer`.
    """

    def __init__(self, channels: int, drop_path: float = 0.0, **mixer: int | None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=EPS)
        self.mamba = MambaMixer(channels, **mixer)  # type: ignore[arg-type]
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of frames: (f, l, c) -> (f, l, c)."""
        return x + self.drop_path(self.mamba(self.norm(x)))


class TemporalLayer(nn.Module):
    """Mixes all tokens of a clip, frame after frame; none sees those that come later.

    Args:
        channels: Channels of the tokens.
        drop_path: Chance to skip a clip in training.
        mixer: Sizes of `MambaMixer`.
    """

    def __init__(self, channels: int, drop_path: float = 0.0, **mixer: int | None) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(channels, eps=EPS)
        self.mamba = MambaMixer(channels, bidirectional=False, **mixer)  # type: ignore[arg-type]
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The tokens that come next: (b, l, c) -> (b, l, c), and the state that they leave."""
        y, state = self.mamba.step(self.norm(x), state)
        return x + self.drop_path(y), state


class MambaLayers(nn.ModuleList):
    """Layers of both kinds: tokens go through the spatial ones, then through the temporal ones."""

    def within_frames(self, x: Tensor) -> Tensor:
        """Tokens of frames through the spatial layers: (f, l, c) -> (f, l, c)."""
        for layer in self:
            if isinstance(layer, SpatialLayer):
                x = layer(x)
        return x

    def along_time(self, x: Tensor, states: Sequence[State] | None) -> tuple[Tensor, list[State]]:
        """The tokens that come next through the temporal layers, of which each has a state.

        (b, l, c) -> (b, l, c), and the states that they leave.

        Raises:
            ValueError: If there are states for more or fewer layers.
        """
        layers = [layer for layer in self if isinstance(layer, TemporalLayer)]
        if states is not None and len(states) != len(layers):
            raise ValueError(
                f"states of {len(states)} layers came for {len(layers)} temporal layers; give the "
                "state that this network has left, or None"
            )
        every = []
        for i, layer in enumerate(layers):
            x, after = layer(x, None if states is None else states[i])
            every.append(after)
        return x, every
