"""Drawn clips: the same for a seed, with polyps that come and go, read by `dataset from-videos`."""

import numpy as np
import pytest

from nnunet_plugins.data import LabelScheme, convert_videos, find_videos, read_clip
from nnunet_plugins.demo.clips import draw_clip, write_clips

SIZE = (64, 80)


def draw(seed: int, frames: int = 16) -> tuple[np.ndarray, np.ndarray]:
    drawn = list(draw_clip(np.random.default_rng([0, seed]), frames, SIZE))
    return np.stack([frame for frame, _ in drawn]), np.stack([polyps for _, polyps in drawn])


def test_equal_seeds_draw_equal_clips_and_others_do_not():
    first, again, other = draw(0), draw(0), draw(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(4))
def test_polyps_come_into_view_and_leave_it(seed):
    frames, polyps = draw(seed)
    assert frames.shape == (16, *SIZE, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 20
    seen = polyps.mean((1, 2))
    assert seen.max() > 0.02
    assert seen[0] == 0
    assert seen.max() < 0.5


def test_polyps_move_steadily():
    _, polyps = draw(0, frames=48)

    def overlap(apart: int) -> float:
        pairs = [
            (a, b) for a, b in zip(polyps, polyps[apart:], strict=False) if a.any() and b.any()
        ]
        return np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])

    assert 0.5 < overlap(1) < 0.99
    assert overlap(8) < overlap(1) - 0.1


def test_clips_become_a_dataset(tmp_path):
    folder = write_clips(tmp_path / "clips", clips=2, frames=5, size=SIZE, seed=3)
    records = convert_videos(
        find_videos(folder), tmp_path / "Dataset903_Clips", scheme=LabelScheme(("polyp",))
    )
    assert {record.size for record in records.values()} == {SIZE}
    assert all(len(record.labelled) == 5 for record in records.values())
    assert read_clip(folder / "videos/clip_000.mp4").frames.shape == (5, *SIZE, 3)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"frames": 0}, {"size": (63, 80)}])
def test_clips_that_cannot_be_drawn_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="cannot be drawn"):
        write_clips(tmp_path / "clips", **wrong)
    assert not list(tmp_path.iterdir())
