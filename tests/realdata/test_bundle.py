"""A real training as a MONAI bundle, by the commands a user types: `pytest -m realdata`."""

import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from tests.realdata.test_volumes import BIN, SMALL, Workspace, subset

pytestmark = pytest.mark.realdata
ROOT = Path(__file__).parents[2]
DATASET = "Dataset004_Hippocampus"
TRAINER = f"{SMALL}_2epochs_20iterations"
EMPTY_LOG = 88
"""Bytes of a TensorBoard log without entries."""


def monai(folder: Path, *arguments: object, launcher: tuple = ("python",)) -> str:
    """`python -m monai.bundle run` in a folder, without any variable of nnU-Net."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    command = [str(BIN / launcher[0]), *launcher[1:], "-m", "monai.bundle", "run"]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder,
        env=environment | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, shared) -> Workspace:
    """Twelve hippocampi, trained on for forty steps, and three of them to predict."""
    folder = tmp_path_factory.mktemp("bundle")
    workspace = Workspace(folder, subset(shared, folder, cases=12))
    workspace.plan(4)
    shutil.copy(workspace.raw / DATASET / "splits_final.json", folder / "preprocessed" / DATASET)
    workspace.train(4, TRAINER)
    (folder / "images").mkdir()
    for file in sorted((workspace.raw / DATASET / "imagesTr").iterdir())[:3]:
        shutil.copy(file, folder / "images")
    workspace(
        "mambamed", "export-bundle", "--results", workspace.results(DATASET, TRAINER), "--fold", 0,
        "--out", folder / "hippocampus",
    )  # fmt: skip
    return workspace


@pytest.mark.parametrize("tta", [True, False], ids=["mirrored", "plain"])
def test_a_copied_bundle_predicts_what_nnunet_predicts(workspace, tmp_path, tta):
    images = workspace.folder / "images"
    workspace(
        "nnUNetv2_predict", "-i", images, "-o", tmp_path / "expected", "-d", 4, "-c", "3d_fullres",
        "-f", 0, "-tr", TRAINER, "-device", "cpu", "-npp", 1, "-nps", 1,
        *([] if tta else ["--disable_tta"]),
    )  # fmt: skip
    bundle = shutil.copytree(workspace.folder / "hippocampus", tmp_path / "elsewhere")
    monai(
        bundle, "--config_file", "configs/inference.json", "--dataset_dir", images,
        "--output_dir", tmp_path / "found", *([] if tta else ["--mirror_axes", "[]"]),
    )  # fmt: skip
    files = sorted((tmp_path / "expected").glob("*.nii.gz"))
    assert len(files) == 3
    for expected in files:
        found = tmp_path / "found" / expected.name
        voxels = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (expected, found)]
        assert len(np.unique(voxels[0])) > 1  # something to agree on
        assert np.mean(voxels[0] == voxels[1]) >= 0.999
        assert np.array_equal(nibabel.load(expected).affine, nibabel.load(found).affine)


def test_two_processes_train_from_the_projects_root(workspace, tmp_path):
    configs = [f"bundles/hymamba/configs/{n}" for n in ("train.json", "multi_gpu_train.json")]
    said = monai(
        ROOT, "--config_file", str(configs), "--dataset_dir", workspace.raw / DATASET,
        "--ckpt_dir", tmp_path / "weights", "--output_dir", tmp_path / "runs", "--epochs", 1,
        "--warmup", 0, "--val_interval", 1, "--pretrained",
        workspace.folder / "hippocampus/models/model.pt",
        launcher=("torchrun", "--standalone", "--nproc_per_node=2"),
    )  # fmt: skip
    assert (tmp_path / "weights/model.pt").is_file()
    assert (tmp_path / "weights/checkpoint_last.pt").is_file()
    logs = [file.stat().st_size for file in (tmp_path / "runs").glob("events*")]
    assert sum(size > EMPTY_LOG for size in logs) == 2  # loss and score, of one process
    assert "val_mean_dice" in said
