"""Folders of DICOM files among the studies, and the volumes that they become."""

import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from nnunet_plugins.label.names import VIDEOS, VOLUMES, check_name, confined
from nnunet_plugins.label.uploads import TOLERANCE
from nnunet_plugins.label.volumes import LARGEST

ENDING = ".dcm"
FLOAT32 = 4
"""Bytes of a voxel, as series are kept."""
NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "Rows", "Columns",
)  # fmt: skip
PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""What every image tells: who it is, and with so many numbers where its pixels lie."""
ALIKE = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
SAME = 1e-4
"""By which axes and spacings of images of one series may differ."""
UNEVEN = 0.02
"""Share of the distance between slices by which one may differ."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Series:
    """Images of one series in the order of their slices, from the first along the normal."""

    files: list[Path]
    headers: list[pydicom.Dataset]
    """Without pixels."""
    origin: NDArray[np.float64]
    """Millimetres (x, y, z) in the patient, as DICOM counts them."""
    spacing: tuple[float, float, float]
    """Millimetres along columns, rows and slices."""
    direction: NDArray[np.float64]
    """(3, 3): its columns point along columns, rows and slices."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along columns, rows and slices."""
        return int(self.headers[0].Columns), int(self.headers[0].Rows), len(self.headers)

    def lay(self, image: sitk.Image) -> sitk.Image:
        """Give a volume the place that the headers tell."""
        image.SetOrigin(self.origin.tolist())
        image.SetSpacing(self.spacing)
        image.SetDirection(self.direction.ravel().tolist())
        return image

    def check_grid(self, image: sitk.Image) -> None:
        """Refuse a volume on another grid.

        Raises:
            ValueError: If size or place differ.
        """
        place = (
            (image.GetOrigin(), self.origin), (image.GetSpacing(), self.spacing),
            (image.GetDirection(), self.direction.ravel()),
        )  # fmt: skip
        near = all(np.allclose(a, b, atol=TOLERANCE) for a, b in place)
        if image.GetSize() != self.size or not near:
            raise ValueError(
                "the volume does not lie on the grid of its DICOM series; was the series changed? "
                "put it under a new name and POST /reload"
            )


def series_folders(studies: Path) -> list[Path]:
    """Folders below that of the studies that hold DICOM files, by name."""
    found = []
    for folder in sorted(studies.iterdir()):
        if folder.name == "labels" or folder.name.startswith(".") or not folder.is_dir():
            continue
        if any(file.name.lower().endswith(ENDING) for file in folder.iterdir()):
            found.append(folder)
    return found


def import_series(studies: Path, temporary: Path) -> dict[str, str]:
    """Make a volume `NAME.nii.gz` of each folder NAME of DICOM files that has none yet.

    A volume appears whole or not at all. Series that cannot be taken are logged.

    Args:
        studies: The folder of studies, links resolved.
        temporary: Folder on the same file system.

    Returns:
        For each folder "study", or one sentence on why it is none.
    """
    outcome = {}
    for folder in series_folders(studies):
        try:
            _import(studies, folder, temporary)
        except (ValueError, OSError, RuntimeError) as error:
            outcome[folder.name] = str(error)
            logger.warning("%s is not served: %s", folder.name, error)
        else:
            outcome[folder.name] = "study"
    return outcome


def read_series(studies: Path, name: str) -> Series:
    """The series in a folder of the studies.

    Raises:
        FileNotFoundError: If there is no such folder, or no DICOM file in it.
        ValueError: If it is no series of one volume.
    """
    files = _files(studies, name)
    if not files:
        raise FileNotFoundError(f"the study {name[:80]!r} has no folder of DICOM files")
    pairs = [(confined(studies, name, file.name), _header(file)) for file in files]
    _check_alike([header for _, header in pairs])
    orientation = np.array(pairs[0][1].ImageOrientationPatient, float)
    across, down = orientation[:3], orientation[3:]
    normal = np.cross(across, down)
    pairs.sort(key=lambda pair: float(normal @ _position(pair[1])))
    gap = _gap([_position(header) for _, header in pairs], normal)
    rows, columns = map(float, pairs[0][1].PixelSpacing)
    return Series(
        files=[file for file, _ in pairs],
        headers=[header for _, header in pairs],
        origin=_position(pairs[0][1]),
        spacing=(columns, rows, gap),
        direction=np.stack([across, down, normal], axis=1),
    )


def patient_of_series(studies: Path, name: str) -> str | None:
    """PatientID of the series in a folder of the studies; None if there is none to be read."""
    try:
        for file in _files(studies, name)[:1]:
            confined(studies, name, file.name)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(header.get("PatientID") or "").strip() or None
    except (InvalidDicomError, OSError, ValueError, TypeError, EOFError):
        pass  # `import_series` has said so
    return None


def read_volume(series: Series) -> sitk.Image:
    """Voxels of a series, in the units that its headers tell, at its place.

    Raises:
        ValueError: If pixels cannot be read.
    """
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    if len({(h.get("RescaleSlope"), h.get("RescaleIntercept")) for h in series.headers}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # else that of the first slice, as in PET
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError("the pixels of the series cannot be read; is a file damaged?") from error
    if image.GetSize() != series.size:
        raise ValueError("the pixels of the series are not those that its headers announce")
    return series.lay(image)


def _import(studies: Path, folder: Path, temporary: Path) -> None:
    name = check_name(folder.name, "a study")
    if any((studies / f"{name}{ending}").exists() for ending in VOLUMES + VIDEOS):
        return
    image = read_volume(read_series(studies, name))
    temporary.mkdir(parents=True, exist_ok=True)
    partial = temporary / f"{uuid.uuid4().hex}.nii.gz"
    try:
        sitk.WriteImage(image, str(partial), useCompression=True)
        os.replace(partial, studies / f"{name}.nii.gz")
    finally:
        partial.unlink(missing_ok=True)


def _files(studies: Path, name: str) -> list[Path]:
    folder = confined(studies, name)
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return [file for file in files if file.name.lower().endswith(ENDING)]


def _header(file: Path) -> pydicom.Dataset:
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        absent = [name for name in NEEDED if header.get(name) in (None, "")]
        absent += [name for name, count in PLACE.items() if len(header.get(name) or ()) != count]
    except (InvalidDicomError, OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{file.name} cannot be read as DICOM; is it damaged?") from error
    if absent:
        raise ValueError(f"{file.name} says no {absent[0]}, which an image of a series has")
    if int(header.get("NumberOfFrames") or 1) > 1 or int(header.get("SamplesPerPixel", 1)) > 1:
        raise ValueError(f"{file.name} has several frames or colours; only grey slices are taken")
    return header


def _check_alike(headers: list[pydicom.Dataset]) -> None:
    for name in ALIKE:
        if any(header.get(name) != headers[0].get(name) for header in headers):
            raise _differing(name)
    for name in ("ImageOrientationPatient", "PixelSpacing"):
        values = np.array([header.get(name) for header in headers], float)
        if np.ptp(values, axis=0).max() > SAME:
            raise _differing(name)
    if len({header.SOPInstanceUID for header in headers}) < len(headers):
        raise ValueError("an image is there twice; keep one file of each")
    orientation = np.array(headers[0].ImageOrientationPatient, float)
    axes = orientation.reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise ValueError("ImageOrientationPatient does not tell two axes at right angles")
    voxels = float(headers[0].Rows) * float(headers[0].Columns) * len(headers)
    if FLOAT32 * voxels > LARGEST:
        raise ValueError("the series has too many voxels")


def _differing(name: str) -> ValueError:
    return ValueError(f"the images differ in {name}; put one series into each folder")


def _position(header: pydicom.Dataset) -> NDArray[np.float64]:
    return np.array(header.ImagePositionPatient, float)


def _gap(positions: list[NDArray[np.float64]], normal: NDArray[np.float64]) -> float:
    """Millimetres from slice to slice."""
    if len(positions) < 2:
        raise ValueError("there is one slice; a volume has two at least")
    steps = np.diff(np.stack(positions), axis=0)
    along = steps @ normal
    mean = float(along.mean())
    if along.min() < 1e-3:
        raise ValueError("two slices are at one place; put one volume into each folder")
    if np.abs(along - mean).max() > UNEVEN * mean:
        raise ValueError(
            f"the slices are {along.min():.3f} to {along.max():.3f} mm apart; one is missing, or "
            "they are no even stack"
        )
    if np.abs(steps - along[:, None] * normal).max() > UNEVEN * mean:
        raise ValueError("the slices are shifted against each other, as by a tilted gantry")
    return mean
