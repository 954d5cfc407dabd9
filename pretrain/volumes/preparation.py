"""What is done to a scan before it is cropped: orientation, intensity, foreground, spacing."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from pretrain.volumes.reading import Geometry, Size, Spacing, UnusableScan

Array = NDArray[np.float32]

INTENSITIES = {
    "window": ("low", "high"),
    "percentiles": ("low", "high"),
    "standard": ("low", "high", "mean", "std"),
    "zscore": (),
}
UNBOUNDED = ("standard", "zscore")
"""Kinds whose values are not in [0, 1]."""
INTERPOLATIONS = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}
FOREGROUND_VOXELS = 1000
"""So many foreground voxels are remembered of each scan, to centre crops on."""


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared; the defaults are MambaMIM's for CT.

    Args:
        orientation: "RAS", by which arrays run from inferior to superior, posterior to anterior,
            left to right; or None to keep the axes as stored, as nnU-Net does.
        spacing: Voxel size along (d, h, w) in mm, or None to keep each scan's own.
        intensity: One of
            {"kind": "window", "low": -175, "high": 250}, to [0, 1] and clipped;
            {"kind": "percentiles", "low": 0.5, "high": 99.5} of the voxels above the scan's least
            value, to [0, 1] and clipped;
            {"kind": "standard", "low": ..., "high": ..., "mean": ..., "std": ...}, nnU-Net's for
            CT: clipped, then less the mean and by the deviation of its training set;
            {"kind": "zscore"}, nnU-Net's for the rest: over all voxels of the box that is not zero.
        crop: Cut the scan to the box of its foreground: voxels above the low of a window or
            of "standard", or above the mean of all voxels (of that box, for z-scores).
        interpolation: "linear" or "bspline" (cubic, nearest to nnU-Net's).
        channels: Channels of every scan. Percentiles and z-scores are taken of each by itself.

    Raises:
        ValueError: If a value is not among these.

    Source: MambaMIM's pretraining on CT for the defaults.
    """

    orientation: str | None = "RAS"
    spacing: Spacing | None = (1.5, 1.5, 1.5)
    intensity: dict[str, Any] = field(
        default_factory=lambda: {"kind": "window", "low": -175.0, "high": 250.0}
    )
    crop: bool = True
    interpolation: str = "linear"
    channels: int = 1

    def __post_init__(self) -> None:
        if self.orientation not in ("RAS", None):
            raise ValueError(f"orientation is {self.orientation!r}; give 'RAS' or None")
        if self.spacing is not None:
            if len(self.spacing) != 3 or not all(0 < mm < math.inf for mm in self.spacing):
                raise ValueError(f"spacing is {self.spacing}; give 3 positive mm (d, h, w) or None")
            d, h, w = map(float, self.spacing)
            object.__setattr__(self, "spacing", (d, h, w))  # lists come from JSON
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation is {self.interpolation!r}; give one of {sorted(INTERPOLATIONS)}"
            )
        if self.channels < 1:
            raise ValueError(f"channels is {self.channels}; give 1 or more")
        _check_intensity(self.intensity)

    def shape_of(self, geometry: Geometry) -> tuple[Size, Spacing]:
        """Voxels and spacing along (d, h, w) after preparation, before cropping."""
        axes = [0, 1, 2]
        if self.orientation:
            letters = geometry.orientation[::-1]  # ITK names w first
            axes = [next(i for i in range(3) if letters[i] in pair) for pair in ("SI", "AP", "LR")]
        d, h, w = (geometry.shape[axis] for axis in axes)
        sd, sh, sw = (geometry.spacing[axis] for axis in axes)
        spacing = self.spacing or (sd, sh, sw)
        return _resampled_size((d, h, w), (sd, sh, sw), spacing), spacing

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """What the cache stores: half precision where values lie in [0, 1]."""
        return np.float32 if self.intensity["kind"] in UNBOUNDED else np.float16

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain JSON; `Preparation(**plain)` gives it back."""
        return asdict(self)


class Prepared(NamedTuple):
    """A prepared volume (c, d, h, w), and voxels (n, 3) of its foreground to centre crops on."""

    volume: NDArray[Any]
    foreground: NDArray[np.int32]


def prepare(images: list[sitk.Image], preparation: Preparation) -> Prepared:
    """Prepare the channels of one scan.

    Raises:
        UnusableScan: If the intensities leave one value, or no foreground.
    """
    if preparation.orientation:
        images = [sitk.DICOMOrient(image, preparation.orientation) for image in images]
    w, h, d = images[0].GetSpacing()
    volume = np.stack([sitk.GetArrayViewFromImage(image) for image in images])
    zscore = preparation.intensity["kind"] == "zscore"
    if preparation.crop and zscore:  # nnU-Net's box, in which it takes mean and deviation
        volume = _cut(volume, _any_channel(volume != 0))
    volume, threshold = _scale(volume, preparation.intensity)
    if volume.min() == volume.max() or not (volume > threshold).any():
        raise UnusableScan(f"the intensities {preparation.intensity} leave nothing to see")
    if preparation.crop:
        volume = _cut(volume, _any_channel(volume > threshold))
    volume = _resample(volume, (d, h, w), preparation)
    if preparation.intensity["kind"] not in UNBOUNDED:
        volume = volume.clip(0, 1)  # splines overshoot
    return Prepared(volume, _some_voxels(_any_channel(volume > threshold)))


def _check_intensity(intensity: dict[str, Any]) -> None:
    kind = intensity.get("kind")
    if kind not in INTENSITIES:
        raise ValueError(f"intensity is {intensity}; its kind is one of {sorted(INTENSITIES)}")
    if set(intensity) != {"kind", *INTENSITIES[kind]}:
        raise ValueError(f"intensity is {intensity}; {kind} needs {INTENSITIES[kind] or 'nothing'}")
    if kind != "zscore" and not intensity["low"] < intensity["high"]:
        raise ValueError(f"intensity is {intensity}; low must be below high")
    if kind == "standard" and not intensity["std"] > 0:
        raise ValueError(f"intensity is {intensity}; std must be more than 0")
    if kind == "percentiles" and not 0 <= intensity["low"] < intensity["high"] <= 100:
        raise ValueError(f"intensity is {intensity}; percentiles lie between 0 and 100")


def _scale(volume: Array, intensity: dict[str, Any]) -> tuple[Array, Array]:
    """The volume on its new scale, and the value above which a channel's foreground begins."""
    if intensity["kind"] == "window":
        low, high = np.float32(intensity["low"]), np.float32(intensity["high"])
        return ((volume - low) / (high - low)).clip(0, 1), np.zeros((), np.float32)
    if intensity["kind"] == "standard":
        low, high = np.float32(intensity["low"]), np.float32(intensity["high"])
        centre, width = np.float32(intensity["mean"]), np.float32(intensity["std"])
        return (volume.clip(low, high) - centre) / width, np.asarray((low - centre) / width)
    mean = volume.mean(axis=(1, 2, 3), keepdims=True)
    if intensity["kind"] == "zscore":
        deviation = volume.std(axis=(1, 2, 3), keepdims=True)
        return (volume - mean) / np.maximum(deviation, 1e-8), np.zeros((), np.float32)
    limits = np.empty((2, *mean.shape), np.float32)
    for c, channel in enumerate(volume):
        inside = channel[channel > channel.min()]
        limits[:, c, 0, 0, 0] = np.percentile(
            inside if inside.size else channel, (intensity["low"], intensity["high"])
        )
    width = np.maximum(limits[1] - limits[0], 1e-8)
    return ((volume - limits[0]) / width).clip(0, 1), ((mean - limits[0]) / width).clip(0, 1)


def _any_channel(holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where (d, h, w) something holds in any channel (c, d, h, w)."""
    return np.logical_or.reduce(holds, axis=0)


def _cut(volume: Array, inside: NDArray[np.bool_]) -> Array:
    """The box of a volume (c, d, h, w) outside of which `inside` (d, h, w) is false."""
    box: list[slice] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(inside.any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return volume[:, box[0], box[1], box[2]]


def _resampled_size(shape: Size, spacing: Spacing, target: Spacing) -> Size:
    d, h, w = (
        max(1, round(n * mm / new)) for n, mm, new in zip(shape, spacing, target, strict=True)
    )
    return d, h, w


def _resample(volume: Array, spacing: Spacing, preparation: Preparation) -> Array:
    """A volume on the grid nearest to the wanted spacing that covers the same box."""
    _, d, h, w = volume.shape
    size = _resampled_size((d, h, w), spacing, preparation.spacing or spacing)
    if size == (d, h, w):
        return volume
    step = np.array((w, h, d)) / size[::-1]  # in old voxels, as is the origin
    resampled = [
        sitk.GetArrayFromImage(
            sitk.Resample(
                sitk.GetImageFromArray(channel),
                size[::-1],
                sitk.Transform(),
                INTERPOLATIONS[preparation.interpolation],
                ((step - 1) / 2).tolist(),
                step.tolist(),
            )
        )
        for channel in volume
    ]
    return np.stack(resampled)


def _some_voxels(inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Voxels (n, 3) drawn where `inside` (d, h, w) is true, the same at every call."""
    hits = np.flatnonzero(inside)
    if not hits.size:
        raise UnusableScan("its foreground is lost between the voxels of the new spacing")
    drawn = np.random.default_rng(0).choice(hits, FOREGROUND_VOXELS)
    return np.stack(np.unravel_index(drawn, inside.shape), axis=1).astype(np.int32)
