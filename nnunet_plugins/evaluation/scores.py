"""All figures of one video, each named with its protocol."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nnunet_plugins.evaluation.consistency import flicker, flows, warped_iou
from nnunet_plugins.evaluation.inputs import Classes, Video
from nnunet_plugins.evaluation.overlap import (
    Masks,
    Numbers,
    count,
    false_alarms,
    mean_known,
    overlap,
)
from nnunet_plugins.evaluation.polyp import inner_frames, vps_scores

FRAME_MEAN, POOLED, VPS = "frame mean", "pooled", "VPS"
NEGATIVE, FLICKER, FLOW = "negative frames", "flicker", "flow"
ALL_CLASSES = "all classes"

PROTOCOLS = {
    FRAME_MEAN: "Mean over the frames of a video where truth or prediction hold the class (0/0 "
    "counts as 0), then over videos.",
    POOLED: "Pixels of all frames of a video counted together, as nnU-Net counts the voxels of a "
    "volume, then mean over videos.",
    VPS: "Video polyp segmentation: first and last frame dropped, maps scaled to 0..1, curves over "
    "256 thresholds averaged over the frames of a video, then over videos, then maximised "
    '("max") or averaged ("mean"). maxSpe counts 0 where nothing overlaps, as the VPS toolbox '
    "does; maxSpe (pysodmetrics) does not. A frame without the class has Dice 0, even if nothing "
    "is predicted. Frames with unknown pixels are left out.",
    NEGATIVE: "Frames whose truth lacks the class: share of them with a predicted pixel, and "
    "predicted share of their area; mean over the videos that have such frames.",
    FLICKER: "Change from each frame to the next without regard to motion (0 is still): 1 - IoU of "
    "the two masks, and difference of the areas over the larger one; mean over videos. Beside the "
    "prediction the same of the truth, as motion is no fault.",
    FLOW: "IoU of each mask with the next one brought back along optical flow (OpenCV DIS, medium) "
    "between the pictures, mean over the pairs with a mask, then over videos. It tells of "
    "steadiness, not of truth; neighbouring frames must be close in time.",
}
"""What the figures of each protocol are."""

_VPS_CURVES = {
    "maxDice": "Dice",
    "maxIoU": "IoU",
    "maxSpe": "Spe",
    "maxSpe (pysodmetrics)": "Spe (pysodmetrics)",
    "maxSen": "Sen",
    "E-measure (max)": "E-measure",
}
_VPS_MEANS = {"meanDice": "Dice", "meanIoU": "IoU", "E-measure (mean)": "E-measure"}


class Metric(NamedTuple):
    """Name of a figure."""

    protocol: str
    """One of `PROTOCOLS`."""
    name: str
    label: str
    """A class or region, or "all classes"."""


@dataclass(frozen=True)
class VideoScores:
    """Figures of one video.

    Attributes:
        values: NaN where the video has nothing to score.
        curves: VPS curves over thresholds (256,) by class and name; no classes if the video has
            too few frames.
        frames: Dice, Jaccard, precision and recall of each frame, (t,), by class and name.
        frame_names: Names of the frames, t of them.
    """

    values: dict[Metric, float]
    curves: dict[str, dict[str, Numbers]]
    frames: dict[str, dict[str, Numbers]]
    frame_names: list[str]


def score_video(video: Video, classes: Classes, *, ignore: int | None, vps: bool) -> VideoScores:
    """Score one video.

    Args:
        video: Masks, and what else there is; without pictures there is no flow figure.
        classes: Label values by class.
        ignore: Label of pixels whose truth is unknown.
        vps: Whether to give the figures of the VPS protocol.

    Raises:
        RuntimeError: pysodmetrics or OpenCV is needed and not installed.
        ValueError: Probabilities are not in 0..1, or pictures too small for optical flow.
    """
    known = np.ones(video.truth.shape, bool) if ignore is None else video.truth != ignore
    flow = None if video.pictures is None else flows(video.pictures)
    values: dict[Metric, float] = {}
    curves, frames = {}, {}
    for index, (label, covered) in enumerate(classes.items()):
        prediction, truth = (np.isin(m, covered) for m in (video.prediction, video.truth))
        counts = count(prediction, truth, known)
        frames[label] = overlap(counts)
        found = {FRAME_MEAN: {name: mean_known(v) for name, v in frames[label].items()}}
        found[POOLED] = {name: float(v[0]) for name, v in overlap(counts.pooled()).items()}
        found[NEGATIVE] = false_alarms(counts)
        for protocol, name, value in _steadiness(prediction, truth, known, flow):
            found.setdefault(protocol, {})[name] = value
        if vps:
            maps = prediction if video.probability is None else video.probability[index]
            found[VPS], curves[label] = _vps(maps, truth, known)
        for protocol, figures in found.items():
            values |= {Metric(protocol, name, label): v for name, v in figures.items()}
    if len(classes) > 1:
        values |= _over_classes(values)
    curves = {label: lines for label, lines in curves.items() if lines}
    return VideoScores(values, curves, frames, video.frame_names)


def curve_of(metric: Metric) -> str | None:
    """Name of the curve whose maximum over thresholds the metric is; None if it is no maximum."""
    return _VPS_CURVES.get(metric.name) if metric.protocol == VPS else None


def _vps(maps: Numbers, truth: Masks, known: Masks) -> tuple[dict[str, float], dict[str, Numbers]]:
    kept = np.zeros(len(truth), bool)
    kept[inner_frames(len(truth))] = True
    kept &= known.all(axis=(1, 2))
    if not kept.any():
        names = (*_VPS_CURVES, *_VPS_MEANS, "S-measure", "MAE", "E-measure (adaptive)")
        return dict.fromkeys(names, float("nan")), {}
    scores = vps_scores(maps[kept].astype(np.float64), truth[kept])
    values = {name: float(scores.curves[curve].max()) for name, curve in _VPS_CURVES.items()}
    values |= {name: float(scores.curves[curve].mean()) for name, curve in _VPS_MEANS.items()}
    return values | scores.values, scores.curves


def _steadiness(
    prediction: Masks, truth: Masks, known: Masks, flow: Numbers | None
) -> Iterator[tuple[str, str, float]]:
    whole = known.all(axis=(1, 2))
    pairs = whole[:-1] & whole[1:]
    everywhere = np.ones_like(pairs)
    for masks, whose, used in ((prediction, "", everywhere), (truth, " of truth", pairs)):
        for name, changes in flicker(masks).items():
            yield FLICKER, name + whose, mean_known(changes[used])
        if flow is not None:
            ious = warped_iou(masks, flow)
            yield FLOW, "flow-warped IoU" + whose, mean_known(ious[used])


def _over_classes(values: dict[Metric, float]) -> dict[Metric, float]:
    """Mean over the classes that the video has, of the figures of overlap."""
    by_name: dict[Metric, list[float]] = {}
    for metric, value in values.items():
        if metric.protocol in (FRAME_MEAN, POOLED):
            by_name.setdefault(metric._replace(label=ALL_CLASSES), []).append(value)
    return {metric: mean_known(np.array(found)) for metric, found in by_name.items()}
