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
    """Of every stage; empty where the network has stages of its own, as video networks do."""
    kernel_sizes: list[list[int]]
    normalizations: list[str]
    """nnU-Net's scheme of each channel."""
    intensities: dict[str, float]
    """Of the first channel's foreground in the training set."""

    def preparation(self) -> Preparation:
        """What nnU-Net's own preprocessing does to an image, so that fine-tuning meets the same.

        CT is clipped and standardised by the plan's figures; z-scores are taken over the box that
        is not zero, also where the plan takes them over non-zero voxels only. Images keep their
        orientation, as in nnU-Net.

        Raises:
            ValueError: If channels are normalised otherwise, or each in its own way.
        """
        schemes = set(self.normalizations)
        if len(schemes) > 1 or not schemes <= {"CTNormalization", "ZScoreNormalization"}:
            raise ValueError(
                f"{self.path} normalises channels by {', '.join(self.normalizations)}; pretraining "
                "can follow CTNormalization or ZScoreNormalization for all of them"
            )
        intensity: dict[str, Any] = {"kind": "zscore"}
        if schemes == {"CTNormalization"}:
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
            channels=len(self.normalizations),
        )


def read_plan(path: str | Path, configuration: str = "3d_fullres") -> Plan:
    """A configuration of a plans file, what it inherits included.

    Raises:
        ValueError: If the file is no plans file, or has no such three-dimensional configuration.
    """
    try:
        plans = json.loads(Path(path).read_text(encoding="utf-8"))
        configurations = plans["configurations"]
        entry = _resolved(configurations, configuration)
        kwargs = entry["architecture"]["arch_kwargs"]
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        plan = Plan(
            str(path),
            configuration,
            tuple(entry["patch_size"]),
            tuple(entry["spacing"]),
            kwargs["strides"] if kwargs else [],
            kwargs["kernel_sizes"] if kwargs else [],
            entry["normalization_schemes"],
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
