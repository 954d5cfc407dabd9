"""Random clips of videos, every one a function of (seed, epoch, index) alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nnunet_plugins.data.clips import Frame
from pretrain.looking import LeftOut
from pretrain.videos.augmentation import View, render
from pretrain.videos.cache import FrameCache
from pretrain.videos.first_pass import Findings, Kept
from pretrain.videos.open_videos import OpenVideos
from pretrain.videos.settings import ClipSettings
from pretrain.videos.sources import Video


class Place(NamedTuple):
    """Where a clip comes from."""

    kept: Kept
    numbers: tuple[int, ...]
    """Of its frames in the video, counted from 0."""


class VideoClips(Dataset[dict[str, Tensor]]):
    """Clips from usable stretches of videos, with one random crop, flip and colour for all frames.

    Clip i of an epoch is the same in every process and after every restart. A source is drawn as
    often as its weight says, its videos as often as they have places where a clip can begin;
    without weights every such place of the corpus is equally likely. Shares are exact within one
    clip an epoch: neighbouring indices are of the same video, shuffling is the loader's. Videos
    without a usable stretch as long as a clip are left out.

    A clip is decoded from the keyframe before it; a few videos stay open in each process. With
    `cache` and `side`, each video is decoded once, at its first clip (or by `FrameCache.fill`),
    and its frames are kept on disk.

    Args:
        findings: What the first pass found.
        settings: Frames, stride, size and changes of clips.
        cache: Folder for prepared frames; None to decode every time.
        side: Pixels of their shorter side. Crops of less than a clip's size are enlarged.
        open_videos: Videos open at a time in each process.

    Raises:
        ValueError: If no video has a usable stretch as long as a clip.
    """

    def __init__(
        self,
        findings: Findings,
        settings: ClipSettings,
        *,
        cache: Path | str | None = None,
        side: int = 256,
        open_videos: int = 8,
    ) -> None:
        if open_videos < 1:
            raise ValueError(f"open_videos is {open_videos}; give at least 1")
        self.findings = findings
        self.settings = settings
        self.cache = FrameCache(cache, side) if cache is not None else None
        self.kept = tuple(kept for kept in findings.kept if _starts(kept, settings))
        self._refuse_if_all_are_short()
        self._length = settings.clips or sum(_clips_side_by_side(k, settings) for k in self.kept)
        self._shares = _shares(self.kept, settings)
        self._open = OpenVideos(open_videos)
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers live on

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of this epoch, also in workers that already run. Call between epochs."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One clip.

        Returns:
            "clip": float32 (c, t, h, w), RGB in [0, 1]; "number": int64, the index; "seed": int64,
            for what else is random about this clip.

        Raises:
            RuntimeError: If the video changed since the first pass.
            OSError: If it is gone.
        """
        place, random = self.drawn(index)
        with self._frames(place) as (frames, box):
            view = View.random(box, self.settings, random)
            clip = render(frames, view, self.settings.size, self.settings.frames)
        seed = int(random.integers(2**63 - 1))
        return {
            "clip": torch.from_numpy(clip),
            "number": torch.tensor(index),
            "seed": torch.tensor(seed),
        }

    def place(self, index: int) -> Place:
        """The video and the frames that a clip of this epoch comes from."""
        return self.drawn(index)[0]

    def left_out(self) -> tuple[LeftOut[Video], ...]:
        """Videos of the findings that are shorter than a clip."""
        return tuple(
            LeftOut(kept.video, self._too_short(kept))
            for kept in self.findings.kept
            if not _starts(kept, self.settings)
        )

    def drawn(self, index: int) -> tuple[Place, np.random.Generator]:
        """Where a clip comes from, and what its other choices are drawn from."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        random = self._random(index)
        kept = self.kept[self._video_of(index)]
        stride, span = self.settings.stride_of(kept.fps), self.settings.span(kept.fps)
        left = int(random.integers(_starts(kept, self.settings)))
        for start, stop in kept.seen.segments:
            starts = max(0, stop - start - span + 1)
            if left < starts:
                first = start + left
                break
            left -= starts
        return Place(kept, tuple(range(first, first + span, stride))), random

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.settings.seed, int(self._epoch), index))

    def _video_of(self, index: int) -> int:
        """The video at a place of this epoch: videos in their order, each as often as its share."""
        offset = self._random(len(self)).random()  # no clip has this index
        drawn = np.searchsorted(self._shares, (index + offset) / len(self), side="right")
        return min(int(drawn), len(self.kept) - 1)

    @contextmanager
    def _frames(self, place: Place) -> Iterator[tuple[Iterator[Frame], tuple[int, int, int, int]]]:
        """The frames of a place, and the box (top, left, bottom, right) without borders."""
        kept, numbers = place
        if self.cache is not None:
            frames = self.cache.open(kept)
            row = _row(kept, numbers[0])
            rows = (row + number - numbers[0] for number in numbers)
            yield (frames[one] for one in rows), (0, 0, *frames.shape[1:3])
            return
        try:
            yield self._open.get(kept).read(numbers), kept.seen.box
        except BaseException:
            self._open.forget(kept)  # it may stand anywhere
            raise

    def _too_short(self, kept: Kept) -> str:
        settings, fps = self.settings, kept.fps
        return (
            f"its longest usable stretch has {_longest(kept)} frames, and a clip of "
            f"{settings.frames} frames at stride {settings.stride_of(fps)} needs "
            f"{settings.span(fps)}"
        )

    def _refuse_if_all_are_short(self) -> None:
        if self.kept:
            return
        longest = max(self.findings.kept, key=_longest)
        raise ValueError(
            f"all {len(self.findings.kept)} videos are shorter than a clip; the longest, "
            f"{longest.video}: {self._too_short(longest)}; give fewer frames or a smaller stride"
        )


def _starts(kept: Kept, settings: ClipSettings) -> int:
    """Frames of a video with which a clip can begin."""
    span = settings.span(kept.fps)
    return sum(max(0, stop - start - span + 1) for start, stop in kept.seen.segments)


def _longest(kept: Kept) -> int:
    """Frames of a video's longest usable stretch."""
    return max(stop - start for start, stop in kept.seen.segments)


def _clips_side_by_side(kept: Kept, settings: ClipSettings) -> int:
    """Clips that fit into a video without sharing a frame's place."""
    span = settings.span(kept.fps)
    return sum((stop - start) // span for start, stop in kept.seen.segments)


def _shares(kept: tuple[Kept, ...], settings: ClipSettings) -> NDArray[np.float64]:
    """Upper ends of the videos' shares of the clips, rising to 1."""
    starts = [_starts(one, settings) for one in kept]
    totals: Counter[str] = Counter()
    for one, n in zip(kept, starts, strict=True):
        totals[one.video.source] += n
    weights = np.array(
        [
            n * (one.video.weight or totals[one.video.source]) / totals[one.video.source]
            for one, n in zip(kept, starts, strict=True)
        ]
    )
    return np.cumsum(weights) / weights.sum()


def _row(kept: Kept, number: int) -> int:
    """Place of a frame among the usable ones of its video."""
    row = 0
    for start, stop in kept.seen.segments:
        if start <= number < stop:
            return row + number - start
        row += stop - start
    raise IndexError(f"frame {number} of {kept.video} is not usable")
