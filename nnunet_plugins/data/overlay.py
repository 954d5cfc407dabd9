"""Segmentations drawn on frames: a tint inside, a line on the contour, one colour a class."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_plugins.data.clips import write_video

COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (255, 255, 255),
)  # fmt: skip
"""Okabe and Ito's colours, which colour-blind people can tell apart; classes beyond start again."""

PIXELS_PER_LINE = 300
"""A contour gets one pixel wider for each so many pixels of the longer side."""


def draw_overlay(
    frame: NDArray[np.uint8], labels: NDArray[np.uint8], *, alpha: float = 0.3
) -> NDArray[np.uint8]:
    """A frame (h, w, 3) with its classes (h, w) drawn on it, as a new array.

    Args:
        frame: RGB.
        labels: Class of each pixel; 0 is left as it is.
        alpha: Weight of the colour inside of a contour, 0 for contours alone.

    Raises:
        ValueError: If the two differ in size.
    """
    if frame.shape[:2] != labels.shape:
        raise ValueError(f"labels {labels.shape} do not fit a frame {frame.shape[:2]}")
    palette = np.array(COLOURS, np.float32)
    colours = palette[(labels.astype(int) - 1) % len(palette)]
    width = 1 + max(labels.shape) // PIXELS_PER_LINE
    inside = ndimage.minimum_filter(labels, 2 * width + 1) == labels
    inside &= ndimage.maximum_filter(labels, 2 * width + 1) == labels
    weight = np.where(inside, alpha, 1.0)[..., None] * (labels > 0)[..., None]
    return np.rint((1 - weight) * frame + weight * colours).astype(np.uint8)


def write_overlay(
    path: Path | str,
    frames: Iterable[NDArray[np.uint8]],
    labels: Iterable[NDArray[np.uint8]],
    fps: float | None = None,
    *,
    alpha: float = 0.3,
) -> Path:
    """Write a video of frames (h, w, 3) with their classes (h, w) drawn on them.

    Raises:
        ValueError: If there are no frames, or they and the labels differ in number or size.
    """
    pairs = zip(frames, labels, strict=True)
    return write_video(path, (draw_overlay(*pair, alpha=alpha) for pair in pairs), fps)
