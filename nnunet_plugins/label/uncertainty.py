"""How unsure a network is of a study: the entropy of its classes where it sees something.

Shapes: k classes, other axes any.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Uncertainty:
    """Mean entropy over the voxels of a study that are likely foreground, from 0 to 1.

    Everywhere else a network is sure of the background; were that counted, small studies would
    come before difficult ones. A study in which nothing is seen gets the mean over all of it.

    Args:
        regions: Whether logits are of overlapping regions, each of its own, not of classes.
    """

    def __init__(self, regions: bool = False) -> None:
        self.regions = regions
        self.inside = self.everywhere = 0.0
        self.seen = self.voxels = 0

    def add(self, logits: Tensor) -> None:
        """Count logits of a volume or of a frame: (k, ...)."""
        logits = logits.float()
        if self.regions:
            pairs = torch.stack([torch.zeros_like(logits), logits])
            entropy = _entropy(pairs).amax(0)
            foreground = (logits > 0).any(0)
        else:
            entropy = _entropy(logits)
            foreground = logits.argmax(0) > 0
        self.inside += float(entropy[foreground].sum())
        self.everywhere += float(entropy.sum())
        self.seen += int(foreground.sum())
        self.voxels += entropy.numel()

    def over(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        """Logits of frames, which are counted as they pass."""
        for logits in frames:
            self.add(logits)
            yield logits

    @property
    def mean(self) -> float:
        """Of all that was counted, 0 sure to 1 undecided."""
        total, count = (
            (self.inside, self.seen) if self.seen else (self.everywhere, max(1, self.voxels))
        )
        return total / count


def _entropy(logits: Tensor) -> Tensor:
    """Entropy over the first axis as a share of the largest there can be: (k, ...) -> (...)."""
    log_p = logits.log_softmax(0)
    return -(log_p.exp() * log_p).sum(0) / math.log(len(logits))
