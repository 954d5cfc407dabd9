"""A network of clips over a video of any length, in the memory of a clip.

A window of so many frames slides over time. Where windows overlap, what the network says about a
frame is averaged, the more weight the nearer the frame is to the middle of its window, as nnU-Net
does in space. A frame is given back as soon as no window will cover it any more, so that frames
can be read, predicted and written one after the other.

Shapes: c channels, k classes, t h w clip.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor


def slide(
    frames: Iterable[Tensor],
    predict: Callable[[Tensor], Tensor],
    length: int,
    overlap: float = 0.5,
) -> Iterator[Tensor]:
    """Logits of every frame in order, (k, h, w) float32, one for each frame (c, h, w).

    The first window starts at the first frame and the last one ends at the last frame; a video
    shorter than a window is one window of its own length. At most `length` frames, the logits of
    `length` frames and one step of new frames are held.

    Args:
        frames: As they come, (c, h, w) each, of one size.
        predict: Logits of a clip, (c, t, h, w) -> (k, t, h, w).
        length: Frames of a window.
        overlap: Share of a window that the next one covers again, at least 0 and below 1.

    Raises:
        ValueError: If the length or the overlap cannot be.
    """
    step, weights = window_step(length, overlap), time_weights(length)
    frames = iter(frames)
    clip = list(islice(frames, length))
    if len(clip) < length:
        if clip:
            yield from predict(torch.stack(clip, dim=1)).float().unbind(1)
        return
    blend: deque[tuple[Tensor, float]] = deque()  # of the window's frames: weighted sum, weight
    while clip:
        logits = predict(torch.stack(clip, dim=1)).float()
        blend = _added(blend, logits, weights)
        new = list(islice(frames, step))
        for _ in range(len(new) or length):
            total, weight = blend.popleft()
            yield total / weight
        clip = clip[len(new) :] + new if new else []


def window_step(length: int, overlap: float) -> int:
    """Frames from the start of a window to that of the next, at least one.

    Raises:
        ValueError: If the length or the overlap cannot be.
    """
    if length < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f"windows of {length} frames that overlap by {overlap} cannot slide; give at least "
            "one frame, and an overlap from 0 to less than 1"
        )
    return max(1, round(length * (1 - overlap)))


def time_weights(length: int) -> Tensor:
    """Weight of each frame of a window, (t,): nnU-Net's Gaussian, an eighth of the window wide."""
    distance = torch.arange(length, dtype=torch.float32) - length // 2
    return torch.exp(-0.5 * (distance / (length / 8)) ** 2)


def _added(
    blend: deque[tuple[Tensor, float]], logits: Tensor, weights: Tensor
) -> deque[tuple[Tensor, float]]:
    """The blend with another window, (k, t, h, w), that starts where the blend does."""
    added: deque[tuple[Tensor, float]] = deque()
    for frame, weight in zip(logits.unbind(1), weights.tolist(), strict=True):
        total, before = blend.popleft() if blend else (0, 0.0)
        added.append((total + frame * weight, before + weight))
    return added
