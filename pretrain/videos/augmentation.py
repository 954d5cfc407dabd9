"""Random crop, flip and colour of a clip, the same for all of its frames."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_plugins.data.clips import Frame
from pretrain.videos.settings import ClipSettings

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Shares of red, green and blue in the grey level of a pixel (ITU-R BT.601)."""
TRIES = 10
"""Random shapes of a crop of which one should fit into the frame."""


@dataclass(frozen=True)
class View:
    """What a clip shows of its frames, and how.

    Args:
        box: (left, top, right, bottom) in pixels of the frames.
        flipped: Left and right.
        brightness, contrast, saturation: Factors; 1 changes nothing.
    """

    box: tuple[float, float, float, float]
    flipped: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @classmethod
    def random(
        cls,
        box: tuple[int, int, int, int],
        settings: ClipSettings,
        random: np.random.Generator,
    ) -> "View":
        """A view inside of a box (top, left, bottom, right)."""
        crop = _random_crop(box, settings, random)
        flipped = bool(random.random() < 0.5) and settings.flip
        factors = 1 + settings.colour * random.uniform(-1, 1, 3)
        return cls(crop, flipped, *map(float, factors))


def render(
    frames: Iterable[Frame], view: View, size: tuple[int, int], count: int
) -> NDArray[np.float32]:
    """A clip (c, t, h, w) in [0, 1] of so many frames (h, w, c) uint8."""
    clip = np.empty((count, *size, 3), np.float32)
    for place, frame in zip(clip, frames, strict=True):
        image = Image.fromarray(frame)
        shown = image.resize(size[::-1], Image.Resampling.BILINEAR, box=view.box)
        if view.flipped:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place[:] = np.asarray(shown)
    clip /= 255
    _colour(clip, view)
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2))


def _colour(clip: NDArray[np.float32], view: View) -> None:
    """Change the colours of a clip (t, h, w, c) in place."""
    if (view.brightness, view.contrast, view.saturation) == (1, 1, 1):
        return
    clip *= np.float32(view.brightness)
    mean = np.float32((clip @ GREY).mean(dtype=np.float64))  # of all frames: none flickers
    clip -= mean
    clip *= np.float32(view.contrast)
    clip += mean
    grey = (clip @ GREY)[..., None]
    clip -= grey
    clip *= np.float32(view.saturation)
    clip += grey
    np.clip(clip, 0, 1, out=clip)


def _random_crop(
    box: tuple[int, int, int, int], settings: ClipSettings, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A crop of random area and shape; the largest of a permitted shape if none fits."""
    top, left, bottom, right = box
    height, width = bottom - top, right - left
    low, high = (math.log(ratio) for ratio in settings.ratio)
    for _ in range(TRIES):
        area = height * width * random.uniform(*settings.scale)
        ratio = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        ratio = min(max(width / height, settings.ratio[0]), settings.ratio[1])
        w = max(1, min(width, round(height * ratio)))
        h = max(1, min(height, round(width / ratio)))
    x, y = left + int(random.integers(width - w + 1)), top + int(random.integers(height - h + 1))
    return (x, y, x + w, y + h)
