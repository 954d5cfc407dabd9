"""What a network says about frames: written as they come, or collected to be scored.

Shapes: b videos, k classes, t frames.
"""

import csv
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.bundle.sampled_frames import SampledVideo, targets
from nnunet_plugins.bundle.video import VideoResult
from nnunet_plugins.evaluation.phase import UNKNOWN

Data = Mapping[Hashable, Any]
Kind = Literal["classification", "phase"]
SUMMARY = "videos.csv"


class FrameCrossEntropy(torch.nn.Module):
    """Cross-entropy of frames, or of clips by the mean of their frames' logits.

    Args:
        kind: "phase" for frames, "classification" for clips.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """(b, t, k), (b, t) with `UNKNOWN` where nothing is known -> mean over what is known."""
        known = classes != UNKNOWN
        if self.kind == "phase":
            return F.cross_entropy(logits[known].float(), classes[known])
        weight = known.unsqueeze(-1).float()
        means = (logits.float() * weight).sum(1) / weight.sum(1)
        return F.cross_entropy(means, classes.amax(1))


class SavedAnswersd(MapTransform):
    """Logits of frames to `NAME.csv`: frame, time, the likeliest class and all probabilities.

    Rows are written as they come, and the file appears when it is complete. A video that cannot be
    read leaves nothing and does not end the run: the prediction becomes a `VideoResult`.

    Args:
        classes: Names, in the order of the logits.
        kind: Of the column of the class: "phase", or "class" for "classification". The latter also
            gets a row in `videos.csv`, for the mean of the logits over the whole video.
        output_dir: Folder of the files; files of the same name are replaced.
        keys: Key of the logits, a stream of (k,).
        image_key: Key of the `SampledVideo`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        kind: Kind,
        output_dir: str | Path,
        keys: str = "pred",
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.classes, self.kind = list(classes), kind
        self.output_dir, self.image_key = Path(output_dir), image_key
        self.videos: dict[str, Tensor] = {}

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._saved(d[self.image_key], d[key])
        return d

    def _saved(self, video: SampledVideo, logits: Iterator[Tensor]) -> VideoResult:
        file = self.output_dir / f"{video.name}.csv"
        if self.kind == "classification" and file.name == SUMMARY:
            said = f"{video.path} would be answered in {SUMMARY}, which lists all; rename the video"
            return VideoResult(video.path, file, error=said)
        column = "phase" if self.kind == "phase" else "class"
        total, count = torch.zeros(len(self.classes)), 0
        partial = file.with_name(f".{file.name}.partial")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", newline="", encoding="utf-8") as stream:
                table = csv.writer(stream)
                table.writerow(["frame", "time", column, *self.classes])
                for frame_logits in logits:
                    number = count * video.stride
                    time = f"{number / video.fps:.3f}" if video.fps else ""
                    table.writerow([number, time, *self._said(frame_logits)])
                    total, count = total + frame_logits.cpu(), count + 1
            partial.replace(file)
        except (OSError, ValueError) as error:
            return VideoResult(video.path, file, error=str(error))
        finally:
            partial.unlink(missing_ok=True)
        if self.kind == "classification":
            self._summarise(video.name, total / count)
        return VideoResult(video.path, file, count, tuple(video.notes))

    def _said(self, logits: Tensor) -> list[str]:
        probabilities = logits.float().softmax(0).tolist()
        likeliest = self.classes[int(np.argmax(probabilities))]
        return [likeliest, *(f"{p:.4f}" for p in probabilities)]

    def _summarise(self, name: str, logits: Tensor) -> None:
        self.videos[name] = logits
        file = self.output_dir / SUMMARY
        partial = file.with_name(f".{file.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["video", "class", *self.classes])
            table.writerows([video, *self._said(mean)] for video, mean in self.videos.items())
        partial.replace(file)


@dataclass(frozen=True)
class Scored:
    """A video's true and predicted classes: one each for classification, else of every frame."""

    name: str
    truth: NDArray[np.int64] = field(repr=False)
    prediction: NDArray[np.int64] = field(repr=False)
    fps: float | None
    """Of these frames."""


class CollectedAnswersd(MapTransform):
    """Logits of frames, and what is known, to a `Scored`.

    Args:
        classes: Names, in the order of the logits.
        kind: "phase" compares frames, "classification" the mean of the logits with the class.
        keys: Key of the logits, a stream of (k,).
        image_key: Key of the `SampledVideo`.
        label_key: Key of the class, or of the file of phases.

    Raises:
        ValueError: If the video cannot be read, or nothing is known about it.
    """

    def __init__(
        self,
        classes: Sequence[str],
        kind: Kind,
        keys: str = "pred",
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        super().__init__(keys)
        self.classes, self.kind = list(classes), kind
        self.image_key, self.label_key = image_key, label_key

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._scored(d[self.image_key], d[key], d[self.label_key])
        return d

    def _scored(self, video: SampledVideo, stream: Iterator[Tensor], known: int | str) -> Scored:
        logits = torch.stack([frame.float().cpu() for frame in stream])
        if self.kind == "classification":
            said = logits.mean(0).argmax(0, keepdim=True).numpy()
            return Scored(video.name, np.array([known]), said, None)
        truth = targets(known, self.classes, len(logits), video.stride)
        fps = video.fps / video.stride if video.fps else None
        return Scored(video.name, truth, logits.argmax(1).numpy(), fps)


def video_and_label(batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The video, and what is known about it, for MONAI's engines."""
    return batch["image"], batch.get("label")
