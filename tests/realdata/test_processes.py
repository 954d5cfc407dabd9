"""Bundles of video trained by two processes, from the project's root: `pytest -m realdata`."""

import json
from pathlib import Path

import pytest
import torch

from tests.realdata.test_bundle import EMPTY_LOG, ROOT, monai

pytestmark = pytest.mark.realdata
TORCHRUN = ("torchrun", "--standalone", "--nproc_per_node=2")
SMALL = (
    "--network_def#d_model", 16, "--network_def#depth", 2, "--image_size", "[32,32]", "--stride", 4,
    "--frames", 4, "--clips_per_video", 1,
)  # fmt: skip


@pytest.fixture
def sequences(shared, tmp_path) -> Path:
    """Eight short sequences of colonoscopy."""
    (tmp_path / "sequences").mkdir()
    for folder in sorted((shared / "data/video/CVC-ClinicDB").iterdir())[:8]:
        (tmp_path / "sequences" / folder.name).symlink_to(folder)
    return tmp_path / "sequences"


def train(bundle: str, data: Path, folder: Path, *options: object) -> str:
    configs = [f"bundles/{bundle}/configs/{n}" for n in ("train.json", "multi_gpu_train.json")]
    return monai(
        ROOT, "--config_file", str(configs), "--dataset_dir", data, "--ckpt_dir",
        folder / "weights", "--output_dir", folder / "runs", "--epochs", 1, "--warmup", 0,
        "--val_interval", 1, *options, launcher=TORCHRUN,
    )  # fmt: skip


def check(folder: Path, said: str, score: str) -> None:
    """Weights that load without a second process, and the log of one of them."""
    last = torch.load(folder / "weights/checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 1
    assert not any(name.startswith("module.") for name in last["model"])
    assert (folder / "weights/model.pt").is_file()
    assert score in said
    logs = [file.stat().st_size for file in (folder / "runs").glob("events*")]
    assert sum(size > EMPTY_LOG for size in logs) == 2  # loss and score


@pytest.mark.parametrize("bundle", ["endomamba", "vivim"])
def test_masks(bundle, run, sequences, tmp_path):
    run(
        "mambamed", "dataset", "from-videos", sequences, "--id", 603, "--name", "CVC", "--labels",
        "polyp", "--stride", 3,
    )  # fmt: skip
    said = train(bundle, tmp_path / "raw/Dataset603_CVC", tmp_path)
    check(tmp_path, said, "val_mean_dice")


@pytest.mark.parametrize("kind", ["classification", "phase"])
def test_classes_and_phases(kind, sequences, tmp_path):
    known = ("normal", "abnormal") if kind == "classification" else ("preparation", "suturing")
    column = "label" if kind == "classification" else "phases"
    (tmp_path / "phases.csv").write_text(f"frame,phase\n0,{known[0]}\n5,{known[1]}\n")
    rows = [
        {
            "video": f"sequences/{folder.name}/frames",
            "name": folder.name,
            "fps": 25,
            column: known[index % 2] if kind == "classification" else "phases.csv",
            "split": "val" if index > 5 else "train",
        }
        for index, folder in enumerate(sorted(sequences.iterdir()))
    ]
    table = tmp_path / "videos.json"
    table.write_text(json.dumps(rows))
    said = train(f"endomamba_{kind}", table, tmp_path, *SMALL)
    check(tmp_path, said, "val_macro_f1" if kind == "classification" else "val_strict_accuracy")
