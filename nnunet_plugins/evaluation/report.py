"""What an evaluation of videos gives back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.bootstrap import Estimate
from nnunet_plugins.evaluation.inputs import Classes
from nnunet_plugins.evaluation.overlap import Numbers
from nnunet_plugins.evaluation.scores import Metric, VideoScores


@dataclass(frozen=True)
class WorstFrame:
    """A frame with a low Dice, to look at."""

    video: str
    frame: str
    dice: float
    """Mean over the classes of the frame."""
    picture: NDArray[np.uint8]
    """(h, w, 3)"""
    truth: NDArray[np.int16]
    """Class numbers, (h, w)."""
    prediction: NDArray[np.int16]
    """Class numbers, (h, w)."""


@dataclass(frozen=True)
class Report:
    """Figures of a set of videos.

    Attributes:
        classes: Label values of each class or region.
        videos: Scores of each video by its name.
        summary: Means over videos with 95 % bootstrap intervals.
        worst: Frames with the lowest Dice, two a video at most; empty without pictures.
        notes: What a reader must know about these figures, a sentence each.
    """

    classes: Classes
    videos: dict[str, VideoScores]
    summary: dict[Metric, Estimate]
    worst: list[WorstFrame]
    notes: list[str]

    def estimate(self, protocol: str, name: str, label: str | None = None) -> Estimate:
        """One figure of the summary; the class may be left out where there is only one.

        Raises:
            KeyError: There is no such figure.
        """
        if label is None:
            label = next(iter(self.classes)) if len(self.classes) == 1 else "all classes"
        return self.summary[Metric(protocol, name, label)]

    def mean_curves(self, label: str) -> dict[str, Numbers]:
        """VPS curves of a class over `polyp.THRESHOLDS`, mean over videos; empty without any."""
        found = [scores.curves[label] for scores in self.videos.values() if label in scores.curves]
        names = found[0] if found else ()
        return {name: np.mean([curves[name] for curves in found], axis=0) for name in names}


def frame_dice(scores: VideoScores) -> Numbers:
    """Dice of each frame of a video, (t,), mean over its classes; NaN where it has none."""
    dice = np.stack([by_name["Dice"] for by_name in scores.frames.values()])
    there = ~np.isnan(dice)
    total = np.where(there, dice, 0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)
