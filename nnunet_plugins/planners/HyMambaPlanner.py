"""nnU-Net plans whose patch and batch fit a GPU when HyMamba is trained on them."""

from functools import partial
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)

from nnunet_plugins.memory import USABLE_SHARE, training_bytes
from nnunet_plugins.networks.hymamba import PAPER_WIDTHS, HyMamba, stage_widths

REFERENCE_BATCH = 2
"""Images that the estimate is made for, and the least that a step takes."""


class HyMambaPlanner(ExperimentPlanner):
    """nnU-Net's planning with HyMamba's memory in place of the U-Net's.

    The plans are called nnUNetHyMambaPlans and name the network, so that stock trainers build it
    too. `-gpu_memory_target` sets the memory; 24 GB if not given.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 24,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "nnUNetHyMambaPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.UNet_reference_val_corresp_GB = 1
        self.UNet_reference_val_2d = self.UNet_reference_val_3d = int(USABLE_SHARE * 2**30)
        self.UNet_reference_val_corresp_bs_2d = REFERENCE_BATCH
        self.UNet_reference_val_corresp_bs_3d = REFERENCE_BATCH

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> int:
        """Bytes of a training step of HyMamba with two patches, on the stages of `arch_kwargs`."""
        build = partial(
            HyMamba, input_channels, output_channels, deep_supervision=True, **_stages(arch_kwargs)
        )
        return training_bytes(build, (input_channels, *patch_size), REFERENCE_BATCH)

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plan of one configuration, with HyMamba as its network."""
        plan = super().get_plans_for_configuration(*args, **kwargs)
        plan["architecture"] = {
            "network_class_name": f"{HyMamba.__module__}.{HyMamba.__name__}",
            "arch_kwargs": _stages(plan["architecture"]["arch_kwargs"]),
            "_kw_requires_import": (),
        }
        return plan


def _stages(arch_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What HyMamba takes from the stages that nnU-Net planned."""
    strides = arch_kwargs["strides"]
    return {
        "strides": strides,
        "kernel_sizes": arch_kwargs["kernel_sizes"],
        "features_per_stage": stage_widths(PAPER_WIDTHS, len(strides)),
    }
