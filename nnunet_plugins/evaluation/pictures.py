"""Pictures of videos from disk: image folders, video files, or nnU-Net's channels in NIfTI."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_plugins.evaluation.masks import NIFTI, in_order, read_nifti

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FILMS = (".mp4", ".avi", ".mov", ".mkv", ".mpeg", ".webm", ".gif")


def find_pictures(folder: Path) -> dict[str, list[Path]]:
    """Files of each video by its name.

    NAME_0000.nii.gz, NAME_0001.nii.gz, ... are channels; a folder NAME, or `frames` inside it,
    holds one image a frame; NAME.mp4 and the like are films.

    Raises:
        FileNotFoundError: The folder is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one with the pictures of each video")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(NIFTI):
            name = re.sub(r"(_\d{4})?\.nii(\.gz)?$", "", path.name)
            found.setdefault(name, []).append(path)
        elif path.suffix.lower() in FILMS:
            found[path.stem] = [path]
        elif path.is_dir():
            images = _images(path) or _images(path / "frames")
            if images:
                found[path.name] = images
    return found


def read_pictures(files: list[Path]) -> NDArray[np.uint8]:
    """(t, h, w, 3). Grey is repeated; of NIfTI channels the first three are colours.

    Raises:
        ValueError: Sizes differ, or a file cannot be read.
    """
    if files[0].name.endswith(NIFTI):
        channels = [read_nifti(file) for file in files[:3]]
        channels = channels if len(channels) == 3 else channels[:1] * 3
        pictures = [_eight_bit(np.stack(channels, axis=-1))]
    elif files[0].suffix.lower() in FILMS:
        pictures = [_decode(files[0])]
    else:
        pictures = [_read_image(file)[None] for file in files]
    shapes = {picture.shape[1:] for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"{files[0].parent} holds images of sizes {shapes}; a video has one size")
    return np.concatenate(pictures)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((f for f in folder.iterdir() if f.suffix.lower() in IMAGES), key=in_order)


def _read_image(file: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read ({error}); write it again") from error


def _decode(file: Path) -> NDArray[np.uint8]:
    import av

    try:
        with av.open(str(file)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{file} cannot be decoded ({error})") from error
    if not frames:
        raise ValueError(f"{file} holds no frames")
    return np.stack(frames)


def _eight_bit(array: NDArray[Any]) -> NDArray[np.uint8]:
    """As it is if it fits 0..255, else stretched between its 0.5 and 99.5 percentile."""
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255 or high <= 1:
        low, high = (float(p) for p in np.percentile(array, (0.5, 99.5)))
        array = (array - low) * (255 / max(high - low, np.finfo(np.float32).tiny))
    return np.clip(array, 0, 255).astype(np.uint8)
