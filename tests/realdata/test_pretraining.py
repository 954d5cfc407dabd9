"""From unlabelled scans to a bundle's prediction, by the commands that a user types."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.export import read_pretrained
from tests.realdata.test_volumes import Workspace, subset

pytestmark = pytest.mark.realdata
ROOT = Path(__file__).parents[2]
TRAINER = "HyMambaTrainer_small_1epochs_4iterations"


def python(*arguments: object, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_pretrain_finetune_bundle_predict(tmp_path, shared):
    workspace = Workspace(tmp_path, subset(shared, tmp_path, cases=8))
    workspace.plan(4)
    dataset = "Dataset004_Hippocampus"
    plans = tmp_path / "preprocessed" / dataset / "nnUNetPlans.json"
    images = workspace.raw / dataset / "imagesTr"
    run = tmp_path / "run"
    python(
        "-m", "pretrain", "mambamim", images, "--plans", plans, "--out", run, "--epochs", 6,
        "--crops", 4, "--batch-size", 4, "--patch", 24, 32, 24, folder=tmp_path,
    )  # fmt: skip
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < 0.95 * float(rows[-1]["patch_mean"])
    weights = tmp_path / "nnunet.pth"
    python(
        "-m", "pretrain", "export", run, "--to", "nnunet", "--plans", plans, "--out", weights,
        folder=tmp_path,
    )  # fmt: skip
    output = workspace(
        "nnUNetv2_train", 4, "3d_fullres", 0, "-tr", TRAINER, "-device", "cpu",
        "-pretrained_weights", weights,
    )  # fmt: skip
    assert "Loading pretrained weights" in output
    bundle = tmp_path / "bundle"
    results = workspace.results(dataset, TRAINER)
    workspace("mambamed", "export-bundle", "--results", results, "--fold", 0, "--out", bundle)
    (tmp_path / "in").mkdir()
    case = sorted(images.iterdir())[0]
    (tmp_path / "in" / case.name).symlink_to(case)
    for folder, arguments in ((bundle, ()), (ROOT, ("--bundle_root", bundle))):
        out = tmp_path / f"out_{len(arguments)}"
        python(
            "-m", "monai.bundle", "run", "--config_file", bundle / "configs/inference.json",
            "--dataset_dir", tmp_path / "in", "--output_dir", out, *arguments, folder=folder,
        )  # fmt: skip
        assert len(list(out.glob("*.nii.gz"))) == 1


def test_what_the_trainer_starts_from_is_what_was_pretrained(tmp_path, shared):
    """Every key of the encoder arrives in the network that nnU-Net trains."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    from nnunet_plugins.trainers.HyMambaTrainer_small import HyMambaTrainer_small

    workspace = Workspace(tmp_path, subset(shared, tmp_path, cases=5))
    workspace.plan(4)
    plans = tmp_path / "preprocessed/Dataset004_Hippocampus/nnUNetPlans.json"
    run = tmp_path / "run"
    python(
        "-m", "pretrain", "mambamim", workspace.raw / "Dataset004_Hippocampus/imagesTr",
        "--plans", plans, "--out", run, "--epochs", 1, "--batch-size", 5, "--patch", 24, 24, 24,
        folder=tmp_path,
    )  # fmt: skip
    python("-m", "pretrain", "export", run, "--to", "nnunet", "--plans", plans, folder=tmp_path)
    entry = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]
    network = HyMambaTrainer_small.network_class(
        1, 3, deep_supervision=True,
        **HyMambaTrainer_small.network_arguments(entry["arch_kwargs"]),
    )  # fmt: skip
    load_pretrained_weights(network, str(run / "nnunet.pth"))
    state = network.state_dict()
    pretrained = read_pretrained(run).weights
    assert pretrained.keys() == {name for name in state if name.startswith("encoder.")}
    assert all(torch.equal(state[name], x) for name, x in pretrained.items())
