"""Labels of a video as files that other programs read."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.data.masks import Labels
from nnunet_plugins.data.overlay import write_overlay
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.video.cvat import write_cvat
from nnunet_plugins.label.video.prompts import UNLABELLED

Names = dict[str, int]
"""Values of classes by their names."""


def write_nifti(file: Path, labels: Labels, video: SeekableVideo, names: Names) -> None:
    """A volume (t, h, w) as SimpleITK reads it: x, y and time in the file."""
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(file), useCompression=True)


def write_pictures(file: Path, labels: Labels, video: SeekableVideo, names: Names) -> None:
    """A zip of `frame_NUMBER.png`, numbered from 0, whose grey values are the classes.

    Frames about which nothing is known are left out.
    """
    with zipfile.ZipFile(file, "w") as archive:  # PNG is compressed already
        for index, frame in enumerate(labels):
            if not (frame == UNLABELLED).all():
                picture = io.BytesIO()
                Image.fromarray(frame).save(picture, "png")
                archive.writestr(f"frame_{index:06d}.png", picture.getvalue())


def write_drawn(file: Path, labels: Labels, video: SeekableVideo, names: Names) -> None:
    """An MP4 of the video with the classes drawn on it, as long as the labels are."""
    drawn = (np.where(frame == UNLABELLED, np.uint8(0), frame) for frame in labels)
    frames = (video.frame(index) for index in range(len(labels)))
    write_overlay(file, frames, drawn, video.fps)


def write_for_cvat(file: Path, labels: Labels, video: SeekableVideo, names: Names) -> None:
    """CVAT's "Segmentation mask 1.1"."""
    write_cvat(file, labels, names)


Writer = Callable[[Path, Labels, SeekableVideo, Names], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "nifti": (".nii.gz", write_nifti),
    "png": ("_png.zip", write_pictures),
    "overlay": ("_overlay.mp4", write_drawn),
    "cvat": ("_cvat.zip", write_for_cvat),
}
"""What a label is exported as: what the study's name gets at its end, and what writes it."""
