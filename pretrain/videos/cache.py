"""Prepared frames on disk: every video decoded once, then mapped into memory by every process."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nnunet_plugins.data.clips import Frame
from pretrain.entries import publish
from pretrain.fingerprints import digest
from pretrain.videos.first_pass import Findings, Kept
from pretrain.videos.open_videos import open_unchanged

FORMAT = 1
"""Raised when what is stored of a video changes."""


class FrameCache:
    """Usable frames of videos, cut to their box and shrunk, in files of plain uint8 pixels.

    An entry appears whole or not at all, so processes need not wait for each other: who comes
    second throws his work away. An hour of video at 25 frames a second takes 30 GB with a side of
    256; the cache suits corpora of short videos, and long ones where there is room.

    Args:
        folder: Runs may share it.
        side: Pixels of the shorter side of a stored frame; smaller videos are kept as they are.

    Raises:
        ValueError: If the side is not positive.
    """

    def __init__(self, folder: Path | str, side: int) -> None:
        if side < 1:
            raise ValueError(f"side is {side}; give a positive number of pixels")
        self.folder = Path(folder)
        self.side = side

    def entry(self, kept: Kept) -> Path:
        """Folder of a video's entry."""
        key = digest([FORMAT, kept.identity, self.side, kept.seen.box, kept.seen.segments])
        return self.folder / "frames" / key[:2] / key

    def fill(self, findings: Findings) -> None:
        """Make all entries that are missing, with a progress bar."""
        for kept in tqdm(findings.kept, desc="Preparing frames", unit="video", disable=None):
            self.open(kept)

    def open(self, kept: Kept) -> NDArray[np.uint8]:
        """A map of the usable frames (t, h, w, 3) of a video, one segment after the other.

        Raises:
            RuntimeError: If the video changed since the first pass.
            OSError: If the disk is full, or the video is gone.
        """
        entry = self.entry(kept)
        if not entry.is_dir():
            publish(entry, {"frames.npy": lambda file: self._write(kept, file)})
        frames: NDArray[np.uint8] = np.load(entry / "frames.npy", mmap_mode="r", allow_pickle=False)
        return frames

    def _write(self, kept: Kept, file: Path) -> None:
        """As np.save of all frames would, one frame in memory at a time."""
        numbers = usable_numbers(kept)
        height, width = self.size(kept)
        reader = open_unchanged(kept)
        try:
            with file.open("wb") as stream:
                header = {
                    "descr": "|u1",
                    "fortran_order": False,
                    "shape": (len(numbers), height, width, 3),
                }
                np.lib.format.write_array_header_1_0(stream, header)
                for frame in self._shrunk(kept, reader.read(numbers), (width, height)):
                    stream.write(frame.data)
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            reader.close()

    def size(self, kept: Kept) -> tuple[int, int]:
        """(h, w) of a video's stored frames."""
        top, left, bottom, right = kept.seen.box
        h, w = bottom - top, right - left
        scale = min(1.0, self.side / min(h, w))
        return max(1, round(h * scale)), max(1, round(w * scale))

    @staticmethod
    def _shrunk(kept: Kept, frames: Iterable[Frame], size: tuple[int, int]) -> Iterator[Frame]:
        top, left, bottom, right = kept.seen.box
        for frame in frames:
            image = Image.fromarray(frame)
            resample = Image.Resampling.BILINEAR
            yield np.asarray(image.resize(size, resample, box=(left, top, right, bottom)))


def usable_numbers(kept: Kept) -> list[int]:
    """Numbers of a video's usable frames, in order."""
    return [number for start, stop in kept.seen.segments for number in range(start, stop)]
