"""Looking at every frame of a video once: what is usable, where borders end, where seeks lead."""

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.data.clips import images_in, load_image
from pretrain.videos.decoding import (
    Entry,
    keyframe_after_seek,
    open_container,
    pictures,
    time_of,
    upright,
)

THUMBNAIL = 64
"""Pixels along each side of what is compared from frame to frame; they are picked, not averaged,
so that the noise of a still but living picture is seen."""
BORDER_EVERY = 8
"""Every so many frames are looked at for borders."""
ENTRY_GAP = 8
"""Frames from one tried seek to the next, at least."""
MOST_ENTRIES = 2048
GOOD, DAMAGED, RESIZED, DARK, EMPTY, FROZEN = range(6)
REASONS = {
    DAMAGED: "damaged",
    RESIZED: "of another size than the first",
    DARK: "dark",
    EMPTY: "of one colour",
    FROZEN: "equal to the one before",
}


class UnusableVideo(ValueError):
    """A video that nothing can be learned from; the message says why."""


@dataclass(frozen=True)
class Limits:
    """When frames are left out. Grey levels run from 0 to 255.

    Args:
        dark: A frame whose mean grey level is lower is dark.
        flat: A frame whose grey levels deviate less is of one colour.
        still: Frames that differ by less, in the mean, are equal.
        frozen: So many frames in a row that equal the one before are left out.
        border: Pixels up to this grey level may be a black border.
    """

    dark: float = 8.0
    flat: float = 2.0
    still: float = 0.1
    frozen: int = 12
    border: int = 24

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain JSON; `Limits(**plain)` gives it back."""
        return asdict(self)


class Stretch(NamedTuple):
    """Frames from `start` to before `stop` that are left out, and why."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What was seen of a video.

    Args:
        frames: That can be decoded.
        fps: Frames a second, as the file says.
        size: (h, w) in pixels.
        box: (top, left, bottom, right) in pixels, outside of which there are black borders.
        segments: (start, stop) of the usable stretches.
        left_out: The other stretches.
        entries: Seeks that are exact.
    """

    frames: int
    fps: float | None
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    segments: tuple[tuple[int, int], ...]
    left_out: tuple[Stretch, ...]
    entries: tuple[Entry, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Inspection":
        """Give back what `plain` made."""
        h, w = plain["size"]
        top, left, bottom, right = plain["box"]
        return cls(
            plain["frames"],
            plain["fps"],
            (h, w),
            (top, left, bottom, right),
            tuple((start, stop) for start, stop in plain["segments"]),
            tuple(Stretch(*one) for one in plain["left_out"]),
            tuple(Entry(*one) for one in plain["entries"]),
        )


def inspect(path: str, limits: Limits) -> Inspection:
    """Look at every frame of a video file or of a folder of images.

    Raises:
        UnusableVideo: If it cannot be decoded, or no frame of it is usable.
        OSError: If it is not there or may not be read.
    """
    if not os.path.exists(path):
        raise UnusableVideo("it is missing")
    return _inspect_folder(path, limits) if os.path.isdir(path) else _inspect_file(path, limits)


@dataclass
class _Watch:
    """Collects what frames look like, one after another."""

    limits: Limits
    marks: bytearray = field(default_factory=bytearray)
    """What is wrong with each frame."""
    size: tuple[int, int] | None = None
    """(h, w) of the first frame, as stored."""
    rotation: float = 0.0
    _last: NDArray[np.int16] | None = None
    _bright: NDArray[np.int32] | None = None
    _counted: int = 0

    def see(self, picture: av.VideoFrame, damaged: bool = False) -> None:
        """Note a frame."""
        size = (picture.height, picture.width)
        if self.size is None and not damaged:
            self.size, self.rotation = size, picture.rotation
        thumbnail = _grey(
            picture.reformat(THUMBNAIL, THUMBNAIL, "gray", interpolation="POINT", threads=1)
        )
        mark = DAMAGED if damaged else self._mark(size, thumbnail)
        self._last = thumbnail
        if mark in (GOOD, FROZEN) and len(self.marks) % BORDER_EVERY == 0:
            self._look_for_border(picture)
        self.marks.append(mark)

    def miss(self) -> None:
        """Note a frame that cannot be read."""
        self.marks.append(DAMAGED)

    def result(self, fps: float | None, entries: tuple[Entry, ...], announced: int) -> Inspection:
        """All that was seen.

        Raises:
            UnusableVideo: If no frame is usable.
        """
        frames = len(self.marks)
        if self.size is None:
            raise UnusableVideo("none of its frames can be decoded")
        segments, left_out = self._stretches()
        if not segments:
            shares = {reason: 0 for reason in REASONS.values()}
            for one in left_out:
                shares[one.reason] += one.stop - one.start
            why = ", ".join(f"{n} {reason}" for reason, n in shares.items() if n)
            raise UnusableVideo(f"none of its {frames} frames is usable: {why}")
        if announced > frames:
            left_out += (Stretch(frames, announced, "announced but not there"),)
        turned = round(self.rotation / 90) % 2
        h, w = self.size[::-1] if turned else self.size
        return Inspection(frames, fps, (h, w), self._box((h, w)), segments, left_out, entries)

    def _mark(self, size: tuple[int, int], thumbnail: NDArray[np.int16]) -> int:
        if size != self.size:
            return RESIZED
        if thumbnail.mean() < self.limits.dark:
            return DARK
        if thumbnail.std() < self.limits.flat:
            return EMPTY
        if self._last is not None and np.abs(thumbnail - self._last).mean() < self.limits.still:
            return FROZEN
        return GOOD

    def _look_for_border(self, picture: av.VideoFrame) -> None:
        bright = _grey(picture.reformat(format="gray", threads=1)) > self.limits.border
        if self._bright is None:
            self._bright = np.zeros(bright.shape, np.int32)
        self._bright += bright
        self._counted += 1

    def _stretches(self) -> tuple[tuple[tuple[int, int], ...], tuple[Stretch, ...]]:
        """Usable segments, and the rest; few equal frames in a row are usable."""
        segments: list[tuple[int, int]] = []
        left_out: list[Stretch] = []
        start = 0
        for mark, run in groupby(self.marks):
            stop = start + sum(1 for _ in run)
            if mark == GOOD or (mark == FROZEN and stop - start < self.limits.frozen):
                if segments and segments[-1][1] == start:
                    segments[-1] = (segments[-1][0], stop)
                else:
                    segments.append((start, stop))
            else:
                left_out.append(Stretch(start, stop, REASONS[mark]))
            start = stop
        return tuple(segments), tuple(left_out)

    def _box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The box of rows and columns with some pixels that are bright now and then."""
        whole = (0, 0, *size)
        if self._bright is None:
            return whole
        seen = upright((self._bright > self._counted / 20).astype(np.uint8), self.rotation)
        rows = np.flatnonzero(seen.mean(axis=1) > 0.02)
        columns = np.flatnonzero(seen.mean(axis=0) > 0.02)
        if not (rows.size and columns.size):
            return whole
        box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        large = 4 * (box[2] - box[0]) >= size[0] and 4 * (box[3] - box[1]) >= size[1]
        return box if large else whole


def _inspect_folder(path: str, limits: Limits) -> Inspection:
    watch = _Watch(limits)
    for file in images_in(Path(path)):
        try:
            image = np.asarray(load_image(file).convert("RGB"))
        except ValueError:
            watch.miss()
            continue
        watch.see(av.VideoFrame.from_ndarray(image, format="rgb24"))
    if not watch.marks:
        raise UnusableVideo("it holds no images")
    return watch.result(None, (), 0)


def _inspect_file(path: str, limits: Limits) -> Inspection:
    if not os.path.getsize(path):
        raise UnusableVideo("the file is empty")
    try:
        container, stream = open_container(path)
    except ValueError as error:
        raise UnusableVideo(str(error)) from error
    with container:
        watch, keyframes, damaged = _Watch(limits), _Keyframes(), False
        for picture in pictures(container, stream):
            if picture is None or picture.is_corrupt:
                damaged = True
            elif picture.key_frame:
                damaged = False
            if picture is not None:
                keyframes.see(len(watch.marks), picture)
                watch.see(picture, damaged)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate and math.isfinite(rate) else None
        announced = stream.frames
    entries = keyframes.entries(path) if watch.size else ()
    return watch.result(fps, entries, announced)


@dataclass
class _Keyframes:
    """Keyframes of a file, known by their pixels and those of the frame that follows."""

    digests: dict[int, list[int]] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)

    def see(self, number: int, picture: av.VideoFrame) -> None:
        """Note a frame, if it is a keyframe or follows one."""
        if picture.key_frame:
            time = time_of(picture)
            if time is not None:
                self.digests[number], self.times[number] = [_digest(picture)], time
        if number - 1 in self.digests:
            self.digests[number - 1].append(_digest(picture))

    def entries(self, path: str) -> tuple[Entry, ...]:
        """Try to seek to keyframes, and keep those seeks that lead to a keyframe for certain."""
        gap = max(ENTRY_GAP, (max(self.times, default=0)) // MOST_ENTRIES)
        found: dict[int, Entry] = {}
        container, stream = open_container(path)
        with container:
            for wanted in _spaced(self.times, gap):
                landed = keyframe_after_seek(container, stream, self.times[wanted])
                if landed is None:
                    continue
                first, following = landed
                number = self._recognise(first, next(following, None))
                time = time_of(first)
                if number and time is not None:
                    found.setdefault(number, Entry(number, self.times[wanted], time))
        return tuple(found[number] for number in sorted(found))

    def _recognise(self, first: av.VideoFrame, second: av.VideoFrame | None) -> int | None:
        """The number of a keyframe; None if it could be several."""
        digests = [_digest(first)] + ([] if second is None else [_digest(second)])
        alike = [number for number, known in self.digests.items() if known == digests]
        on_time = [number for number in alike if self.times[number] == time_of(first)]
        candidates = on_time or alike
        return candidates[0] if len(candidates) == 1 else None


def _spaced(numbers: dict[int, int], gap: int) -> Iterator[int]:
    """Some of rising numbers, at least so far apart from each other and from 0."""
    last = 0
    for number in numbers:
        if number - last >= gap:
            yield number
            last = number


def _grey(picture: av.VideoFrame) -> NDArray[np.int16]:
    return picture.to_ndarray().astype(np.int16)


def _digest(picture: av.VideoFrame) -> int:
    """Check sum of the pixels in a picture's first plane, without what pads its lines."""
    plane = picture.planes[0]
    lines = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)
    return zlib.crc32(lines[: picture.height, : picture.width].tobytes())
