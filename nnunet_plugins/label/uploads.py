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

LARGEST_GRID = 2**31
"""Voxels of a volume, or pixels of a video's frame times frames: what one may announce."""
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
    size = _frame_size(file) if is_video(file) else _header(file).GetSize()
    if np.prod([float(n) for n in size]) > LARGEST_GRID:
        raise ValueError(f"the file announces {' x '.join(map(str, size))} voxels, too many")


def check_label(file: Path, image: Path) -> None:
    """Refuse a label that is not on its image's grid.

    Raises:
        ValueError: If it is no volume, holds no whole numbers or lies on another grid.
    """
    label = _header(file)
    if label.GetNumberOfComponents() != 1 or not _holds_integers(label):
        raise ValueError("a label has one whole number a voxel; this file has something else")
    if is_video(image):
        width, height = _frame_size(image)
        if label.GetDimension() != 3 or label.GetSize()[:2] != (width, height):
            raise ValueError(
                f"the label has {_by(label.GetSize())} voxels and the video frames of "
                f"{width} x {height} pixels; send frames as the last axis"
            )
        return
    reference = _header(image)
    if label.GetSize() != reference.GetSize():
        raise ValueError(
            f"the label has {_by(label.GetSize())} voxels and its image {_by(reference.GetSize())}"
        )
    for what in ("GetOrigin", "GetSpacing", "GetDirection"):
        a, b = getattr(label, what)(), getattr(reference, what)()
        if not np.allclose(a, b, atol=TOLERANCE):
            raise ValueError(f"label and image differ in {what[3:].lower()}: {a} and {b}")


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError("the file cannot be read as a volume; is it damaged?") from error
    return reader


def _holds_integers(label: sitk.ImageFileReader) -> bool:
    """Whether all voxels are whole and not negative, however they are stored."""
    if float(np.prod(label.GetSize())) > LARGEST_GRID:
        return False
    try:
        voxels = sitk.GetArrayFromImage(label.Execute())
    except RuntimeError as error:
        raise ValueError("the label cannot be read to its end; is it damaged?") from error
    return bool(np.all((voxels >= 0) & (voxels == np.floor(voxels))))


def _frame_size(file: Path) -> tuple[int, int]:
    try:
        with av.open(str(file), metadata_errors="ignore") as container:
            (video,) = container.streams.video[:1]
            return video.width, video.height
    except (av.FFmpegError, ValueError, OSError) as error:
        raise ValueError("the file cannot be read as a video; is it damaged?") from error


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
