"""Frames of video files and of folders of images, read one at a time; video files written.

Frames are (h, w, 3) uint8 RGB and clips (t, h, w, 3), whatever the file holds: grey frames get
three equal channels and transparency is dropped, which `notes` says. A video that breaks in the
middle gives the frames before the break, and `notes` says where it broke.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Frame = NDArray[np.uint8]

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".gif", ".mpeg", ".mpg", ".mkv", ".webm", ".m4v", ".wmv")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DEFAULT_FPS = 25.0
"""Frame rate of what is written from frames whose rate is unknown."""

_MODES = {"RGB", "P", "YCbCr", "CMYK"} | {"L", "1", "LA"} | {"RGBA", "PA"}
"""Images of 8 bits a channel; others would be clipped."""

_GREY = "grey frames: made RGB with three equal channels"
_TRANSPARENT = "frames with transparency: the alpha channel is dropped"


@dataclass(frozen=True)
class Clip:
    """A clip in memory: what `read_clip` gives back."""

    frames: NDArray[np.uint8]
    """(t, h, w, 3) RGB."""
    names: tuple[str, ...]
    """File names without ending; numbers for a video file."""
    fps: float | None
    """Frames per second, None if the source does not say."""
    notes: tuple[str, ...]
    """What was converted or lost, a sentence each."""


def read_clip(path: Path | str, *, first_number: int = 1) -> Clip:
    """Read every frame of a video file or of a folder of images into memory.

    Raises:
        FileNotFoundError: If there is no such path.
        ValueError: If there are no frames, none can be decoded, or they differ in size.
    """
    stream = FrameStream(path, first_number=first_number)
    pairs = list(stream)
    frames = np.stack([frame for _, frame in pairs])
    return Clip(frames, tuple(name for name, _ in pairs), stream.fps, tuple(stream.notes))


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sorts `frame_2` before `frame_10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def images_in(folder: Path) -> list[Path]:
    """Images directly in a folder, in natural order; hidden files are none."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    images = (file for file in files if file.suffix.lower() in IMAGE_ENDINGS)
    return sorted(images, key=lambda file: natural_key(file.name))


def load_image(file: Path) -> Image.Image:
    """An image of 8 bits a channel, decoded to its end.

    Raises:
        ValueError: If it cannot be read, has more bits or several pages.
    """
    try:
        image = Image.open(file)
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if image.mode not in _MODES:
        raise ValueError(f"{file} is of type {image.mode}; 8 bits a channel are needed")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{file} holds several pages; give each frame a file of its own")
    return image


class FrameStream:
    """The frames of a video file or of a folder of images, in order, one in memory at a time.

    Iterating gives (name, frame): the file's name without ending, or the frame's number in a
    video with four digits. `notes` and `broken` are complete when the iteration has ended.

    Args:
        path: Video file or folder of images.
        first_number: Number that the first frame of a video file is called by.

    Raises:
        FileNotFoundError: If there is no such path.
        ValueError: While iterating: there are no frames, the first cannot be decoded, an image
            cannot be read, has more than 8 bits a channel, or another size than the first.
    """

    def __init__(self, path: Path | str, *, first_number: int = 1) -> None:
        self.path = Path(path)
        self.first_number = first_number
        self.fps: float | None = None
        self.pixel_format: str | None = None
        self.notes: list[str] = []
        self.broken = False
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist; give a video or a folder")

    def __iter__(self) -> Iterator[tuple[str, Frame]]:
        self.notes, self.broken = [], False
        frames = self._images() if self.path.is_dir() else self._video()
        size: tuple[int, ...] | None = None
        for name, frame in frames:
            size = size or frame.shape
            if frame.shape != size:
                raise ValueError(
                    f"{self.path}: frame {name} has {_size(frame.shape)} pixels and those before "
                    f"{_size(size)}; all frames of a video need one size"
                )
            yield name, frame
        if size is None:
            raise ValueError(f"{self.path} holds no frames; a clip needs at least one")

    def note(self, sentence: str) -> None:
        """Add a sentence to `notes`, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _images(self) -> Iterator[tuple[str, Frame]]:
        names: set[str] = set()
        for file in images_in(self.path):
            if file.stem in names:
                raise ValueError(f"{file} is called like another frame; names must differ")
            names.add(file.stem)
            image = load_image(file)
            self._note_mode(image)
            yield file.stem, np.array(image.convert("RGB"))

    def _note_mode(self, image: Image.Image) -> None:
        if image.mode in ("L", "1", "LA"):
            self.note(_GREY)
        if image.mode in ("RGBA", "PA", "LA") or "transparency" in image.info:
            self.note(_TRANSPARENT)

    def _video(self) -> Iterator[tuple[str, Frame]]:
        count = announced = 0
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path} holds no frames; a clip needs at least one")
                stream = container.streams.video[0]
                stream.codec_context.options = {"err_detect": "explode"}
                announced = stream.frames
                rate = stream.average_rate or stream.guessed_rate
                self.fps = float(rate) if rate else None
                for picture in container.decode(stream):
                    if picture.is_corrupt:
                        self._break(count, announced, "the frame's data are damaged")
                        return
                    self._note_format(picture, "gif" in container.format.name)
                    yield f"{self.first_number + count:04d}", _pixels(picture)
                    count += 1
                if count < announced:
                    self._break(count, announced, "the file ends")
        except av.FFmpegError as error:
            self._break(count, announced, error.strerror)

    def _note_format(self, picture: av.VideoFrame, is_gif: bool) -> None:
        self.pixel_format = picture.format.name
        if self.pixel_format.startswith("gray"):
            self.note(_GREY)
        if any(component.is_alpha for component in picture.format.components) and not is_gif:
            self.note(_TRANSPARENT)
        if picture.rotation:
            self.note(f"frames turned by {picture.rotation:g} degrees, as the file asks players to")

    def _break(self, count: int, announced: int, reason: str | None) -> None:
        """Note where the video broke; refuse it if nothing came before."""
        where = f"after frame {count}" + (f" of {announced}" if announced else "")
        if self.fps:
            where += f" ({count / self.fps:.2f} s)"
        if not count:
            raise ValueError(
                f"{self.path} cannot be decoded: it broke before the first frame ({reason}); "
                "check that the file is complete"
            )
        self.broken = True
        self.note(f"the video broke {where}: {reason}; the frames before are kept")


def write_video(path: Path | str, frames: Iterable[Frame], fps: float | None = None) -> Path:
    """Write RGB frames (h, w, 3) uint8 as H.264 in MP4 that every browser plays.

    An odd height or width grows by one row or column, the last one repeated: the format needs
    even sizes. The file appears when it is complete.

    Raises:
        ValueError: If there are no frames, they differ in size, or the rate is not positive.
    """
    if fps is not None and not fps > 0:
        raise ValueError(f"{fps} frames per second cannot be shown; give a positive rate")
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.mp4")
    rate = Fraction(fps or DEFAULT_FPS).limit_denominator(1001)
    count = 0
    try:
        with av.open(str(partial), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                even = np.pad(frame, [(0, n % 2) for n in frame.shape[:2]] + [(0, 0)], mode="edge")
                if not count:
                    stream.height, stream.width = even.shape[:2]
                if even.shape[:2] != (stream.height, stream.width):
                    raise ValueError(f"{path}: frame {count + 1} differs from the first in size")
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                container.mux(stream.encode(picture))
                count += 1
            if not count:
                raise ValueError(f"{path} would hold no frames; a video needs at least one")
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _pixels(picture: av.VideoFrame) -> Frame:
    frame = picture.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(frame, round(picture.rotation / 90)))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
