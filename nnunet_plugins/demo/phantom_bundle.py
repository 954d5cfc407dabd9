"""A small HyMamba bundle, trained for about a minute on phantoms by its own `train.json`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_plugins.bundle.export import network_definition, template, write_json
from nnunet_plugins.bundle.folders import partial_of, replace_folder
from nnunet_plugins.bundle.plan import Plan

TRAINER = "HyMambaTrainer_small"
LEFT_OUT = ("models", "docs", ".gitignore")
"""Of the template: what a trained bundle of phantoms has otherwise or not at all."""
ARCHITECTURE = {
    "n_stages": 3,
    "features_per_stage": [16, 32, 64],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
}
PLANNED = {
    "batch_size": 2,
    "patch_size": [28, 40, 48],
    "spacing": [7.0, 8.0, 8.0],
    "median_image_size_in_voxels": [24.0, 33.0, 40.0],
}
"""What differs from the template's plans: coarse, so that a minute teaches something."""


def train_bundle(raw: Path, bundle: Path, cases: int, epochs: int, log: Path) -> Path:
    """Make a bundle that has learnt from the first cases of a dataset; it appears when trained.

    Args:
        raw: nnU-Net raw dataset; its `splits_final.json` is rewritten.
        bundle: The folder to make; nothing is done if it is there.
        cases: How many to train on.
        epochs: Times that each is seen.
        log: Output of the training.

    Raises:
        RuntimeError: If the training fails; quotes the end of its log.
    """
    if bundle.is_dir():
        return bundle
    partial = partial_of(bundle)
    try:
        shutil.copytree(
            template(TRAINER), partial, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True
        )
        _write_configs(partial, bundle.name, raw)
        _keep_first(raw, cases)
        _train(partial, raw, epochs, log)
        (partial / "models" / "checkpoint_last.pt").unlink()
        replace_folder(partial, bundle)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bundle


def _write_configs(bundle: Path, name: str, raw: Path) -> None:
    """Plans for the dataset, and the network of the small trainer for them."""
    configs = bundle / "configs"
    shutil.copyfile(raw / "dataset.json", configs / "dataset.json")
    plans = _read(configs / "plans.json")
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= PLANNED
    configuration["architecture"]["arch_kwargs"] |= ARCHITECTURE
    write_json(configs / "plans.json", plans | {"dataset_name": raw.name})
    network = network_definition(TRAINER, Plan(configs, "3d_fullres"))
    for file in (configs / "inference.json", configs / "train.json"):
        config = _read(file)
        config["bundle_root"]["name"] = name
        config |= {"network_def": network, "mirror_axes": None}  # liver and spleen tell the sides
        write_json(file, config)
    metadata = _read(configs / "metadata.json")
    metadata["description"] = "HyMamba on generated phantoms, trained for a minute to be shown"
    write_json(configs / "metadata.json", metadata)


def _keep_first(raw: Path, cases: int) -> None:
    """Let the first cases be the dataset; its best epoch is chosen by one of them."""
    names = sorted(file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir())
    write_json(raw / "splits_final.json", [{"train": names[:cases], "val": names[:1]}])


def _train(bundle: Path, raw: Path, epochs: int, log: Path) -> None:
    command = [
        sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/train.json",
        "--bundle_root", ".", "--dataset_dir", str(raw), "--epochs", str(epochs),
        "--val_interval", str(epochs), "--warmup", str(min(2, epochs - 1)),
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w", encoding="utf-8", buffering=1) as file,
        subprocess.Popen(
            command, cwd=bundle, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        ) as process,
        tqdm(total=epochs, desc="training", unit="epoch") as bar,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            done = re.search(r"Epoch\[(\d+)\] Complete", line)
            if done:
                bar.update(int(done[1]) - bar.n)
        status = process.wait()
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"the bundle's training failed; the end of {log}:\n{tail}")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
