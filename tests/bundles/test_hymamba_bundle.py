"""The bundle of volumes: where it is found, and what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from monai.bundle import ConfigParser

from nnunet_plugins.bundle.command import find_bundle_root
from nnunet_plugins.bundle.export import export_bundle

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles/hymamba"
CONFIGS = BUNDLE / "configs"


def test_the_bundle_is_found_from_the_root_and_from_inside(monkeypatch, tmp_path):
    copied = shutil.copytree(BUNDLE, tmp_path / "hymamba")
    for folder, expected in ((ROOT, BUNDLE), (BUNDLE, BUNDLE), (copied, copied)):
        monkeypatch.chdir(folder)
        assert Path(find_bundle_root("hymamba")).resolve() == expected.resolve()


def test_without_weights_the_command_says_what_to_run(monkeypatch, run_bundle):
    monkeypatch.chdir(ROOT)
    said = run_bundle("bundles/hymamba/configs/inference.json", ckpt_path="models/none.pt")
    assert said.startswith("models/none.pt does not exist")
    assert "mambamed export-bundle --results" in said


def test_away_from_the_bundle_the_command_names_the_option(monkeypatch, run_bundle, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").touch()
    said = run_bundle(CONFIGS / "inference.json", ckpt_path="model.pt")
    assert "--bundle_root" in said


def corrupt(images: Path) -> None:
    file = images / "less_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:500])


def not_finite(images: Path) -> None:
    import nibabel

    volume = nibabel.load(images / "less_0000.nii.gz")
    voxels = np.array(volume.dataobj)
    voxels[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, volume.affine), images / "less_0000.nii.gz")


def second_channel(images: Path) -> None:
    shutil.copy(images / "less_0000.nii.gz", images / "less_0001.nii.gz")


def empty(images: Path) -> None:
    for file in images.iterdir():
        file.unlink()


def four_dimensional(images: Path) -> None:
    import nibabel

    voxels = np.zeros((2, 12, 12, 12), np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), images / "less_0000.nii.gz")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (corrupt, "less_0000.nii.gz cannot be read"),
        (not_finite, "less_0000.nii.gz: 1 voxels are NaN or infinite"),
        (second_channel, "comes in 2 files and this network takes 1"),
        (four_dimensional, "comes with 12 channels and this network takes 1"),
        (empty, "--dataset_dir"),
    ],
    ids=["corrupt", "not finite", "second channel", "four axes", "none"],
)
def test_images_that_cannot_be_predicted_are_named(
    make_results, images, run_bundle, tmp_path, spoil, words
):
    bundle = export_bundle(make_results(), tmp_path / "bundle")
    spoil(images)
    said = run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=images,
        output_dir=tmp_path / "out", mirror_axes=[],
    )  # fmt: skip
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "out/less.nii.gz").exists()


def test_weights_of_another_network_are_refused(make_results, images, run_bundle, tmp_path):
    bundle = export_bundle(make_results(), tmp_path / "bundle")
    other = export_bundle(make_results("HyMambaTrainer_1epochs"), tmp_path / "other")
    said = run_bundle(
        bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=images,
        output_dir=tmp_path / "out", ckpt_path=other / "models/model.pt",
    )  # fmt: skip
    assert "these weights are not of this HyMamba" in said


def test_preprocessing_takes_one_file_as_monai_label_gives_it(images, tmp_path):
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    parser["bundle_root"], parser["output_dir"] = str(BUNDLE), str(tmp_path)
    preprocess = parser.get_parsed_content("preprocessing")
    case = preprocess({"image": str(images / "whole_0000.nii.gz")})
    logits = np.zeros((3, *case["image"].shape[1:]), np.float16)
    logits[2] = 1
    *labels, _ = parser.get_parsed_content("postprocessing").transforms
    (restore,) = labels
    pred = restore({**case, "pred": logits})["pred"]
    original = sitk.ReadImage(str(images / "whole_0000.nii.gz"))
    assert tuple(pred.shape[1:]) == original.GetSize()
    assert (pred == 2).all()
    corner = np.array(original.TransformIndexToPhysicalPoint((3, 2, 1))) * [-1, -1, 1]
    assert np.allclose((pred.affine.numpy() @ [3, 2, 1, 1])[:3], corner)
