"""`mambamed export-bundle`: an nnU-Net results folder as a MONAI bundle that predicts the same."""

import argparse
import json
import pickle
import shutil
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor

from nnunet_plugins.bundle.command import first_cause
from nnunet_plugins.bundle.folders import partial_of, replace_folder
from nnunet_plugins.bundle.metadata import describe, licence_of
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.mamba_trainer import MambaTrainer
from nnunet_plugins.networks import EndoMamba, Vivim
from nnunet_plugins.networks.weights import fit

TEMPLATES: dict[type, str] = {Vivim: "vivim", EndoMamba: "endomamba"}
"""Bundle of the project that exports start from, by the network; that of volumes for others."""
VOLUMES = "hymamba"
OWN_DOCUMENTS = ("weights.md", "overlay.jpg")
"""Of a template, about the weights that come with it."""
RUN_FOLDERS = ("models", "images", "videos", "dataset", "predictions", "eval", "runs")
"""Folders of a bundle that hold what a run needs or makes, not the bundle itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `mambamed export-bundle`."""
    parser.add_argument(
        "--results", type=Path, required=True,
        help="nnU-Net results, DatasetXXX_Name/Trainer__Plans__configuration",
    )  # fmt: skip
    parser.add_argument(
        "--fold", nargs="+", default=[], metavar="FOLD",
        help="folds to export, 0 to 4 or all, several as an ensemble; every trained one if not "
        "given",
    )  # fmt: skip
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="file in each fold")
    parser.add_argument(
        "--out", type=Path, help="the bundle's folder; NAME_segmentation if not given"
    )
    parser.add_argument(
        "--half", action="store_true",
        help="store matrices in float16, half as large; networks still compute in float32",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")


def run(args: argparse.Namespace) -> int:
    """Export and print how to use it."""
    bundle = export_bundle(
        args.results, args.out, args.fold, args.checkpoint, args.overwrite, args.half
    )
    inference = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    source = inference["dataset_dir"].strip("'").rpartition("/")[2].upper()
    streams = inference["inferer"]["_target_"].endswith(".StreamInferer")
    how = "predicts frame by frame" if streams else "predicts what nnUNetv2_predict does"
    print(
        f"{bundle} {how}. Try it:\n"
        f"cd {bundle} && python -m monai.bundle run --config_file configs/inference.json "
        f"--dataset_dir {source} --output_dir PREDICTIONS"
    )
    return 0


def export_bundle(
    results: Path,
    out: Path | None = None,
    folds: Sequence[int | str] = (),
    checkpoint: str = "checkpoint_final.pth",
    overwrite: bool = False,
    half: bool = False,
) -> Path:
    """Make a bundle folder of trained folds and return it; it appears when it is complete.

    Args:
        results: `nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration`.
        out: The bundle; the dataset's name and `_segmentation` in the working folder if None.
        folds: Numbers or "all"; several make an ensemble, none means every trained one.
        checkpoint: Its file name in each fold.
        overwrite: Replace a bundle that is there.
        half: Store matrices in float16.

    Raises:
        FileNotFoundError: If the results, a fold or its checkpoint are missing.
        FileExistsError: If `out` is not empty and not to be replaced.
        ValueError: If a checkpoint cannot be read or does not fit the plans.
    """
    files = _checkpoints(Path(results), folds, checkpoint)
    trained = [read_checkpoint(file) for file in files]
    plan = Plan(results, trained[0]["configuration"])
    dataset = plan.plans.dataset_name.split("_", 1)[-1]
    out = Path(out or f"{dataset.lower()}_segmentation")
    _check_target(out, overwrite)
    partial = partial_of(out)
    try:
        shutil.copytree(
            template(trained[0]["trainer"]),
            partial,
            ignore=shutil.ignore_patterns(*RUN_FOLDERS, ".gitignore", *OWN_DOCUMENTS),
        )
        _write_configs(partial, out.name, Path(results), plan, trained)
        _write_weights(partial, trained, half)
        _write_documents(partial, Path(results), plan, trained, files)
        replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def template(trainer: str) -> Path:
    """The bundle that exports start from: inside an installed package, or of the checkout."""
    network = getattr(recursive_find_trainer_class_by_name(trainer), "network_class", None)
    name = TEMPLATES.get(network, VOLUMES)
    here = Path(__file__).parent
    installed, checkout = here / "templates" / name, here.parents[1] / "bundles" / name
    return installed if installed.is_dir() else checkout


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What a bundle needs of an nnU-Net checkpoint; nothing in the file is executed.

    Returns:
        `weights` by name, and the `trainer`, `configuration` and `mirror_axes`.

    Raises:
        ValueError: If the file is damaged or is no nnU-Net checkpoint.
    """
    scalar = np.float64(0).__reduce__()[0]  # numpy's constructor of its scalars, in its log
    dtypes = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"]]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("_core", "core")]
    known = [np.dtype, *dtypes, *((scalar, name) for name in names)]
    try:
        with torch.serialization.safe_globals(known):
            content = torch.load(file, map_location="cpu", weights_only=True)
        return {
            "weights": dict(content["network_weights"]),
            "trainer": content["trainer_name"],
            "configuration": content["init_args"]["configuration"],
            "mirror_axes": content.get("inference_allowed_mirroring_axes"),
        }
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} is damaged or holds more than tensors, numbers and text, which is not loaded "
            "for safety; export another checkpoint with --checkpoint"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{file} is damaged; export another checkpoint with --checkpoint"
        ) from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no checkpoint of nnU-Net v2") from error


def network_definition(trainer: str, plan: Plan) -> dict[str, Any]:
    """The `network_def` of a bundle: what this trainer builds for prediction.

    Our networks become their class with every argument; others are built by their trainer.
    """
    cls = recursive_find_trainer_class_by_name(trainer)
    if not (isinstance(cls, type) and issubclass(cls, MambaTrainer)):
        target = "nnunet_plugins.bundle.network.network_of_trainer"
        return {"_target_": target, "trainer": trainer, "plan": "@plan"}
    network = cls.network_class
    return {
        "_target_": f"{network.__module__}.{network.__name__}",
        "input_channels": len(plan.channels),
        "num_classes": plan.outputs,
        **cls.network_arguments(plan.configuration.network_arch_init_kwargs),
        **cls.network_options,
        "deep_supervision": False,
    }


def _checkpoints(results: Path, folds: Sequence[int | str], checkpoint: str) -> list[Path]:
    for name in ("plans.json", "dataset.json"):
        if not (results / name).is_file():
            raise FileNotFoundError(
                f"{results} holds no {name}; give a results folder of nnU-Net, "
                "nnUNet_results/DatasetXXX_Name/Trainer__Plans__configuration"
            )
    found = sorted(results.glob(f"fold_[0-9]*/{checkpoint}"))
    found = found or list(results.glob(f"fold_all/{checkpoint}"))
    files = [results / f"fold_{fold}" / checkpoint for fold in dict.fromkeys(folds)] or found
    absent = [file for file in files if not file.is_file()]
    if absent or not files:
        raise FileNotFoundError(
            f"there is no {absent[0] if absent else results / 'fold_X' / checkpoint}; train that "
            "fold to its end, or name another file with --checkpoint checkpoint_best.pth"
        )
    return files


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists; name another --out, or replace it with --overwrite")
    if not (out / "configs" / "metadata.json").is_file():
        raise FileExistsError(f"{out} is no bundle, so it is not replaced; name another --out")


def _write_configs(
    bundle: Path, name: str, results: Path, plan: Plan, trained: Sequence[dict[str, Any]]
) -> None:
    """Configurations for this plan and network, with the plan and dataset of the results."""
    configs = bundle / "configs"
    shutil.copyfile(results / "plans.json", configs / "plans.json")
    dataset = {key: value for key, value in plan.dataset.items() if key != "dataset"}  # no paths
    write_json(configs / "dataset.json", dataset)
    member = network_definition(trained[0]["trainer"], plan)
    ensemble = {
        "_target_": "nnunet_plugins.bundle.network.FoldEnsemble",
        "members": [member] * len(trained),
    }
    axes = trained[0]["mirror_axes"]
    for file, network in (
        ("inference.json", member if len(trained) == 1 else ensemble),
        ("train.json", member),
    ):
        config = json.loads((configs / file).read_text(encoding="utf-8"))
        config["bundle_root"]["name"] = name
        config["configuration"] = trained[0]["configuration"]
        if config["mirror_axes"]:  # a template that does not mirror keeps to that
            config["mirror_axes"] = list(axes) if axes else None
        config["network_def"] = network
        write_json(configs / file, config)


def _write_weights(bundle: Path, trained: Sequence[dict[str, Any]], half: bool) -> None:
    """`models/model.pt`, after it has been loaded strictly into what the configuration builds."""
    if len(trained) == 1:
        weights: dict[str, Tensor] = trained[0]["weights"]
    else:
        weights = {
            f"members.{i}.{name}": tensor
            for i, member in enumerate(trained)
            for name, tensor in member["weights"].items()
        }
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    try:
        network = parser.get_parsed_content("network_def")
    except RuntimeError as error:  # MONAI's, around the real one
        raise first_cause(error) from None
    report = fit(network, weights)
    if not report.complete:
        raise ValueError(
            f"the checkpoint does not fit the network of its plans.json: {report}; the results "
            "folder mixes two trainings"
        )
    if half:  # vectors and scalars are little, and running variances may leave float16's range
        weights = {n: w.half() if w.ndim > 1 else w for n, w in weights.items()}
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(weights, bundle / "models" / "model.pt")


def _write_documents(
    bundle: Path,
    results: Path,
    plan: Plan,
    trained: Sequence[dict[str, Any]],
    files: Sequence[Path],
) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    folds = [file.parent for file in files]
    packages = list(metadata["required_packages_version"])
    metadata |= describe(plan, trained[0]["trainer"], trained[0]["configuration"], folds, packages)
    write_json(bundle / "configs" / "metadata.json", metadata)
    (bundle / "docs" / "data_license.txt").write_text(licence_of(plan), encoding="utf-8")
    licence = distribution("mambamed").read_text("licenses/LICENSE")  # wheels hold no other copy
    (bundle / "LICENSE").write_text(licence, encoding="utf-8")


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON."""
    file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
