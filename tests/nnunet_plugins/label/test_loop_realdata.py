"""Real hippocampi: infer, correct, train, compare, promote, infer; run by `pytest -m realdata`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_plugins.bundle.export import export_bundle
from nnunet_plugins.label.scores import dice, mean_dice
from tests.nnunet_plugins.label.conftest import Server, needs_monai_label, running
from tests.nnunet_plugins.label.test_models import assert_equal
from tests.nnunet_plugins.label.test_server import expected_masks, infer, wait_for
from tests.realdata.test_volumes import SMALL, Workspace, subset

pytestmark = [pytest.mark.realdata, needs_monai_label]
DATASET = "Dataset004_Hippocampus"
CLASSES = {"Anterior": 1, "Posterior": 2}
STUDIES, COMPARED = 10, 4


@pytest.fixture(scope="module")
def raw(shared) -> Path:
    """The raw dataset."""
    folder = shared / "data/volumes" / DATASET
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="module")
def trained(shared, raw, tmp_path_factory) -> Path:
    """nnU-Net results of a short training on a few cases of fold 0, as its commands leave them."""
    work = tmp_path_factory.mktemp("trained")
    workspace = Workspace(work, subset(shared, work, cases=12))
    workspace.environment |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1"}
    trainer = f"{SMALL}_2epochs_15iterations"
    workspace.plan(4)
    workspace.train(4, trainer)
    return workspace.results(DATASET, trainer)


def test_ten_real_studies_go_round_the_loop(raw, trained, tmp_path, capsys):
    found = whole_loop(trained, raw, tmp_path, epochs=3)
    with capsys.disabled():
        print(json.dumps(found, indent=1))


def whole_loop(results: Path, raw: Path, work: Path, epochs: int) -> dict:
    """The loop over studies of fold 0 that were not trained on, and all Dice figures."""
    names = one_side_each(json.loads((raw / "splits_final.json").read_text())[0]["val"])
    studies = work / "studies"
    studies.mkdir()
    for name in names:
        shutil.copyfile(raw / f"imagesTr/{name}_0000.nii.gz", studies / f"{name}.nii.gz")
    truth = {name: raw / f"labelsTr/{name}.nii.gz" for name in names}
    expected = predict_with_nnunet(results, studies, names[:COMPARED], work)
    with running(studies, "--nnunet", str(results)) as server:
        before = infer_all(server, names, work / "before")
        for name in names[:COMPARED]:
            assert_equal(before[name], expected / f"{name}.nii.gz")
        for name in names:
            assert server.put_label(name, truth[name]).status_code == 200
        report = train(server, epochs)
        unchanged = infer(server, DATASET, names[0], work)
        assert_equal(unchanged, before[names[0]])
        seen = {"candidate": server.client.get(f"/candidate/{DATASET}").json()["weights"]}
        assert server.client.post(f"/promote/{DATASET}", params=seen).status_code == 200
        again = sorted({*names[:COMPARED], *report["held_out"]})
        after = infer_all(server, again, work / "after")
    check_promoted(results, studies, after, work)
    check_report(report, truth, before, after)
    return {
        "verdict": report["verdict"],
        "held_out": report["held_out"],
        "dice_before": {n: mean_dice([dice(truth[n], before[n], CLASSES)]) for n in names},
        "dice_after": {n: mean_dice([dice(truth[n], after[n], CLASSES)]) for n in again},
    }


def one_side_each(names: list[str]) -> list[str]:
    """Ten hippocampi of ten subjects; 2m - 1 and 2m are the two sides of one."""
    subjects = {(int(name[-3:]) + 1) // 2: name for name in reversed(names)}
    return sorted(subjects.values())[:STUDIES]


def predict_with_nnunet(results: Path, studies: Path, names: list[str], work: Path) -> Path:
    """What `nnUNetv2_predict_from_modelfolder` writes for some of the studies."""
    images = work / "nnunet_images"
    images.mkdir()
    for name in names:
        shutil.copyfile(studies / f"{name}.nii.gz", images / f"{name}_0000.nii.gz")
    command = [
        str(Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder"), "-i", str(images),
        "-o", str(work / "nnunet"), "-m", str(results), "-f", "0", "-device", "cpu", "-npp", "1",
        "-nps", "1",
    ]  # fmt: skip
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return work / "nnunet"


def infer_all(server: Server, names: list[str], out: Path) -> dict[str, Path]:
    out.mkdir()
    return {name: infer(server, DATASET, name, out) for name in names}


def train(server: Server, epochs: int) -> dict:
    """The report of a round that has ended."""
    begun = server.client.post(f"/train/{DATASET}", json={"max_epochs": epochs})
    assert begun.status_code == 200, begun.text
    job = wait_for(server, "/train/", seconds=900)
    assert job["status"] == "DONE", job["details"][-20:]
    return server.client.get(f"/candidate/{DATASET}").json()


def check_promoted(results: Path, studies: Path, after: dict[str, Path], work: Path) -> None:
    """What is served now is what the bundle's command line gives with the promoted weights."""
    bundle = export_bundle(results, work / "promoted")
    promoted = studies / f".mambamed/models/{DATASET}/model.pt"
    os.replace(shutil.copyfile(promoted, work / "model.pt"), bundle / "models/model.pt")
    few = work / "few"
    few.mkdir()
    for name in list(after)[:COMPARED]:
        shutil.copyfile(studies / f"{name}.nii.gz", few / f"{name}.nii.gz")
    (work / "command_line").mkdir()
    masks = expected_masks(bundle, few, work / "command_line")
    for file in few.iterdir():
        assert_equal(after[file.name.partition(".")[0]], masks / file.name)


def check_report(report: dict, truth: dict, before: dict, after: dict) -> None:
    """The report's figures are those of the masks that were served, and its words fit them."""
    assert sorted(report["trained_on"] + report["held_out"]) == sorted(truth)
    means = {}
    for part, masks in (("served", before), ("candidate", after)):
        found = [dice(truth[name], masks[name], CLASSES) for name in report["held_out"]]
        means[part] = mean_dice(found)
        assert report["mean_dice"][part] == pytest.approx(means[part], abs=1e-6)
    difference = means["candidate"] - means["served"]
    word = "the same as" if abs(difference) < 1e-4 else ("better" if difference > 0 else "worse")
    assert f"the candidate is {word}" in report["verdict"]
