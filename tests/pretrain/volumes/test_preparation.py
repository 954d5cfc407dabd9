import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ZScoreNormalization,
)

from pretrain.volumes import Preparation, UnusableScan, find_scans
from pretrain.volumes.preparation import FOREGROUND_VOXELS, prepare
from pretrain.volumes.reading import read_channels, read_geometry
from tests.pretrain.volumes.phantom import blob

WINDOW = {"kind": "window", "low": -175.0, "high": 250.0}
ZSCORE = {"kind": "zscore"}
PERCENTILES = {"kind": "percentiles", "low": 0.5, "high": 99.5}
ALL = pytest.mark.parametrize("intensity", [WINDOW, PERCENTILES, ZSCORE], ids=lambda i: i["kind"])


def image(array, spacing=(1.0, 1.0, 1.0)):
    """An image of an array (d, h, w) with spacing (d, h, w)."""
    made = sitk.GetImageFromArray(np.asarray(array, np.float32))
    made.SetSpacing(spacing[::-1])
    return made


def as_stored(**options):
    return Preparation(**({"orientation": None, "spacing": None, "crop": False} | options))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_orientation_is_ras(axes, write, tmp_path):
    """Against nibabel: the same scan stored along other axes comes out the same."""
    affine = np.diag((1.0, 2.0, 3.0, 1.0))
    ras = nibabel.Nifti1Image(blob().T, affine)
    start, end = (
        nibabel.orientations.io_orientation(affine),
        nibabel.orientations.axcodes2ornt(axes),
    )
    stored = ras.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    nibabel.save(stored, tmp_path / "a.nii.gz")
    (scan,) = find_scans(tmp_path)
    preparation = as_stored(orientation="RAS", intensity=WINDOW)
    volume, _ = prepare(read_channels(scan, 1), preparation)
    want = ((blob() + 175) / 425).clip(0, 1)
    np.testing.assert_allclose(volume[0], want, atol=1e-6)
    shape, spacing = preparation.shape_of(read_geometry(scan, 1))
    assert (shape, spacing) == (blob().shape, (3.0, 2.0, 1.0))


def test_window_is_clipped_to_0_and_1():
    volume, _ = prepare([image([[[-1000, -175, 37.5, 250, 3000]] * 2] * 2)], as_stored())
    np.testing.assert_allclose(volume[0, 0, 0], [0, 0, 0.5, 1, 1])


def test_percentiles_leave_the_background_out():
    array = np.zeros((20, 20, 20))
    array[5:15, 5:15, 5:15] = np.linspace(100, 300, 1000).reshape(10, 10, 10)
    volume, _ = prepare([image(array)], as_stored(intensity=PERCENTILES))
    assert (volume.min(), volume.max()) == (0, 1)
    low, high = np.percentile(np.linspace(100, 300, 1000), (0.5, 99.5))
    np.testing.assert_allclose(volume[0, 10, 10, 10], (array[10, 10, 10] - low) / (high - low))


@pytest.mark.parametrize("border", [0, 3])
def test_zscore_is_nnunets(border):
    array = np.pad(blob().astype(np.float32) + 1, border)
    cropped, _, box = crop_to_nonzero(array[None])
    want = ZScoreNormalization(use_mask_for_norm=False, intensityproperties={}).run(cropped)
    whole, _ = prepare([image(array)], as_stored(intensity=ZSCORE))
    assert whole.shape == (1, *array.shape)
    volume, _ = prepare([image(array)], as_stored(intensity=ZSCORE, crop=True))
    assert bounding_box_to_slice(box)[0] == slice(border, border + 20)
    inner = want[0, 5:15, 6:18, 7:21]  # the bright box of `blob`: above the mean
    np.testing.assert_array_equal(volume[0], inner)


def test_standard_is_nnunets_for_ct():
    array = blob().astype(np.float32) * 3 - 500
    figures = {"percentile_00_5": -400.0, "percentile_99_5": 80.0, "mean": 20.0, "std": 35.0}
    want = CTNormalization(use_mask_for_norm=False, intensityproperties=figures).run(
        array[None].copy()
    )
    names = {"low": "percentile_00_5", "high": "percentile_99_5", "mean": "mean", "std": "std"}
    intensity = {"kind": "standard"} | {name: figures[key] for name, key in names.items()}
    volume, foreground = prepare([image(array)], as_stored(intensity=intensity))
    np.testing.assert_allclose(volume, want, rtol=1e-6)
    assert (array[tuple(foreground.T)] > -400).all()


@ALL
def test_cropping_leaves_the_box_of_the_foreground(intensity):
    volume, _ = prepare([image(blob())], as_stored(intensity=intensity, crop=True))
    assert volume.shape == (1, 10, 12, 14)


@pytest.mark.parametrize("intensity", [PERCENTILES, ZSCORE], ids=lambda i: i["kind"])
def test_noise_below_the_mean_is_no_foreground(intensity):
    array = np.random.default_rng(0).integers(1, 40, (20, 20, 20))
    array[6:12, 5:15, 4:16] += 500
    volume, foreground = prepare([image(array)], as_stored(intensity=intensity, crop=True))
    assert volume.shape == (1, 6, 10, 12)
    assert volume[(0, *foreground.T)].min() > 0


@ALL
@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_resampling_keeps_place_and_range(intensity, interpolation):
    """A ramp along every axis stays the same ramp in mm."""
    d, h, w = np.meshgrid(np.arange(12.0), np.arange(16.0), np.arange(20.0), indexing="ij")
    ramp = 3 * (d + 0.5) + 2 * (h + 0.5) + (w + 0.5)  # mm at voxel centres
    preparation = as_stored(
        spacing=(1.5, 1.0, 2.0), intensity=intensity, interpolation=interpolation
    )
    fine, _ = prepare([image(ramp)], as_stored(intensity=intensity))
    volume, _ = prepare([image(ramp, (3.0, 2.0, 1.0))], preparation)
    assert volume.shape == (1, 24, 32, 10)
    slope = (fine[0, 6, 8, 11] - fine[0, 6, 8, 10]).item()
    np.testing.assert_allclose(np.diff(volume[0, 12, 16, 3:7]), 2 * slope, rtol=1e-3)
    np.testing.assert_allclose(np.diff(volume[0, 10:14, 16, 5]), 1.5 * slope, rtol=1e-3)
    np.testing.assert_allclose(volume.mean(), fine.mean(), atol=2e-3)
    if intensity != ZSCORE:
        assert (volume.min(), volume.max()) >= (0, 0)
        assert volume.max() <= 1


@ALL
def test_foreground_voxels_are_bright_and_repeat(intensity):
    first = prepare([image(blob())], as_stored(intensity=intensity))
    second = prepare([image(blob())], as_stored(intensity=intensity))
    assert first.foreground.shape == (FOREGROUND_VOXELS, 3)
    np.testing.assert_array_equal(first.foreground, second.foreground)
    values = blob()[tuple(first.foreground.T)]
    assert values.min() >= 0
    assert len(np.unique(first.foreground, axis=0)) > 500


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii.gz"])
def test_channels_are_scaled_each_by_itself(name, write):
    two = np.stack([blob(), 5 * blob(seed=1).astype(np.int16) + 40])
    vector = name.endswith("nrrd")
    spacing = (1, 1, 1) if vector else (1, 1, 1, 1)
    path = write(name, np.moveaxis(two, 0, 3) if vector else two, spacing, vector=vector)
    (scan,) = find_scans(path)
    preparation = as_stored(intensity=ZSCORE, channels=2)
    volume, _ = prepare(read_channels(scan, 2), preparation)
    for c in range(2):
        alone, _ = prepare([image(two[c])], as_stored(intensity=ZSCORE))
        np.testing.assert_array_equal(volume[c], alone[0])
    with pytest.raises(UnusableScan, match="2 channels where 1"):
        read_channels(scan, 1)


def test_an_intensity_that_leaves_nothing_is_refused():
    for array in (blob() - 2000, np.abs(blob()) + 500):
        with pytest.raises(UnusableScan, match="leave nothing to see"):
            prepare([image(array)], as_stored(intensity=WINDOW))


@ALL
def test_plain_json_gives_it_back(intensity):
    preparation = Preparation(spacing=(5.0, 1.0, 1.0), intensity=intensity, channels=2)
    assert Preparation(**json.loads(json.dumps(preparation.plain()))) == preparation


@pytest.mark.parametrize(
    "wrong",
    [
        {"orientation": "RSA"},
        {"spacing": (1.0, 1.0)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"interpolation": "nearest"},
        {"channels": 0},
        {"intensity": {"kind": "minmax"}},
        {"intensity": {"kind": "window", "low": 0}},
        {"intensity": {"kind": "window", "low": 250, "high": -175}},
        {"intensity": {"kind": "percentiles", "low": 0, "high": 101}},
        {"intensity": {"kind": "zscore", "low": 0}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Preparation(**wrong)
