"""Frames of videos as a plan wants them, and back, one at a time.

Normalisation and resampling are nnU-Net's own, driven by the plan. What would need the whole video
is left out or refused: black borders are not cropped away, and channels are not standardised by
the video's mean.

Shapes: c channels, k classes, h w frame.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from numpy.typing import NDArray
from torch import Tensor

from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.data.clips import Frame, FrameStream, images_in

FRAME_BY_FRAME = ("RGBTo01Normalization", "NoNormalization", "CTNormalization")
"""nnU-Net's normalisations that do not look at the whole video."""
SPACING = (1.0, 1.0, 1.0)
"""Of a video: `mambamed dataset from-videos` writes it so."""


class FramePlan:
    """The part of a plan that concerns single frames.

    Args:
        plan: Of videos, as `mambamed dataset from-videos` and `-pl VivimPlanner` or `-pl
            EndoMambaPlanner` make it.

    Raises:
        ValueError: If the plan is not one of colour video, or needs whole videos.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        configuration = plan.configuration
        strange = set(configuration.normalization_schemes) - set(FRAME_BY_FRAME)
        if len(plan.patch_size) != 3 or list(plan.plans.transpose_forward) != [0, 1, 2]:
            raise ValueError(_refusal("its configuration has no time as first axis"))
        if configuration.spacing[0] != SPACING[0]:
            raise ValueError(_refusal("it resamples time"))
        if len(plan.channels) != 3:
            raise ValueError(_refusal(f"it has {len(plan.channels)} channels and frames have 3"))
        if strange:
            raise ValueError(_refusal(f"{', '.join(sorted(strange))} needs whole videos"))
        self.preprocessor = configuration.preprocessor_class(verbose=False)

    def prepare(self, frame: Frame) -> Tensor:
        """RGB as the network takes it: (h, w, 3) uint8 -> (c, h', w') float32."""
        configuration = self.plan.configuration
        pixels = np.ascontiguousarray(frame.transpose(2, 0, 1)[:, None], dtype=np.float32)
        everywhere = np.ones_like(pixels[:1])
        properties = self.plan.plans.foreground_intensity_properties_per_channel
        pixels = self.preprocessor._normalize(pixels, everywhere, configuration, properties)
        size = compute_new_shape(pixels.shape[1:], SPACING, configuration.spacing)
        pixels = configuration.resampling_fn_data(
            pixels, tuple(int(n) for n in size), SPACING, configuration.spacing
        )
        return torch.as_tensor(pixels, dtype=torch.float32)[:, 0]

    def labels(self, logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Classes at the video's size: (k, h', w') -> (h, w)."""
        shape = (1, *size)
        properties = {
            "spacing": SPACING,
            "shape_before_cropping": shape,
            "shape_after_cropping_and_before_resampling": shape,
            "bbox_used_for_cropping": [[0, n] for n in shape],
        }
        return self.plan.segment(logits[:, None].cpu().numpy(), properties)[0].astype(np.uint8)


class PlannedVideo:
    """A video that is read, and prepared for the network, while it is iterated over.

    Iterating gives prepared frames (c, h', w'); `take` then gives the pictures that they were made
    of, oldest first, and forgets them.

    Args:
        path: Video file or folder of images.
        frames: How frames are prepared.
        name: Of the video; the file's if None.
        fps: Frames per second, where the file does not know.
    """

    def __init__(
        self,
        path: str | Path,
        frames: FramePlan,
        name: str | None = None,
        fps: float | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = name or (self.path.name if self.path.is_dir() else self.path.stem)
        self.frames, self.given_fps = frames, fps
        self.stream = FrameStream(self.path)
        self.waiting: deque[tuple[str, Frame]] = deque()
        """Names and pictures that were read and not taken."""

    def __iter__(self) -> Iterator[Tensor]:
        self.waiting.clear()
        for name, frame in self.stream:
            self.waiting.append((name, frame))
            yield self.frames.prepare(frame)

    def take(self) -> tuple[str, Frame]:
        """Name and picture (h, w, 3) of the oldest frame that has not been taken."""
        return self.waiting.popleft()

    @property
    def fps(self) -> float | None:
        """Frames per second; known once the first frame has been read, None if nobody says."""
        return self.stream.fps or self.given_fps

    @property
    def notes(self) -> list[str]:
        """What was converted or lost, a sentence each; complete after the last frame."""
        stride = self.frames.plan.dataset.get("stride", 1)
        trained = f"the network was trained on every {stride}th frame and asked about every one"
        return self.stream.notes + ([trained] if stride > 1 else [])

    def announced(self) -> int | None:
        """Frames that there should be, None if the file does not say."""
        if self.path.is_dir():
            return len(images_in(self.path))
        try:
            with av.open(str(self.path)) as container:
                return sum(stream.frames for stream in container.streams.video[:1]) or None
        except av.FFmpegError:  # reading it says what is wrong
            return None


def _refusal(reason: str) -> str:
    return (
        f"this plan does not segment videos frame by frame: {reason}; make the dataset with "
        "mambamed dataset from-videos and plan it with -pl VivimPlanner or -pl EndoMambaPlanner"
    )
