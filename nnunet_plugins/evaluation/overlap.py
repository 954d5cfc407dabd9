"""Overlap of masks, frame by frame: Dice, Jaccard, precision, recall, and false alarms.

Shapes: t frames, h height, w width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Pixels of each frame by outcome, (t,) each; pixels of unknown truth are in none."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    known: NDArray[np.int64]
    """Pixels whose truth is known."""

    def pooled(self) -> "Counts":
        """All frames counted as one, (1,) each."""
        return Counts(*(n.sum(keepdims=True) for n in (self.tp, self.fp, self.fn, self.known)))


def count(prediction: Masks, truth: Masks, known: Masks) -> Counts:
    """Compare masks of one class, (t, h, w) each, where `known` holds.

    Raises:
        ValueError: The shapes differ.
    """
    if not prediction.shape == truth.shape == known.shape:
        raise ValueError(
            f"prediction {prediction.shape}, truth {truth.shape} and known pixels {known.shape} "
            "differ in shape; give masks of the same frames"
        )
    outcomes = (prediction & truth, prediction & ~truth, ~prediction & truth, np.ones_like(known))
    return Counts(*(np.count_nonzero(pixels & known, axis=(1, 2)) for pixels in outcomes))


def overlap(counts: Counts) -> dict[str, Numbers]:
    """Dice, Jaccard, precision and recall of each frame, (t,), from 0 to 1.

    NaN where neither truth nor prediction hold the class; there 0/0 is no failure. Where one of
    them does, 0/0 counts as 0, so that all four are means over the same frames.
    """
    tp, fp, fn = counts.tp, counts.fp, counts.fn
    there = tp + fp + fn > 0
    fractions = {
        "Dice": (2 * tp, 2 * tp + fp + fn),
        "Jaccard": (tp, tp + fp + fn),
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
    }
    return {
        name: np.where(there, above / np.maximum(below, 1), np.nan)
        for name, (above, below) in fractions.items()
    }


def false_alarms(counts: Counts) -> dict[str, float]:
    """What is predicted on frames without the class; NaN if every frame has it.

    Frames of which nothing is known do not count.

    Returns:
        "false-positive frames": share of these frames with one predicted pixel or more;
        "false-positive area": predicted share of their known pixels, mean over these frames.
    """
    negative = (counts.tp + counts.fn == 0) & (counts.known > 0)
    area = counts.fp[negative] / counts.known[negative]
    return {
        "false-positive frames": mean_known((area > 0).astype(float)),
        "false-positive area": mean_known(area),
    }


def mean_known(values: Numbers) -> float:
    """Mean of what is not NaN; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
