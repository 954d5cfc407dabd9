"""Windows over time: every frame once, in order, blended by definition, in the memory of a clip."""

import pytest
import torch
from torch import Tensor

from nnunet_plugins.video_windows import slide, time_weights, window_step


def video(frames: int) -> Tensor:
    return torch.randn(3, frames, 4, 5)


def mixing(clip: Tensor) -> Tensor:
    """Depends on the frame, on its place in the window and on all frames: (2, t, h, w)."""
    place = torch.arange(clip.shape[1]).view(-1, 1, 1)
    return torch.stack([clip.sum(0) + place, clip.sum(0) * clip.mean()])


def starts(frames: int, length: int, step: int) -> list[int]:
    """Windows by definition: every step, the last one at the end."""
    last = frames - length
    return [*range(0, last, step), last]


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize(("frames", "length"), [(5, 5), (6, 5), (13, 5), (40, 8), (7, 1), (9, 4)])
def test_frames_are_blended_by_definition(frames, length, overlap):
    whole = video(frames)
    weights = time_weights(length).view(-1, 1, 1)
    total, share = torch.zeros(2, frames, 4, 5), torch.zeros(frames, 1, 1)
    for start in starts(frames, length, window_step(length, overlap)):
        covered = slice(start, start + length)
        total[:, covered] += weights * mixing(whole[:, covered])
        share[covered] += weights
    found = torch.stack(list(slide(whole.unbind(1), mixing, length, overlap)), dim=1)
    assert torch.allclose(found, total / share, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 7, 8])
def test_a_video_of_one_window_is_what_the_network_says(frames):
    whole = video(frames)
    found = torch.stack(list(slide(whole.unbind(1), mixing, 8)), dim=1)
    assert torch.allclose(found, mixing(whole), atol=1e-6)


def test_what_does_not_depend_on_the_window_is_not_changed_by_blending():
    whole = video(23)
    found = torch.stack(list(slide(whole.unbind(1), lambda clip: clip[:2] * 2, 6)), dim=1)
    assert torch.allclose(found, whole[:2] * 2, atol=1e-6)


def test_a_video_without_frames_gives_none():
    assert list(slide(iter(()), mixing, 5)) == []


@pytest.mark.parametrize(("frames", "overlap"), [(50, 0.5), (500, 0.5), (500, 0.9)])
def test_no_more_than_a_window_and_a_step_is_read_ahead(frames, overlap):
    read = given = most = 0

    def reading():
        nonlocal read
        for _ in range(frames):
            read += 1
            yield torch.zeros(1, 2, 2)

    for _ in slide(reading(), lambda clip: clip, 8, overlap):
        most = max(most, read - given)
        given += 1
    assert given == frames
    assert most <= 8 + window_step(8, overlap)


def test_the_weights_are_those_of_nnunet():
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    for length in (4, 5, 8, 32):
        theirs = compute_gaussian((length, 1, 1), dtype=torch.float32, device=torch.device("cpu"))[
            :, 0, 0
        ]
        ours = time_weights(length)
        assert torch.allclose(ours / ours.max(), theirs / theirs.max(), atol=1e-4)


@pytest.mark.parametrize(("length", "overlap"), [(0, 0.5), (5, 1.0), (5, -0.1)])
def test_windows_that_cannot_slide_are_refused(length, overlap):
    with pytest.raises(ValueError, match="cannot slide"):
        list(slide(iter(()), mixing, length, overlap))
