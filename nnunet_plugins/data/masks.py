"""Mask images as people store them, and the class indices that nnU-Net trains on.

With one class, a mask is 0 and 255 (or 0 and 1); with several, its grey value is the class. Frames
without a mask become nnU-Net's ignore label, if the dataset is declared sparse.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.data.clips import FrameStream, images_in, load_image

Labels = NDArray[np.uint8]

_EXACT_FORMATS = ("gray", "rgb", "bgr", "gbr", "pal", "0", "a")
"""Beginnings of pixel formats that keep each of 256 grey values."""


@dataclass(frozen=True)
class LabelScheme:
    """Which classes there are, and how files and labels spell them."""

    names: tuple[str, ...] = ("foreground",)
    """Names of classes 1, 2, ...; 0 is the background."""
    sparse: bool = False
    """Frames may lack a mask; their voxels get the label `ignore`."""

    def __post_init__(self) -> None:
        reserved = {"background", "ignore"} & set(self.names)
        if not self.names or reserved or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"the labels {list(self.names)} cannot be used: give one different name for each "
                "class from 1 on; background and ignore are added where they belong"
            )
        if len(self.names) > 253:
            raise ValueError(f"{len(self.names)} labels do not fit into 8 bits; at most 253 do")

    @property
    def ignore(self) -> int:
        """The label of unlabelled voxels, which nnU-Net wants to be the highest."""
        return len(self.names) + 1

    @property
    def dataset_labels(self) -> dict[str, int]:
        """`labels` of dataset.json."""
        labels = {"background": 0} | {name: i for i, name in enumerate(self.names, start=1)}
        return labels | ({"ignore": self.ignore} if self.sparse else {})

    @classmethod
    def of_dataset(cls, folder: Path) -> "LabelScheme":
        """The scheme of a dataset that was made with one."""
        labels = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
        names = sorted(labels.keys() - {"background", "ignore"}, key=lambda name: labels[name])
        return cls(tuple(names), "ignore" in labels)

    def encode(self, grey: Labels, where: str) -> Labels:
        """Grey values of a mask (h, w) as classes.

        Raises:
            ValueError: If it holds a value that is no class; `where` names the file.
        """
        found = set(np.unique(grey).tolist())
        known = set(range(len(self.names) + 1))
        if len(self.names) == 1 and found <= {0, 255}:
            return (grey > 0).astype(np.uint8)
        if found <= known:
            return grey
        unknown = sorted(found - known)[:5]
        wanted = "0 and 255" if len(self.names) == 1 else f"0 to {len(self.names)}"
        raise ValueError(
            f"{where} holds the value {', '.join(map(str, unknown))}; masks of "
            f"{', '.join(self.names)} hold {wanted}: name every class with --labels, and store "
            "masks without lossy compression"
        )

    def decode(self, labels: Labels) -> Labels:
        """Classes (h, w) as the grey values of a mask file."""
        return (labels == 1) * np.uint8(255) if len(self.names) == 1 else labels


def read_mask(file: Path) -> Labels:
    """Grey values (h, w) of a mask image; indices of an image with a palette.

    Raises:
        ValueError: If it cannot be read, is coloured or has more than 8 bits.
    """
    values = np.asarray(load_image(file)).astype(np.uint8)
    return values if values.ndim == 2 else _grey(values, file)


class MaskFolder:
    """Masks of one video as images: by their names, or by the numbers at the end of these.

    Args:
        folder: Where the images lie.
        scheme: Classes that they may hold.
        by_number: Frames are called by number, as those of a video file, and not by name.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If a name has no number, or two have the same.
    """

    def __init__(self, folder: Path, scheme: LabelScheme, *, by_number: bool) -> None:
        self.folder = folder
        self.scheme = scheme
        files = images_in(folder)
        if not files:
            raise FileNotFoundError(f"{folder} holds no masks; one image for each frame is read")
        self.example = files[0].stem
        self.left: dict[str, Path] = {}
        """Masks that no frame has taken yet."""
        for file in files:
            name = _number(file) if by_number else file.stem
            if name in self.left:
                raise ValueError(f"{file} and {self.left[name].name} are masks of one frame")
            self.left[name] = file

    def take(self, name: str) -> Labels | None:
        """Classes (h, w) of a frame; None if it has no mask."""
        file = self.left.pop(name, None)
        return None if file is None else self.scheme.encode(read_mask(file), str(file))

    def check_end(self) -> None:
        """Refuse masks that belong to no frame.

        Raises:
            ValueError: If there are any.
        """
        if self.left:
            raise ValueError(
                f"{len(self.left)} masks in {self.folder} belong to no frame, as "
                f"{next(iter(self.left.values())).name}; masks are called like their frames, "
                "those of a video file by its number, from 1 on unless --first-number says so"
            )


class MaskVideo:
    """Masks of one video as a losslessly compressed video with as many frames.

    Raises:
        ValueError: While reading: it is broken, coloured, or of several classes in a pixel format
            that cannot keep them: video black is 16 and white 235, so that greys merge.
    """

    def __init__(self, path: Path, scheme: LabelScheme) -> None:
        self.path = path
        self.scheme = scheme
        self.stream = FrameStream(path)
        self.frames = iter(self.stream)

    def take(self, name: str) -> Labels:
        """Classes (h, w) of the next frame."""
        _, frame = next(self.frames, (name, None))
        if frame is None:
            why = self.stream.notes[-1] if self.stream.broken else "it has fewer frames"
            raise ValueError(f"{self.path} has no mask for frame {name}: {why}")
        keeps = str(self.stream.pixel_format).startswith(_EXACT_FORMATS)
        if len(self.scheme.names) > 1 and not keeps:
            raise ValueError(
                f"{self.path} is stored as {self.stream.pixel_format}, which merges neighbouring "
                "classes; store masks as PNG, or as FFV1 video in grey"
            )
        return self.scheme.encode(_grey(frame, self.path), f"{self.path}, frame {name},")

    def check_end(self) -> None:
        """Refuse a video of masks that is longer than its video.

        Raises:
            ValueError: If it is.
        """
        if next(self.frames, None) is not None:
            raise ValueError(f"{self.path} has more frames than its video; it needs as many")


def _number(file: Path) -> str:
    number = re.search(r"(\d+)$", file.stem)
    if not number:
        raise ValueError(f"{file} names no frame; masks of a video file end in the frame's number")
    return f"{int(number[1]):04d}"


def _grey(values: Labels, file: Path) -> Labels:
    """The one channel of (h, w, c) whose colours are all grey; an alpha channel is dropped."""
    colours = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise ValueError(f"{file} is coloured; the grey value of a mask is its class")
    return np.ascontiguousarray(colours[..., 0])
