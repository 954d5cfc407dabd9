"""Files that clients send: looked at before they get a place among the studies."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import SimpleITK as sitk

from nnunet_plugins.label.names import is_video
from nnunet_plugins.label.volumes import LARGEST, announced, by, check_end, read_header

LARGEST_FRAME = 2**26
"""Pixels of a video's frame."""
TOLERANCE = 1e-2
"""Millimetres by which the frames of a label and its image may differ."""


@contextlib.contextmanager
def received(stream: BinaryIO, folder: Path, ending: str) -> Iterator[Path]:
    """An upload in a file of its own, which is gone afterwards unless it was moved.

    Args:
        stream: What was sent.
        folder: On the file system of the studies, so that moving it is atomic.
        ending: Of the file's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{uuid.uuid4().hex}{ending}"
    try:
        with file.open("wb") as target:
            shutil.copyfileobj(stream, target)
            target.flush()
            os.fsync(target.fileno())
        yield file
    finally:
        file.unlink(missing_ok=True)


def check_image(file: Path) -> None:
    """Refuse what is not what its ending says, or announces too much; voxels are not read.

    Raises:
        ValueError: If it is no volume or video that can be opened, or too large.
    """
    if is_video(file):
        width, height = _frame_size(file)
        if width * height > LARGEST_FRAME:
            raise ValueError(f"frames of {width} x {height} pixels are larger than is taken")
        return
    header = read_header(file)
    if announced(header) > LARGEST:
        raise ValueError(
            f"the file announces {by(header.GetSize())} voxels, {announced(header) / 2**30:.1f} "
            f"GiB; up to {LARGEST / 2**30:.0f} GiB are taken"
        )


def check_label(file: Path, image: Path) -> None:
    """Refuse a label that is not on its image's grid.

    Raises:
        ValueError: If it is no volume, holds no whole numbers or lies on another grid.
    """
    label = read_header(file)
    if label.GetNumberOfComponents() != 1:
        raise ValueError("a label has one whole number a voxel; this file has several")
    if is_video(image):
        width, height = _frame_size(image)
        if label.GetDimension() != 3 or label.GetSize()[:2] != (width, height):
            raise ValueError(
                f"the label has {by(label.GetSize())} voxels and the video frames of "
                f"{width} x {height} pixels; send frames as the last axis"
            )
    else:
        _check_grid(label, read_header(image))
    if label.GetPixelID() == sitk.sitkUInt8 and file.name.lower().endswith(".nii.gz"):
        check_end(file, label)  # whatever the length of a video
    else:
        _check_whole_numbers(label)


def _check_grid(label: sitk.ImageFileReader, reference: sitk.ImageFileReader) -> None:
    if label.GetSize() != reference.GetSize():
        raise ValueError(
            f"the label has {by(label.GetSize())} voxels and its image {by(reference.GetSize())}"
        )
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        a, b = getattr(label, what)(), getattr(reference, what)()
        if not np.allclose(a, b, atol=TOLERANCE):
            raise ValueError(f"label and image differ in {what[3:].lower()}: {a} and {b}")


def _check_whole_numbers(label: sitk.ImageFileReader) -> None:
    """See that all voxels are whole and not negative, however they are stored."""
    if announced(label) > LARGEST:
        raise ValueError(
            f"the label announces {announced(label) / 2**30:.1f} GiB; send it as .nii.gz with 8 "
            "bits a voxel"
        )
    try:
        image = label.Execute()
    except RuntimeError as error:
        raise ValueError("the label cannot be read to its end; is it damaged?") from error
    voxels = sitk.GetArrayViewFromImage(image)
    if voxels.dtype.kind == "u":
        return
    if not all(np.all((part >= 0) & (part == np.floor(part))) for part in voxels):
        raise ValueError("a label has one whole number a voxel; this file has something else")


def _frame_size(file: Path) -> tuple[int, int]:
    try:
        with av.open(str(file), metadata_errors="ignore") as container:
            (video,) = container.streams.video[:1]
            return video.width, video.height
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ValueError("the file cannot be read as a video; is it damaged?") from error
