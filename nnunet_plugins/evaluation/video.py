"""Score predicted videos against their masks: the way in for Python."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_plugins.evaluation.bootstrap import Estimate, estimate, resample
from nnunet_plugins.evaluation.inputs import (
    Sources,
    Video,
    classes_of,
    find_sources,
    read_labels,
)
from nnunet_plugins.evaluation.masks import find_videos
from nnunet_plugins.evaluation.overlap import Numbers
from nnunet_plugins.evaluation.polyp import import_pysodmetrics
from nnunet_plugins.evaluation.report import Report, WorstFrame, frame_dice
from nnunet_plugins.evaluation.scores import PROTOCOLS, Metric, VideoScores, curve_of, score_video


def evaluate_videos(
    prediction: Path,
    truth: Path,
    *,
    probabilities: Path | None = None,
    frames: Path | None = None,
    labels: Path | None = None,
    ignore: int | None = None,
    vps: bool | None = None,
    draws: int = 2000,
    seed: int = 0,
    worst_frames: int = 12,
) -> Report:
    """Score every video of `truth`; videos, and frames of PNG folders, are matched by name.

    Args:
        prediction: Folder with NAME.nii.gz of (t, h, w), as nnU-Net predicts, or a folder NAME of
            PNG masks a video (class numbers, or 0 and 255).
        truth: The same for the reference.
        probabilities: Folder of nnU-Net's NAME.npz, of NAME.nii.gz from 0 to 1, or a folder NAME of
            grey PNGs a video, for the VPS curves; without it these come from the masks.
        frames: Folder of the pictures, for optical flow and the montage: image folders, films, or
            nnU-Net's imagesTs.
        labels: A dataset.json that names the classes, the one in `prediction` if None; without
            any, the classes are the numbers in the masks.
        ignore: Label of pixels whose truth is unknown; the dataset.json's if None.
        vps: Whether to give the figures of the VPS protocol, which need pysodmetrics; None gives
            them where there is one class, as in the protocol.
        draws: Bootstrap samples of the videos.
        seed: Of the bootstrap.
        worst_frames: How many frames to keep for the montage.

    Raises:
        FileNotFoundError: A folder or a video in it is missing.
        ValueError: Masks, probabilities or pictures do not belong together or cannot be read.
        RuntimeError: An optional package is needed and not installed.
    """
    names = read_labels(labels, prediction)
    if ignore is None and names and "ignore" in names:
        ignore = int(names["ignore"])
    sources = find_sources(
        prediction, truth, probabilities=probabilities, frames=frames, ignore=ignore
    )
    classes = classes_of(sources, names)
    vps = len(classes) == 1 if vps is None else vps
    if vps:
        import_pysodmetrics()  # before the work, not after it
    videos: dict[str, VideoScores] = {}
    worst: list[WorstFrame] = []
    bar = tqdm(sources.read(classes), total=len(sources.names), desc="Scoring videos", unit="video")
    for video in bar:
        scores = score_video(video, classes, ignore=ignore, vps=vps)
        videos[video.name] = scores
        worst = sorted(worst + _worst_of(video, scores), key=lambda f: f.dice)[:worst_frames]
    summary = _summarise(videos, resample(len(videos), draws=draws, seed=seed))
    notes = _notes(sources, videos, prediction, vps=vps, draws=draws, seed=seed)
    return Report(classes, videos, summary, worst, notes)


def _summarise(videos: dict[str, VideoScores], weights: Numbers) -> dict[Metric, Estimate]:
    order = list(PROTOCOLS)
    metrics = sorted(next(iter(videos.values())).values, key=lambda m: order.index(m.protocol))
    return {metric: estimate(_column(videos, metric), weights) for metric in metrics}


def _column(videos: dict[str, VideoScores], metric: Metric) -> Numbers:
    """What each video has of a metric, (videos,); of a maximum, its whole curve."""
    curve = curve_of(metric)
    if curve is None:
        return np.array([scores.values[metric] for scores in videos.values()])
    nothing = {curve: np.full(256, np.nan)}
    return np.stack([s.curves.get(metric.label, nothing)[curve] for s in videos.values()])


def _worst_of(video: Video, scores: VideoScores, most: int = 2) -> list[WorstFrame]:
    if video.pictures is None:
        return []
    dice = frame_dice(scores)
    lowest = [t for t in np.argsort(dice, kind="stable")[:most] if not np.isnan(dice[t])]
    return [
        WorstFrame(
            video.name, video.frame_names[t], float(dice[t]),
            video.pictures[t].copy(), video.truth[t].copy(), video.prediction[t].copy(),
        )
        for t in lowest
    ]  # fmt: skip


def _notes(
    sources: Sources,
    videos: dict[str, VideoScores],
    prediction: Path,
    *,
    vps: bool,
    draws: int,
    seed: int,
) -> list[str]:
    count = len(videos)
    notes = [
        f"Intervals: 95 %, percentiles of {draws} bootstrap samples of {count} videos, seed {seed}."
        if count > 1
        else "One video gives no interval."
    ]
    if others := sorted(find_videos(prediction).keys() - videos.keys()):
        notes.append(f"Predicted but without truth, so not scored: {', '.join(others)}.")
    if not vps:
        notes.append("The figures of the VPS protocol, made for one class, were not asked for.")
    if vps and sources.probabilities is None:
        notes.append(
            "No probability maps were given: the VPS curves are those of the masks, flat but for "
            "their end, and their maximum chooses no threshold."
        )
    short = [name for name, scores in videos.items() if not scores.curves]
    if vps and short:
        notes.append(
            "Not in the VPS figures, as no fully labelled frame but the first and last is left: "
            f"{', '.join(short)}."
        )
    if sources.pictures is None:
        notes.append("No pictures were given: there is no flow-warped IoU.")
    return notes
