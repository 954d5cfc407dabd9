"""Masks of videos from disk: NIfTI (t, h, w) as nnU-Net writes, or a folder of PNGs a video."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Stack:
    """Images of one video, time first, and the names of its frames where files have them."""

    array: NDArray[Any]
    frames: list[str] | None = None


def find_videos(folder: Path, inner: str = "masks") -> dict[str, Path]:
    """Videos of a folder by name: NIfTI files, and folders of PNGs or with `inner` of PNGs.

    Raises:
        FileNotFoundError: The folder is not there, or holds no videos.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with a file or folder a video")
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(NIFTI):
            videos[path.name.rsplit(".nii", 1)[0]] = path
        elif path.is_dir():
            found = next((p for p in (path, path / inner) if any(p.glob("*.png"))), None)
            if found:
                videos[path.name] = found
    if not videos:
        raise FileNotFoundError(
            f"{folder} holds no videos; each is NAME.nii.gz of (t, h, w) or a folder NAME of PNGs"
        )
    return videos


def read_stack(path: Path) -> Stack:
    """One video as it was stored; PNGs in the order of the numbers in their names.

    Raises:
        ValueError: A file cannot be read to its end, or is no grey stack of equal sizes.
    """
    return read_pngs(path) if path.is_dir() else Stack(read_nifti(path))


def read_nifti(path: Path) -> NDArray[Any]:
    """(t, h, w); a plain (h, w) image is one frame."""
    try:
        # ITK, nnU-Net's reader, fills the rest of a truncated file with zeros; nibabel refuses.
        array = np.asarray(nibabel.load(path).dataobj).T
    except Exception as error:  # nibabel, gzip and numpy each raise their own
        raise ValueError(f"{path} cannot be read ({error}); write it again") from error
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise ValueError(f"{path} has {array.ndim} axes; a video of masks has three, (t, h, w)")
    return array


def read_pngs(folder: Path) -> Stack:
    """(t, h, w), and the names of the frames without their endings."""
    files = sorted(folder.glob("*.png"), key=in_order)
    images = [_read_grey(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{file} is {image.shape[1]} x {image.shape[0]} pixels and {files[0].name} "
                f"{images[0].shape[1]} x {images[0].shape[0]}; a video has one size"
            )
    return Stack(np.stack(images), [file.stem for file in files])


def in_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key by which frame 2 comes before frame 10."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _read_grey(file: Path) -> NDArray[Any]:
    try:
        image = np.asarray(Image.open(file))
    except (OSError, SyntaxError) as error:  # Pillow's word for a broken PNG
        raise ValueError(f"{file} cannot be read ({error}); write it again") from error
    if image.ndim == 3 and image.shape[2] == 3 and (image == image[..., :1]).all():
        image = image[..., 0]
    if image.ndim != 2:
        raise ValueError(f"{file} is a colour image; masks are grey, a class number a pixel")
    return image.astype(np.uint8) * 255 if image.dtype == bool else image


def as_labels(stack: Stack, name: str, ignore: int | None) -> NDArray[np.int16]:
    """Class numbers, (t, h, w); a stack of only 0 and 255 is a binary mask, 255 class 1.

    Raises:
        ValueError: The values are no whole numbers from 0, or 255 stands beside other classes.
    """
    array = stack.array
    values = np.unique(array)
    if not np.isfinite(values).all() or (values != np.rint(values)).any() or values[0] < 0:
        raise ValueError(f"{name} holds {values[:5]}; masks hold whole class numbers from 0")
    if values[-1] > np.iinfo(np.int16).max:
        raise ValueError(f"{name} holds class {values[-1]:.0f}; classes end at 32767")
    if 255 in values and ignore != 255:
        if not {*values} <= {0, 255}:
            raise ValueError(
                f"{name} holds 255 beside {[int(v) for v in values[:5]]}; masks hold 0 and 255, or "
                "class numbers; if 255 marks unknown pixels, say --ignore 255"
            )
        array = array // 255
    return array.astype(np.int16)
