"""Served bundles, weights and promotion, splits, scores and training rounds, without a server."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.label.catalogue import bundle_of_results, open_bundles
from nnunet_plugins.label.scores import dice, mean_dice, verdict
from nnunet_plugins.label.served import ServedBundle
from nnunet_plugins.label.shelf import Shelf, digest
from nnunet_plugins.label.training import LabelledStudy, Round, train_candidate
from nnunet_plugins.label.uncertainty import Uncertainty
from nnunet_plugins.label.uploads import check_image, check_label, received
from tests.bundles.conftest import run_bundle  # noqa: F401
from tests.bundles.test_export import predict_with_nnunet
from tests.nnunet_plugins.label.conftest import write_studies


def assert_equal(found: Path, expected: Path) -> None:
    """Same voxels and geometry, and something to see."""
    a, b = sitk.ReadImage(str(found)), sitk.ReadImage(str(expected))
    assert np.array_equal(sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b))
    assert len(np.unique(sitk.GetArrayFromImage(b))) > 1
    for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(a, geometry)() == getattr(b, geometry)()


def test_a_served_bundle_gives_what_the_command_line_gives(
    bundle_folder, run_bundle, tmp_path  # noqa: F811
):  # fmt: skip
    studies = write_studies(tmp_path / "studies", 2)
    bundle = ServedBundle(bundle_folder)
    (tmp_path / "images").mkdir()
    for file in studies.glob("*.nii.gz"):
        shutil.copy(file, tmp_path / "images" / file.name.replace(".nii", "_0000.nii"))
    said = run_bundle(
        bundle_folder / "configs/inference.json", bundle_root=bundle_folder,
        dataset_dir=tmp_path / "images", output_dir=tmp_path / "expected",
    )  # fmt: skip
    assert said == ""
    for file in studies.glob("*.nii.gz"):
        out = tmp_path / "out" / file.name
        prediction = bundle.segment(file, out, bundle.shipped)
        assert_equal(prediction.file, tmp_path / "expected" / file.name)
        assert 0 < prediction.uncertainty < 1


def test_nnunet_results_are_served_as_nnunet_predicts(results, tmp_path):
    studies = write_studies(tmp_path / "studies", 1)
    bundle = bundle_of_results(results, tmp_path / "cache")
    assert bundle.name == "Dataset901_Tiny"
    assert bundle.labels == {"shell": 1, "core": 2}
    (tmp_path / "images").mkdir()
    shutil.copy(studies / "study_0.nii.gz", tmp_path / "images/study_0_0000.nii.gz")
    predict_with_nnunet(results, tmp_path / "images", tmp_path / "expected", (0,), True)
    prediction = bundle.segment(studies / "study_0.nii.gz", tmp_path / "out", bundle.shipped)
    assert_equal(prediction.file, tmp_path / "expected/study_0.nii.gz")
    again = bundle_of_results(results, tmp_path / "cache")
    assert again.folder == bundle.folder


def test_what_a_bundle_is_not_for_is_refused(bundle_folder, tmp_path, video):
    bundle = ServedBundle(bundle_folder)
    with pytest.raises(ValueError, match=r"segments volumes and .* is a video"):
        bundle.segment(video, tmp_path / "out", bundle.shipped)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"broken.nii.gz cannot be read"):
        bundle.segment(broken, tmp_path / "out", bundle.shipped)
    weights = torch.load(bundle.shipped, weights_only=True)
    weights.popitem()
    torch.save(weights, tmp_path / "fewer.pt")
    with pytest.raises(ValueError, match="does not fit tiny"):
        bundle.network(tmp_path / "fewer.pt")


def test_bundles_are_found_by_name_and_those_without_masks_refused():
    found = open_bundles(["hymamba", "vivim"])
    assert {name: bundle.of_videos for name, bundle in found.items()} == {
        "hymamba": False, "vivim": True
    }  # fmt: skip
    assert found["hymamba"].description.startswith("HyMamba")
    with pytest.raises(ValueError, match="gives no masks"):
        open_bundles(["endomamba_phase"])
    with pytest.raises(FileNotFoundError, match="no bundle"):
        open_bundles(["nothing"])
    with pytest.raises(ValueError, match="two bundles"):
        open_bundles(["vivim", "vivim"])


def weights_of(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), value)}


def value_of(file: Path) -> float:
    return float(torch.load(file, weights_only=True)["w"][0])


def test_promotion_is_explicit_and_keeps_what_was_served(tmp_path):
    torch.save(weights_of(0), tmp_path / "shipped.pt")
    shelf = Shelf(tmp_path / "tiny", tmp_path / "shipped.pt")
    with pytest.raises(FileNotFoundError, match="tiny has no candidate"):
        shelf.promote("")
    for value in (1, 2):
        before = shelf.served
        shelf.put_candidate(weights_of(value), {"verdict": f"number {value}"})
        assert shelf.served == before
        assert shelf.promote(digest(shelf.candidate))["verdict"] == f"number {value}"
        assert value_of(shelf.served) == value
        assert value_of(shelf.previous) == value - 1
        assert shelf.candidate_report() is None
        assert shelf.model_report()["weights"] == digest(shelf.served)
    assert value_of(tmp_path / "shipped.pt") == 0
    shelf.restore()
    assert value_of(shelf.served) == 1
    with pytest.raises(FileNotFoundError, match="before a promotion"):
        shelf.restore()


def test_a_candidate_whose_report_is_of_another_is_none(tmp_path):
    shelf = Shelf(tmp_path / "tiny", tmp_path / "shipped.pt")
    shelf.put_candidate(weights_of(1), {"verdict": "better"})
    torch.save(weights_of(2), shelf.candidate)
    assert shelf.candidate_report() is None
    with pytest.raises(FileNotFoundError):
        shelf.promote(digest(shelf.candidate))


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    hashed = []
    inner = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: hashed.append(1) or inner())
    file = tmp_path / "model.pt"
    file.write_bytes(b"abc")
    young = [digest(file) for _ in range(3)]
    assert len(hashed) == 3  # it could change again within the tick of the clock
    os.utime(file, (1, 1))
    assert {digest(file) for _ in range(3)} == set(young) == {inner(b"abc").hexdigest()[:16]}
    assert len(hashed) == 4
    file.write_bytes(b"abd")
    os.utime(file, (2, 2))
    assert [digest(file) for _ in range(2)] == [inner(b"abd").hexdigest()[:16]] * 2
    assert len(hashed) == 5


def test_dice_of_known_overlaps(tmp_path):
    a, b = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    a[0, 0], b[0, 0, :2], b[1, 1, :2] = 1, 1, 1
    a[1, 2] = b[1, 2] = 2
    for name, array in (("a", a), ("b", b)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    classes = {"one": (1,), "two": (2,), "both": (1, 2), "none": (3,)}
    found = dice(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", classes)
    assert found == {"one": 0.5, "two": 1.0, "both": 0.75, "none": None}
    assert mean_dice([found]) == pytest.approx(0.75)
    assert mean_dice([{"none": None}]) is None


@pytest.mark.parametrize(
    ("candidate", "served", "words"),
    [
        (0.8, 0.7, "better than"), (0.7, 0.8, "worse than"), (0.7, 0.7, "the same as"),
        (0.7, None, "nothing is served yet"), (None, 0.7, "nothing can be said"),
    ],
)  # fmt: skip
def test_the_verdict_is_plain(candidate, served, words):
    assert words in verdict(candidate, served)


def test_uncertainty_orders_sure_and_unsure():
    sure, unsure = torch.zeros(3, 4, 4, 4), torch.zeros(3, 4, 4, 4)
    sure[1], unsure[1] = 20, 0.1
    figures = []
    for logits in (sure, unsure):
        whole, frames = Uncertainty(), Uncertainty()
        whole.add(logits)
        list(frames.over(iter(logits.unbind(1))))
        assert whole.mean == pytest.approx(frames.mean)
        figures.append(whole.mean)
    assert figures[0] < 1e-5
    assert 0.95 < figures[1] <= 1
    regions = Uncertainty(regions=True)
    regions.add(torch.full((2, 3, 3), 0.01))
    assert regions.mean == pytest.approx(1, abs=1e-3)


def studies_in(folder: Path) -> list[LabelledStudy]:
    labels = sorted((folder / "labels/final").iterdir())
    return [LabelledStudy(label.name.split(".")[0], folder / label.name, label) for label in labels]


def test_a_round_leaves_a_scored_candidate_and_serves_what_it_did(bundle_folder, tmp_path):
    studies = studies_in(write_studies(tmp_path / "studies", 4, labelled=4))
    bundle = ServedBundle(bundle_folder)
    shelf = Shelf(tmp_path / "shelf", bundle.shipped)
    before = digest(shelf.served)
    report = train_candidate(bundle, shelf, studies, Round(epochs=2, learning_rate=1e-3))
    assert digest(shelf.served) == before
    assert shelf.candidate_report() == report | {"weights": digest(shelf.candidate)}
    assert sorted(report["trained_on"] + report["held_out"]) == [s.name for s in studies]
    assert set(report["mean_dice"]) == {"candidate", "served"}
    assert report["verdict"].startswith("the candidate is ")
    assert set(report["dice"]["candidate"]) == set(report["held_out"])
    assert digest(shelf.candidate) != before
    assert not (shelf.folder / "training").exists()
    shelf.promote(digest(shelf.candidate))
    bundle.segment(studies[0].image, tmp_path / "out", shelf.served)


def test_a_label_of_another_task_is_named(bundle_folder, tmp_path):
    studies = studies_in(write_studies(tmp_path / "studies", 2, labelled=2))
    label = sitk.ReadImage(str(studies[1].label))
    sitk.WriteImage(sitk.Cast(label, sitk.sitkUInt8) * 0 + 64, str(studies[1].label))
    bundle = ServedBundle(bundle_folder)
    shelf = Shelf(tmp_path / "shelf", bundle.shipped)
    with pytest.raises(ValueError, match=f"label of {studies[1].name} has the value 64"):
        train_candidate(bundle, shelf, studies, Round(epochs=1))


def test_a_bundle_without_weights_is_trained_from_scratch(bundle_folder, tmp_path):
    studies = studies_in(write_studies(tmp_path / "studies", 2, labelled=2))
    bare = shutil.copytree(bundle_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.pt"))
    bundle = ServedBundle(bare)
    shelf = Shelf(tmp_path / "shelf", bundle.shipped)
    assert shelf.served is None
    report = train_candidate(bundle, shelf, studies, Round(epochs=1))
    assert "nothing is served yet" in report["verdict"]
    assert report["better"] is None
    shelf.promote(digest(shelf.candidate))
    assert shelf.served == shelf.model


def _train(bundle_folder: Path, studies: Path, shelf: Path, epochs: int) -> None:
    torch.set_num_threads(1)
    bundle = ServedBundle(bundle_folder)
    wanted = Round(epochs=epochs, learning_rate=1e-3)
    train_candidate(bundle, Shelf(shelf, bundle.shipped), studies_in(studies), wanted)


def test_a_killed_round_loses_nothing_and_goes_on(bundle_folder, tmp_path, caplog):
    caplog.set_level("INFO")
    studies = write_studies(tmp_path / "studies", 3, labelled=3)
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_train, args=(bundle_folder, studies, tmp_path / "shelf", 15))
    child.start()
    deadline = time.monotonic() + 100
    saved: list[Path] = []
    while time.monotonic() < deadline and not saved:
        saved = list((tmp_path / "shelf").glob("training/*/models/checkpoint_last.pt"))
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert saved
    bundle = ServedBundle(bundle_folder)
    shelf = Shelf(tmp_path / "shelf", bundle.shipped)
    assert shelf.candidate_report() is None
    bundle.segment(studies / "study_0.nii.gz", tmp_path / "out", shelf.served)
    epoch = torch.load(saved[0], weights_only=True)["epoch"]
    train_candidate(bundle, shelf, studies_in(studies), Round(epochs=15, learning_rate=1e-3))
    assert f"after epoch {epoch}" in caplog.text
    assert shelf.candidate_report()["epochs"] == 15


def test_uploads_are_looked_at(tmp_path, video):
    studies = write_studies(tmp_path / "studies", 2, labelled=2)
    image, label = studies / "study_0.nii.gz", studies / "labels/final/study_0.nii.gz"
    check_image(image)
    check_image(video)
    check_label(label, image)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"\x1f\x8b nonsense")
    fake = shutil.copy(image, tmp_path / "fake.mp4")
    for file, words in ((bad, "as a volume"), (Path(fake), "as a video")):
        with pytest.raises(ValueError, match=words):
            check_image(file)
    for file, words in (
        (studies / "labels/final/study_1.nii.gz", "voxels and its image"),
        (image, "whole number"),
        (bad, "as a volume"),
    ):
        with pytest.raises(ValueError, match=words):
            check_label(file, image)
    moved = sitk.ReadImage(str(label))
    moved.SetOrigin((0, 0, 0))
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    with pytest.raises(ValueError, match="differ in origin"):
        check_label(tmp_path / "moved.nii.gz", image)


def test_a_file_that_announces_too_much_is_refused(tmp_path):
    import nibabel

    small = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    small.header["dim"] = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    file = tmp_path / "bomb.nii"
    file.write_bytes(bytes(small.header.binaryblock) + bytes(100))
    with pytest.raises(ValueError, match="too short"):
        check_image(file)


def test_a_received_file_is_gone_unless_moved(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    with source.open("rb") as stream, received(stream, tmp_path / "tmp", ".nii") as file:
        assert file.read_bytes() == b"abc"
    assert list((tmp_path / "tmp").iterdir()) == []
    assert json.dumps(str(file)).endswith('.nii"')
