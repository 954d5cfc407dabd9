"""Scores of classes: of videos, or of the frames of one video.

Shapes: n things that were classified, k classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.overlap import Numbers


@dataclass(frozen=True)
class ClassScores:
    """Figures of each class, (k,): NaN where there is nothing to divide by."""

    precision: Numbers
    """Of what was given the class, the share that has it; NaN if nothing was given it."""
    recall: Numbers
    """Of what has the class, the share that was given it; NaN if nothing has it."""
    f1: Numbers
    """2 TP / (2 TP + FP + FN); NaN if nothing has the class and nothing was given it."""
    jaccard: Numbers
    """TP / (TP + FP + FN); NaN as F1."""
    support: NDArray[np.int64]
    """How many have the class."""
    accuracy: float
    """Share of right answers."""

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that the truth or the prediction has; each counts the same."""
        return float(np.nanmean(self.f1))


def score_classes(truth: Sequence[int], prediction: Sequence[int], classes: int) -> ClassScores:
    """Compare class numbers, (n,) each, of so many classes.

    Raises:
        ValueError: If there is nothing to score, the two differ in length, or a number is no class.
    """
    counts = confusion(truth, prediction, classes)
    right, has, given = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return ClassScores(
            precision=right / given,
            recall=right / has,
            f1=2 * right / (has + given),
            jaccard=right / (has + given - right),
            support=has,
            accuracy=float(right.sum() / counts.sum()),
        )


def confusion(truth: Sequence[int], prediction: Sequence[int], classes: int) -> NDArray[np.int64]:
    """How often each class (row) was given each class (column), (k, k).

    Raises:
        ValueError: As `score_classes`.
    """
    rows, columns = np.asarray(truth, np.int64), np.asarray(prediction, np.int64)
    if rows.shape != columns.shape or rows.ndim != 1 or not rows.size:
        raise ValueError(
            f"{rows.size} true and {columns.size} predicted classes cannot be compared; give one "
            "of each for every video or frame, at least one"
        )
    known = (rows >= 0) & (rows < classes) & (columns >= 0) & (columns < classes)
    if not known.all():
        i = int(np.argmin(known))
        raise ValueError(
            f"classes {rows[i]} (true) and {columns[i]} (predicted) are not both of 0 to "
            f"{classes - 1}; number them from 0 and leave out what has no class"
        )
    counts = np.bincount(rows * classes + columns, minlength=classes**2)
    return counts.reshape(classes, classes)


def figures(scores: ClassScores, names: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro F1 and the F1 of each class, by what they are called in tables."""
    by_class = {f"F1 {name}": float(f1) for name, f1 in zip(names, scores.f1, strict=True)}
    return {"accuracy": scores.accuracy, "macro F1": scores.macro_f1} | by_class
