import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_plugins.evaluation.consistency import flicker, flows, warped_iou


def random_masks(seed=0, t=5, share=0.3):
    return np.random.default_rng(seed).random((t, 6, 7)) < share


def iou(a, b):
    either = (a | b).sum()
    return (a & b).sum() / either if either else None


@pytest.fixture(scope="module")
def moving():
    """A textured picture and a disc on it that move 3 pixels right and 2 down a frame."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.random((96, 112)), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    y, x = np.indices(texture.shape)
    disc = (y - 40) ** 2 + (x - 45) ** 2 < 12**2
    shifted = [
        np.roll(image, (2 * i, 3 * i), (0, 1)) for i in range(4) for image in (texture, disc)
    ]
    pictures, masks = np.stack(shifted[::2]), np.stack(shifted[1::2])
    return np.repeat(pictures[..., None], 3, axis=-1), masks


def test_flicker_as_defined():
    masks = np.concatenate([random_masks(), np.zeros((2, 6, 7), bool)])
    found = flicker(masks)
    for i, (a, b) in enumerate(pairwise(masks)):
        same = iou(a, b)
        assert found["mask flicker"][i] == pytest.approx(0 if same is None else 1 - same)
        larger = max(a.sum(), b.sum(), 1)
        assert found["area flicker"][i] == pytest.approx(abs(int(a.sum()) - int(b.sum())) / larger)


def test_still_blinking_and_single_frames():
    still = np.repeat(random_masks(t=1), 4, axis=0)
    assert all((values == 0).all() for values in flicker(still).values())
    blinking = still.copy()
    blinking[1::2] = False
    assert all((values == 1).all() for values in flicker(blinking).values())
    assert all(values.shape == (0,) for values in flicker(still[:1]).values())
    assert warped_iou(still[:1], np.zeros((0, 6, 7, 2), np.float32)).shape == (0,)


def test_without_motion_the_warped_iou_is_the_iou():
    masks = np.concatenate([random_masks(), np.zeros((2, 6, 7), bool)])
    found = warped_iou(masks, np.zeros((len(masks) - 1, 6, 7, 2), np.float32))
    wanted = [iou(a, b) for a, b in pairwise(masks)]
    np.testing.assert_allclose(found, [np.nan if w is None else w for w in wanted])


def test_warped_iou_as_defined_where_pixels_leave_the_picture():
    rng = np.random.default_rng(1)
    masks, flow = random_masks(2, t=3), rng.normal(0, 2, (2, 6, 7, 2)).astype(np.float32)
    for i in range(2):
        both = either = 0
        for y in range(6):
            for x in range(7):
                to_x, to_y = round(x + float(flow[i, y, x, 0])), round(y + float(flow[i, y, x, 1]))
                if 0 <= to_x < 7 and 0 <= to_y < 6:
                    both += masks[i, y, x] and masks[i + 1, to_y, to_x]
                    either += masks[i, y, x] or masks[i + 1, to_y, to_x]
        assert warped_iou(masks, flow)[i] == pytest.approx(both / either)


def test_motion_is_flicker_but_no_inconsistency(moving):
    pytest.importorskip("cv2")
    pictures, masks = moving
    flow = flows(pictures)
    assert np.median(flow, axis=(0, 1, 2)) == pytest.approx([3, 2], abs=0.1)
    assert flicker(masks)["mask flicker"].min() > 0.2
    assert warped_iou(masks, flow).min() > 0.95
    np.testing.assert_array_equal(flow, flows(pictures))


def test_a_frozen_mask_on_a_moving_picture_is_found_out(moving):
    pytest.importorskip("cv2")
    pictures, masks = moving
    frozen = np.repeat(masks[:1], len(masks), axis=0)
    assert flicker(frozen)["mask flicker"].max() == 0
    assert warped_iou(frozen, flows(pictures)).max() < 0.85


def test_flow_is_refused_where_it_cannot_be():
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match="too small for optical flow"):
        flows(np.zeros((2, 8, 64, 3), np.uint8))


def test_without_opencv_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeError, match=r"pip install 'mambamed\[video\]'"):
        flows(np.zeros((2, 32, 32, 3), np.uint8))
