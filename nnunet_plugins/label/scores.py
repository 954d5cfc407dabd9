"""Dice of labels against others, and of a candidate against what is served."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_plugins.label.video.prompts import UNLABELLED

SAME = 1e-4
"""Means that differ by less are called the same."""


def read_labels(file: Path) -> np.ndarray:
    """Labels (z, y, x) of a file.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as error:
        raise ValueError(f"{file.name} cannot be read as labels") from error


def dice(
    truth: Path, prediction: Path, classes: Mapping[str, Any], of_video: bool = False
) -> dict[str, float | None]:
    """Dice of each class, a value or several that belong together; None if neither file has it.

    Of a video those pixels count that are labelled in both, of the frames that both have.

    Raises:
        ValueError: If a file cannot be read or their grids differ.
    """
    a, b = read_labels(truth), read_labels(prediction)
    if of_video:
        frames = min(len(a), len(b))
        a, b = a[:frames], b[:frames]
    if a.shape != b.shape:
        raise ValueError(f"{truth.name} has the shape {a.shape} and its prediction {b.shape}")
    if of_video:
        known = (a != UNLABELLED) & (b != UNLABELLED)
        a, b = a[known], b[known]
    found: dict[str, float | None] = {}
    for name, values in classes.items():
        one, two = np.isin(a, values), np.isin(b, values)
        size = int(one.sum() + two.sum())
        found[name] = 2 * int((one & two).sum()) / size if size else None
    return found


def mean_dice(scores: Iterable[Mapping[str, float | None]]) -> float | None:
    """Mean over studies and classes, those aside that are in neither; None if there are none."""
    values = [value for score in scores for value in score.values() if value is not None]
    return sum(values) / len(values) if values else None


def verdict(candidate: float | None, served: float | None) -> str:
    """One plain sentence that compares two means."""
    if candidate is None:
        return "the held-out studies hold none of the classes: nothing can be said"
    if served is None:
        return f"nothing is served yet to compare with; the candidate has Dice {candidate:.4f}"
    word = "the same as" if abs(candidate - served) < SAME else (
        "better than" if candidate > served else "worse than"
    )  # fmt: skip
    return (
        f"the candidate is {word} the served model: Dice {candidate:.4f} and {served:.4f} on "
        "studies that no training round of this server has seen"
    )
