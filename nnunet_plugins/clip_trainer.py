"""What training a video network in nnU-Net asks for, whichever network it is."""

from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_plugins.clip_augmentation import clip_geometry, keep_time
from nnunet_plugins.mamba_trainer import MambaTrainer


class ClipTrainer(MambaTrainer):
    """`MambaTrainer` for clips, volumes whose first axis is time, of networks with one output.

    Plan with a planner of ours (`nnunet_plugins.clip_planner`), which sees whole frames and chooses
    the length of clips. Prediction slides over time by half a clip.

    Raises:
        ValueError: If the plans have no time axis in front, or labels are overlapping regions.
    """

    max_frames: ClassVar[int | None] = None
    """Frames of a clip, if the plans have more; the results' plans then say so."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's own signature
    ) -> None:
        manager, name = PlansManager(plans), type(self).__name__
        size = list(manager.get_configuration(configuration).patch_size)
        if len(size) != 3:
            raise ValueError(
                f"{name} trains on clips, and the configuration {configuration} has no time axis; "
                "train 3d_fullres"
            )
        if list(manager.transpose_forward) != [0, 1, 2]:
            raise ValueError(
                f"{name} trains on clips, and these plans move axis {manager.transpose_forward[0]} "
                "to the front, where time belongs; plan with -pl VivimPlanner"
            )
        if self.max_frames:
            size[0] = min(size[0], self.max_frames)
            plans["configurations"][configuration]["patch_size"] = size
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.label_manager.has_regions:
            raise ValueError(
                f"{name} needs labels that exclude each other, and dataset.json declares regions; "
                "give every region a label of its own"
            )
        self.enable_deep_supervision = False

    @classmethod
    def network_arguments(cls, architecture: dict[str, Any]) -> dict[str, Any]:
        """Nothing: video networks have stages of their own."""
        return {}

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is one output, at the clip's resolution."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Rotation, scaling and mirroring within frames; the same for all frames of a clip."""
        geometry = clip_geometry(self.configuration_manager.patch_size)
        self.inference_allowed_mirroring_axes = geometry.mirror_axes
        return geometry

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        """nnU-Net's augmentation, none of it across time."""
        return keep_time(MambaTrainer.get_training_transforms(*args, **kwargs))
