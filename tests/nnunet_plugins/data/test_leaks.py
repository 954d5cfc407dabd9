import io
import json

import numpy as np
import pytest
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.data import (
    Cutting,
    LabelScheme,
    Video,
    check_leaks,
    convert_videos,
    find_videos,
)

ONE = LabelScheme(("polyp",))


@pytest.fixture
def dataset(source, tmp_path):
    folder = tmp_path / "Dataset501_Discs"
    convert_videos(find_videos(source), folder, scheme=ONE, cutting=Cutting(clip_length=4))
    return folder


def change_groups(dataset, group_of):
    content = json.loads((dataset / "videos.json").read_text())
    for case, record in content["cases"].items():
        record["group"] = group_of(case)
    (dataset / "videos.json").write_text(json.dumps(content))


def test_folds_of_ours_do_not_leak(dataset, capsys):
    assert check_leaks(dataset) == []
    assert main(["dataset", "check-leak", str(dataset)]) == 0
    assert "No patient and no picture" in capsys.readouterr().out


def test_a_patient_in_both_parts_is_listed(dataset, capsys):
    change_groups(dataset, lambda case: case[: len("patient0")])
    leaks = check_leaks(dataset, pictures=False)
    assert leaks
    assert all(leak.startswith("fold ") and " are both of patient" in leak for leak in leaks)
    assert main(["dataset", "check-leak", str(dataset), "--no-pictures"]) == 1
    assert f"{len(leaks)} leaks." in capsys.readouterr().out


def enlarge(images: np.ndarray) -> np.ndarray:
    """Four times as high and wide, nearer to the size of real frames."""
    return images.repeat(4, axis=1).repeat(4, axis=2)


def test_pictures_betray_one_video_under_two_names(tmp_path, draw):
    """Random folds over clips, and nobody wrote down that they are of one video."""
    still = [0, 1, 2, 2, 3, 4]
    for index, name in enumerate("ab"):
        images, labels = draw.video(index)
        draw.frames(tmp_path / "source" / name / "frames", enlarge(images[still]))
        draw.frames(tmp_path / "source" / name / "masks", enlarge(labels[still]))
    dataset = tmp_path / "Dataset501_Discs"
    cutting = Cutting(clip_length=3)
    convert_videos(find_videos(tmp_path / "source"), dataset, scheme=ONE, cutting=cutting)
    change_groups(dataset, lambda case: case)
    splits = tmp_path / "splits.json"
    fold = {"train": ["a_clip000", "b_clip000", "b_clip001"], "val": ["a_clip001"]}
    splits.write_text(json.dumps([fold]))
    assert check_leaks(dataset, splits=splits) == [
        "fold 0: a_clip000 and a_clip001 show the same in 1 of 9 pairs of frames, as 0003 "
        "and 0004 (correlation 1.000)"
    ]
    assert main(["dataset", "check-leak", str(splits), "--dataset", str(dataset)]) == 1


def test_a_case_in_both_parts_is_listed(dataset, tmp_path):
    cases = sorted(json.loads((dataset / "videos.json").read_text())["cases"])
    (dataset / "splits_final.json").write_text(json.dumps([{"train": cases, "val": cases[:1]}]))
    leaks = check_leaks(dataset, pictures=False)
    assert f"fold 0: {cases[0]} is in both parts" in leaks


def degrade(image: np.ndarray) -> np.ndarray:
    """Smaller, darker, strongly compressed; back in its size."""
    picture = Image.fromarray(image)
    small = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3))
    content = io.BytesIO()
    small.point(lambda value: value * 4 // 5 + 10).save(content, "JPEG", quality=40)
    return np.asarray(Image.open(content).resize(picture.size))


def test_a_worse_copy_of_a_training_frame_in_the_test_is_found(tmp_path, draw):
    for index, name in enumerate("abc"):
        images, labels = draw.video(index)
        draw.frames(tmp_path / "source" / name / "frames", enlarge(images))
        draw.frames(tmp_path / "source" / name / "masks", enlarge(labels))
    copies = np.stack([degrade(image) for image in enlarge(draw.video(1)[0][2:4])])
    draw.frames(tmp_path / "copy", copies)
    videos = find_videos(tmp_path / "source")
    videos.append(Video("copy", tmp_path / "copy", None, "somebody", "test"))
    convert_videos(videos, tmp_path / "out", scheme=ONE)
    leaks = check_leaks(tmp_path / "out")
    assert len(leaks) == 1
    assert leaks[0].startswith("test: b and copy show the same in 2 of 12 pairs")


def test_black_frames_are_alike_and_no_leak(tmp_path, draw):
    black = np.zeros((3, 24, 24, 3), np.uint8)
    for name in "ab":
        draw.frames(tmp_path / "source" / name / "frames", black)
        draw.frames(tmp_path / "source" / name / "masks", black[..., 0])
    convert_videos(find_videos(tmp_path / "source"), tmp_path / "out", scheme=ONE)
    assert check_leaks(tmp_path / "out") == []


def test_splits_that_cannot_be_checked_are_refused(dataset, tmp_path, capsys):
    splits = tmp_path / "splits.json"
    for content, message in (
        ('[{"train": ["ghost"], "val": []}]', "names ghost"),
        ('[{"train": []}]', "no list of folds"),
        ("{", "no list of folds"),
    ):
        splits.write_text(content)
        with pytest.raises(ValueError, match=message):
            check_leaks(dataset, splits=splits)
    assert main(["dataset", "check-leak", str(splits)]) == 1
    assert "give the raw dataset of these splits with --dataset" in capsys.readouterr().err
    (dataset / "splits_final.json").unlink()
    with pytest.raises(FileNotFoundError, match="nothing is split"):
        check_leaks(dataset)


def test_colonoscopies(shared, tmp_path):
    """Different sequences are no leak; parts of one sequence are, known or not."""
    source = shared / "data/video/CVC-ClinicDB"
    names = ("seq06", "seq08", "seq18")
    videos = [
        Video(name, source / name / "frames", source / name / "masks", name) for name in names
    ]
    folder = tmp_path / "Dataset501_CVC"
    convert_videos(videos, folder, scheme=ONE, cutting=Cutting(clip_length=4))
    assert check_leaks(folder) == []
    cases = sorted(json.loads((folder / "videos.json").read_text())["cases"])
    splits = [{"train": cases[0::2], "val": cases[1::2]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    known = check_leaks(folder, pictures=False)
    assert {leak.split()[-1] for leak in known} == set(names)
    change_groups(folder, lambda case: case)
    seen = check_leaks(folder)
    assert seen
    for leak in seen:
        left, right = leak.split()[2], leak.split()[4]
        assert left.split("_")[0] == right.split("_")[0]
