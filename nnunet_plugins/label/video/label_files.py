"""Labels of a whole video in one file, written and read frame by frame, however many there are."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from nnunet_plugins.data.masks import Labels
from nnunet_plugins.label.planes import read_video_labels

LONGEST = 2**15 - 1
"""Frames, rows or columns of a label: NIfTI-1 has 16 bits for each; SimpleITK reads no NIfTI-2."""
LEVEL = 1
"""Of gzip; masks are mostly of one value, and higher ones take longer and save little."""
POSITION = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Where SimpleITK puts a volume without a patient, in the axes of NIfTI."""


def check_size(size: tuple[int, int, int]) -> None:
    """Refuse a label that no file can hold.

    Args:
        size: Frames, rows and columns.

    Raises:
        ValueError: If one is more than `LONGEST`.
    """
    if max(size) > LONGEST:
        raise ValueError(
            f"this label would have {size[0]} frames of {size[2]} x {size[1]} pixels, and a NIfTI "
            f"file holds {LONGEST} of each; cut the video, ask for frames before {LONGEST}, or "
            "say save_label false"
        )


def write_volume(file: Path, labels: Iterable[Labels], size: tuple[int, int, int]) -> None:
    """Frames as the NIfTI volume that SimpleITK makes of (t, h, w): x, y and time in the file.

    Args:
        file: Ends in .nii.gz.
        labels: Classes (h, w) of each frame, one after the other.
        size: Frames, rows and columns.

    Raises:
        ValueError: If there are too many frames, or others than `size` says.
    """
    check_size(size)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(size[::-1])
    header.set_qform(POSITION, "scanner")
    header.set_sform(POSITION, "scanner")
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = header.single_vox_offset
    with gzip.open(file, "wb", LEVEL) as target:
        header.write_to(target)
        count = 0
        for count, frame in enumerate(labels, start=1):
            if frame.shape != size[1:] or frame.dtype != np.uint8:
                raise ValueError(f"frame {count - 1} is {frame.shape}, the others {size[1:]}")
            target.write(np.ascontiguousarray(frame).data)
    if count != size[0]:
        raise ValueError(f"{count} frames came and {size[0]} were announced")


class LabelFrames:
    """Labels of a video in a file, one frame (h, w) after the other, as they are stored.

    NIfTI is read frame by frame; of other files all frames are in memory.

    Args:
        file: Of a label (t, h, w) as SimpleITK reads it.

    Raises:
        ValueError: If it cannot be read or has other axes; also while it is read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        whole = not file.name.lower().endswith((".nii", ".nii.gz"))
        self._voxels = read_video_labels(file).voxels.T if whole else _nifti(file)
        """(x, y, t), of which a NIfTI's are read when they are asked for."""
        shape = self._voxels.shape
        if len(shape) != 3 or self._voxels.dtype.kind not in "buif":
            raise ValueError(
                f"{file.name} has the shape {shape} and values of {self._voxels.dtype}; labels of "
                "a video have three axes and one number a voxel"
            )
        self.size = (shape[2], shape[1], shape[0])
        """Frames, rows and columns."""

    def __len__(self) -> int:
        return self.size[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return np.ascontiguousarray(np.asarray(self._voxels[..., index]).T)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{self._file.name} cannot be read to its end") from error


def _nifti(file: Path) -> Any:
    try:
        image = nibabel.load(file, keep_file_open=True)
    except (OSError, EOFError, ValueError, ImageFileError, zlib.error) as error:
        raise ValueError(f"{file.name} cannot be read as labels of frames") from error
    return image.dataobj
