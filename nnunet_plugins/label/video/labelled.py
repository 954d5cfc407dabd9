"""The frames of a video that a person has labelled, as clips to train on.

Bundles train on clips whose every pixel has a label. Of a video that is labelled in part, the runs
of labelled frames are such clips. A run that is shorter than what the network sees at once is
played forth and back; a single frame stands still. (Networks of video learn from clips that are
made of single pictures: Oh et al., "Video Object Segmentation using Space-Time Memory Networks",
ICCV 2019.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.data.clips import FrameStream
from nnunet_plugins.data.masks import Labels
from nnunet_plugins.label.video.prompts import UNLABELLED


class LabelledClip(NamedTuple):
    """Frames that follow each other in a video, all of them labelled."""

    frames: NDArray[np.uint8]
    """RGB, (t, h, w, 3)."""
    labels: Labels
    """Their classes, (t, h, w)."""


def labelled_runs(labels: Labels) -> list[tuple[int, int]]:
    """First frame, and the one after the last, of each run of frames without `UNLABELLED` pixels.

    Args:
        labels: Of a video, (t, h, w).
    """
    known = (labels != UNLABELLED).all((1, 2))
    edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def labelled_clips(video: Path, labels: Labels, length: int) -> Iterator[LabelledClip]:
    """The labelled runs of a video, of which no other frame is kept.

    Args:
        video: Its file.
        labels: (t, h, w), which may end before the video does.
        length: Frames that a clip has at least.

    Raises:
        ValueError: If the labels are not on the video's frames.
    """
    runs, frames = labelled_runs(labels), []
    for index, (_, frame) in enumerate(FrameStream(video)):
        if not runs:
            return
        start, end = runs[0]
        if index < start:
            continue
        if frame.shape[:2] != labels.shape[1:]:
            raise ValueError(
                f"the label of {video.name} has {labels.shape[1:]} rows and columns and its frames "
                f"{frame.shape[:2]}; send one of its size"
            )
        frames.append(frame)
        if index == end - 1:
            run = (np.stack(frames), labels[start:end])
            yield LabelledClip(*(_lengthened(part, length) for part in run))
            runs, frames = runs[1:], []
    if runs:
        raise ValueError(
            f"the label of {video.name} has {len(labels)} frames, more than can be read of the "
            "video; send the label of this video"
        )


def _lengthened(frames: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Frames, played forth and back until there are enough."""
    missing = max(0, length - len(frames))
    return np.pad(frames, [(0, missing)] + [(0, 0)] * (frames.ndim - 1), mode="symmetric")
