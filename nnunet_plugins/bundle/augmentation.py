"""Patches for training: nnU-Net's oversampling and augmentation, from MONAI's transforms."""

import math
from collections.abc import Sequence

from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    SpatialPadd,
)

from nnunet_plugins.bundle.plan import Plan

_ANISOTROPY = 3
"""Above this ratio of patch axes nnU-Net turns within slices only."""


def foreground_patches(
    plan: Plan,
    foreground: float = 1 / 3,
    keys: Sequence[str] = ("image", "label"),
    size: Sequence[int] | None = None,
) -> Compose:
    """Cut one patch of the plan's size; so many of them, as a share, centre on foreground.

    Args:
        plan: The plan.
        foreground: Share.
        keys: Image and label.
        size: Of the patch, if not the plan's.

    Raises:
        ValueError: If the plan is 2d, or has regions or an ignore label.
    """
    if len(plan.patch_size) != 3 or plan.labels.has_regions or plan.labels.has_ignore_label:
        raise ValueError(
            "a bundle trains 3d configurations with plain labels; train 2d plans, regions and "
            "ignore labels with nnUNetv2_train and export the result with mambamed export-bundle"
        )
    image, label = keys
    size = size or plan.patch_size
    return Compose(
        [
            SpatialPadd(keys, spatial_size=size),
            RandCropByPosNegLabeld(
                keys, label_key=label, spatial_size=size, pos=foreground,
                neg=1 - foreground, num_samples=1, image_key=image, image_threshold=-math.inf,
            ),
        ]
    )  # fmt: skip


def augmentation(
    plan: Plan, mirror_axes: Sequence[int] | None, keys: Sequence[str] = ("image", "label")
) -> Compose:
    """Turn, scale, mirror, blur, brighten and add noise, about as often as nnU-Net does.

    Args:
        plan: The plan; in slices much thicker than wide, only they are turned.
        mirror_axes: Grid axes that may be mirrored; None or empty where sides matter.
        keys: Image and label.
    """
    image, _ = keys
    flat = max(plan.patch_size) / plan.patch_size[0] > _ANISOTROPY
    angles = (math.pi, 0.0, 0.0) if flat else (math.pi / 6,) * 3
    scales = ((0.0, 0.0) if flat else (-0.3, 0.4), (-0.3, 0.4), (-0.3, 0.4))
    return Compose(
        [
            RandAffined(
                keys, prob=0.2, rotate_range=angles, scale_range=scales,
                mode=("bilinear", "nearest"), padding_mode="zeros",
            ),
            RandGaussianNoised(image, prob=0.1, std=0.1),
            RandGaussianSmoothd(
                image, prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0),
                sigma_z=(0.0, 0.0) if flat else (0.5, 1.0),
            ),
            RandScaleIntensityd(image, factors=0.25, prob=0.15),
            RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in mirror_axes or ()),
        ]
    )  # fmt: skip
