"""Decoding video files one after another or from the middle, and folders of images.

A seek leads where the container's index says, which for some formats is another frame than the
one asked for, and may give it another time. So the first pass tries the seeks and remembers where
they led (`Entry`); a reader repeats one of them and counts on from there.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from nnunet_plugins.data.clips import Frame, images_in, load_image

LOST = 64
"""Pictures after a seek among which there must be a keyframe."""
MACHINE = (errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors that are not the fault of the file."""


class Entry(NamedTuple):
    """A seek that was tried: where it is asked to go, and the keyframe where it leads."""

    number: int
    """Of the keyframe, counted from 0 at the file's first frame."""
    seek: int
    """Time to seek to, in the stream's unit."""
    time: int
    """Time that the keyframe has after the seek."""


class Reader(Protocol):
    """Frames of one video, by their number."""

    def read(self, numbers: Iterable[int]) -> Iterator[Frame]:
        """The frames (h, w, 3) uint8 RGB of these numbers, which must not fall."""

    def close(self) -> None:
        """Give back files and memory."""


def open_container(path: str) -> tuple[InputContainer, VideoStream]:
    """A video file and its first video stream, decoded by the calling thread alone.

    Raises:
        ValueError: If it cannot be opened or shows no video.
    """
    try:
        container = av.open(path)
    except av.FFmpegError as error:
        if error.errno in (*MACHINE, errno.ENOENT, errno.EACCES):
            raise
        raise ValueError(f"it cannot be opened: {error.strerror}") from error
    if not container.streams.video:
        container.close()
        raise ValueError("it holds no video")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode"}
    return container, stream


def pictures(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """Pictures from where the container stands to its end; None where data are damaged."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            _blame(error)
            yield None
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.FFmpegError as error:
            _blame(error)
            yield None


def time_of(picture: av.VideoFrame) -> int | None:
    """When a picture is shown, in the stream's unit."""
    return picture.pts if picture.pts is not None else picture.dts


def pixels(picture: av.VideoFrame) -> Frame:
    """A picture as RGB (h, w, 3), upright."""
    frame: Frame = picture.reformat(format="rgb24", threads=1).to_ndarray()  # type: ignore[assignment]  # 8 bits
    return upright(frame, picture.rotation)


def upright(frame: NDArray[np.uint8], rotation: float) -> NDArray[np.uint8]:
    """A frame (h, w, ...) turned as its file asks players to."""
    return np.ascontiguousarray(np.rot90(frame, round(rotation / 90))) if rotation else frame


def keyframe_after_seek(
    container: InputContainer, stream: VideoStream, seek: int
) -> tuple[av.VideoFrame, Iterator[av.VideoFrame | None]] | None:
    """The first keyframe after a seek and what follows it; None if it leads nowhere."""
    try:
        container.seek(seek, stream=stream)
    except av.FFmpegError as error:
        _blame(error)
        return None
    following = pictures(container, stream)
    for _, picture in zip(range(LOST), following, strict=False):
        if picture is not None and picture.key_frame:
            return picture, following
    return None


@dataclass
class _Position:
    """Where a file is being decoded: the picture at hand, its number, and those that follow."""

    number: int
    picture: av.VideoFrame | None
    following: Iterator[av.VideoFrame | None]


class VideoFile:
    """A video file, open; decodes no more than from the keyframe before what is asked for.

    Args:
        path: Of the file.
        entries: Seeks that the first pass found to be exact, in rising order.

    Raises:
        ValueError: If the file cannot be opened.
    """

    def __init__(self, path: str, entries: tuple[Entry, ...] = ()) -> None:
        self.path = path
        self.entries = entries
        self._numbers = [entry.number for entry in entries]
        self._container, self._stream = open_container(path)
        self._at = _Position(-1, None, pictures(self._container, self._stream))

    def read(self, numbers: Iterable[int]) -> Iterator[Frame]:
        """The frames (h, w, 3) uint8 RGB of these numbers, which must not fall.

        Raises:
            RuntimeError: If the file ends before.
        """
        for number in numbers:
            self._go_to(number)
            assert self._at.picture is not None
            yield pixels(self._at.picture)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _go_to(self, number: int) -> None:
        """Decode up to a frame, from where it is shortest."""
        before = int(np.searchsorted(self._numbers, number, side="right")) - 1
        entry = self.entries[before] if before >= 0 else None
        behind = number < self._at.number
        ahead = entry is not None and entry.number > self._at.number
        if (behind or ahead) and not (entry and self._enter(entry)):
            self._reopen()
        at = self._at
        while at.number < number:
            picture = next(at.following, self)
            if picture is self:
                raise RuntimeError(
                    f"{self.path}: frame {number} is not there any more; start again with a new "
                    "first pass"
                )
            if isinstance(picture, av.VideoFrame):
                at.number, at.picture = at.number + 1, picture

    def _enter(self, entry: Entry) -> bool:
        """Repeat a seek; False if it leads elsewhere than in the first pass."""
        found = keyframe_after_seek(self._container, self._stream, entry.seek)
        if found is None or time_of(found[0]) != entry.time:
            return False
        self._at = _Position(entry.number, *found)
        return True

    def _reopen(self) -> None:
        self.close()
        self._container, self._stream = open_container(self.path)
        self._at = _Position(-1, None, pictures(self._container, self._stream))


class FrameFolder:
    """A folder of images, one a frame."""

    def __init__(self, path: str) -> None:
        self.files = images_in(Path(path))

    def read(self, numbers: Iterable[int]) -> Iterator[Frame]:
        """The frames (h, w, 3) uint8 RGB of these numbers."""
        for number in numbers:
            yield np.asarray(load_image(self.files[number]).convert("RGB"))

    def close(self) -> None:
        """Nothing is open."""


def open_reader(path: str, entries: tuple[Entry, ...]) -> Reader:
    """A reader of a video file or of a folder of images."""
    return FrameFolder(path) if os.path.isdir(path) else VideoFile(path, entries)


def _blame(error: av.FFmpegError) -> None:
    """Let through what the machine did."""
    if error.errno in MACHINE:
        raise error
