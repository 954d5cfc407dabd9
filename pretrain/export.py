"""Pretrained weights as the files that nnU-Net and our bundles take."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nnunet_plugins.networks.hymamba import PAPER_WIDTHS, SMALL_WIDTHS, stage_widths
from nnunet_plugins.networks.weights import Fit, fit
from pretrain.blueprint import CLIP_NETWORKS, Blueprint
from pretrain.plan import Plan
from pretrain.run_folder import whole_file

HEADER = "mambamed"
"""Key of our plain JSON in the header of a safetensors file."""
TRAINERS = {"HyMambaTrainer": PAPER_WIDTHS, "HyMambaTrainer_small": SMALL_WIDTHS}
"""nnU-Net trainers of volumes and the widths of their networks."""
CLIP_TRAINERS = {
    "endomamba": "EndoMambaTrainer",
    "endomamba_tiny": "EndoMambaTrainer_tiny",
    "endomamba_middle": "EndoMambaTrainer_middle",
    "endomamba_small": "EndoMambaTrainer_small",
}
"""Of `CLIP_NETWORKS`."""
CLIP_NORMALIZATION = "RGBTo01Normalization"
"""nnU-Net's scheme of images as clips are pretrained on."""
TRAINING_ONLY = ("drop_path", "dropout", "deep_supervision")
"""Arguments that no weight depends on."""


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
    damaged = [name for name, x in weights.items() if not x.isfinite().all()]
    if damaged:
        raise ValueError(f"{file} holds values that are not finite ({damaged[0]}); it is damaged")
    return Pretrained(weights, blueprint, header)


def nnunet_weights(pretrained: Pretrained, plan: Plan, seed: int = 0) -> dict[str, Tensor]:
    """All weights of the network that nnU-Net will train on a plan: encoder pretrained, rest new.

    nnU-Net refuses a file that lacks a weight of its network, so the decoder is in it, drawn from
    `seed`. Only the layers that make the logits are left to nnU-Net, for any number of classes.

    Raises:
        ValueError: If the plan's stages or channels are not those that were pretrained.
    """
    target = pretrained.blueprint.on(plan)
    channels = len(plan.normalizations)
    if not target.has_stages and channels != target.input_channels:
        raise ValueError(
            f"the plan {plan.configuration} of {plan.path} is for {channels} channels and "
            f"{target.input_channels} were pretrained; take a dataset of colour images"
        )
    trained, planned = pretrained.blueprint.arguments, target.arguments
    stages = ("strides", "kernel_sizes")
    if channels != target.input_channels or any(trained.get(k) != planned.get(k) for k in stages):
        raise ValueError(
            f"the plan {plan.configuration} of {plan.path} has {len(plan.strides)} stages with "
            f"strides {plan.strides} and kernels {plan.kernel_sizes} for {channels} channels; "
            f"pretrained were {len(trained['strides'])} stages with strides {trained['strides']} "
            f"and kernels {trained.get('kernel_sizes')} for {target.input_channels} channels. "
            "Pretrain with --plans and this plans file"
        )
    torch.manual_seed(seed)
    network = target.build()
    merged = network.state_dict() | pretrained.weights
    _check(fit(network, merged), pretrained, f"the network of {plan.path}")
    return merged


def write_nnunet(pretrained: Pretrained, plan: Plan, file: Path, seed: int = 0) -> dict[str, str]:
    """Write a file for `nnUNetv2_train -pretrained_weights`; where each of its weights is from.

    Raises:
        ValueError: As `nnunet_weights`.
        OSError: If the file cannot be written.
    """
    weights = nnunet_weights(pretrained, plan, seed)
    content = {
        "network_weights": weights,
        HEADER: pretrained.metadata,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as opened:
        torch.save(content, opened)
    return origins(pretrained, weights)


def write_bundle(pretrained: Pretrained, bundle: Path) -> Path:
    """Put the weights into a bundle's `models`, for its train configuration to start from.

    Raises:
        FileNotFoundError: If the folder is no bundle.
        ValueError: If the bundle's network is not the one that was pretrained.
    """
    config = bundle / "configs" / "train.json"
    if not config.exists():
        raise FileNotFoundError(
            f"{bundle} is no bundle that can be trained; give the folder of one with --out, such "
            "as mambamed export-bundle makes"
        )
    network = _network_of(config)
    merged = network.state_dict() | pretrained.weights
    _check(fit(network, merged), pretrained, f"the network_def of {config}")
    file = bundle / "models" / "pretrained.safetensors"
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as opened:
        opened.write(save(pretrained.weights, {HEADER: json.dumps(pretrained.metadata)}))
    return file


def origins(pretrained: Pretrained, merged: Mapping[str, Tensor]) -> dict[str, str]:
    """Where each weight of a network comes from: "pretrained", "as it began" or "new".

    A class token is no part of video pretraining: it goes along as it was drawn.
    """
    found = {}
    for name in merged:
        untrained = name.endswith("cls_token") and pretrained.blueprint.network == "EndoMamba"
        kept = "as it began" if untrained else "pretrained"
        found[name] = kept if name in pretrained.weights else "new"
    return found


def prepared_alike(pretrained: Pretrained, plan: Plan) -> bool:
    """Whether nnU-Net will prepare images as they were for pretraining."""
    if not pretrained.blueprint.has_stages:
        return set(plan.normalizations) == {CLIP_NORMALIZATION}
    return plan.preparation().plain() == pretrained.metadata.get("preparation")


def trainer_of(blueprint: Blueprint) -> str | None:
    """The nnU-Net trainer that builds this network on a plan of its stages; None if none does."""
    arguments = blueprint.arguments
    if blueprint.network == "EndoMamba":
        fixed = {k: v for k, v in arguments.items() if k not in TRAINING_ONLY}
        return next((CLIP_TRAINERS[n] for n, a in CLIP_NETWORKS.items() if a == fixed), None)
    widths = tuple(arguments.get("features_per_stage", ()))
    names = [n for n, w in TRAINERS.items() if widths == stage_widths(w, len(widths))]
    if blueprint.network != "HyMamba" or not names:
        return None
    order = arguments.get("scan_order", "raster")
    options = [order] if order != "raster" else []
    options += [] if arguments.get("bidirectional", True) else ["unidirectional"]
    return "_".join([names[0], *options])


def _network_of(config: Path) -> nn.Module:
    """The network that a bundle's configuration defines, freshly initialised."""
    try:
        arguments = dict(json.loads(config.read_text(encoding="utf-8"))["network_def"])
        name = arguments.pop("_target_").rpartition(".")[2]
        channels, classes = (arguments.pop(key) for key in ("input_channels", "num_classes"))
        return Blueprint(name, channels, arguments).build(classes)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{config} defines no network of ours ({error!r}); give a bundle of mambamed"
        ) from None


def _check(report: Fit, pretrained: Pretrained, network: str) -> None:
    """Refuse weights of which one does not fit."""
    if report.unexpected or report.misshapen:
        raise ValueError(
            f"{network} is not what was pretrained: of {len(pretrained.weights)} tensors "
            f"{len(report.unexpected)} have no place and {len(report.misshapen)} another size; "
            "pretrain with --plans and the plans that it is for"
        )
