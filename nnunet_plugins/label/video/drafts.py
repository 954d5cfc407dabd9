"""Masks of a video that a model has made so far, frame by frame, whatever ends the work."""

import shutil
from pathlib import Path

import numpy as np

from nnunet_plugins.data.masks import Labels, read_mask
from nnunet_plugins.label.shelf import write_text
from nnunet_plugins.label.video.label_files import write_volume
from nnunet_plugins.label.video.prompts import UNLABELLED
from nnunet_plugins.stream.writer import write_mask


class Draft:
    """A folder of masks and memories for one model and one video.

    Args:
        folder: Made when something is written.
        key: Of the weights and the video. A folder with another key is emptied by `begin`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.masks, self.memories = folder / "masks", folder / "memories"

    def begin(self) -> None:
        """Make the folder ready; what other weights made, or of another video, goes."""
        if not self.fits:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.masks.mkdir(parents=True)
            write_text(self.folder / "key", self.key)

    @property
    def fits(self) -> bool:
        """Whether what is there is of this key."""
        file = self.folder / "key"
        return file.is_file() and file.read_text(encoding="utf-8").strip() == self.key

    def put(self, index: int, labels: Labels) -> None:
        """Keep a frame's classes (h, w), in the place of older ones."""
        write_mask(self.masks / f"{index:08d}.png", labels)

    def done(self) -> list[int]:
        """Numbers of the frames that are there, in order."""
        return sorted(int(f.stem) for f in self.masks.glob("[0-9]*.png")) if self.fits else []

    @property
    def length(self) -> int:
        """Frames of the video up to the last one that is there."""
        return max(self.done(), default=-1) + 1

    def write(self, file: Path, size: tuple[int, int]) -> None:
        """The label (t, h, w) up to the last frame that is there; gaps are `UNLABELLED`.

        One frame at a time is in memory.

        Args:
            file: Ends in .nii.gz.
            size: Rows and columns of the video.

        Raises:
            ValueError: If there is no frame, or there are too many for the file.
        """
        known = set(self.done())
        if not known:
            raise ValueError("no frame has been segmented yet")
        length, gap = max(known) + 1, np.full(size, UNLABELLED, np.uint8)
        frames = (
            read_mask(self.masks / f"{index:08d}.png") if index in known else gap
            for index in range(length)
        )
        write_volume(file, frames, (length, *size))


def ranges(indices: list[int]) -> list[tuple[int, int]]:
    """Sorted numbers as ranges, each with the number after its last."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index:
            found[-1] = found[-1][0], index + 1
        else:
            found.append((index, index + 1))
    return found
