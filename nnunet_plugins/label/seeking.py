"""Any frame of a video, found by its time and without decoding all those before it."""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import av

from nnunet_plugins.data.clips import DEFAULT_FPS, Frame
from nnunet_plugins.stream.decoding import rgb


class SeekableVideo:
    """An open video whose frames are numbered from 0 as `FrameStream` gives them.

    The file is read through once for the times of its frames, without decoding any. Where they
    have none, frames are decoded from the first on. Threads may share it.

    Args:
        path: The video.

    Raises:
        ValueError: If there is no video in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._times: dict[int, int] | None = None
        self._begin()
        stream = self._container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else DEFAULT_FPS
        self._index()
        self._last: tuple[int, Frame] | None = None
        self.height, self.width = self.frame(0).shape[:2]
        self.nbytes = 3 * self.height * self.width

    def __len__(self) -> int:
        return self._count

    def frame(self, index: int) -> Frame:
        """A frame (h, w, 3) uint8 RGB.

        Raises:
            ValueError: If there is no such frame or it cannot be decoded.
        """
        if not 0 <= index < self._count:
            raise ValueError(f"there is no frame {index}; {self.path.name} has {self._count}")
        with self._lock:
            if self._last is None or self._last[0] != index:
                try:
                    self._last = index, rgb(self._decode_to(index))
                except av.FFmpegError as error:
                    self._begin()
                    raise ValueError(
                        f"frame {index} cannot be decoded, its data are damaged"
                    ) from (error)
            return self._last[1]

    def _begin(self) -> None:
        """Open the file at its first frame."""
        try:
            self._container = av.open(str(self.path), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{self.path.name} cannot be read as a video; is it damaged?") from (
                error
            )
        if not self._container.streams.video:
            raise ValueError(f"{self.path.name} holds no video; name one with frames")
        self._frames, self._next = self._decoded(), 0

    def _index(self) -> None:
        """Times of all frames in order, and which of them can be begun with."""
        stream = self._container.streams.video[0]
        found: list[tuple[int | None, bool]] = []
        try:
            for packet in self._container.demux(stream):
                if packet.size and not packet.is_discard:
                    found.append((packet.pts, packet.is_keyframe))
        except av.FFmpegError:
            pass  # the file ends early; the frames before are kept
        if not found:
            raise ValueError(f"{self.path.name} holds no frames")
        self._count = len(found)
        times = sorted((pts, key) for pts, key in found if pts is not None)
        if len({pts for pts, _ in times}) == self._count:
            self._times = {pts: index for index, (pts, _) in enumerate(times)}
            self._keys = [(index, pts) for index, (pts, key) in enumerate(times) if key]
        self._begin()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        stream = self._container.streams.video[0]
        stream.codec_context.options = {"err_detect": "explode"}
        return self._container.decode(stream)

    def _decode_to(self, index: int) -> av.VideoFrame:
        """The frame, from the one after the last or from the nearest to begin with."""
        if not self._move(index) and self._next > index:
            self._begin()
        for picture in self._frames:
            number = self._number(picture)
            self._next = number + 1
            if number == index:
                return picture
            if number > index:  # sought too far: from the first on
                self._times = None
                self._begin()
                return self._decode_to(index)
        self._begin()
        raise ValueError(f"{self.path.name} ends before frame {index}; is the file complete?")

    def _number(self, picture: av.VideoFrame) -> int:
        times = self._times or {}
        return times.get(picture.pts, self._next) if picture.pts is not None else self._next

    def _move(self, index: int) -> bool:
        """Go to the last frame to begin with before a frame, unless that one is nearer already."""
        if self._times is None or not self._keys:
            return False
        place = bisect_right(self._keys, index, key=lambda entry: entry[0]) - 1
        if place < 0:
            return False
        key, pts = self._keys[place]
        if not key <= self._next <= index:
            self._container.seek(pts, stream=self._container.streams.video[0])
            self._frames, self._next = self._decoded(), key
        return True
