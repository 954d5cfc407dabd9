"""Clips for training: cut, turned, scaled, mirrored and recoloured by nnU-Net, all frames alike."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, MapTransform
from torch import Tensor

from nnunet_plugins.bundle.augmentation import foreground_patches
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.clip_augmentation import clip_geometry
from nnunet_plugins.clip_trainer import ClipTrainer
from nnunet_plugins.losses import VivimLoss, default_regressor


def training_clips(
    plan: Plan,
    mirror_axes: Sequence[int] | None = None,
    foreground: float = 1 / 3,
    keys: Sequence[str] = ("image", "label"),
) -> Compose:
    """Clips of the plan's size, augmented; so many of them, as a share, centre on foreground.

    Args:
        plan: The plan.
        mirror_axes: Of (t, h, w): axes that may be mirrored; None or empty for none.
        foreground: Share.
        keys: Image and label.

    Raises:
        ValueError: If the plan is 2d, or has regions or an ignore label.
    """
    enlarged = clip_geometry(plan.patch_size).initial_size
    cut = foreground_patches(plan, foreground, keys, enlarged)
    return Compose([cut, ClipAugmentationd(plan, mirror_axes, keys)])


class ClipAugmentationd(MapTransform):
    """nnU-Net's augmentation of an enlarged clip, which gives one of the plan's size.

    Args:
        plan: The plan.
        mirror_axes: Of (t, h, w): axes that may be mirrored; None or empty for none.
        keys: Image and label.
    """

    def __init__(
        self,
        plan: Plan,
        mirror_axes: Sequence[int] | None = None,
        keys: Sequence[str] = ("image", "label"),
    ) -> None:
        super().__init__(keys)
        geometry = clip_geometry(plan.patch_size)
        self.pipeline = ClipTrainer.get_training_transforms(
            plan.patch_size,
            geometry.rotation,
            None,
            tuple(mirror_axes or ()),
            geometry.frame_by_frame,
            use_mask_for_norm=plan.configuration.use_mask_for_norm,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image, label = self.keys
        clip = {"image": _plain(d[image]).float(), "segmentation": _plain(d[label]).short()}
        changed = self.pipeline(**clip)
        return d | {image: changed["image"], label: changed["segmentation"].float()}


def vivim_loss(plan: Plan, affine_weight: float = 0.3, boundary_weight: float = 0.3) -> VivimLoss:
    """Vivim's Eq. 9 for the classes of a plan, with the regressor that comes with the package."""
    return VivimLoss(
        default_regressor(),
        num_classes=plan.outputs,
        affine_weight=affine_weight,
        boundary_weight=boundary_weight,
    )


def _plain(tensor: Tensor) -> Tensor:
    """A tensor of its own memory, without MONAI's metadata."""
    return torch.as_tensor(tensor).clone()
