"""nnU-Net results made up in seconds: real plans cut small, random weights, images of blobs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "bundles" / "hymamba"
TRAINER = "HyMambaTrainer_small_1epochs"


def small_plans() -> dict:
    """Three stages on patches of 16 voxels, thick slices."""
    plans = json.loads((TEMPLATE / "configs/plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [8, 16, 16], "spacing": [2.5, 1.0, 1.0]}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [8, 16, 16],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    }
    return plans


@pytest.fixture
def make_results(tmp_path) -> Callable[..., Path]:
    """Write a results folder of a trainer as nnU-Net does, its weights drawn from the fold."""

    def make(trainer: str = TRAINER, folds: tuple = (0,), channels: int = 1) -> Path:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_plugins.bundle.export import recursive_find_trainer_class_by_name

        results = tmp_path / "results/Dataset901_Tiny" / f"{trainer}__nnUNetPlans__3d_fullres"
        plans = small_plans()
        schemes = plans["configurations"]["3d_fullres"]
        schemes["normalization_schemes"] = ["ZScoreNormalization"] * channels
        schemes["use_mask_for_norm"] = [False] * channels
        dataset = {
            "channel_names": {str(i): f"T{i + 1}" for i in range(channels)},
            "labels": {"background": 0, "shell": 1, "core": 2},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        manager = PlansManager(plans)
        cls = recursive_find_trainer_class_by_name(trainer)
        for index, fold in enumerate(folds):
            torch.manual_seed(index)
            network = cls.build_network_architecture(
                manager, manager.get_configuration("3d_fullres"), channels, 3, False
            )
            with torch.no_grad():  # heads loud enough to paint every class somewhere
                for name, parameter in network.named_parameters():
                    if "seg_layers" in name and parameter.ndim > 1:
                        parameter.mul_(20)
            checkpoint = {
                "network_weights": network.state_dict(),
                "optimizer_state": {},
                "logging": {"mean_fg_dice": [np.float32(0.5), np.float64(0.6)]},
                "_best_ema": np.float64(0.6),
                "init_args": {"configuration": "3d_fullres", "device": torch.device("cpu")},
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": (1, 2),
            }
            (results / f"fold_{fold}").mkdir(parents=True)
            torch.save(checkpoint, results / f"fold_{fold}/checkpoint_final.pth")
        (results / "plans.json").write_text(json.dumps(plans))
        (results / "dataset.json").write_text(json.dumps(dataset))
        return results

    return make


def write_volume(file: Path, array: np.ndarray) -> None:
    """A volume of 2.2 x 1.1 x 0.9 mm voxels, turned and away from the origin."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.9, 1.1, 2.2))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


@pytest.fixture
def raw_dataset(tmp_path) -> Path:
    """An nnU-Net raw dataset of five cases: a blob in a blob on noise."""
    folder = tmp_path / "raw/Dataset901_Tiny"
    rng = np.random.default_rng(0)
    index = np.indices((10, 24, 22))
    for case in range(5):
        centre = np.array([5, 11, 11]) + rng.uniform(-2, 2, 3)
        scaled = (index - centre[:, None, None, None]) / np.array([1, 2, 2])[:, None, None, None]
        distance = np.sqrt((scaled**2).sum(0))
        label = ((distance < 4).astype(np.uint8) + (distance < 2)).astype(np.uint8)
        image = (label + 0.3 * rng.standard_normal(label.shape)).astype(np.float32)
        write_volume(folder / f"imagesTr/case_{case}_0000.nii.gz", image)
        write_volume(folder / f"labelsTr/case_{case}.nii.gz", label)
    dataset = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


@pytest.fixture
def images(raw_dataset, tmp_path) -> Path:
    """Two images to predict, of different shapes."""
    folder = tmp_path / "images"
    case = sitk.GetArrayFromImage(sitk.ReadImage(str(raw_dataset / "imagesTr/case_0_0000.nii.gz")))
    write_volume(folder / "whole_0000.nii.gz", case)
    write_volume(folder / "less_0000.nii.gz", case[:4, 5:, :15])
    return folder


@pytest.fixture
def run_bundle() -> Callable[..., str]:
    """`python -m monai.bundle run` in this process; the sentence it ends with, if any."""
    import monai.bundle

    def run(*configs: str | Path, **options) -> str:
        files = [str(config) for config in configs]
        options = {k: v if isinstance(v, bool | int | list) else str(v) for k, v in options.items()}
        try:
            monai.bundle.run(
                config_file=files, logging_file=False, device=torch.device("cpu"), **options
            )
        except SystemExit as end:
            return str(end.code)
        return ""

    return run
