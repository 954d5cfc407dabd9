"""Videos through MONAI's engines: opened, segmented while they are read, written frame by frame.

Image and prediction of an iteration are streams, not tensors. `SavedVideod` pulls: it asks for the
labels of the next frame, for which the inferer asks for frames, which are decoded then.
"""

import logging
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
from ignite.engine import Engine, Events
from monai.transforms import MapTransform
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nnunet_plugins.bundle.folders import replaced_folder
from nnunet_plugins.bundle.frames import FramePlan, PlannedVideo
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.data.clips import Frame, write_video
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.data.overlay import draw_overlay
from nnunet_plugins.data.sources import find_videos

Data = Mapping[Hashable, Any]
MASKS, OVERLAY = "masks", "overlay.mp4"
"""What a video's folder holds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoResult:
    """What became of a video."""

    source: Path
    folder: Path
    """Of its masks and its overlay."""
    frames: int = 0
    notes: tuple[str, ...] = ()
    """What was converted or lost, a sentence each."""
    error: str = ""
    """Why there is no folder; empty if there is one."""


def videos_to_segment(source: str | Path) -> list[dict[str, Any]]:
    """One {"image": path, "name": name, "fps": rate or None} for each video.

    Args:
        source: A video, a folder of its frames, or a folder or table of videos.

    Raises:
        FileNotFoundError: If there are no videos.
        ValueError: If two videos have one name.
    """
    found = find_videos(Path(source))
    return [{"image": str(v.frames), "name": v.name, "fps": v.fps} for v in found]


class OpenVideod(MapTransform):
    """A video's path to its frames as the network takes them, read when they are asked for.

    Its "name" and "fps", if there are any, go before those of the file.

    Args:
        plan: The plan.
        keys: Key of the path.

    Raises:
        ValueError: If the plan is not one of video.
    """

    def __init__(self, plan: Plan, keys: str = "image") -> None:
        super().__init__(keys)
        self.frames = FramePlan(plan)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = PlannedVideo(d[key], self.frames, d.get("name"), d.get("fps"))
        return d


class SavedVideod(MapTransform):
    """Logits of frames to `NAME/masks/FRAME.png` and `NAME/overlay.mp4`, in the video's size.

    Masks are 0 and 255 with one class and the class with several, as those of `mambamed dataset
    to-videos`. A video that cannot be segmented leaves nothing and does not end the run: the
    prediction becomes a `VideoResult`, which says so.

    Args:
        plan: The plan.
        output_dir: Folder of the results; results of the same name are replaced.
        keys: Key of the logits, a stream of (k, h, w).
        image_key: Key of the video, opened by `OpenVideod`.
        overlay: Whether to write the overlay.
        progress: Show a progress bar over the frames where there is a terminal.
    """

    def __init__(
        self,
        plan: Plan,
        output_dir: str,
        keys: str = "pred",
        image_key: str = "image",
        overlay: bool = True,
        progress: bool = True,
    ) -> None:
        super().__init__(keys)
        self.frames, self.scheme = FramePlan(plan), LabelScheme(tuple(plan.foreground))
        self.output_dir, self.image_key = Path(output_dir), image_key
        self.overlay, self.progress = overlay, progress

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._saved(d[self.image_key], d[key])
        return d

    def _saved(self, video: PlannedVideo, logits: Iterator[Tensor]) -> VideoResult:
        folder = self.output_dir / video.name
        try:
            with replaced_folder(folder, {MASKS, OVERLAY}) as partial:
                (partial / MASKS).mkdir()
                drawn = self._drawn(video, logits, partial / MASKS)
                drawn = chain([next(drawn)], drawn)  # the first frame tells the frame rate
                if self.overlay:
                    write_video(partial / OVERLAY, drawn, video.fps)
                else:
                    deque(drawn, maxlen=0)
                count = len(list((partial / MASKS).iterdir()))
        except (OSError, ValueError, RuntimeError, av.FFmpegError) as error:
            sentence = str(error)
            said = sentence if str(video.path) in sentence else f"{video.path}: {sentence}"
            return VideoResult(video.path, folder, error=said)
        return VideoResult(video.path, folder, count, tuple(video.notes))

    def _drawn(self, video: PlannedVideo, logits: Iterator[Tensor], masks: Path) -> Iterator[Frame]:
        """Pictures with their labels drawn on them, once the mask of each is written."""
        total = video.announced()
        hidden = None if self.progress else True  # None: where there is no terminal
        for frame_logits in tqdm(logits, video.name, total, unit="frame", disable=hidden):
            name, picture = video.take()
            labels = self.frames.labels(frame_logits, picture.shape[:2])
            Image.fromarray(self.scheme.decode(labels)).save(masks / f"{name}.png")
            yield draw_overlay(picture, labels) if self.overlay else picture


class VideoReport:
    """Evaluator handler: say of each video where its masks are, and fail at the end if one failed.

    Raises:
        ValueError: At the end, naming the videos that could not be segmented.
    """

    def __init__(self) -> None:
        self.results: list[VideoResult] = []

    def attach(self, engine: Engine) -> None:
        """Report after every video."""
        engine.add_event_handler(Events.STARTED, lambda _: self.results.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._report)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _report(self, engine: Engine) -> None:
        result: VideoResult = engine.state.output["pred"]
        self.results.append(result)
        for note in result.notes:
            logger.warning("%s: %s", result.source, note)
        if result.error:
            logger.error("%s", result.error)
        else:
            logger.info("%d frames of %s: %s", result.frames, result.source, result.folder)

    def _finish(self, engine: Engine) -> None:
        failed = [result for result in self.results if result.error]
        if not failed:
            return
        if len(self.results) == 1:
            raise ValueError(failed[0].error)
        reasons = "; ".join(result.error for result in failed)
        raise ValueError(
            f"{len(failed)} of {len(self.results)} videos could not be segmented, the others are "
            f"done: {reasons}"
        )


def only_item(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of one video, which is no tensor, for MONAI's DataLoader."""
    (item,) = batch
    return item


def video_of_batch(batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[PlannedVideo, None]:
    """The video, and no label, for MONAI's engines."""
    return batch["image"], None
