"""The protocol of video polyp segmentation (VPS), through pysodmetrics.

The VPS toolbox drops the first and the last frame of a video, scales each probability map to 0..1,
averages the curves over 256 thresholds over the frames of a video, then over videos, and takes the
maximum of that mean curve. pysodmetrics gives the same numbers for all but specificity, which the
toolbox sets to zero at thresholds where prediction and truth do not overlap; both are reported.

Source: Ji et al., "Video polyp segmentation: a deep learning perspective", 2022, arXiv:2203.14291.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.overlap import Masks, Numbers

THRESHOLDS = np.linspace(1, 0, 256)
"""A pixel is predicted where its probability is not below the threshold; curves run like this."""


@dataclass(frozen=True)
class VPSScores:
    """Means over the frames of one video.

    Attributes:
        curves: Figures over `THRESHOLDS`, (256,) each: "Dice", "IoU", "Spe", "Spe
            (pysodmetrics)", "Sen", "precision" and "E-measure".
        values: "S-measure", "MAE" and "E-measure (adaptive)".
    """

    curves: dict[str, Numbers]
    values: dict[str, float]


def import_pysodmetrics() -> ModuleType:
    """pysodmetrics, an optional dependency.

    Raises:
        RuntimeError: It cannot be imported.
    """
    try:
        import py_sod_metrics
    except ImportError as error:
        raise RuntimeError(
            f"the VPS figures need pysodmetrics and its OpenCV ({error}): pip install "
            "'mambamed[video]', or leave these figures out with --no-vps"
        ) from error
    return py_sod_metrics


def inner_frames(frames: int) -> slice:
    """The frames that the protocol keeps: all but the first and the last."""
    return slice(1, max(frames - 1, 1))


def vps_scores(probability: NDArray[np.floating], truth: Masks, *, scale: bool = True) -> VPSScores:
    """Score the frames of one video, in any number but zero; no frame is dropped here.

    Args:
        probability: Foreground probability, (t, h, w), 0..1.
        truth: Masks, (t, h, w).
        scale: Scale each map to span 0..1, as the protocol does; a constant map stays.

    Raises:
        RuntimeError: pysodmetrics is not installed.
        ValueError: Shapes differ, there are no frames, or a probability is not in 0..1.
    """
    if probability.shape != truth.shape or not len(truth):
        raise ValueError(
            f"probabilities have shape {probability.shape} and masks {truth.shape}; "
            "both must be (t, h, w), with one frame or more"
        )
    if not (probability.min() >= 0 and probability.max() <= 1):  # so NaN is refused too
        raise ValueError("probabilities must lie in 0..1; give the network's softmax or sigmoid")
    sod = import_pysodmetrics()
    kinds = {"Dice": "DICE", "IoU": "IOU", "Spe": "Specificity", "Sen": "Recall"}
    kinds["precision"] = "Precision"
    handlers = {
        name: getattr(sod, f"{kind}Handler")(with_dynamic=True, with_adaptive=False)
        for name, kind in kinds.items()
    }
    overlap, structure = sod.FmeasureV2(handlers), sod.Smeasure()
    alignment, error = sod.Emeasure(), sod.MAE()
    for one, mask in zip(probability.astype(np.float64), truth, strict=True):
        scaled = _span_unit_interval(one) if scale else one
        for measure in (overlap, structure, alignment, error):
            measure.step(scaled, mask, normalize=False)
    by_frame = {name: np.stack(handler.dynamic_results) for name, handler in handlers.items()}
    by_frame["Spe (pysodmetrics)"] = by_frame["Spe"]
    by_frame["Spe"] = np.where(by_frame["Sen"] > 0, by_frame["Spe"], 0)
    e_measure = alignment.get_results()["em"]
    curves = {name: frames.mean(0) for name, frames in by_frame.items()}
    values = {
        "S-measure": float(structure.get_results()["sm"]),
        "MAE": float(error.get_results()["mae"]),
        "E-measure (adaptive)": float(e_measure["adp"]),
    }
    return VPSScores(curves | {"E-measure": e_measure["curve"]}, values)


def _span_unit_interval(probability: Numbers) -> Numbers:
    low, high = probability.min(), probability.max()
    return (probability - low) / (high - low) if high > low else probability
