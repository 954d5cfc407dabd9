"""Scores of surgical phases, strict and relaxed: every figure is named with its protocol.

Accuracy is that of a video's frames. Precision, recall, Jaccard index and F1 are means over the
phases that the video has, a precision left out where a phase is never predicted. Figures of a set
are means over its videos.

- "strict": every frame counts as it is.
- "relaxed (10 s)": around a change of phases the annotation itself is uncertain. Up to 10 s after a
  change the phase before it is taken for right, and up to 10 s before a change the phase after it,
  as in the M2CAI 2016 workflow challenge. What is so excused is then scored as the true phase, for
  all figures. The challenge's own script also forgives some changes of cholecystectomy by name and
  lets precision exceed 1 before it is cut; neither is done here, so figures are not its own.

Shapes: t frames.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.classification import score_classes

STRICT = "strict"
WINDOW = 10.0
"""Seconds on either side of a change that the relaxed protocol excuses."""
UNKNOWN = -1
"""Phase of frames that are not annotated: they do not count."""

Phases = NDArray[np.int64]


def phase_figures(
    truth: Sequence[int],
    prediction: Sequence[int],
    phases: int,
    *,
    fps: float,
    window: float = WINDOW,
) -> dict[tuple[str, str], float]:
    """Figures of one video by protocol and name.

    Args:
        truth: Phase of each frame, (t,); `UNKNOWN` where there is none.
        prediction: The same of the network.
        phases: How many phases there are.
        fps: Of these frames, per second.
        window: Seconds that the relaxed protocol excuses.

    Raises:
        ValueError: If nothing is annotated, the lengths differ, a number is no phase, or the rate
            is not positive.
    """
    if not fps > 0 or window < 0:
        raise ValueError(
            f"{fps} frames per second and a window of {window} s cannot be; give a positive rate"
        )
    true, said = np.asarray(truth, np.int64), np.asarray(prediction, np.int64)
    if true.shape != said.shape:
        raise ValueError(f"{true.size} true and {said.size} predicted phases; give as many of each")
    excused = relaxed(true, said, int(window * fps))
    known = true != UNKNOWN
    found = {}
    for protocol, answers in ((STRICT, said), (relaxed_name(window), excused)):
        scores = score_classes(true[known], answers[known], phases)
        there = scores.support > 0
        found[protocol, "accuracy"] = scores.accuracy
        for name in ("precision", "recall", "jaccard", "f1"):
            values = getattr(scores, name)[there]
            values = values[~np.isnan(values)]
            found[protocol, name] = float(values.mean()) if len(values) else float("nan")
    return found


def mean_figures(
    videos: Mapping[str, Mapping[tuple[str, str], float]],
) -> dict[tuple[str, str], float]:
    """Mean of each figure over the videos that have it."""
    names = list(next(iter(videos.values())))
    columns = {name: np.array([figures[name] for figures in videos.values()]) for name in names}
    return {
        name: float(np.nanmean(column)) if not np.isnan(column).all() else float("nan")
        for name, column in columns.items()
    }


def relaxed(truth: Phases, prediction: Phases, frames: int) -> Phases:
    """The prediction with what so many frames around changes excuse made true, (t,)."""
    excused = prediction.copy()
    for change in np.flatnonzero(truth[1:] != truth[:-1]) + 1:
        before, after = truth[change - 1], truth[change]
        if UNKNOWN in (before, after):
            continue
        for part, phase, neighbour in (
            (slice(max(0, change - frames), change), before, after),
            (slice(change, change + frames), after, before),
        ):
            late_or_early = (truth[part] == phase) & (prediction[part] == neighbour)
            excused[part][late_or_early] = phase
    return excused


def relaxed_name(window: float = WINDOW) -> str:
    """What the relaxed protocol is called."""
    return f"relaxed ({window:g} s)"
