"""Named settings of whole pretraining runs, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INTENSITIES: Mapping[str, Mapping[str, Any]] = {
    "ct": {"kind": "window", "low": -175.0, "high": 250.0},
    "mr": {"kind": "percentiles", "low": 0.5, "high": 99.5},
    "zscore": {"kind": "zscore"},
}
"""Scalings of intensities by their name on the command line."""


@dataclass(frozen=True)
class Preset:
    """A run: what it is for, and the options that it sets."""

    purpose: str
    options: Mapping[str, Any]
    """Of the command line; what the user gives comes before."""


VOLUMES: Mapping[str, Preset] = {
    "ct": Preset(
        "the paper's, with the released code's where the paper is silent; for a GPU",
        {
            "network": "hymamba", "patch": (96, 96, 96), "spacing": (1.5, 1.5, 1.5),
            "intensity": "ct", "epochs": 100, "batch_size": 8, "lr": 1e-4, "warmup": 0.4,
            "final_lr": 1e-3, "weight_decay": 0.04, "final_weight_decay": 0.2, "clip": 5.0,
            "workers": 4, "picture_every": 5,
        },
    ),
    "quick": Preset(
        "a small network, minutes on a CPU",
        {
            "network": "hymamba_small", "patch": (48, 48, 48), "spacing": (1.5, 1.5, 1.5),
            "intensity": "mr", "epochs": 20, "batch_size": 4, "lr": 2e-3, "warmup": 0.1,
            "final_lr": 1e-2, "weight_decay": 0.05, "final_weight_decay": 0.05, "clip": 5.0,
            "workers": 0, "picture_every": 2, "crops": 1, "precision": "auto",
        },
    ),
}  # fmt: skip
"""Of `python -m pretrain mambamim`."""

CLIPS: Mapping[str, Preset] = {
    "mix12": Preset(
        "the paper's; 288 clips a step are 48 on each of 6 large GPUs, and 500 epochs days",
        {
            "network": "endomamba", "frames": 16, "stride": 4, "size": (224, 224),
            "mask_ratio": 0.75, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3,
            "drop_path": 0.1, "epochs": 500, "batch_size": 288, "warmup": 40 / 500,
            "final_lr": 0.06, "weight_decay": 0.05, "final_weight_decay": 0.05, "clip": 5.0,
            "workers": 8, "picture_every": 10, "precision": "auto",
        },
    ),
    "quick": Preset(
        "a small network, less than an hour on a CPU",
        {
            "network": "endomamba_small", "frames": 8, "stride": 2, "size": (128, 128),
            "mask_ratio": 0.75, "decoder_width": 96, "decoder_depth": 2, "decoder_heads": 3,
            "drop_path": 0.0, "clips": 400, "side": 160, "epochs": 60, "batch_size": 8, "lr": 2e-3,
            "warmup": 0.1, "final_lr": 1e-2, "weight_decay": 0.05, "final_weight_decay": 0.05,
            "clip": 5.0, "workers": 0, "picture_every": 5, "precision": "auto",
        },
    ),
}  # fmt: skip
"""Of `python -m pretrain endomamba`. Without `lr` it is `CLIP_RATE` for 256 clips a step, in
proportion; what the paper does not say is VideoMAE's."""
CLIP_RATE = 1.5e-4
"""Learning rate for 256 clips a step, in the paper."""
