"""nnU-Net's augmentation for clips: every frame of a clip is changed alike, and time is let alone.

nnU-Net sees a clip as a volume whose first axis is time. Rotating, scaling and mirroring then must
stay within frames, and no filter may reach from one frame into the next.

Shapes: t h w clip.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import (
    Convert2DTo3DTransform,
    Convert3DTo2DTransform,
)
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

FRAME_AXES = (1, 2)
"""Of (t, h, w): those that may be mirrored."""
ELONGATED = 1.5
"""Longer over shorter side from which nnU-Net turns an image by 15 degrees at most."""
SCALING = (0.85, 1.25)
"""nnU-Net's range of scales by which it sizes the patch that it rotates."""


class ClipGeometry(NamedTuple):
    """What nnU-Net asks for before it augments."""

    rotation: tuple[float, float]
    """Range of angles in radians, within frames."""
    frame_by_frame: bool
    """Whether one spatial transform is drawn for all frames: always."""
    initial_size: list[int]
    """Frames and pixels that are cut out before rotating."""
    mirror_axes: tuple[int, ...]


def clip_geometry(size: Sequence[int]) -> ClipGeometry:
    """Rotations as nnU-Net has them for images of one frame's shape; (t, h, w) in."""
    frames, *frame = size
    degrees = 15 if max(frame) / min(frame) > ELONGATED else 180
    rotation = (-float(np.deg2rad(degrees)), float(np.deg2rad(degrees)))
    enlarged = get_patch_size(frame, rotation, rotation, rotation, SCALING)
    return ClipGeometry(rotation, True, [frames, *(int(n) for n in enlarged)], FRAME_AXES)


def keep_time(pipeline: Any) -> Any:
    """nnU-Net's training transforms, blurring all frames alike instead of across time."""
    for position, transform in enumerate(pipeline.transforms):
        if isinstance(transform, GaussianBlurTransform):
            pipeline.transforms[position] = frame_blur(transform)
        elif isinstance(getattr(transform, "transform", None), GaussianBlurTransform):
            transform.transform = frame_blur(transform.transform)
    return pipeline


def frame_blur(blur: GaussianBlurTransform) -> BasicTransform:
    """The same blur with one strength for all frames and colours of a clip."""
    alike = GaussianBlurTransform(blur.blur_sigma, synchronize_channels=True, p_per_channel=1)
    return ComposeTransforms([Convert3DTo2DTransform(), alike, Convert2DTo3DTransform()])
