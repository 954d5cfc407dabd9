import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.data import (
    Cutting,
    LabelScheme,
    convert_images,
    convert_videos,
    find_videos,
    read_clip,
    write_predictions,
)


@pytest.fixture
def dataset(source, tmp_path):
    """Every second frame in clips of two; one mask is missing."""
    (source / "patient0_seq1/masks/0003.png").unlink()
    scheme = LabelScheme(("polyp",), sparse=True)
    videos = find_videos(source, fps=10)
    folder = tmp_path / "Dataset501_Discs"
    convert_videos(videos, folder, scheme=scheme, cutting=Cutting(2, 2))
    return folder


def rewrite(path, change):
    voxels = change(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


def test_masks_come_back_as_they_were(dataset, source, tmp_path):
    names = write_predictions(dataset / "labelsTr", dataset, tmp_path / "out")
    assert names == sorted(folder.name for folder in source.iterdir())
    for name in names:
        before = {file.name: file for file in (source / name / "masks").iterdir()}
        after = {file.name: file for file in (tmp_path / "out" / name / "masks").iterdir()}
        assert set(after) == {file for file in before if int(file[:4]) % 2}
        for file in after:
            np.testing.assert_array_equal(Image.open(after[file]), Image.open(before[file]))


def test_overlays_join_the_clips_at_the_speed_of_the_source(dataset, source, tmp_path):
    write_predictions(dataset / "labelsTr", dataset, tmp_path / "out")
    overlay = read_clip(tmp_path / "out/patient1_seq3/overlay.mp4")
    frames = read_clip(source / "patient1_seq3/frames").frames[::2]
    assert overlay.fps == 5
    assert overlay.frames.shape == frames.shape
    masks = [
        np.asarray(Image.open(source / f"patient1_seq3/masks/{t:04d}.png")) for t in (1, 3, 5, 7)
    ]
    change = np.abs(overlay.frames.astype(int) - frames).sum(-1)
    outside = np.stack(masks) == 0
    assert change[~outside].mean() > 4 * change[outside].mean()


def test_several_classes_and_no_overlay(tmp_path, draw):
    images, labels = draw.video(0, classes=2)
    draw.frames(tmp_path / "source/v/frames", images)
    draw.frames(tmp_path / "source/v/masks", labels)
    scheme = LabelScheme(("upper", "lower"))
    convert_videos(find_videos(tmp_path / "source"), tmp_path / "data", scheme=scheme)
    shutil.rmtree(tmp_path / "data/imagesTr")
    write_predictions(
        tmp_path / "data/labelsTr", tmp_path / "data", tmp_path / "out", overlay=False
    )
    files = sorted((tmp_path / "out/v/masks").iterdir())
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(f)) for f in files]), labels)
    assert [file.name for file in (tmp_path / "out/v").iterdir()] == ["masks"]


def test_predicted_images_that_were_never_in_the_dataset(dataset, tmp_path, draw):
    images, labels = draw.video(9)
    path = draw.lossless(tmp_path / "new.mkv", images, "bgr0")
    convert_images(find_videos(path), tmp_path / "images")
    (tmp_path / "predictions").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "predictions/new.nii.gz"))
    with pytest.raises(ValueError, match=r"new\.nii\.gz belongs to no video .*--images"):
        write_predictions(tmp_path / "predictions", dataset, tmp_path / "out")
    write_predictions(
        tmp_path / "predictions", dataset, tmp_path / "out", images=tmp_path / "images", fps=3
    )
    masks = read_clip(tmp_path / "out/new/masks")
    np.testing.assert_array_equal(masks.frames[..., 0], labels * 255)
    assert masks.names == tuple(f"{t:04d}" for t in range(1, 7))
    assert read_clip(tmp_path / "out/new/overlay.mp4").fps == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels[:-1], r"has shape \(1, 40, 48\) and its clip \(2, 40, 48\)"),
        (lambda labels: labels[:, :, 1:], r"has shape \(2, 40, 47\)"),
        (lambda labels: labels + np.uint8(5), "the dataset has labels 0 to 2"),
    ],
)
def test_predictions_that_do_not_fit_leave_nothing(dataset, tmp_path, change, message):
    rewrite(dataset / "labelsTr/patient1_seq3_clip001.nii.gz", change)
    with pytest.raises(ValueError, match=message):
        write_predictions(dataset / "labelsTr", dataset, tmp_path / "new/out")
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_missing_is_named(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no predictions"):
        write_predictions(tmp_path / "nowhere", dataset, tmp_path / "out")
    (dataset / "imagesTr/patient0_seq0_clip000_0002.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="the overlay needs the dataset's images"):
        write_predictions(dataset / "labelsTr", dataset, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists"):
        write_predictions(dataset / "labelsTr", dataset, tmp_path / "out")
    (dataset / "videos.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no videos\.json"):
        write_predictions(dataset / "labelsTr", dataset, tmp_path / "other")


def test_the_side_file_is_plain(dataset):
    content = json.loads((dataset / "videos.json").read_text())
    assert content["clip_length"] == 2
    assert content["cases"]["patient0_seq1_clip001"] == {
        "video": "patient0_seq1",
        "group": "patient0_seq1",
        "split": "train",
        "source": content["cases"]["patient0_seq1_clip001"]["source"],
        "fps": 10,
        "stride": 2,
        "first_frame": 4,
        "frames": ["0005"],
        "labelled": ["0005"],
        "size": [40, 48],
        "notes": [],
    }
