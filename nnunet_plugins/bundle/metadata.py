"""What a bundle's metadata.json and licence say about a training."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_plugins.bundle.plan import Plan


def describe(
    plan: Plan,
    trainer: str,
    configuration: str,
    folds: Sequence[Path],
    packages: Sequence[str],
) -> dict[str, Any]:
    """Entries of metadata.json that depend on the training.

    Args:
        plan: The plan.
        trainer: Name of its trainer, options included.
        configuration: Of the plan.
        folds: Folders of the folds, whose validation scores are quoted if they have any.
        packages: What the bundle needs beside MONAI.
    """
    name = plan.plans.dataset_name
    which = ", ".join(fold.name.removeprefix("fold_") for fold in folds) or "none yet"
    return {
        "monai_version": _release("monai"),
        "pytorch_version": _release("torch"),
        "numpy_version": _release("numpy"),
        "required_packages_version": {package: _release(package) for package in packages},
        "task": f"Segmentation of {', '.join(plan.foreground)}",
        "description": f"nnU-Net {configuration} on {name} by {trainer}, folds: {which}. "
        "Preprocessing and export are nnU-Net's own for the plans inside.",
        "data_source": str(plan.dataset.get("reference", name)),
        "data_type": plan.file_ending.lstrip("."),
        "image_classes": ", ".join(plan.channels),
        "label_classes": ", ".join(plan.foreground),
        "pred_classes": ", ".join(outputs(plan).values()),
        "eval_metrics": {
            f"dice_{fold.name}": score for fold in folds if (score := _score(fold)) is not None
        },
        "network_data_format": data_format(plan),
    }


def data_format(plan: Plan) -> dict[str, Any]:
    """What goes into the network and comes out: patches of the plan, and logits."""
    tensor = {
        "spatial_shape": plan.patch_size,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    image = {"type": "image", "format": "magnitude", "num_channels": len(plan.channels)}
    pred = {"type": "probabilities", "format": "segmentation", "num_channels": plan.outputs}
    channels = {str(index): name for index, name in enumerate(plan.channels)}
    return {
        "inputs": {"image": image | tensor | {"channel_def": channels}},
        "outputs": {"pred": pred | tensor | {"channel_def": outputs(plan)}},
    }


def outputs(plan: Plan) -> dict[str, str]:
    """Names of the logit maps: classes with the background, or regions without it."""
    names = list(plan.foreground)
    names = names if plan.labels.has_regions else ["background", *names]
    return {str(index): name for index, name in enumerate(names)}


def licence_of(plan: Plan) -> str:
    """What the dataset says about its licence, as text."""
    given = plan.dataset.get("licence", plan.dataset.get("license", "not stated"))
    reference = plan.dataset.get("reference", "not stated")
    return (
        f"Training data: {plan.dataset.get('name', plan.plans.dataset_name)}\n"
        f"Licence: {given}\nReference: {reference}\n\n"
        "No image is part of this bundle. Weights trained on data may fall under its licence.\n"
    )


def _release(package: str) -> str:
    return version(package).split("+")[0]


def _score(fold: Path) -> float | None:
    """Mean foreground Dice of nnU-Net's validation, None if there was none."""
    summary = fold / "validation" / "summary.json"
    if not summary.is_file():
        return None
    dice = json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
    return round(dice, 4) if dice == dice else None
