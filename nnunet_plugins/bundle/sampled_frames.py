"""Videos as networks of whole frames take them: every n-th frame, shrunk, from 0 to 1.

For training the frames of a video are held in memory as bytes and clips are cut from them; else
they are read one at a time.

Shapes: c channels, t h w clip.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
    RandScaleIntensityd,
)
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.bundle.video_table import read_phases
from nnunet_plugins.data.clips import Frame, FrameStream
from nnunet_plugins.evaluation.phase import UNKNOWN

Data = Mapping[Hashable, Any]


class SampledVideo:
    """Every n-th frame of a video, (c, h, w) float32 from 0 to 1, read while it is iterated over.

    Args:
        path: Video file or folder of images.
        size: Height and width of the frames that come out.
        stride: Frames from one to the next.
        name: Of the video; the file's if None.
        fps: Frames per second, where the file does not know.

    Raises:
        FileNotFoundError: If there is no such path.
        ValueError: If the stride is no positive number; while iterating, if frames cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        size: Sequence[int],
        stride: int = 1,
        name: str | None = None,
        fps: float | None = None,
    ) -> None:
        if stride < 1:
            raise ValueError(f"every {stride}-th frame cannot be taken; give --stride 1 or more")
        self.path, self.size, self.stride = Path(path), tuple(size), stride
        self.name = name or (self.path.name if self.path.is_dir() else self.path.stem)
        self.stream, self.given_fps = FrameStream(self.path), fps

    def __iter__(self) -> Iterator[Tensor]:
        for pixels in self.pixels():
            yield pixels.float() / 255

    def pixels(self) -> Iterator[Tensor]:
        """The same in bytes, (c, h, w) uint8."""
        for number, (_, frame) in enumerate(self.stream):
            if number % self.stride == 0:
                yield shrunk(frame, self.size)

    @property
    def fps(self) -> float | None:
        """Of the whole video; known once the first frame has been read, None if nobody says."""
        return self.stream.fps or self.given_fps

    @property
    def notes(self) -> list[str]:
        """What was converted or lost, a sentence each; complete after the last frame."""
        return self.stream.notes


class OpenSampledVideod(MapTransform):
    """A video's path to a `SampledVideo`; its "name" and "fps" go before those of the file."""

    def __init__(self, size: Sequence[int], stride: int = 1, keys: str = "image") -> None:
        super().__init__(keys)
        self.size, self.stride = size, stride

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = SampledVideo(d[key], self.size, self.stride, d.get("name"), d.get("fps"))
        return d


class ReadSampledVideod(MapTransform):
    """A `SampledVideo` to its frames in memory, (c, t, h, w) uint8."""

    def __init__(self, keys: str = "image") -> None:
        super().__init__(keys)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = torch.stack(list(d[key].pixels()), dim=1)
        return d


class FrameTargetsd(MapTransform):
    """A video's class, or its file of phases, to the class of each frame in memory: (t,) int64.

    Args:
        classes: Names of the phases.
        stride: Of the frames.
        keys: Key of the class or file.
        image_key: Key of the frames, (c, t, h, w).

    Raises:
        ValueError: If no frame has a class.
    """

    def __init__(
        self,
        classes: Sequence[str],
        stride: int = 1,
        keys: str = "label",
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.classes, self.stride, self.image_key = classes, stride, image_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            frames = d[self.image_key].shape[1]
            d[key] = torch.from_numpy(targets(d[key], self.classes, frames, self.stride))
        return d


def targets(known: int | str, classes: Sequence[str], frames: int, stride: int) -> np.ndarray:
    """Class of each of so many sampled frames, (t,), from a video's class or file of phases.

    Raises:
        ValueError: If no frame has a class, or the file cannot be read.
    """
    if isinstance(known, int):
        return np.full(frames, known, np.int64)
    found = read_phases(known, classes, frames * stride)[::stride]
    if (found == UNKNOWN).all():
        raise ValueError(f"{known} says nothing about the frames of its video; leave it out")
    return found


class RandClipd(Randomizable, MapTransform):
    """A random piece of a video, (c, t, h, w) float32 from 0 to 1, and the classes of its frames.

    A piece without a known class is never taken. A video that is shorter repeats its last frame,
    which then has no known class. Nothing else is left in the dictionary.

    Args:
        frames: Of a piece.
        keys: Frames (c, t, h, w) uint8, and classes (t,).
    """

    def __init__(self, frames: int, keys: Sequence[str] = ("image", "label")) -> None:
        MapTransform.__init__(self, keys)
        self.frames = frames

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        image, label = self.keys
        known = np.flatnonzero(np.asarray(d[label]) != UNKNOWN)
        anchor = int(self.R.choice(known))  # the piece holds it
        last = max(0, len(d[label]) - self.frames)
        low, high = max(0, anchor - self.frames + 1), min(anchor, last)
        start = int(self.R.randint(min(low, high), high + 1))
        piece = slice(start, start + self.frames)
        clip, classes = d[image][:, piece], d[label][piece]
        if missing := self.frames - len(classes):
            clip = torch.cat([clip, clip[:, -1:].expand(-1, missing, -1, -1)], dim=1)
            classes = torch.cat([classes, classes.new_full((missing,), UNKNOWN)])
        return {image: clip.float() / 255, label: classes}


class RandFramesd(Randomizable, MapTransform):
    """Turn, shift, scale, mirror and recolour a clip, all of its frames alike; add noise.

    Frames become channels of one picture, on which MONAI's transforms work, so that whatever is
    drawn holds for the whole clip.

    Args:
        mirror_axes: Of (h, w): 0, 1 or both; None or empty where sides matter.
        keys: Key of the clip, (c, t, h, w).
    """

    def __init__(self, mirror_axes: Sequence[int] | None = None, keys: str = "image") -> None:
        MapTransform.__init__(self, keys)
        self.pipeline = Compose(
            [
                RandAffined(
                    keys, prob=0.5, rotate_range=np.pi / 12, scale_range=0.15,
                    translate_range=10, mode="bilinear", padding_mode="border",
                ),
                *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in mirror_axes or ()),
                RandScaleIntensityd(keys, factors=0.25, prob=0.3),
                RandAdjustContrastd(keys, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
                RandGaussianNoised(keys, prob=0.1, std=0.03),
            ]
        )  # fmt: skip

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> "RandFramesd":
        """Seed what draws."""
        super().set_random_state(seed, state)
        self.pipeline.set_random_state(seed, state)
        return self

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            clip = d[key]
            changed = self.pipeline({key: clip.flatten(0, 1)})[key]
            changed = torch.as_tensor(changed).as_subclass(Tensor)
            d[key] = changed.unflatten(0, clip.shape[:2]).clamp(0, 1)
        return d


def shrunk(frame: Frame, size: Sequence[int]) -> Tensor:
    """RGB at another size: (h, w, 3) uint8 -> (c, h', w') uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
    if frame.shape[:2] == tuple(size):
        return pixels
    resized = F.interpolate(pixels[None].float(), tuple(size), mode="bilinear", antialias=True)
    return resized[0].round().byte()


def repeated(videos: Sequence[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    """Each video so many times in turn, so that an epoch takes as many clips of each."""
    return [dict(video) for _ in range(times) for video in videos]
