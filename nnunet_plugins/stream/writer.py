"""Files that grow while a stream runs and hold what was written whenever it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_plugins.data.clips import DEFAULT_FPS, Frame

CLOCK = Fraction(1, 90000)
"""Seconds of a tick of the video's time stamps."""
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
"""Options of MP4 by which a file that is cut off plays up to its last second."""
CODING = {"preset": "veryfast", "tune": "zerolatency", "crf": "20"}
"""Options of H.264 by which no frame waits for later ones."""


class GrowingVideo:
    """H.264 in fragmented MP4: what is written stays readable though the process be killed.

    The file is begun with the first frame, in place of an older one. Fragments last a second. An
    odd height or width grows by one row or column, the last one repeated.

    Args:
        path: Ends in .mp4.
        fps: Usual frame rate, 25 if None; frames keep their own times.

    Raises:
        ValueError: If the path ends otherwise, or its folder does not exist.
    """

    def __init__(self, path: Path, fps: float | None = None) -> None:
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path} does not end in .mp4, which is what overlays are written as")
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder; make it before frames come")
        self.path, self.fps = path, fps or DEFAULT_FPS
        self.frames = 0
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream
        self._last = -1

    def write(self, picture: Frame, seconds: float) -> None:
        """Append a frame (h, w, 3) uint8 RGB that is shown from that time on."""
        even = np.pad(picture, [(0, n % 2) for n in picture.shape[:2]] + [(0, 0)], mode="edge")
        if self._container is None:
            self._open(even.shape[0], even.shape[1])
        assert self._container is not None
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self._last = max(self._last + 1, round(seconds / CLOCK))
        frame.pts, frame.time_base = self._last, CLOCK
        with self._named():
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, and end the file."""
        if self._container is not None:
            container, self._container = self._container, None
            with self._named():
                container.mux(self._stream.encode(None))
                container.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in errors, which PyAV does not."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"{self.path} cannot be written ({reason}); what was written before plays"
            ) from error

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(str(self.path), "w", format="mp4", container_options=FRAGMENTS)
        rate = Fraction(self.fps).limit_denominator(1001)
        options = CODING | {"g": str(max(1, round(self.fps)))}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.codec_context.time_base = CLOCK
        self._stream.pix_fmt = "yuv420p"
        self._stream.height, self._stream.width = height, width

    def __enter__(self) -> "GrowingVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_mask(file: Path, mask: NDArray[np.uint8]) -> None:
    """Write a mask (h, w) as PNG, whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        Image.fromarray(mask).save(partial, format="png")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
