"""Labels of videos in and out: prompts, CVAT's archives, exports, and what requests may choose."""

import io
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.data.clips import read_clip, write_video
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.video.choices import read_choices
from nnunet_plugins.label.video.cvat import all_frames, read_cvat, write_cvat
from nnunet_plugins.label.video.drafts import Draft, ranges
from nnunet_plugins.label.video.exports import FORMATS, Known
from nnunet_plugins.label.video.label_files import LabelFrames
from nnunet_plugins.label.video.prompts import (
    UNLABELLED,
    prompt_of_picture,
    prompt_of_volume,
)
from tests.bundles.conftest import draw_frames

NAMES = {"polyp": 1, "tool": 2}
SCHEME = LabelScheme(tuple(NAMES))
SIZE = (6, 32, 48)


@pytest.fixture
def labels():
    return draw_frames(0, SIZE[0], SIZE[1:])[1]


@pytest.fixture
def video(tmp_path):
    return SeekableVideo(write_video(tmp_path / "v.mp4", draw_frames(0, SIZE[0], SIZE[1:])[0], 10))


def saved(tmp_path, array):
    file = tmp_path / "labels.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))
    return file


def archive(tmp_path, **entries) -> object:
    file = tmp_path / "masks.zip"
    with zipfile.ZipFile(file, "w") as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return file


def png(array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_frames_of_a_prompt_are_those_that_are_labelled(tmp_path, labels):
    def frames_of(array, frames=None):
        return list(prompt_of_volume(saved(tmp_path, array), frames, SCHEME, SIZE))

    marked = labels.copy()
    marked[[1, 4]] = UNLABELLED
    marked[2] = 0
    assert frames_of(marked) == [0, 2, 3, 5]  # a frame without a class is labelled too
    drawn = np.zeros_like(labels)
    drawn[3] = labels[3]
    assert frames_of(drawn) == [3]
    assert frames_of(drawn, [0, 3]) == [0, 3]
    assert frames_of(labels[:2]) == [0, 1]  # a label may end before the video does
    found = prompt_of_volume(saved(tmp_path, drawn.astype(np.int16)), None, SCHEME, SIZE)
    assert np.array_equal(found[3], labels[3])


@pytest.mark.parametrize(
    ("change", "frames", "said"),
    [
        (lambda x: x[:, :-1], None, "have the shape"),
        (lambda x: np.concatenate([x, x]), None, "have the shape"),
        (lambda x: x + 7, [0], "holds the value"),
        (lambda x: x - 0.5, [0], "no classes"),
        (lambda x: x, [9], "frame 9"),
        (lambda x: 0 * x, None, "no frame"),
    ],
)
def test_bad_prompts_are_refused(tmp_path, labels, change, frames, said):
    file = saved(tmp_path, change(labels.astype(np.float32)))
    with pytest.raises(ValueError, match=said):
        prompt_of_volume(file, frames, SCHEME, SIZE)


def test_a_picture_is_the_mask_of_a_frame(tmp_path, labels):
    file = tmp_path / "mask.png"
    file.write_bytes(png(labels[2]))
    prompt = prompt_of_picture(file, 2, SCHEME, SIZE)
    assert np.array_equal(prompt[2], labels[2])
    file.write_bytes(png((labels[2] > 0) * np.uint8(255)))
    assert prompt_of_picture(file, 0, LabelScheme(), SIZE)[0].max() == 1
    for content, frame in ((png(labels[2][:-1]), 0), (png(labels[2]), 6), (b"no picture", 0)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"rows and columns|no frame 6|cannot be read"):
            prompt_of_picture(file, frame, SCHEME, SIZE)


def test_what_is_exported_for_cvat_comes_back(tmp_path, labels):
    labels[4] = UNLABELLED
    write_cvat(tmp_path / "out.zip", labels, NAMES)
    with zipfile.ZipFile(tmp_path / "out.zip") as made:
        listed = made.read("ImageSets/Segmentation/default.txt").decode().split()
        assert listed == [f"frame_{i:06d}" for i in (0, 1, 2, 3, 5)]
        assert "polyp:230,159,0::" in made.read("labelmap.txt").decode()
        assert "SegmentationObject/frame_000005.png" in made.namelist()
    masks = read_cvat(tmp_path / "out.zip", NAMES, SIZE)
    assert np.array_equal(np.stack(list(all_frames(masks, SIZE))), labels)


def test_colours_are_those_of_the_archive(tmp_path):
    colours = np.zeros((*SIZE[1:], 3), np.uint8)
    colours[:5], colours[5:9] = (7, 8, 9), (1, 0, 0)
    text = "# a comment\nbackground:0,0,0::\ntool:7,8,9::\npolyp:1,0,0:part:action\n"
    entries = {"labelmap.txt": text, "SegmentationClass/images/frame_000002.png": png(colours)}
    found = read_cvat(archive(tmp_path, **entries), NAMES, SIZE)
    assert list(found) == [2]
    assert [found[2][row, 0] for row in (0, 5, 9)] == [2, 1, 0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"labelmap.txt": "liver:1,1,1::\n"}, "no class of this model"),
        ({"labelmap.txt": "polyp:1,1::\n"}, "no class of this model"),
        ({"note.txt": "x"}, "no masks"),
        ({"../../frame_000001.jpg": b""}, "no masks"),
        ({"1.png": b"no picture"}, "no picture"),
        ({"1.png": png(np.zeros((4, 5), np.uint8))}, "rows and columns"),
        ({"1.png": png(np.full(SIZE[1:], 3, np.uint8))}, "values 0 to 2"),
        ({"x.png": png(np.zeros(SIZE[1:], np.uint8))}, "no frame's number"),
        ({"6.png": png(np.zeros(SIZE[1:], np.uint8))}, "no frame of this video"),
        ({"a1.png": png(np.zeros(SIZE[1:], np.uint8)), "b1.png": b""}, "no frame of this video"),
        (
            {"labelmap.txt": "polyp:1,1,1::\n", "1.png": png(np.zeros(SIZE[1:], np.uint8))},
            "does not name",
        ),
        ({f"{i}.png": b"" for i in range(7)}, "7 masks for 6"),
        ({"1.png": bytes(2**26 + 1)}, "larger than 64 MiB"),
    ],
)
def test_bad_archives_are_refused(tmp_path, entries, said):
    with pytest.raises(ValueError, match=said):
        read_cvat(archive(tmp_path, **entries), NAMES, SIZE)


def test_what_is_no_archive_is_refused(tmp_path):
    file = tmp_path / "masks.zip"
    file.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match="cannot be read"):
        read_cvat(file, NAMES, SIZE)


@pytest.mark.parametrize("known", [SIZE[0], 4])
def test_exports(tmp_path, labels, video, known):
    labels = labels[:known].copy()
    labels[1] = UNLABELLED
    frames = Known(LabelFrames(saved(tmp_path, labels)), len(video))
    files = {}
    for name, (ending, write) in FORMATS.items():
        files[name] = tmp_path / f"label{ending}"
        write(files[name], frames, video, NAMES)
    back = sitk.ReadImage(str(files["nifti"]))
    assert np.array_equal(sitk.GetArrayFromImage(back), labels)
    with zipfile.ZipFile(files["png"]) as made:
        assert len(made.namelist()) == known - 1
        picture = Image.open(io.BytesIO(made.read("frame_000002.png")))
        assert np.array_equal(np.asarray(picture), labels[2])
    drawn = read_clip(files["overlay"])
    assert (len(drawn.frames), drawn.fps) == (known, 10)
    difference = np.abs(drawn.frames.astype(int) - read_clip(video.path).frames[:known]).mean(
        (1, 2)
    )
    assert difference[1].max() < 8 < difference[0].max()  # frame 1 is unknown: only compression
    masks = all_frames(read_cvat(files["cvat"], NAMES, SIZE), labels.shape)
    assert np.array_equal(np.stack(list(masks)), labels)


def test_a_label_ends_with_its_video_and_holds_classes(tmp_path, labels):
    known = Known(LabelFrames(saved(tmp_path, labels.astype(np.int16))), 4)
    assert len(known) == 4
    assert np.array_equal(np.stack(list(known)), labels[:4])
    for wrong in (labels - 7.0, labels + 300.0, labels + 0.5, labels * np.nan):
        with pytest.raises(ValueError, match="other values than whole ones"):
            list(Known(LabelFrames(saved(tmp_path, wrong.astype(np.float32))), 6))


def test_a_draft_ends_with_its_last_frame_and_marks_gaps(tmp_path, labels):
    draft = Draft(tmp_path / "draft", "key")
    assert draft.done() == []
    draft.begin()
    with pytest.raises(ValueError, match="no frame"):
        draft.write(tmp_path / "label.nii.gz", SIZE[1:])
    for index in (0, 1, 4):
        draft.put(index, labels[index])
    draft.begin()  # of the same key: nothing goes
    draft.write(tmp_path / "label.nii.gz", SIZE[1:])
    volume = np.stack(list(LabelFrames(tmp_path / "label.nii.gz")))
    assert ranges(draft.done()) == [(0, 2), (4, 5)]
    assert len(volume) == draft.length == 5
    assert (volume[2:4] == UNLABELLED).all()
    assert np.array_equal(volume[[0, 1, 4]], labels[[0, 1, 4]])
    assert Draft(tmp_path / "draft", "other").done() == []


def test_choices():
    found = read_choices({"start": 3, "frames": [5, 0, 5], "steps": 0, "save_label": "false"})
    assert (found.start, found.end, found.frames, found.how.steps) == (3, None, (0, 5), 0)
    assert (found.prompt, found.save_label, read_choices({}).save_label) == (None, False, True)


@pytest.mark.parametrize(
    "params",
    [
        {"start": -1}, {"start": 1.5}, {"end": True}, {"end": "7"}, {"start": None},
        {"frames": []}, {"frames": 3}, {"frames": ["0"]}, {"frames": [10**9]},
        {"prompt": "../final"}, {"prompt": 1}, {"steps": 10**6}, {"steps": "40"},
        {"learning_rate": 0}, {"learning_rate": "nan"}, {"learning_rate": float("inf")},
        {"save_label": 3},
    ],
)  # fmt: skip
def test_bad_choices_are_refused(params):
    with pytest.raises(ValueError, match=r"whole number|numbers|name|tag|above 0|true or false"):
        read_choices(params)
