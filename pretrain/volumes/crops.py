"""Random crops of prepared volumes, every one a function of (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.looking import LeftOut
from pretrain.volumes.cache import VolumeCache
from pretrain.volumes.first_pass import Findings
from pretrain.volumes.preparation import Prepared
from pretrain.volumes.reading import Size, UnusableScan
from pretrain.volumes.scans import Scan


class VolumeCrops(Dataset[dict[str, Tensor]]):
    """Crops centred on foreground, flipped at random, so many of each scan an epoch.

    Crop i of an epoch is the same in every process and after every restart. The crops of a scan
    have neighbouring indices; shuffling is the loader's. A scan of weight 2 takes the place of
    others and is drawn twice as often as one of weight 1; the length of an epoch stays. A scan that
    proves unusable when it is first read is replaced by the next usable one of the findings.
    Volumes are mapped anew for each crop (0.1 ms): nothing stays open, and processes share the
    pages.

    Args:
        findings: What the first pass found; it holds the preparation.
        patch: Size of a crop (d, h, w) in voxels. Where a scan is smaller it stands in the middle
            of zeros.
        cache: Folder for prepared volumes.
        crops_per_volume: Crops of each scan an epoch.
        flips: Whether to flip along (d, h, w), half of the time.
        seed: Not negative.

    Raises:
        ValueError: If no scan reaches half of the patch along every axis.
    """

    def __init__(
        self,
        findings: Findings,
        patch: Size,
        *,
        cache: Path | str,
        crops_per_volume: int = 4,
        flips: tuple[bool, bool, bool] = (True, True, True),
        seed: int = 0,
    ) -> None:
        _check_patch(findings, patch)
        if crops_per_volume < 1 or seed < 0:
            raise ValueError(
                f"crops_per_volume is {crops_per_volume} and seed {seed}; give at least 1 and 0"
            )
        self.findings = findings
        self.patch = patch
        self.cache = VolumeCache(cache, findings.preparation)
        self.crops_per_volume = crops_per_volume
        self.flips = flips
        self.seed = seed
        weights = np.array([kept.scan.weight for kept in findings.kept])
        self._shares = np.cumsum(weights) / weights.sum()
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers live on

    def __len__(self) -> int:
        return len(self.findings.kept) * self.crops_per_volume

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops of this epoch, also in workers that already run. Call between epochs."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One crop: "volume", float32 (c, d, h, w), and "seed", int64, for what else is random."""
        if not 0 <= index < len(self):
            raise IndexError(f"crop {index} of {len(self)}")
        random = self._random(index)
        volume, foreground = self._open(self._drawn(index // self.crops_per_volume))
        centre = foreground[random.integers(len(foreground))]
        flipped = (random.random(3) < 0.5) & self.flips
        crop = _cut(volume, centre, self.patch, flipped)
        seed = int(random.integers(2**63 - 1))
        return {"volume": torch.from_numpy(crop), "seed": torch.tensor(seed)}

    def left_out(self) -> tuple[LeftOut[Scan], ...]:
        """Scans of the findings that proved unusable when they were first read, so far."""
        return self.cache.left_out(self.findings.kept)

    def _random(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, int(self._epoch), index))

    def _drawn(self, place: int) -> int:
        """The scan at a place of this epoch: scans in their order, each as often as it weighs."""
        offset = self._random(len(self)).random()  # no crop has this index
        share = (place + offset) / len(self.findings.kept)
        return min(int(np.searchsorted(self._shares, share)), len(self.findings.kept) - 1)

    def _open(self, number: int) -> Prepared:
        kept = self.findings.kept
        for step in range(len(kept)):
            try:
                return self.cache.open(kept[(number + step) % len(kept)])
            except UnusableScan:
                continue
        raise RuntimeError(
            f"none of the {len(kept)} scans can be used; the first: {self.left_out()[0]}"
        )


def _cut(
    volume: NDArray[Any], centre: NDArray[np.int32], patch: Size, flipped: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A copy (c, *patch) of a volume round a voxel, moved inside; zeros where it has no voxels."""
    crop = np.zeros((volume.shape[0], *patch), np.float32)
    source, target = [slice(None)], [slice(None)]
    for size, wanted, middle in zip(volume.shape[1:], patch, centre, strict=True):
        length = min(size, wanted)
        start = min(max(int(middle) - wanted // 2, 0), size - length)
        source.append(slice(start, start + length))
        target.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
    axes = tuple(int(axis) + 1 for axis in np.flatnonzero(flipped))
    crop[tuple(target)] = np.flip(volume[tuple(source)], axes)
    return crop


def _check_patch(findings: Findings, patch: Size) -> None:
    if len(patch) != 3 or min(patch) < 1:
        raise ValueError(f"patch is {patch}; give 3 positive sizes (d, h, w)")
    shapes = [kept.shape for kept in findings.kept]
    if any(all(2 * n >= p for n, p in zip(shape, patch, strict=True)) for shape in shapes):
        return
    largest = max(findings.kept, key=lambda kept: min(np.divide(kept.shape, patch)))
    raise ValueError(
        f"no scan reaches half of the patch {tuple(patch)} along every axis; the largest, "
        f"{largest.scan}, has {largest.shape} voxels; give a smaller patch or a finer spacing"
    )
