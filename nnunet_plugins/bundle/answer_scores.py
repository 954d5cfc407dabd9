"""Scores of classes and phases for MONAI's engines: one figure to choose weights by, and tables."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric

from nnunet_plugins.bundle.frame_answers import Kind, Scored
from nnunet_plugins.evaluation.classification import figures, score_classes
from nnunet_plugins.evaluation.phase import UNKNOWN, mean_figures, phase_figures

logger = logging.getLogger(__name__)

PROTOCOL = "videos"
"""Of figures of classification: every video counts once."""


class AnswersScore(Metric):
    """Macro F1 of videos' classes, or mean strict accuracy of phases; over all processes.

    Args:
        kind: What is scored.
        classes: Names of the classes.
    """

    def __init__(self, kind: Kind, classes: Sequence[str]) -> None:
        self.kind, self.classes = kind, list(classes)
        super().__init__(output_transform=lambda output: output["pred"])

    def reset(self) -> None:
        """Forget all videos."""
        self.videos: list[Scored] = []

    def update(self, output: Scored) -> None:
        """Add a video."""
        self.videos.append(output)

    def compute(self) -> float:
        """The figure."""
        videos = gathered(self.videos)
        if self.kind == "classification":
            return _of_videos(videos, self.classes)["macro F1"]
        known = [video.truth != UNKNOWN for video in videos]
        pairs = zip(videos, known, strict=True)
        return float(np.mean([np.mean(v.truth[k] == v.prediction[k]) for v, k in pairs]))


class ScoresReport:
    """Evaluator handler: write `scores.csv`, every figure with its protocol.

    Columns are video, protocol, metric and value; the rows of "mean" are those of all videos. A
    figure that is not there is empty.

    Args:
        kind: What is scored.
        classes: Names of the classes.
        output_dir: Folder of the table.

    Raises:
        ValueError: If phases are to be scored and a video's frame rate is not known.
    """

    def __init__(self, kind: Kind, classes: Sequence[str], output_dir: str | Path) -> None:
        self.kind, self.classes = kind, list(classes)
        self.file = Path(output_dir) / "scores.csv"
        self.videos: list[Scored] = []

    def attach(self, engine: Engine) -> None:
        """Collect after every video, write at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.videos.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        video: Scored = engine.state.output["pred"]
        if self.kind == "phase" and not video.fps:
            raise ValueError(
                f"{video.name} has no frame rate, which the relaxed figures need; give the table a "
                "column `fps`"
            )
        self.videos.append(video)

    def _write(self, engine: Engine) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f".{self.file.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["video", "protocol", "metric", "value"])
            for *names, value in self._rows():
                table.writerow([*names, "" if value != value else f"{value:.6f}"])
        partial.replace(self.file)
        logger.info("figures of %d videos: %s", len(self.videos), self.file)

    def _rows(self) -> list[tuple[Any, ...]]:
        if self.kind == "classification":
            whole = _of_videos(self.videos, self.classes)
            return [("mean", PROTOCOL, name, value) for name, value in whole.items()]
        found = {
            v.name: phase_figures(v.truth, v.prediction, len(self.classes), fps=v.fps)
            for v in self.videos
        }
        found["mean"] = mean_figures(found)
        return [(v, *name, value) for v, named in found.items() for name, value in named.items()]


def gathered(videos: list[Scored]) -> list[Scored]:
    """The videos of all processes, each once."""
    if not dist.is_initialized():
        return videos
    parts: list[list[Scored] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, videos)
    return list({video.name: video for part in parts for video in part or []}.values())


def _of_videos(videos: Sequence[Scored], classes: Sequence[str]) -> dict[str, float]:
    truth, prediction = (
        np.concatenate([getattr(video, name) for video in videos])
        for name in ("truth", "prediction")
    )
    return figures(score_classes(truth, prediction, len(classes)), classes)
