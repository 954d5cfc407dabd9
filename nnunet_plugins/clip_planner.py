"""nnU-Net plans for video: whole frames, and clips as long as the memory of a GPU allows."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from torch import nn

from nnunet_plugins.memory import USABLE_SHARE, training_bytes

FRAMES = (5, 32)
"""Frames of a clip: what Vivim was published with, and what is enough; memory decides between."""
BATCH_SIZES = (2, 8)
"""Clips of a step, likewise, once the clips are as long as they get."""
SHORTER = 25
"""Percent of the videos that may be shorter than a clip, and are filled up with black frames."""
FRAME_AREA = 384**2
"""Pixels of a frame; larger ones are shrunk to this, so that a network sees them whole."""
MULTIPLE = 32
"""Pixels by which networks halve frames; sizes are rounded up to it."""
SMALLEST = 64
"""Pixels along a frame's side below which memory does not suffice."""


class ClipPlanner(ExperimentPlanner):
    """nnU-Net's planning of 3d_fullres for videos that `mambamed dataset from-videos` wrote.

    Time stays the first axis and is not resampled. A clip shows whole frames; frames of more than
    384 x 384 pixels are shrunk, and predictions come out at the videos' size. A subclass names its
    network and its plans. `-gpu_memory_target` sets the memory; 24 GB if not given.
    """

    network_class: ClassVar[type[nn.Module]]
    plans_name: ClassVar[str]

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = True,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name or self.plans_name,
            overwrite_target_spacing,
            suppress_transpose=True,
        )
        self.lowres_creation_threshold = 0

    @classmethod
    @abstractmethod
    def build_network(cls, channels: int, classes: int) -> nn.Module:
        """The network that is planned for, as its trainer builds it."""

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """Time as it is; pixels enlarged if the median frame has more than 384 x 384 of them."""
        if self.overwrite_target_spacing is not None:
            return np.array(self.overwrite_target_spacing)
        spacing = np.median(np.vstack(self.dataset_fingerprint["spacings"]), 0)
        _, h, w = np.median(np.vstack(self.dataset_fingerprint["shapes_after_crop"]), 0)
        shrink = max(1.0, (h * w / FRAME_AREA) ** 0.5)
        return spacing * np.array([1.0, shrink, shrink])

    def plan_experiment(self) -> dict[str, Any]:
        """Plan and write the plans.

        Raises:
            ValueError: If most videos have a single frame: there is no time to plan for.
        """
        shapes = np.vstack(self.dataset_fingerprint["shapes_after_crop"])
        if np.median(shapes[:, 0]) == 1:
            raise ValueError(
                f"{self.dataset_name} has videos of one frame; plan those with nnU-Net's own "
                "planner and train 2d, or convert longer videos"
            )
        return super().plan_experiment()

    def determine_resampling(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Linear within frames, by torch: frames are many, and their number stays."""
        image = {"is_seg": False, "force_separate_z": False}
        return (
            resample_torch_fornnunet,
            image,
            resample_torch_fornnunet,
            image | {"is_seg": True},
        )

    def determine_segmentation_softmax_export_fn(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """The same way back to the videos' size."""
        return self.determine_resampling()[:2]

    def get_plans_for_configuration(
        self,
        spacing: np.ndarray,
        median_shape: np.ndarray,
        data_identifier: str,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """nnU-Net's plan; that of 3d_fullres with clips that fit the memory, and our network."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, *args, **kwargs
        )
        if len(spacing) == 3:
            plan["patch_size"], plan["batch_size"] = self._largest_step(median_shape)
            name = f"{self.network_class.__module__}.{self.network_class.__name__}"
            plan["architecture"] = {
                "network_class_name": name,
                "arch_kwargs": {},
                "_kw_requires_import": [],
            }
        return plan

    def _largest_step(self, median_shape: Sequence[float]) -> tuple[list[int], int]:
        """Frames, height and width of a training clip, and how many clips a step takes."""
        channels = len(self.dataset_json["channel_names"])
        classes = len(self.dataset_json["labels"])
        frame = [round(n) for n in median_shape[1:]]
        lengths = [shape[0] for shape in self.dataset_fingerprint["shapes_after_crop"]]
        longest = round(np.percentile(lengths, SHORTER))
        memory = int(self.UNet_vram_target_GB * USABLE_SHARE * 2**30)

        def step_bytes(clip: tuple[int, ...], batch_size: int) -> int:
            build = lambda: self.build_network(channels, classes)  # noqa: E731
            return training_bytes(build, (channels, *clip), batch_size)

        return largest_step(step_bytes, memory, min(longest, FRAMES[1]), frame)


def largest_step(
    step_bytes: Callable[[tuple[int, ...], int], int],
    memory: int,
    frames: int,
    frame: Sequence[int],
) -> tuple[list[int], int]:
    """Size (t, h, w) and number of the longest clips of whole frames that fit the memory.

    Where not even two clips of five frames fit, or of as many as there are, frames are cut smaller.

    Args:
        step_bytes: Memory in bytes of a step with so many clips of this size; the weights' share
            apart, linear in clips and in frames.
        memory: Bytes that there are.
        frames: Frames of a clip at most.
        frame: Height and width of the videos.

    Raises:
        ValueError: If frames would have to be cut below 64 pixels.
    """
    fewest, most = BATCH_SIZES
    least = min(frames, FRAMES[0])
    size = [max(SMALLEST, -(-n // MULTIPLE) * MULTIPLE) for n in frame]
    while min(size) >= SMALLEST:
        one = step_bytes((1, *size), 1)
        base = step_bytes((1, *size), 2) - one  # of a clip of one frame
        each = step_bytes((2, *size), 1) - one  # of another frame
        clips = memory - (one - base)
        fitting = 1 + (clips // fewest - base) // each
        if fitting >= least:
            chosen = min(frames, fitting)
            return [chosen, *size], min(most, clips // (base + (chosen - 1) * each))
        size[int(np.argmax(size))] -= MULTIPLE
    raise ValueError(
        f"{memory / 2**30:.1f} GB do not hold a training step with {least} frames of {SMALLEST} "
        "pixels; give more with -gpu_memory_target"
    )
