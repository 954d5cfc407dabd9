"""Options of training that every pretraining command has."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from nnunet_plugins.optimization import cpu_trains_in_bfloat16
from pretrain.settings import CHOICES, Settings


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the settings, without defaults: those are the preset's."""
    group = parser.add_argument_group("training")
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "betas":
            group.add_argument(flag, type=float, nargs=2)
        else:
            choices = CHOICES.get(field.name, ())
            if field.name == "precision":
                choices = ("auto", *choices)
            group.add_argument(flag, type=type(field.default), choices=choices or None)


def training_settings(options: Mapping[str, Any], chosen: Mapping[str, Any]) -> Settings:
    """The settings among the options.

    Args:
        options: The preset's and the user's.
        chosen: The user's.

    Raises:
        ValueError: If a value cannot work.
    """
    options = dict(options)
    if options.get("precision") == "auto":
        options["precision"] = "bf16" if _has_bfloat16(options.get("device", "auto")) else "no"
    if "weight_decay" in chosen and "final_weight_decay" not in chosen:
        options["final_weight_decay"] = chosen["weight_decay"]
    return Settings.from_dict(
        {f.name: options[f.name] for f in fields(Settings) if f.name in options}
    )


def _has_bfloat16(device: str) -> bool:
    """Whether what will be trained on computes in bfloat16 without loss of speed."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return cpu_trains_in_bfloat16()
