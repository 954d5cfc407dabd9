"""Losses of class logits: cross-entropy and IoU, and the structure loss of polyp segmentation.

Shapes: b batch, k classes, t h w clip.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMOOTH = 1.0
"""Pixels added to both parts of an IoU, so that an absent class that is not predicted scores 1."""
REACH = 31
"""Width in pixels of the window in which the structure loss looks for a boundary."""


def iou_loss(probabilities: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """One minus the soft intersection over union, a scalar: the mean over samples and classes.

    Args:
        probabilities: In [0, 1], (b, k, ...).
        target: Ones where the class is, (b, k, ...).
        counted: Pixels that count, (b, 1, ...) bool. All if None.
    """
    if counted is not None:
        probabilities, target = probabilities * counted, target * counted
    axes = tuple(range(2, target.ndim))
    overlap = (probabilities * target).sum(axes)
    union = (probabilities + target).sum(axes) - overlap
    return (1 - (overlap + SMOOTH) / (union + SMOOTH)).mean()


class CrossEntropyIoU(nn.Module):
    """Cross-entropy plus IoU of the foreground classes: Vivim's segmentation loss.

    A network of one logit map, as released, gets the binary forms of both.
    Source: Yang et al., "Vivim", 2024, arXiv:2401.14168, section III-C3.

    Args:
        ignore_label: Label of pixels that do not count. None if there are none.
    """

    def __init__(self, ignore_label: int | None = None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (b, k, t, h, w) and labels (b, 1, t, h, w) -> a scalar."""
        logits, labels = logits.float(), labels.long()
        counted = labels != self.ignore_label if self.ignore_label is not None else None
        if counted is not None:
            labels = labels * counted
        if logits.shape[1] == 1:
            wrong = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
            return mean_of(wrong, counted) + iou_loss(logits.sigmoid(), labels.float(), counted)
        wrong = F.cross_entropy(logits, labels[:, 0], reduction="none")[:, None]
        classes = torch.arange(1, logits.shape[1], device=logits.device)
        target = (labels == classes.view(1, -1, *[1] * (labels.ndim - 2))).float()
        return mean_of(wrong, counted) + iou_loss(logits.softmax(1)[:, 1:], target, counted)


def mean_of(values: Tensor, counted: Tensor | None) -> Tensor:
    """Mean over the pixels that count, 0 if there are none: (b, 1, ...) twice -> a scalar."""
    if counted is None:
        return values.mean()
    return (values * counted).sum() / counted.sum().clamp(min=1)


def structure_loss(logits: Tensor, target: Tensor, *, as_released: bool = False) -> Tensor:
    """Binary cross-entropy and IoU, pixels near a boundary weighing up to six times as much.

    Source: Wei et al., "F3Net", 2020, arXiv:1911.11445, as used by Fan et al., "PraNet", 2020.

    Args:
        logits: Of the lesion, (b, 1, h, w).
        target: Masks in [0, 1], (b, 1, h, w).
        as_released: Leave the cross-entropy unweighted, as Vivim's released code does by
            accident: the `reduce="none"` it passes is truthy.

    Returns:
        A scalar.
    """
    around = F.avg_pool2d(target, REACH, stride=1, padding=REACH // 2)
    weight = 1 + 5 * (around - target).abs()
    wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    axes = (2, 3)
    entropy = wrong.mean() if as_released else (weight * wrong).sum(axes) / weight.sum(axes)
    p = logits.sigmoid()
    overlap = (p * target * weight).sum(axes)
    union = ((p + target) * weight).sum(axes) - overlap
    return (entropy + 1 - (overlap + 1) / (union + 1)).mean()
