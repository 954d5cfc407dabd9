"""nnU-Net results made up in seconds: real plans cut small, random weights, blobs in images."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "bundles" / "hymamba"
TRAINER = "HyMambaTrainer_small_1epochs"
VIDEO_TEMPLATE = ROOT / "bundles" / "vivim"
VIDEO_TRAINER = "VivimTrainer_small_1epochs"


@pytest.fixture(autouse=True)
def _logging():
    """A bundle's run sets the root logger up; put it back."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


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


def write_results(
    results: Path,
    trainer: str,
    plans: dict,
    dataset: dict,
    folds: tuple,
    centre: Callable[[torch.nn.Module], None] = lambda network: None,
) -> Path:
    """A results folder of a trainer as nnU-Net writes it, its weights drawn from the fold."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_plugins.bundle.export import recursive_find_trainer_class_by_name

    manager = PlansManager(plans)
    cls = recursive_find_trainer_class_by_name(trainer)
    channels, classes = len(dataset["channel_names"]), len(dataset["labels"])
    for index, fold in enumerate(folds):
        torch.manual_seed(index)
        network = cls.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), channels, classes, False
        )
        with torch.no_grad():  # heads loud enough to paint every class somewhere
            for name, parameter in network.named_parameters():
                if "seg_layers" in name and parameter.ndim > 1:
                    parameter.mul_(20)
        centre(network)
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


@pytest.fixture
def make_results(tmp_path) -> Callable[..., Path]:
    """Results of a trainer of volumes."""

    def make(trainer: str = TRAINER, folds: tuple = (0,), channels: int = 1) -> Path:
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
        results = tmp_path / "results/Dataset901_Tiny" / f"{trainer}__nnUNetPlans__3d_fullres"
        return write_results(results, trainer, plans, dataset, folds)

    return make


@pytest.fixture
def make_video_results(tmp_path) -> Callable[..., Path]:
    """Results of a trainer of video: clips of four frames of 32 x 64 pixels, two classes."""

    def make(spacing: float = 1.0, folds: tuple = (0,), trainer: str = VIDEO_TRAINER) -> Path:
        plans = json.loads((VIDEO_TEMPLATE / "configs/plans.json").read_text())
        plans["configurations"]["3d_fullres"] |= {
            "patch_size": [4, 32, 64],
            "spacing": [1.0, spacing, spacing],
        }
        dataset = {
            "channel_names": {str(i): "rgb_to_0_1" for i in range(3)},
            "labels": {"background": 0, "polyp": 1, "tool": 2},
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        name = f"{trainer}__nnUNetVivimPlans__3d_fullres"
        results = tmp_path / "results/Dataset902_Video" / name
        return write_results(results, trainer, plans, dataset, folds, centre)

    return make


@torch.no_grad()
def centre(network: torch.nn.Module) -> None:
    """Give a video network logits of mean zero, so that each class wins somewhere."""
    clip = torch.from_numpy(draw_frames(9, 4)[0]).permute(3, 0, 1, 2)[None] / 255
    mean = network.eval()(clip).mean((0, 2, 3, 4))
    network.decoder.seg_layers[0].bias -= mean


def draw_frames(seed: int, frames: int, size: tuple[int, int] = (32, 64)) -> tuple:
    """Frames (t, h, w, 3) of a disc in a disc that moves over noise, and their classes."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)
    ground = rng.integers(20, 120, (*size, 3))
    pictures, labels = [], []
    for t in range(frames):
        distance = np.hypot(y - size[0] / 2 - t % 3, x - 20 - 2 * (t % 9))
        labels.append((distance < 10).astype(np.uint8) + (distance < 5))
        pictures.append(ground + 60 * labels[-1][..., None])
    return np.stack(pictures).astype(np.uint8), np.stack(labels).astype(np.uint8)


@pytest.fixture
def draw() -> Callable[..., tuple]:
    """`draw_frames`."""
    return draw_frames


@pytest.fixture
def raw_videos(tmp_path) -> Path:
    """An nnU-Net raw dataset of five videos of six frames."""
    from PIL import Image

    from nnunet_plugins.data import LabelScheme, convert_videos, find_videos

    for seed in range(5):
        pictures, labels = draw_frames(seed, 6)
        for kind, arrays in (("frames", pictures), ("masks", labels)):
            folder = tmp_path / f"source/video_{seed}" / kind
            folder.mkdir(parents=True)
            for number, array in enumerate(arrays):
                Image.fromarray(array).save(folder / f"{number:03d}.png")
    dataset = tmp_path / "raw/Dataset902_Video"
    scheme = LabelScheme(("polyp", "tool"))
    convert_videos(find_videos(tmp_path / "source"), dataset, scheme=scheme)
    return dataset


@pytest.fixture
def labelled_videos(tmp_path) -> Path:
    """Six videos of twelve frames, 4 frames a second: bright, which is abnormal, or dark."""
    from nnunet_plugins.data import write_video

    folder = tmp_path / "labelled"
    folder.mkdir()
    for number in range(6):
        pictures = draw_frames(number, 12)[0] // (1 if number % 2 else 4)
        write_video(folder / f"video_{number}.mp4", pictures, 4)
    return folder


@pytest.fixture
def label_table(labelled_videos) -> Path:
    """Classes of `labelled_videos`, split by hand."""
    splits = ("train", "train", "val", "val", "test", "test")
    rows = [
        f"video_{i}.mp4,{'abnormal' if i % 2 else 'normal'},{split}"
        for i, split in enumerate(splits)
    ]
    return write_lines(labelled_videos / "labels.csv", "video,label,split", *rows)


@pytest.fixture
def phase_table(labelled_videos) -> Path:
    """Phases of `labelled_videos`: the second one starts at frame six."""
    for i in range(6):
        phases = ("0,preparation", "6,suturing")
        write_lines(labelled_videos / f"phases_{i}.csv", "frame,phase", *phases)
    splits = ("train", "train", "val", "val", "test", "test")
    rows = [f"video_{i}.mp4,phases_{i}.csv,{split}" for i, split in enumerate(splits)]
    return write_lines(labelled_videos / "phases.csv", "video,phases,split", *rows)


def write_lines(file: Path, *lines: str) -> Path:
    """A text file."""
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


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
