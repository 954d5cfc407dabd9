"""Vivim's objective: segmentation, boundary and the affine constraint on boundaries.

Source: Yang et al., "Vivim", 2024, arXiv:2401.14168, section III-E. In the released code the
constraint is off, its gradient is zero, and its regressor's weights are missing; here it is what
the paper describes.

Shapes: b batch, k classes, t h w clip.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.losses.affine import AffineConstraint, AffineRegressor
from nnunet_plugins.losses.edges import near, sobel_edges
from nnunet_plugins.losses.segmentation import CrossEntropyIoU, mean_of

Prediction = Tensor | Sequence[Tensor]


class VivimLoss(nn.Module):
    """Eq. 9: segmentation (cross-entropy and IoU) + 0.3 affine constraint + 0.3 boundary BCE.

    Takes what a `Vivim` with a boundary head returns: in training a pair of class and boundary
    logits; in evaluation class logits alone, which leave the segmentation term alone.

    Args:
        regressor: A trained regressor for the affine constraint. No such term if None.
        num_classes: Classes of the labels, background included.
        affine_weight: Of the affine constraint.
        boundary_weight: Of the cross-entropy between predicted and true boundary.
        balanced: Weigh edge and other pixels of that cross-entropy alike, as released; the paper
            does not.
        ignore_label: Label of pixels that do not count. None if there are none.
    """

    def __init__(
        self,
        regressor: AffineRegressor | None,
        num_classes: int = 2,
        affine_weight: float = 0.3,
        boundary_weight: float = 0.3,
        balanced: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weights = {"segmentation": 1.0, "affine": affine_weight, "boundary": boundary_weight}
        self.balanced = balanced
        self.ignore_label = ignore_label
        self.segmentation = CrossEntropyIoU(ignore_label)
        self.affine = AffineConstraint(regressor) if regressor is not None else None

    def forward(self, prediction: Prediction, labels: Tensor) -> Tensor:
        """Logits (b, k, t, h, w), or they and boundary logits (b, 1, t, h, w), and labels (b, 1, t,
        h, w) -> a scalar."""
        terms = self.terms(prediction, labels)
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def terms(self, prediction: Prediction, labels: Tensor) -> dict[str, Tensor]:
        """The terms by name, without their weights."""
        if isinstance(prediction, Tensor):
            return {"segmentation": self.segmentation(prediction, labels)}
        logits, boundary = prediction
        boundary = boundary.float()
        edges = sobel_edges(labels, self.num_classes)
        counted = None if self.ignore_label is None else ~near(labels == self.ignore_label)
        terms = {
            "segmentation": self.segmentation(logits, labels),
            "boundary": boundary_loss(boundary, edges, counted, balanced=self.balanced),
        }
        if self.affine is not None:
            terms["affine"] = self.affine(boundary.sigmoid(), edges, counted)
        return terms


def boundary_loss(
    logits: Tensor, edges: Tensor, counted: Tensor | None = None, *, balanced: bool = False
) -> Tensor:
    """Binary cross-entropy between predicted and true boundaries, a scalar.

    Args:
        logits: Of an edge, (b, 1, ...).
        edges: Ones on edges, (b, 1, ...).
        counted: Pixels that count, bool. All if None.
        balanced: Weigh each pixel by the share of the others: edges by that of no edges, and the
            reverse, over the whole batch. Source: Xie & Tu, "Holistically-nested edge detection",
            2015; Vivim's released code.
    """
    wrong = F.binary_cross_entropy_with_logits(logits, edges, reduction="none")
    if balanced:
        share = mean_of(edges, counted)
        wrong = wrong * torch.where(edges == 1, 1 - share, share)
    return mean_of(wrong, counted)
