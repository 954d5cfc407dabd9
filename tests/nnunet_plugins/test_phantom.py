import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.demo import phantom


def read(path):
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image.GetSpacing()


def volumes(folder):
    return {p.relative_to(folder): read(p)[0] for p in sorted(folder.rglob("*.nii.gz"))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    parent = tmp_path_factory.mktemp("raw")
    return phantom.write_phantom_dataset(parent / "Dataset900_Phantom", cases=2, seed=3)


def test_it_is_a_raw_dataset_of_nnunet(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "CT"}
    assert content["numTraining"] == 2
    assert content["file_ending"] == ".nii.gz"
    assert list(content["labels"].values()) == [0, 1, 2, 3, 4]
    assert {str(name) for name in volumes(dataset)} == {
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
    }
    assert [path.name for path in dataset.parent.iterdir()] == [dataset.name]


@pytest.mark.parametrize("case", ["phantom_000", "phantom_001"])
def test_a_case_is_a_small_ct_with_every_class(dataset, case):
    image, spacing = read(dataset / f"imagesTr/{case}_0000.nii.gz")
    labels, label_spacing = read(dataset / f"labelsTr/{case}.nii.gz")
    assert image.dtype == np.int16
    assert image.shape == labels.shape
    assert spacing == label_spacing
    assert spacing[0] == spacing[1] < spacing[2]
    assert all(
        low <= n <= high
        for n, low, high in zip(image.shape, (22, 46, 56), (27, 54, 65), strict=True)
    )
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert abs(image[:, 0, 0].mean() + 1000) < 30  # air
    for label in (1, 2, 3, 4):
        assert 0 < np.median(image[labels == label]) < 250
    # LPS: the liver lies to the patient's right of the spleen, the aorta behind the liver
    centre = {label: np.argwhere(labels == label).mean(axis=0) for label in (1, 2, 4)}
    assert centre[1][2] < centre[4][2] < centre[2][2]
    assert centre[1][1] < centre[4][1]


def test_equal_seeds_give_equal_voxels_whatever_the_number_of_cases(dataset, tmp_path):
    again = phantom.write_phantom_dataset(tmp_path / "again", cases=3, seed=3)
    other = volumes(again)
    for name, voxels in volumes(dataset).items():
        np.testing.assert_array_equal(voxels, other[name])


def test_cases_differ(dataset):
    first, second = (read(p)[0] for p in sorted((dataset / "imagesTr").iterdir()))
    assert first.shape != second.shape or (first != second).mean() > 0.5


@pytest.mark.parametrize("cases", [2, 5, 7])
def test_folds_split_the_cases(cases):
    names = [f"case_{i}" for i in range(cases)]
    folds = phantom._splits(names)
    assert len(folds) == 5
    for fold in folds:
        assert fold["val"]
        assert sorted(fold["train"] + fold["val"]) == names
    assert {name for fold in folds for name in fold["val"]} == set(names)


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "_render", stop)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_phantom_dataset(tmp_path / "Dataset900_Phantom", cases=2)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_work_is_refused(dataset, tmp_path):
    with pytest.raises(FileExistsError, match="choose another"):
        phantom.write_phantom_dataset(dataset)
    with pytest.raises(ValueError, match="at least 2"):
        phantom.write_phantom_dataset(tmp_path / "one", cases=1)
