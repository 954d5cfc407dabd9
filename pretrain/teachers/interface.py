"""What a teacher is: features of a clip on a grid of tokens, from a model that does not learn.

Shapes: b batch, c channels, t h w clip, t' h' w' grid of tokens.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mamba_kernels.dispatch import without_autocast


class Teacher(Protocol):
    """Gives the features that a student is to come near to."""

    name: str
    """To be recorded: the kind of model and where it came from."""
    fingerprint: str
    """SHA-256 of its weights."""
    channels: int
    """Of its tokens."""

    def tokens(self, clip: Tensor, **place: Tensor) -> Tensor:
        """Clips RGB (b, 3, t, h, w) in [0, 1] -> features (b, t', h', w', c), without gradient.

        The grid covers the clip: token i of n along an axis stands for its i-th n-th part.

        Args:
            clip: What the student sees.
            place: Where in its video each clip was taken; most teachers do not ask.
        """


class FrozenTeacher(ABC):
    """A teacher that runs a model: in inference mode, in the model's own dtype, without autocast.

    Args:
        model: Follows the clips from device to device.
        name: As `Teacher`.
        channels: Of its tokens.
    """

    def __init__(self, model: nn.Module, name: str, channels: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name, self.channels = name, channels
        self.fingerprint = fingerprint(model)

    def tokens(self, clip: Tensor, **place: Tensor) -> Tensor:
        """As `Teacher`.

        Raises:
            ValueError: If what the model gives is no grid of tokens.
        """
        dtype = next(self.model.parameters()).dtype
        self.model.to(clip.device)
        with torch.inference_mode(), without_autocast(clip.device):
            tokens = self.run(clip.to(dtype))
        if tokens.ndim != 5 or tokens.shape[-1] != self.channels:
            raise ValueError(
                f"{self.name} gives {tuple(tokens.shape)}, which is no grid of tokens (batch, "
                f"time, rows, columns, {self.channels}); take another teacher"
            )
        return tokens.clone()  # one that may be kept for a backward pass

    @abstractmethod
    def run(self, clip: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) in the model's dtype -> features (b, t', h', w', c)."""


def resampled(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens on another grid over the same clip: (b, t', h', w', c) -> (b, *grid, c).

    Linear between the centres of tokens along time, rows and columns.
    """
    if tuple(tokens.shape[1:4]) == tuple(grid):
        return tokens
    features = tokens.movedim(-1, 1)
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    resized = F.interpolate(features, tuple(grid), mode="trilinear", align_corners=False)
    return resized.movedim(1, -1)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights and their names, wherever they lie."""
    digest = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
