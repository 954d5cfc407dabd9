"""Reading a scan: its geometry from headers alone, or its voxels, trusting neither.

ITK fills what is missing of a truncated NIfTI file with zeros, and replaces NaN and infinite voxels
by zero and a spacing of zero by one, all without a word. NIfTI files are therefore read twice: to
their end with nibabel, then with ITK, as nnU-Net reads them.
"""

import gzip
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from pretrain.volumes.scans import Scan

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]

NIFTI = (".nii", ".nii.gz")
HEADER = 348
"""Bytes of a NIfTI-1 header."""
MIN_VOXELS = 4
"""Fewer voxels along an axis are a picture, no volume."""
MAX_VOXELS = 2**31
SPACINGS = (1e-3, 100.0)
"""Smallest and largest spacing in mm that is believed."""
UNEVEN = 1.5
"""DICOM slices farther apart than this multiple of their median distance leave a gap."""
NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG")
"""DICOM modalities that show no anatomy."""


class UnusableScan(ValueError):
    """A scan that nothing can be learned from; the message says why."""


@dataclass(frozen=True)
class Geometry:
    """Where a scan's voxels lie: number along (d, h, w), spacing in mm, ITK's orientation code."""

    shape: Size
    spacing: Spacing
    orientation: str


def read_geometry(scan: Scan, channels: int) -> Geometry:
    """Geometry of a scan from its headers, without reading voxels.

    Raises:
        UnusableScan: If a file is missing, empty, unreadable or no volume of so many channels, or
            if its size or spacing cannot be true.
    """
    for file in scan.files:
        if not os.path.isfile(file):
            raise UnusableScan(
                "the file is missing" if file == scan.files[0] else f"{file} is missing"
            )
        if not os.path.getsize(file):
            raise UnusableScan("the file is empty")
    header = _header(scan.files[0])
    size, spacing = list(header.GetSize()), list(header.GetSpacing())
    _check_kind(header, size, channels)
    if scan.files[0].endswith(NIFTI):
        _check_nifti_spacing(scan.files[0])
    if len(scan.files) > 1 and scan.series:
        if header.GetDimension() == 3 and size[2] != 1:
            raise UnusableScan(f"its series holds {len(scan.files)} volumes; split it")
        size[2:], spacing[2:] = [len(scan.files)], [_slice_distance(scan)]
    _check_size(size[:3], spacing[:3])
    direction = np.array(header.GetDirection()).reshape(len(header.GetSize()), -1)[:3, :3]
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(
        direction.ravel().tolist()
    )
    d, h, w = size[2::-1]
    return Geometry((d, h, w), (spacing[2], spacing[1], spacing[0]), code)


def read_channels(scan: Scan, channels: int) -> list[sitk.Image]:
    """The channels of a scan, each a float32 image of three axes, read to their end.

    Raises:
        UnusableScan: If `read_geometry` would, or if the file is truncated or corrupt, DICOM slices
            are missing, a voxel is NaN or infinite, or all are equal.
    """
    read_geometry(scan, channels)
    with _reading("it"):
        if scan.files[0].endswith(NIFTI):
            _read_to_end(scan.files[0])
        image = _read_series(scan) if scan.series else sitk.ReadImage(scan.files[0])
        images = [sitk.Cast(channel, sitk.sitkFloat32) for channel in _split(image)]
    arrays = [sitk.GetArrayViewFromImage(channel) for channel in images]
    for array in arrays:
        _refuse_not_finite(array)
    if all(array.min() == array.max() for array in arrays):
        raise UnusableScan(f"all its voxels are {arrays[0].flat[0]:g}")
    return images


def check_size(shape: Size, spacing: Spacing) -> None:
    """Refuse a volume too small or too large to be true.

    Raises:
        UnusableScan: With the size and what is wrong with it.
    """
    text = f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm"
    if not all(SPACINGS[0] <= mm <= SPACINGS[1] for mm in spacing):
        raise UnusableScan(f"{text}: the spacing cannot be true")
    if min(shape) < MIN_VOXELS:
        raise UnusableScan(f"{text}: every axis needs at least {MIN_VOXELS} voxels")
    if math.prod(shape) > MAX_VOXELS:
        raise UnusableScan(f"{text}: more than {MAX_VOXELS:,} voxels in all")


def _header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    with _reading("its header"):
        reader.ReadImageInformation()
    return reader


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Blame the scan for what a reader raises, but not for what the machine does."""
    try:
        yield
    except Exception as error:  # readers of every format raise their own
        if isinstance(error, UnusableScan | MemoryError) or getattr(error, "errno", None):
            raise
        lines = [line for line in str(error).splitlines() if line and "Reason:" not in line]
        line = lines[-1 if isinstance(error, RuntimeError) else 0] if lines else repr(error)
        reason = line.strip().removeprefix("sitk::ERROR: ")  # ITK ends with it, others begin
        raise UnusableScan(f"{what} cannot be read: {reason}") from error


def _check_kind(header: sitk.ImageFileReader, size: list[int], channels: int) -> None:
    """Refuse what is no volume of so many channels."""
    if "0008|0060" in header.GetMetaDataKeys():
        modality = header.GetMetaData("0008|0060").strip()
        if modality in NO_SCANS:
            raise UnusableScan(f"DICOM modality {modality} is no scan")
    if not 3 <= len(size) <= 4:
        raise UnusableScan(f"it has {len(size)} axes; a volume has 3, with channels 4")
    if "complex" in sitk.GetPixelIDValueAsString(header.GetPixelID()):
        raise UnusableScan("its voxels are complex numbers; store their magnitude")
    found = header.GetNumberOfComponents() * math.prod(size[3:])
    if found != channels:
        raise UnusableScan(
            f"it holds {found} channels where {channels} are asked for; set `channels`"
        )


def _check_size(size: list[int], spacing: list[float]) -> None:
    check_size((size[2], size[1], size[0]), (spacing[2], spacing[1], spacing[0]))


def _slice_distance(scan: Scan) -> float:
    """Mean distance of a series' slices in mm, from the first and the last."""
    first, last = _header(scan.files[0]), _header(scan.files[-1])
    normal = np.array(first.GetDirection()).reshape(3, 3)[:, 2]
    way = np.subtract(last.GetOrigin(), first.GetOrigin()) @ normal
    return float(abs(way)) / (len(scan.files) - 1)


def _read_series(scan: Scan) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(scan.files)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    if len(scan.files) < 3:
        return image
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, 2]
    positions = [
        np.array(reader.GetMetaData(slice_, "0020|0032").split("\\"), dtype=float) @ normal
        for slice_ in range(len(scan.files))
    ]
    gaps = np.abs(np.diff(positions))
    if gaps.min() * UNEVEN < np.median(gaps) or gaps.max() > np.median(gaps) * UNEVEN:
        raise UnusableScan(
            f"its slices lie {gaps.min():g} to {gaps.max():g} mm apart: some are missing, or "
            "several volumes share the series"
        )
    return image


def _opened(file: str) -> Any:
    return gzip.open(file) if file.endswith(".gz") else open(file, "rb")


def _check_nifti_spacing(file: str) -> None:
    """Refuse a spacing that is not positive, which ITK replaces by 1."""
    with _reading("its header"), _opened(file) as stream:
        read: Any = nibabel.Nifti1Header
        spacing = read(stream.read(HEADER), check=False)["pixdim"][1:4]
    if not (spacing > 0).all():
        raise UnusableScan(f"its spacing is {' x '.join(f'{mm:g}' for mm in spacing)} mm (w, h, d)")


def _read_to_end(file: str) -> None:
    """Refuse a truncated or corrupt NIfTI file, and one with NaN or infinite voxels."""
    with _opened(file) as stream:
        stored: Any = nibabel.Nifti1Image.from_stream(stream).dataobj
        voxels = stored.get_unscaled()
        while stream.read(1 << 20):  # gzip's check sum is read, and compared, at the end
            pass
    if voxels.dtype.kind == "f":
        _refuse_not_finite(voxels)


def _split(image: sitk.Image) -> list[sitk.Image]:
    frames = [image]
    if image.GetDimension() == 4:
        frames = [image[:, :, :, t] for t in range(image.GetSize()[3])]
    components = image.GetNumberOfComponentsPerPixel()
    if components == 1 and "vector" not in image.GetPixelIDTypeAsString():
        return frames
    select = sitk.VectorIndexSelectionCast
    return [select(frame, component) for frame in frames for component in range(components)]


def _refuse_not_finite(voxels: NDArray[Any]) -> None:
    if count := np.count_nonzero(~np.isfinite(voxels)):
        raise UnusableScan(f"{count} voxels are NaN or infinite")
