import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK

from nnunet_plugins.check import check_dataset, check_images
from nnunet_plugins.cli import main


@pytest.fixture
def dataset(nnunet, tmp_path):
    return shutil.copytree(nnunet.raw, tmp_path / nnunet.raw.name)


def spoil(dataset, name, change):
    """Rewrite a file with nibabel, which keeps NaN, where ITK writes and reads zeros."""
    path = dataset / name
    volume = nibabel.load(path)
    array = change(np.array(volume.dataobj))
    nibabel.save(nibabel.Nifti1Image(array, volume.affine), path)


def test_a_sound_dataset_has_no_problems(dataset):
    assert check_dataset(dataset) == []


def test_each_kind_of_damage_is_named_with_its_case(dataset, capsys):
    def put(value):
        def change(array):
            array[0, 0, :3] = value
            return array

        return change

    spoil(dataset, "imagesTr/case_0_0000.nii.gz", put(np.nan))
    spoil(dataset, "imagesTr/case_1_0000.nii.gz", put(np.inf))
    broken = dataset / "imagesTr/case_2_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    spoil(dataset, "labelsTr/case_3.nii.gz", put(9))
    spoil(dataset, "labelsTr/case_4.nii.gz", lambda array: array[..., 1:])
    problems = check_dataset(dataset)
    for case, words in (
        ("case_0", "3 voxels are NaN or infinite"),
        ("case_1", "3 voxels are NaN or infinite"),
        ("case_2", "cannot be read"),
        ("case_3", "the label holds [9.0]"),
        ("case_4", "the label (15, 20, 24)"),
    ):
        assert [p for p in problems if p.startswith(case) and words in p], (case, problems)
    assert len(problems) == 5
    assert main(["check", str(dataset)]) == 1
    assert "5 problems" in capsys.readouterr().out


def test_a_missing_channel_is_named(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    description["channel_names"]["1"] = "T2"
    (dataset / "dataset.json").write_text(json.dumps(description))
    assert check_dataset(dataset)[0] == (
        "case_0: 1 image files where dataset.json names 2 channels"
    )


def test_a_folder_without_dataset_is_refused_in_one_line(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 1
    assert "holds no files; give a raw dataset" in capsys.readouterr().err


def test_images_to_predict_are_checked_too(dataset, capsys):
    images = dataset / "imagesTr"
    assert main(["check", str(images)]) == 0
    (images / "case_2_0000.nii.gz").write_bytes(b"no image")
    assert main(["check", str(images)]) == 1
    assert "case_2_0000.nii.gz cannot be read" in capsys.readouterr().out


def test_formats_other_than_nifti_are_read_too(tmp_path):
    for name, value in (("sound", 1.0), ("spoiled", np.nan)):
        array = np.full((4, 5, 6), value, np.float32)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"{name}.mha"))
    assert check_images(tmp_path) == ["spoiled.mha: 120 voxels are NaN or infinite"]


def test_a_description_for_another_framework_is_refused(dataset, capsys):
    (dataset / "dataset.json").write_text('{"modality": {"0": "CT"}, "labels": {}}')
    assert main(["check", str(dataset)]) == 1
    assert "lacks channel_names, file_ending" in capsys.readouterr().err
