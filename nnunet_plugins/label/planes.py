"""Volumes and their labels in the position in which people look at them, plane by plane.

Axes of all arrays: z from feet to head, y from front to back, x from the patient's right to left.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

LARGEST = 2**30
"""Bytes of a volume that is opened to be looked at."""
SAMPLES = 10**6
"""Voxels that are looked at for a window."""
_OPPOSITE = dict(zip("LRPASI", "RLAPIS", strict=True))


@dataclass(frozen=True)
class Places:
    """Where a voxel (x, y, z, 1) of a volume that is looked at is elsewhere, as matrices (3, 4)."""

    in_file: NDArray[np.int64]
    """Indices (i, j, k) of the file's own voxels."""
    in_patient: NDArray[np.float64]
    """Millimetres to the left, to the back and towards the head, as DICOM counts them."""


@dataclass(frozen=True)
class Volume:
    """Voxels in that position."""

    voxels: NDArray[Any]
    """(z, y, x)."""
    spacing: tuple[float, ...]
    """Millimetres along z, y and x."""
    places: Places | None = None
    """None where there is no patient, as in a video's labels."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.voxels.nbytes

    def plane(self, name: str, index: int) -> NDArray[Any]:
        """A plane (rows, columns) with the head or the front at its top.

        Args:
            name: `axial`, `coronal` or `sagittal`; `frame` of a video's labels.
            index: Along the axis that the plane is perpendicular to.

        Raises:
            ValueError: If there is no such plane.
        """
        axis = {"axial": 0, "frame": 0, "coronal": 1, "sagittal": 2}.get(name)
        if axis is None:
            raise ValueError(f"{name[:80]!r} is no plane; give axial, coronal or sagittal")
        if not 0 <= index < self.voxels.shape[axis]:
            raise ValueError(f"there is no {name} plane {index}; {self.voxels.shape[axis]} exist")
        found = self.voxels.take(index, axis)
        return found if axis == 0 else found[::-1]


def read_volume(file: Path) -> Volume:
    """A volume's voxels, as numbers that can be drawn.

    Raises:
        ValueError: If it cannot be read, is too large, or has several values a voxel.
    """
    image = _read(file)
    return _as_seen(image)


def read_labels(file: Path) -> Volume:
    """Labels of a volume, in whole numbers.

    Raises:
        ValueError: If it cannot be read, is too large, or holds no labels.
    """
    return _whole(_as_seen(_read(file)), file)


def read_video_labels(file: Path) -> Volume:
    """Labels (t, h, w) of a video, as they are in the file.

    Raises:
        ValueError: If it cannot be read, is too large, or holds no labels.
    """
    return _whole(Volume(sitk.GetArrayFromImage(_read(file)), (1.0, 1.0, 1.0)), file)


def window(voxels: NDArray[Any]) -> dict[str, float]:
    """`low` and `high`, between which nearly all values lie, and the `least` and `most` of them."""
    flat = voxels.reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLES)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return {"low": 0.0, "high": 1.0, "least": 0.0, "most": 1.0}
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    least, most = float(sample.min()), float(sample.max())
    if high <= low:
        low, high = least, most
    return {"low": low, "high": high if high > low else low + 1, "least": least, "most": most}


def grey(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values as brightness: 0 up to `low`, 255 from `high` on; what is no number is black.

    Raises:
        ValueError: If the window is empty.
    """
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"a window from {low} to {high} shows nothing; low must be below high")
    share = (values.astype(np.float64) - low) / (high - low)
    return np.rint(255 * np.nan_to_num(share, nan=0.0).clip(0, 1)).astype(np.uint8)


def statistics(labels: Volume) -> dict[str, Any]:
    """What is in labels.

    Returns:
        `counts`, for each value its `voxels` and where most of it is, `at` (z, y, x); and
        `profile`, for each axis how many voxels with a label every plane has.
    """
    found = []
    voxels = labels.voxels
    for value, box in enumerate(ndimage.find_objects(voxels), start=1):
        if box is None:
            continue
        inside = voxels[box] == value
        sums = [inside.sum(axis=_others(axis)) for axis in range(3)]
        at = [int(part.start + np.argmax(s)) for part, s in zip(box, sums, strict=True)]
        found.append({"value": value, "voxels": int(inside.sum()), "at": at})
    foreground = voxels > 0
    profile = [foreground.sum(axis=_others(axis)).tolist() for axis in range(3)]
    return {"counts": found, "profile": profile}


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _read(file: Path) -> sitk.Image:
    """A volume of three axes and one value a voxel."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        if components != 1 or len(size) not in (2, 3):
            raise ValueError(
                f"{file.name} has {len(size)} axes and {components} values a voxel; only volumes "
                "of three axes and one value can be looked at here"
            )
        item = sitk.GetArrayViewFromImage(sitk.Image(1, 1, reader.GetPixelID())).itemsize
        if float(np.prod(size, dtype=float)) * item > LARGEST:
            raise ValueError(
                f"{file.name} has {' x '.join(map(str, size))} voxels, too many to be looked at "
                "here; open it in a viewer on this machine"
            )
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{file.name} cannot be read as a volume; is it damaged?") from error
    return image if len(size) == 3 else sitk.JoinSeries(image)


def _as_seen(image: sitk.Image) -> Volume:
    """An image with its axes turned and swapped to their nearest of the patient."""
    towards = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    order, turned = [], []
    for wanted in "SPL":
        (axis,) = (i for i, letter in enumerate(towards) if letter in (wanted, _OPPOSITE[wanted]))
        order.append(axis)
        turned.append(slice(None, None, 1 if towards[axis] == wanted else -1))
    voxels = sitk.GetArrayFromImage(image).transpose([2 - axis for axis in order])
    spacing = tuple(image.GetSpacing()[axis] for axis in order)
    return Volume(voxels[tuple(turned)], spacing, _places(image, order, turned))


def _places(image: sitk.Image, order: list[int], turned: list[slice]) -> Places:
    """From the file's axis for each of z, y and x, and which way that is gone along."""
    in_file = np.zeros((3, 4), np.int64)
    for column, axis, way in zip((2, 1, 0), order, turned, strict=True):
        in_file[axis, column] = way.step
        in_file[axis, 3] = image.GetSize()[axis] - 1 if way.step < 0 else 0
    axes = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    in_patient = axes @ in_file
    in_patient[:, 3] += image.GetOrigin()
    return Places(in_file, in_patient)


def _whole(labels: Volume, file: Path) -> Volume:
    """Labels in as few bits as they need."""
    voxels = labels.voxels
    least, most = (float(voxels.min()), float(voxels.max())) if voxels.size else (0.0, 0.0)
    fits = 0 <= least <= most < 2**16
    if not fits or (voxels.dtype.kind == "f" and not np.array_equal(voxels, np.floor(voxels))):
        raise ValueError(f"{file.name} holds no labels, which are whole numbers from 0 to 65535")
    return replace(labels, voxels=voxels.astype(np.uint8 if most < 256 else np.uint16))
