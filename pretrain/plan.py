"""What pretraining takes from an nnU-Net plan: the stages, the patch, and how images are prepared.

Plans files are plain JSON, so nnU-Net itself is not needed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.volumes import Preparation


@dataclass(frozen=True)
class Plan:
    """One configuration of a plans file."""

    path: str
    configuration: str
    patch: tuple[int, ...]
    """Voxels along (d, h, w)."""
    spacing: tuple[float, ...]
    """Millimetres along (d, h, w)."""
    strides: list[list[int]]
    kernel_sizes: list[list[int]]
    normalization: str
    """nnU-Net's scheme of the first channel."""
    intensities: dict[str, float]
    """Of the first channel's foreground in the training set."""

    def preparation(self, channels: int) -> Preparation:
        """What nnU-Net's own preprocessing does to an image, so that fine-tuning meets the same.

        CT is clipped and standardised by the plan's figures, everything else by its own mean and
        standard deviation. Images keep their orientation, as in nnU-Net.
        """
        intensity: dict[str, Any] = {"kind": "zscore"}
        if self.normalization == "CTNormalization":
            intensity = {
                "kind": "standard",
                "low": self.intensities["percentile_00_5"],
                "high": self.intensities["percentile_99_5"],
                "mean": self.intensities["mean"],
                "std": self.intensities["std"],
            }
        return Preparation(
            orientation=None,
            spacing=self.spacing,  # type: ignore[arg-type]
            intensity=intensity,
            interpolation="bspline",
            channels=channels,
        )


def read_plan(path: str | Path, configuration: str = "3d_fullres") -> Plan:
    """A configuration of a plans file, what it inherits included.

    Raises:
        ValueError: If the file is no plans file, or has no such three-dimensional configuration.
    """
    try:
        plans = json.loads(Path(path).read_text())
        configurations = plans["configurations"]
        entry = _resolved(configurations, configuration)
        kwargs = entry["architecture"]["arch_kwargs"]
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        plan = Plan(
            str(path),
            configuration,
            tuple(entry["patch_size"]),
            tuple(entry["spacing"]),
            kwargs["strides"],
            kwargs["kernel_sizes"],
            entry["normalization_schemes"][0],
            properties,
        )
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no plans file of nnU-Net with a configuration {configuration!r} "
            f"({error!r}); give nnUNetPlans.json of the preprocessed dataset"
        ) from None
    if len(plan.patch) != 3 or plans["transpose_forward"] != [0, 1, 2]:
        raise ValueError(
            f"{path} plans {len(plan.patch)}-D patches for {configuration} with axes in the order "
            f"{plans['transpose_forward']}; volumes are pretrained in 3-D and in the order 0, 1, 2"
        )
    return plan


def _resolved(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits, as nnU-Net resolves it."""
    entry = configurations[name]
    if "inherits_from" not in entry:
        return entry
    return _resolved(configurations, entry["inherits_from"]) | entry
