"""What a person has drawn on a video: masks of some of its frames."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_plugins.data.masks import Labels, LabelScheme, read_mask
from nnunet_plugins.label.video.label_files import LabelFrames

UNLABELLED = 255
"""Fills frames of a volume of labels about which nothing is known."""
Prompt = dict[int, Labels]
"""Classes (h, w) of frames, numbered from 0."""


def prompt_of_volume(
    file: Path, frames: Sequence[int] | None, scheme: LabelScheme, size: tuple[int, int, int]
) -> Prompt:
    """Labelled frames of a volume (t, h, w), which may end before the video does.

    Args:
        file: The volume.
        frames: Those that count. If None: all but those filled with `UNLABELLED`; where nothing is
            marked so, those that show a class, because drawing programs fill the others with 0.
        scheme: Classes of the network.
        size: Frames, rows and columns of the video.

    Raises:
        ValueError: If the volume does not fit, or no frame is left.
    """
    volume = LabelFrames(file)
    if volume.size[1:] != size[1:] or len(volume) > size[0]:
        raise ValueError(
            f"the labels have the shape {volume.size} and the video {size}; send frames x rows x "
            "columns, frames from the first on"
        )
    if frames is None:
        seen = np.array([((frame == UNLABELLED).all(), frame.any()) for frame in volume])
        unknown, drawn = seen.T
        frames = np.flatnonzero(~unknown if unknown.any() else drawn).tolist()
    outside = [index for index in frames if not 0 <= index < len(volume)]
    if outside:
        raise ValueError(f"frame {outside[0]} is not among the {len(volume)} of the labels")
    prompt = {i: _encoded(volume[i], scheme, f"frame {i} of the labels") for i in frames}
    if not prompt:
        raise ValueError("no frame of these labels is labelled; name some, or draw on one")
    return prompt


def prompt_of_picture(
    file: Path, frame: int, scheme: LabelScheme, size: tuple[int, int, int]
) -> Prompt:
    """One frame's mask as a picture: classes, or 0 and 255 where there is one class.

    Raises:
        ValueError: If there is no such frame, or the picture is no mask of it.
    """
    if not 0 <= frame < size[0]:
        raise ValueError(f"there is no frame {frame}; the video has {size[0]}, counted from 0")
    return {frame: _encoded(read_picture(file, size[1:]), scheme, "the mask")}


def read_picture(file: Path, size: tuple[int, int]) -> Labels:
    """Grey values (h, w) of a mask that has the size of the video's frames.

    Raises:
        ValueError: If it has not, or is no mask.
    """
    try:
        with Image.open(file) as picture:
            found = picture.size[::-1]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("the mask cannot be read as a picture; send a PNG") from error
    if found != tuple(size):
        raise ValueError(f"the mask has {found} rows and columns and the frames {tuple(size)}")
    return read_mask(file)


def digest_of(prompt: Prompt) -> str:
    """What tells one prompt from another."""
    found = hashlib.sha256()
    for index in sorted(prompt):
        found.update(f"{index} {prompt[index].shape} ".encode())
        found.update(np.ascontiguousarray(prompt[index]).tobytes())
    return found.hexdigest()[:16]


def _encoded(mask: np.ndarray, scheme: LabelScheme, where: str) -> Labels:
    if mask.min() < 0 or mask.max() > UNLABELLED or (mask != np.floor(mask)).any():
        raise ValueError(f"{where} holds values that are no classes")
    return scheme.encode(mask.astype(np.uint8), where)
