"""From the tokens of frames to one answer a frame: classes, or landmarks.

Shapes: b batch, t frames, n patches of a frame, c channels, k classes or landmarks. Tokens are
(b, t, 1 + n, c), the class token first.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Pool = Literal["mean", "cls"]
LANDMARK_WIDTH = 512
"""Hidden channels of the landmark head, as released."""


def pooled(tokens: Tensor, pool: Pool) -> Tensor:
    """The mean of a frame's tokens, class token included, or that token: (b, t, c)."""
    return tokens.mean(2) if pool == "mean" else tokens[:, :, 0]


class FrameClassifier(nn.Module):
    """Class logits of every frame.

    Args:
        channels: Channels of a token.
        num_classes: Logits of a frame.
        pool: What of a frame is read.
    """

    def __init__(self, channels: int, num_classes: int, pool: Pool) -> None:
        super().__init__()
        self.pool: Pool = pool
        self.classify = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, t, 1 + n, c) -> (b, t, k)."""
        return self.classify(pooled(tokens, self.pool))


class LandmarkHead(nn.Module):
    """Whether each landmark is visible in a frame, and where it is.

    As released, the visibility branch has no nonlinearity.

    Args:
        channels: Channels of a token.
        landmarks: Their number.
        pool: What of a frame is read.
        dropout: Chance to drop a hidden feature of the visibility branch in training.
    """

    def __init__(self, channels: int, landmarks: int, pool: Pool, dropout: float = 0.0) -> None:
        super().__init__()
        self.pool: Pool = pool
        sizes = (channels, LANDMARK_WIDTH, LANDMARK_WIDTH, 2 * landmarks)
        first, second, third = (nn.Linear(a, b) for a, b in pairwise(sizes))
        drop = nn.Dropout(dropout)
        self.visibility = nn.Sequential(first, drop, second, drop, third)
        first, second, third = (nn.Linear(a, b) for a, b in pairwise(sizes))
        self.position = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(b, t, 1 + n, c) -> visibility logits and positions, (b, t, k, 2) each."""
        x = pooled(tokens, self.pool)
        visibility, position = self.visibility(x), self.position(x)
        return visibility.unflatten(-1, (-1, 2)), position.unflatten(-1, (-1, 2))
