"""Pretrained weights as the files that nnU-Net and our bundles take."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunet_plugins.networks.weights import fit
from pretrain.blueprint import Blueprint
from pretrain.plan import Plan

HEADER = "mambamed"
"""Key of our plain JSON in the header of a safetensors file."""


@dataclass(frozen=True)
class Pretrained:
    """Weights of a pretraining run, and what they belong to."""

    weights: dict[str, Tensor]
    """Of the encoder, named as in the network."""
    blueprint: Blueprint
    metadata: dict[str, Any]
    """The header: objective, preparation, epoch, loss."""


def read_pretrained(path: Path) -> Pretrained:
    """The weights of a run: its folder (then the best epoch's), or one of its safetensors files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or none of ours.
    """
    file = path / "best.safetensors" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist; give the folder of a pretraining run or its best.safetensors"
        )
    try:
        with safe_open(file, "pt") as opened:
            header = json.loads(opened.metadata()[HEADER])
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        blueprint = Blueprint(**header["network"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged or was not written by python -m pretrain ({error!r})"
        ) from None
    return Pretrained(weights, blueprint, header)


def nnunet_weights(pretrained: Pretrained, plan: Plan, seed: int = 0) -> dict[str, Tensor]:
    """All weights of the network that nnU-Net will train on a plan: encoder pretrained, rest new.

    nnU-Net refuses a file that lacks a weight of its network, so the decoder is in it, drawn from
    `seed`. Only the layers that make the logits are left to nnU-Net, for any number of classes.

    Raises:
        ValueError: If the plan's stages are not those that were pretrained.
    """
    target = pretrained.blueprint.on(plan)
    torch.manual_seed(seed)
    network = target.build()
    new = network.state_dict()
    merged = new | pretrained.weights
    report = fit(network, merged)
    decoder = {name for name in new if name not in pretrained.weights}
    lacking = [name for name in decoder if name.startswith("encoder.")]
    if lacking or not report.complete:
        trained = pretrained.blueprint.arguments
        raise ValueError(
            f"the plan {plan.configuration} of {plan.path} has {len(plan.strides)} stages with "
            f"kernels {plan.kernel_sizes}; pretrained were {len(trained['strides'])} stages with "
            f"kernels {trained.get('kernel_sizes')} ({len(lacking)} weights lacking, "
            f"{len(report.unexpected)} left over, {len(report.misshapen)} of another size). "
            "Pretrain with --plans and this plans file"
        )
    return merged


def write_nnunet(pretrained: Pretrained, plan: Plan, file: Path, seed: int = 0) -> int:
    """Write a file for `nnUNetv2_train -pretrained_weights`; the number of pretrained tensors.

    Raises:
        ValueError: As `nnunet_weights`.
    """
    content = {
        "network_weights": nnunet_weights(pretrained, plan, seed),
        HEADER: pretrained.metadata,
    }
    partial = file.with_name(file.name + ".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, partial)
    partial.replace(file)
    return len(pretrained.weights)


def write_bundle(pretrained: Pretrained, bundle: Path) -> Path:
    """Put the weights into a bundle's `models`, for its train configuration to start from.

    Raises:
        FileNotFoundError: If the folder is no bundle.
    """
    if not (bundle / "configs" / "train.json").exists():
        raise FileNotFoundError(
            f"{bundle} is no bundle that can be trained; give bundles/hymamba or a copy of it"
        )
    file = bundle / "models" / "pretrained.safetensors"
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    save_file(pretrained.weights, partial, {HEADER: json.dumps(pretrained.metadata)})
    partial.replace(file)
    return file
