"""Real volumes through stock nnU-Net: minutes each, run by `pytest -m realdata`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.realdata
BIN = Path(sys.executable).parent
SMALL = "HyMambaTrainer_small"


class Workspace:
    """nnU-Net's folders for one test, over the real raw datasets."""

    def __init__(self, folder: Path, raw: Path) -> None:
        self.folder, self.raw = folder, raw
        self.environment = os.environ | {
            "nnUNet_raw": str(raw),
            "nnUNet_preprocessed": str(folder / "preprocessed"),
            "nnUNet_results": str(folder / "results"),
            "nnUNet_def_n_proc": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def __call__(self, command: str, *arguments: object) -> str:
        done = subprocess.run(
            [str(BIN / command), *map(str, arguments)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def plan(self, number: int) -> None:
        self("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "3d_fullres", "-np", 1, "-npfp", 1)

    def train(self, number: int, trainer: str, fold: int = 0, *options: str) -> None:
        self(
            "nnUNetv2_train", number, "3d_fullres", fold, "-tr", trainer, "-device", "cpu", *options
        )

    def results(self, dataset: str, trainer: str) -> Path:
        return self.folder / "results" / dataset / f"{trainer}__nnUNetPlans__3d_fullres"


@pytest.fixture
def workspace(tmp_path, shared) -> Workspace:
    return Workspace(tmp_path, shared / "data/volumes")


def subset(shared: Path, folder: Path, cases: int) -> Path:
    """A raw dataset of so many hippocampi, both sides of a subject in the same fold."""
    source = shared / "data/volumes/Dataset004_Hippocampus"
    chosen = json.loads((source / "quick_subset.json").read_text())["cases"][:cases]
    target = folder / "raw/Dataset004_Hippocampus"
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (target / kind).mkdir(parents=True)
        for case in chosen:
            (target / kind / f"{case}{ending}").symlink_to(source / kind / f"{case}{ending}")
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": len(chosen)}
    (target / "dataset.json").write_text(json.dumps(description))
    folds = json.loads((source / "splits_final.json").read_text())
    kept = [{part: [c for c in fold[part] if c in chosen] for part in fold} for fold in folds]
    (target / "splits_final.json").write_text(json.dumps(kept))
    return target.parent


def test_hippocampus_in_minutes(workspace):
    """Twelve minutes of training on two cores find both parts of the hippocampus."""
    trainer = f"{SMALL}_18epochs"
    workspace.plan(4)
    workspace.train(4, trainer)
    summary = (
        workspace.results("Dataset004_Hippocampus", trainer) / "fold_0/validation/summary.json"
    )
    dice = {label: m["Dice"] for label, m in json.loads(summary.read_text())["mean"].items()}
    assert dice["1"] >= 0.83
    assert dice["2"] >= 0.81


@pytest.mark.parametrize(
    ("number", "dataset", "channels"),
    [(27, "Dataset027_ACDC", 1), (43, "Dataset043_BraTS2013sample", 2)],
    ids=["anisotropic", "two-channels"],
)
def test_other_shapes_of_data_need_no_option(workspace, number, dataset, channels, tmp_path):
    trainer = f"{SMALL}_1epochs_4iterations"
    workspace.plan(number)
    workspace.train(number, trainer)
    plans = json.loads((workspace.results(dataset, trainer) / "plans.json").read_text())
    strides = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    assert (number == 27) == any(len(set(stride)) > 1 for stride in strides)
    raw = workspace.raw / dataset
    (tmp_path / "in").mkdir()
    case = sorted((raw / "labelsTr").iterdir())[0].name.removesuffix(".nii.gz")
    for channel in range(channels):
        name = f"{case}_{channel:04d}.nii.gz"
        (tmp_path / "in" / name).symlink_to(raw / "imagesTr" / name)
    workspace(
        "nnUNetv2_predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-d", number, "-c",
        "3d_fullres", "-f", 0, "-tr", trainer, "-device", "cpu", "-npp", 1, "-nps", 1,
        "--disable_tta",
    )  # fmt: skip
    assert (tmp_path / "out" / f"{case}.nii.gz").exists()


def test_five_folds_best_configuration_and_an_ensemble(tmp_path, shared):
    workspace = Workspace(tmp_path, subset(shared, tmp_path, cases=20))
    trainers = [f"{SMALL}_1epochs_5iterations", f"{SMALL}_1epochs_5iterations_hilbert"]
    workspace.plan(4)
    for trainer in trainers:
        for fold in range(5):
            workspace.train(4, trainer, fold, "--npz")
    workspace("nnUNetv2_find_best_configuration", 4, "-c", "3d_fullres", "-tr", *trainers, "-np", 1)
    images = workspace.raw / "Dataset004_Hippocampus/imagesTr"
    members = []
    for trainer in trainers:
        members.append(tmp_path / f"predicted_{trainer}")
        workspace(
            "nnUNetv2_predict", "-i", images, "-o", members[-1], "-d", 4, "-c", "3d_fullres",
            "-f", 0, "-tr", trainer, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta",
            "--save_probabilities",
        )  # fmt: skip
    workspace("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "ensemble", "-np", 1)
    assert len(list((tmp_path / "ensemble").glob("*.nii.gz"))) == 20
