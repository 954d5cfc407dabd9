"""How steady masks are over time, with and without the motion of the picture.

Shapes: t frames, h height, w width.
"""

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.overlap import Masks, Numbers


def flicker(masks: Masks) -> dict[str, Numbers]:
    """Change from each frame to the next, (t - 1,), 0 for none to 1; motion counts as change.

    Returns:
        "mask flicker": 1 - IoU of the two masks; "area flicker": difference of their areas over
        the larger one. Two empty masks do not differ: 0.
    """
    before, after = masks[:-1], masks[1:]
    both = np.count_nonzero(before & after, axis=(1, 2))
    either = np.count_nonzero(before | after, axis=(1, 2))
    areas = np.count_nonzero(masks, axis=(1, 2))
    larger = np.maximum(areas[:-1], areas[1:])
    return {
        "mask flicker": (either - both) / np.maximum(either, 1),
        "area flicker": np.abs(np.diff(areas)) / np.maximum(larger, 1),
    }


def flows(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Dense optical flow from each frame to the next, (t - 1, h, w, 2), in pixels, x then y.

    OpenCV's dense inverse search (Kroeger et al., 2016, arXiv:1603.03590), medium preset.

    Args:
        frames: Colour frames, (t, h, w, 3), 8 bit.

    Raises:
        RuntimeError: OpenCV is not installed.
        ValueError: The frames are smaller than 16 x 16 pixels.
    """
    try:
        import cv2
    except ImportError as error:
        raise RuntimeError(
            f"flow-warped IoU needs OpenCV ({error}): pip install 'mambamed[video]', "
            "or give no frames"
        ) from error
    t, h, w, _ = frames.shape
    if min(h, w) < 16:
        raise ValueError(f"frames of {h} x {w} pixels are too small for optical flow; 16 x 16 is")
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = np.zeros((max(t - 1, 0), h, w, 2), np.float32)
    for i in range(t - 1):
        found[i] = search.calc(grey[i], grey[i + 1], None)
    return found


def warped_iou(masks: Masks, flow: NDArray[np.float32]) -> Numbers:
    """IoU of each mask with the next one brought back along the flow, (t - 1,).

    Pixels that leave the picture do not count; occlusion is not looked for. NaN where both masks
    are empty. Measure of steadiness, not of truth: an empty or frozen prediction can look steady.

    Args:
        masks: (t, h, w).
        flow: From each frame to the next, (t - 1, h, w, 2), in pixels, x then y.
    """
    h, w = masks.shape[1:]
    y, x = np.indices((h, w))
    ious = np.full(len(flow), np.nan)
    for i, (dx, dy) in enumerate(np.moveaxis(flow, -1, 1)):
        to_x, to_y = np.rint(x + dx).astype(int), np.rint(y + dy).astype(int)
        inside = (to_x >= 0) & (to_x < w) & (to_y >= 0) & (to_y < h)
        here = masks[i][inside]
        there = masks[i + 1][to_y[inside], to_x[inside]]
        if either := np.count_nonzero(here | there):
            ious[i] = np.count_nonzero(here & there) / either
    return ious
