"""Small volumes of every format, made by numpy."""

import locale
from pathlib import Path

import pytest
import SimpleITK as sitk

from tests.pretrain.volumes.phantom import blob


@pytest.fixture
def write(tmp_path):
    """Writes an array (d, h, w[, c]) as a file under the test's folder."""

    def write(name, array=None, spacing=(1.0, 1.0, 1.0), compress=True, vector=False) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(blob() if array is None else array, isVector=vector)
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(path), compress)
        return path

    return write


@pytest.fixture
def kept_locale():
    """GDCM's writer leaves the process with the locale C, in which Python opens files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def write_series(tmp_path, kept_locale):
    """Writes a DICOM series of one file a slice; `positions` are those of the slices in mm."""

    def write_series(folder, positions, series="1.2.3", modality="CT") -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        volume = blob((len(positions), 16, 16))
        for number, position in enumerate(positions):
            image = sitk.GetImageFromArray(volume[number : number + 1])
            image.SetSpacing((2.0, 2.0, 1.0))
            tags = {
                "0008|0060": modality,
                "0020|000d": "1.2",
                "0020|000e": series,
                "0008|0018": f"{series}.{number}",
                "0020|0032": f"0\\0\\{position}",
                "0020|0037": "1\\0\\0\\0\\1\\0",
                "0020|0013": str(number),
            }
            for tag, value in tags.items():
                image.SetMetaData(tag, value)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(path / f"{series}-{99 - number}.dcm"))
            writer.Execute(image)
        return path

    return write_series
