"""Labels of a video as files that other programs read."""

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_plugins.data.masks import Labels
from nnunet_plugins.data.overlay import write_overlay
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.video.cvat import write_cvat
from nnunet_plugins.label.video.label_files import LabelFrames, write_volume
from nnunet_plugins.label.video.prompts import UNLABELLED

Names = dict[str, int]
"""Values of classes by their names."""


@dataclass(frozen=True)
class Known:
    """The frames of a label that the video has too, as they are gone through."""

    label: LabelFrames
    frames: int
    """Of the video."""

    def __len__(self) -> int:
        return min(len(self.label), self.frames)

    def __iter__(self) -> Iterator[Labels]:
        """Classes (h, w).

        Raises:
            ValueError: If they are not.
        """
        for frame in islice(self.label, self.frames):
            if frame.min() < 0 or frame.max() > UNLABELLED or (frame != np.floor(frame)).any():
                raise ValueError("this label holds other values than whole ones from 0 to 255")
            yield frame.astype(np.uint8)


def write_nifti(file: Path, labels: Known, video: SeekableVideo, names: Names) -> None:
    """A volume (t, h, w) as SimpleITK reads it: x, y and time in the file."""
    write_volume(file, labels, (len(labels), video.height, video.width))


def write_pictures(file: Path, labels: Known, video: SeekableVideo, names: Names) -> None:
    """A zip of `frame_NUMBER.png`, numbered from 0, whose grey values are the classes.

    Frames about which nothing is known are left out.
    """
    with zipfile.ZipFile(file, "w") as archive:  # PNG is compressed already
        for index, frame in enumerate(labels):
            if not (frame == UNLABELLED).all():
                picture = io.BytesIO()
                Image.fromarray(frame).save(picture, "png")
                archive.writestr(f"frame_{index:06d}.png", picture.getvalue())


def write_drawn(file: Path, labels: Known, video: SeekableVideo, names: Names) -> None:
    """An MP4 of the video with the classes drawn on it, as long as the labels are."""
    drawn = (np.where(frame == UNLABELLED, np.uint8(0), frame) for frame in labels)
    frames = (video.frame(index) for index in range(len(labels)))
    write_overlay(file, frames, drawn, video.fps)


def write_for_cvat(file: Path, labels: Known, video: SeekableVideo, names: Names) -> None:
    """CVAT's "Segmentation mask 1.1"."""
    write_cvat(file, labels, names)


Writer = Callable[[Path, Known, SeekableVideo, Names], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "nifti": (".nii.gz", write_nifti),
    "png": ("_png.zip", write_pictures),
    "overlay": ("_overlay.mp4", write_drawn),
    "cvat": ("_cvat.zip", write_for_cvat),
}
"""What a label is exported as: what the study's name gets at its end, and what writes it."""
