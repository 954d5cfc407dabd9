import json
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.check import check_dataset
from nnunet_plugins.data import (
    Cutting,
    LabelScheme,
    Video,
    convert_images,
    convert_videos,
    dataset_folder,
    find_videos,
)
from tests.nnunet_plugins.data.conftest import draw_video, write_frames

ONE = LabelScheme(("polyp",))
SPARSE = LabelScheme(("polyp",), sparse=True)


def read(path):
    image = sitk.ReadImage(str(path))
    assert image.GetSpacing() == (1, 1, 1)
    return sitk.GetArrayFromImage(image)


def frames_of(folder, case):
    return np.stack(
        [read(folder / f"{case}_{channel:04d}.nii.gz") for channel in range(3)], axis=-1
    )


def load(path):
    return json.loads(path.read_text())


def test_a_dataset_holds_every_voxel_with_time_first(source, tmp_path, draw):
    folder = tmp_path / "Dataset501_Discs"
    records = convert_videos(find_videos(source), folder, scheme=ONE)
    for index, (case, record) in enumerate(records.items()):
        images, labels = draw.video(index, frames=5 + index)
        np.testing.assert_array_equal(frames_of(folder / "imagesTr", case), images)
        np.testing.assert_array_equal(read(folder / f"labelsTr/{case}.nii.gz"), labels)
        assert record.frames == record.labelled == tuple(f"{t + 1:04d}" for t in range(5 + index))
    description = load(folder / "dataset.json")
    assert set(description["channel_names"].values()) == {"rgb_to_0_1"}
    assert description["labels"] == {"background": 0, "polyp": 1}
    assert description["numTraining"] == 4
    assert check_dataset(folder) == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_folds_keep_patients_together(source, tmp_path):
    folder = tmp_path / "Dataset501_Discs"
    videos = find_videos(source, group_by=r"patient\d")
    convert_videos(videos, folder, scheme=ONE, cutting=Cutting(clip_length=3))
    splits = load(folder / "splits_final.json")
    records = load(folder / "videos.json")["cases"]
    assert len(splits) == 2
    for fold in splits:
        train, val = ({records[case]["group"] for case in fold[part]} for part in ("train", "val"))
        assert train.isdisjoint(val)
        assert train | val == {"patient0", "patient1"}


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("length", [None, 1, 2, 3, 8])
def test_clips_joined_are_the_strided_video(tmp_path, draw, stride, length):
    images, labels = draw.video(0, frames=8)
    path = draw.lossless(tmp_path / "source/videos/v.mkv", images, "bgr0")
    draw.frames(tmp_path / "source/masks/v", labels)
    folder = tmp_path / "Dataset501_Discs"
    cutting = Cutting(stride, length)
    records = convert_videos(find_videos(tmp_path / "source"), folder, scheme=ONE, cutting=cutting)
    joined = np.concatenate([frames_of(folder / "imagesTr", case) for case in sorted(records)])
    np.testing.assert_array_equal(joined, images[::stride])
    joined = np.concatenate([read(folder / f"labelsTr/{case}.nii.gz") for case in sorted(records)])
    np.testing.assert_array_equal(joined, labels[::stride])
    for record in records.values():
        assert (record.video, record.fps, record.stride) == ("v", 10, stride)
        assert len(record.frames) <= (length or 8)
        assert int(record.frames[0]) == record.first_frame + 1
        assert all(int(b) - int(a) == stride for a, b in pairwise(record.frames))
        assert record.source == str(path)
    assert not (folder / "splits_final.json").exists()


def test_frames_without_a_mask_are_ignored_if_asked(source, tmp_path, draw):
    for number in (1, 3, 4):
        (source / f"patient0_seq0/masks/{number:04d}.png").unlink()
    folder = tmp_path / "Dataset501_Discs"
    videos = find_videos(source)
    with pytest.raises(
        ValueError, match=r"patient0_seq0/masks has no mask for frame 0001 .*--ignore"
    ):
        convert_videos(videos, folder, scheme=ONE)
    records = convert_videos(videos, folder, scheme=SPARSE)
    labels = read(folder / "labelsTr/patient0_seq0.nii.gz")
    expected = draw.video(0, frames=5)[1]
    expected[[0, 2, 3]] = 2
    np.testing.assert_array_equal(labels, expected)
    assert load(folder / "dataset.json")["labels"] == {"background": 0, "polyp": 1, "ignore": 2}
    assert records["patient0_seq0"].labelled == ("0002", "0005")


def test_clips_without_any_label_are_left_out_and_said(source, tmp_path):
    for number in (1, 2):
        (source / f"patient0_seq0/masks/{number:04d}.png").unlink()
    folder = tmp_path / "Dataset501_Discs"
    cutting = Cutting(clip_length=2)
    records = convert_videos(find_videos(source), folder, scheme=SPARSE, cutting=cutting)
    assert "patient0_seq0_clip000" not in records
    assert not list(folder.glob("*/patient0_seq0_clip000*"))
    assert records["patient0_seq0_clip001"].notes == (
        "patient0_seq0_clip000 has no labelled frame and is left out",
    )


def test_only_kept_frames_need_masks(source, tmp_path):
    for masks in source.glob("*/masks"):
        (masks / "0002.png").unlink()
    convert_videos(find_videos(source), tmp_path / "out", scheme=ONE, cutting=Cutting(stride=2))
    assert check_dataset(tmp_path / "out") == []


def rename(masks):
    (masks / "0001.png").rename(masks / "first.png")


def add(masks):
    Image.new("L", (48, 40)).save(masks / "0099.png")


def resize(masks):
    Image.new("L", (40, 48)).save(masks / "0005.png")


def colour(masks):
    Image.new("L", (48, 40), 7).save(masks / "0005.png")


def spoil(masks):
    (masks / "0005.png").write_bytes(b"no image")


def clear(masks):
    for file in masks.iterdir():
        file.unlink()


def empty(masks):
    for file in (masks.parent / "frames").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, "patient1_seq3/masks has no mask for frame 0001"),
        (add, "1 masks in .*patient1_seq3/masks belong to no frame, as 0099.png"),
        (resize, "patient1_seq3/frames: frame 0005 has 48 x 40 pixels and its mask 40 x 48"),
        (colour, "patient1_seq3/masks/0005.png holds the value 7; masks of polyp hold 0 and 255"),
        (spoil, "patient1_seq3/masks/0005.png cannot be read"),
        (clear, "patient1_seq3/masks holds no masks"),
        (empty, "patient1_seq3/frames holds no frames"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_in_the_last_video_leaves_no_dataset(source, tmp_path, damage, message):
    damage(source / "patient1_seq3/masks")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_videos(find_videos(source), tmp_path / "raw/Dataset501_Discs", scheme=ONE)
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_broken_video_keeps_its_masks_up_to_the_break(tmp_path, draw):
    images, labels = draw.video(0, frames=30)
    noise = np.random.default_rng(0).integers(0, 255, images.shape, np.uint8)
    path = draw.lossless(tmp_path / "source/videos/v.avi", noise, "bgr0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    draw.frames(tmp_path / "source/masks/v", labels)
    folder = tmp_path / "Dataset501_Discs"
    record = convert_videos(find_videos(tmp_path / "source"), folder, scheme=ONE)["v"]
    count = len(record.frames)
    assert 10 < count < 20
    np.testing.assert_array_equal(frames_of(folder / "imagesTr", "v"), noise[:count])
    np.testing.assert_array_equal(read(folder / "labelsTr/v.nii.gz"), labels[:count])
    assert f"broke after frame {count}" in record.notes[0]
    assert record.notes[1] == f"{30 - count} masks after the break are not used"


def test_masks_may_be_a_video_of_as_many_frames(tmp_path, draw):
    images, labels = draw.video(0, classes=2)
    draw.lossless(tmp_path / "source/videos/v.mkv", images, "bgr0")
    draw.lossless(tmp_path / "source/masks/v.mkv", labels)
    scheme = LabelScheme(("upper", "lower"))
    convert_videos(find_videos(tmp_path / "source"), tmp_path / "out", scheme=scheme)
    np.testing.assert_array_equal(read(tmp_path / "out/labelsTr/v.nii.gz"), labels)
    for wrong in (labels[:-1], np.concatenate([labels, labels[:1]])):
        draw.lossless(tmp_path / "source/masks/v.mkv", wrong)
        with pytest.raises(ValueError, match=r"v\.mkv has (no mask for frame|more frames)"):
            convert_videos(find_videos(tmp_path / "source"), tmp_path / "other", scheme=scheme)


def given(source, *splits):
    videos = find_videos(source)
    return [
        Video(video.name, video.frames, None if split == "test" else video.masks, group, split)
        for video, (group, split) in zip(videos, splits, strict=True)
    ]


def test_a_given_split_is_kept(source, tmp_path, draw):
    videos = given(source, ("a", "train"), ("b", "val"), ("c", "train"), ("d", "test"))
    convert_videos(videos, tmp_path / "out", scheme=ONE)
    assert load(tmp_path / "out/splits_final.json") == [
        {"train": ["patient0_seq0", "patient1_seq2"], "val": ["patient0_seq1"]}
    ]
    assert load(tmp_path / "out/dataset.json")["numTraining"] == 3
    images = frames_of(tmp_path / "out/imagesTs", "patient1_seq3")
    np.testing.assert_array_equal(images, draw.video(3, frames=8)[0])
    assert not (tmp_path / "out/labelsTs").exists()


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_patient_in_two_given_parts_is_refused(source, tmp_path, part):
    videos = given(source, ("a", "train"), ("b", "train"), ("b", part), ("c", "train"))
    with pytest.raises(ValueError, match="b would be in more than one of train, val and test"):
        convert_videos(videos, tmp_path / "out", scheme=ONE)


def test_training_needs_videos_and_masks(source, tmp_path):
    nothing = given(source, ("a", "test"), ("b", "test"), ("c", "test"), ("d", "test"))
    with pytest.raises(ValueError, match="no video is of the split train"):
        convert_videos(nothing, tmp_path / "out", scheme=ONE)
    for file in (source / "patient0_seq1/masks").iterdir():
        file.unlink()
    (source / "patient0_seq1/masks").rmdir()
    with pytest.raises(FileNotFoundError, match="patient0_seq1/frames has no masks"):
        convert_videos(find_videos(source), tmp_path / "out", scheme=ONE)


def test_clips_of_one_video_are_split_only_if_asked(tmp_path, source):
    videos = find_videos(source)[:1]
    folder = tmp_path / "out"
    convert_videos(videos, folder, scheme=ONE, cutting=Cutting(clip_length=2), split_clips=True)
    assert [fold["val"] for fold in load(folder / "splits_final.json")] == [
        ["patient0_seq0_clip000"], ["patient0_seq0_clip001"], ["patient0_seq0_clip002"],
    ]  # fmt: skip


def test_images_alone_need_no_masks(source, tmp_path, draw):
    records = convert_images(find_videos(source / "patient0_seq0/frames"), tmp_path / "images")
    np.testing.assert_array_equal(frames_of(tmp_path / "images", "frames"), draw.video(0, 5)[0])
    assert set(records) == {"frames"}
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [
        "frames_0000.nii.gz", "frames_0001.nii.gz", "frames_0002.nii.gz", "videos.json",
    ]  # fmt: skip


def test_a_taken_number_or_folder_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(ValueError, match="nnUNet_raw is not set"):
        dataset_folder(501, "Discs", None)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = dataset_folder(7, "Discs", None)
    assert folder == tmp_path / "raw/Dataset007_Discs"
    for place in ("raw", "preprocessed"):
        taken = tmp_path / place / "Dataset007_Other"
        taken.mkdir(parents=True)
        with pytest.raises(FileExistsError, match=r"number 7 is taken by .*Dataset007_Other"):
            dataset_folder(7, "Discs", None)
        taken.rmdir()
    folder.mkdir()
    with pytest.raises(FileExistsError, match="exists; delete it"):
        convert_videos(find_videos(source), folder, scheme=ONE)
    assert folder.is_dir()


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (1000, "A"), (1, "a b"), (1, "")])
def test_numbers_and_names_that_nnunet_cannot_use_are_refused(tmp_path, number, name):
    with pytest.raises(ValueError, match="from 1 to 999"):
        dataset_folder(number, name, tmp_path)


@pytest.mark.parametrize("sizes", [(0, None), (-1, None), (1, 0)])
def test_cuttings_without_frames_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        Cutting(*sizes)


def test_nnunet_crops_neither_black_borders_nor_black_frames(tmp_path):
    images, labels = draw_video(0)
    images[:, :9], images[:, -7:], images[:2] = 0, 0, 0
    write_frames(tmp_path / "source/a/frames", images)
    write_frames(tmp_path / "source/a/masks", labels * np.uint8(255))
    folder = tmp_path / "Dataset001_Black"
    convert_videos(find_videos(tmp_path / "source"), folder, scheme=LabelScheme(("polyp",)))
    volumes = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"imagesTr/a_{c:04d}.nii.gz")))
        for c in range(3)
    ]
    nonzero = np.any(volumes, axis=0).nonzero()
    assert [(axis.min(), axis.max()) for axis in nonzero] == [(0, 5), (0, 39), (0, 47)]
    assert (np.stack(volumes, -1).astype(int) - images).max() <= 1
