"""Losses beyond nnU-Net's and MONAI's: Vivim's boundary-aware affine constraint and its company."""

from nnunet_plugins.losses.affine import (
    AffineConstraint,
    AffineRegressor,
    default_regressor,
    load_notes,
    load_regressor,
    save_regressor,
)
from nnunet_plugins.losses.affine_training import (
    AffineAccuracy,
    AffineTraining,
    train_regressor,
)
from nnunet_plugins.losses.boundary import VivimLoss, boundary_loss
from nnunet_plugins.losses.edges import released_edges, sobel_edges
from nnunet_plugins.losses.segmentation import CrossEntropyIoU, iou_loss, structure_loss

__all__ = [
    "AffineAccuracy",
    "AffineConstraint",
    "AffineRegressor",
    "AffineTraining",
    "CrossEntropyIoU",
    "VivimLoss",
    "boundary_loss",
    "default_regressor",
    "iou_loss",
    "load_notes",
    "load_regressor",
    "released_edges",
    "save_regressor",
    "sobel_edges",
    "structure_loss",
    "train_regressor",
]
