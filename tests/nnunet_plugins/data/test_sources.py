import json

import pytest

from nnunet_plugins.data import find_videos


def test_a_folder_for_each_video(source):
    videos = find_videos(source)
    assert [video.name for video in videos] == [f"patient{i // 2}_seq{i}" for i in range(4)]
    assert all(video.frames.name == "frames" and video.masks.name == "masks" for video in videos)
    assert len({video.group for video in videos}) == 4


def test_the_patient_is_found_in_the_name(source):
    for pattern in (r"^(patient\d+)", r"^patient\d+"):
        groups = [video.group for video in find_videos(source, group_by=pattern)]
        assert groups == ["patient0", "patient0", "patient1", "patient1"]
    with pytest.raises(ValueError, match="matches nothing in patient0_seq0"):
        find_videos(source, group_by="doctor")
    with pytest.raises(ValueError, match="no regular expression"):
        find_videos(source, group_by="(")


def test_videos_beside_masks(tmp_path, draw):
    images, labels = draw.video(0)
    for name in ("b 2", "a_1", "c"):
        draw.lossless(tmp_path / "videos" / f"{name}.mkv", images)
    draw.frames(tmp_path / "masks" / "a_1", labels)
    draw.lossless(tmp_path / "masks" / "b 2.mkv", labels)
    videos = {video.name: video for video in find_videos(tmp_path, fps=12)}
    assert list(videos) == ["a_1", "b_2", "c"]
    assert videos["a_1"].masks == tmp_path / "masks/a_1"
    assert videos["b_2"].masks == tmp_path / "masks/b 2.mkv"
    assert videos["c"].masks is None
    assert videos["c"].fps == 12


def test_names_may_be_in_any_script(tmp_path, draw):
    images, _ = draw.video(0, frames=1)
    for name in ("胃", "大腸", "größe 1", "a?b"):
        draw.lossless(tmp_path / f"{name}.mkv", images)
    assert {video.name for video in find_videos(tmp_path)} == {"胃", "大腸", "größe_1", "a_b"}


def rows():
    return [
        {
            "video": "source/patient0_seq0/frames",
            "masks": "source/patient0_seq0/masks",
            "patient": 7,
        },
        {"video": "source/patient1_seq2/frames", "split": "test", "name": "held out", "fps": 8},
    ]


def test_tables_in_json_and_csv_say_the_same(tmp_path, source):
    (tmp_path / "table.json").write_text(json.dumps(rows()))
    for separator in ",;":
        keys = ["video", "masks", "patient", "split", "name", "fps"]
        lines = [keys] + [[str(row.get(key, "")) for key in keys] for row in rows()]
        text = "\n".join(separator.join(line) for line in lines)
        (tmp_path / "table.csv").write_text(text, encoding="utf-8-sig")
        assert find_videos(tmp_path / "table.csv") == find_videos(tmp_path / "table.json")
    held_out, first = find_videos(tmp_path / "table.json")
    assert (first.name, first.group, first.split) == ("patient0_seq0", "7", "train")
    assert (held_out.name, held_out.masks, held_out.split) == ("held_out", None, "test")
    assert held_out.fps == 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"video": ""}, ValueError, "has no `video`"),
        ({"video": "elsewhere"}, FileNotFoundError, "elsewhere does not exist"),
        ({"split": "training"}, ValueError, "'training' is no split"),
        ({"fps": "fast"}, ValueError, "'fast' is no frame rate"),
        ({"mask": "masks"}, ValueError, "has mask; known are"),
        ({"name": "held out"}, ValueError, "names stand for two videos"),
    ],
)
def test_tables_that_cannot_be_understood_are_refused(tmp_path, source, change, error, message):
    first, second = rows()
    (tmp_path / "table.json").write_text(json.dumps([first | change, second]))
    with pytest.raises(error, match=message):
        find_videos(tmp_path / "table.json")


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        find_videos(tmp_path / "table.json")
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(ValueError, match="no list"):
        find_videos(tmp_path / "table.json")


def test_one_video_or_folder_of_frames_stands_for_itself(tmp_path, draw):
    images, _ = draw.video(0)
    path = draw.lossless(tmp_path / "one" / "clip.mkv", images)
    for source in (path, path.parent):
        assert [video.frames for video in find_videos(source)] == [path]
    folder = draw.frames(tmp_path / "frames of one", images)
    assert [video.name for video in find_videos(folder)] == ["frames_of_one"]


def test_nothing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no videos; give"):
        find_videos(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_videos(tmp_path / "nowhere")
