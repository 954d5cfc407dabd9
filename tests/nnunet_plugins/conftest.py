"""Tiny nnU-Net experiments on disk: planned and preprocessed once for all tests that train."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.nnunet_plugins.data.conftest import draw_video, write_frames

BIN = Path(sys.executable).parent
CASES = 5


@dataclass(frozen=True)
class NNUNet:
    """Folders of an nnU-Net installation, and its commands as a user types them."""

    folder: Path
    dataset: str = "Dataset901_Tiny"
    plans: str = "nnUNetPlans"

    @property
    def number(self) -> str:
        return self.dataset[len("Dataset") :].split("_")[0]

    @property
    def raw(self) -> Path:
        return self.folder / "raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.folder / "preprocessed" / self.dataset

    @property
    def environment(self) -> dict[str, str]:
        """No variable of ours, and none but nnU-Net's paths and process counts."""
        return {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(self.folder / "results"),
            "nnUNet_def_n_proc": "1",
        }

    def results(self, trainer: str) -> Path:
        return self.folder / "results" / self.dataset / f"{trainer}__{self.plans}__3d_fullres"

    def __call__(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the installed commands, outside the checkout."""
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def training(self, trainer: str, *options: str) -> list[str]:
        """The command that trains fold 0."""
        command = [str(BIN / "nnUNetv2_train"), self.number, "3d_fullres", "0", "-p", self.plans]
        return [*command, "-tr", trainer, "-device", "cpu", *options]

    def train(
        self, trainer: str, *options: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self(*self.training(trainer, *options), check=check)


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray) -> None:
    """Write one case with a single channel of 1.5 mm voxels."""
    for array, path in ((image, f"imagesTr/{name}_0000"), (label, f"labelsTr/{name}")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((1.5, 1.5, 1.5))
        sitk.WriteImage(volume, str(folder / f"{path}.nii.gz"))


def write_tiny_dataset(folder: Path) -> None:
    """Bright blobs on noise, 16 x 20 x 24 voxels, one held out in fold 0."""
    rng = np.random.default_rng(0)
    names = [f"case_{i}" for i in range(CASES)]
    index = np.indices((16, 20, 24))
    for name in names:
        centre = rng.uniform(6, 11, size=3)
        distance = np.sqrt(((index - centre[:, None, None, None]) ** 2).sum(0))
        label = ((distance < 5).astype(np.uint8) + (distance < 3)).astype(np.uint8)
        image = (label + 0.5 * rng.standard_normal(label.shape)).astype(np.float32)
        write_case(folder, name, image, label)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    folds = [{"train": [n for n in names if n != out], "val": [out]} for out in names]
    (folder / "splits_final.json").write_text(json.dumps(folds))


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory) -> NNUNet:
    """The tiny dataset, planned and preprocessed by the stock command."""
    experiment = NNUNet(tmp_path_factory.mktemp("nnunet"))
    write_tiny_dataset(experiment.raw)
    experiment(
        "nnUNetv2_plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1", "-npfp", "1"
    )
    return experiment


@pytest.fixture(scope="session")
def video_nnunet(tmp_path_factory) -> NNUNet:
    """Five videos of six frames of 40 x 48 pixels, planned and preprocessed for Vivim."""
    experiment = NNUNet(
        tmp_path_factory.mktemp("video_nnunet"), "Dataset902_TinyVideo", "nnUNetVivimPlans"
    )
    source = experiment.folder / "source"
    for index in range(CASES):
        images, labels = draw_video(index)
        write_frames(source / f"video{index}/frames", images)
        write_frames(source / f"video{index}/masks", labels * np.uint8(255))
    experiment(
        "mambamed", "dataset", "from-videos", str(source), "--id", "902", "--name", "TinyVideo"
    )
    experiment(
        "nnUNetv2_plan_and_preprocess", "-d", "902", "-c", "3d_fullres", "-pl", "VivimPlanner",
        "-np", "1", "-npfp", "1",
    )  # fmt: skip
    return experiment


@pytest.fixture
def build_trainer(nnunet, monkeypatch, tmp_path) -> Callable:
    """Build a trainer of volumes by name in this process, its results in the test's own folder."""
    return trainer_builder(nnunet, monkeypatch, tmp_path)


@pytest.fixture
def build_video_trainer(video_nnunet, monkeypatch, tmp_path) -> Callable:
    """The same on the videos."""
    return trainer_builder(video_nnunet, monkeypatch, tmp_path)


def trainer_builder(nnunet: NNUNet, monkeypatch, tmp_path: Path) -> Callable:
    def build(name: str, plans: dict | None = None, configuration: str = "3d_fullres", **changes):
        import torch

        from nnunet_plugins.registry import find_class

        for variable, value in nnunet.environment.items():
            if variable.startswith("nnUNet_"):
                monkeypatch.setenv(variable, value)
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        plans = plans or json.loads((nnunet.preprocessed / f"{nnunet.plans}.json").read_text())
        description = json.loads((nnunet.preprocessed / "dataset.json").read_text()) | changes
        trainer = find_class(name)(
            plans | {"continue_training": False}, configuration, 0, description,
            torch.device("cpu"),
        )  # fmt: skip
        trainer.initialize()
        return trainer

    return build
