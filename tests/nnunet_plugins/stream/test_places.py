"""Where a stream writes: nothing is written over, and what cannot be written is said at once."""

import json
import os
from pathlib import Path

import pytest

from nnunet_plugins.stream import command
from nnunet_plugins.stream.places import check_places
from tests.nnunet_plugins.stream.conftest import frames_of
from tests.nnunet_plugins.stream.test_command import stream


@pytest.mark.parametrize("option", ["out", "json", "save_state"])
@pytest.mark.parametrize("by", ["its name", "a link", "a hard link"])
def test_the_video_that_is_read_is_never_written_over(clip, bundle, capsys, option, by):
    before = clip.read_bytes()
    other = clip if by == "its name" else clip.with_name("other.mp4")
    if by == "a link":
        other.symlink_to(clip)
    if by == "a hard link":
        os.link(clip, other)
    assert stream(clip, bundle, **{option: other}) == 1
    assert "would replace the video that is read; name another file" in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_two_outputs_need_two_files(tmp_path):
    file = tmp_path / "file"
    with pytest.raises(ValueError, match=r"--json .*file would replace what --out writes"):
        check_places({"--out": file, "--json": tmp_path / "." / "file"}, {})
    check_places({"--out": file, "--json": None, "--save-state": tmp_path / "state"}, {})
    assert list(tmp_path.iterdir()) == []


def in_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "name.mp4"


def a_folder(folder: Path) -> Path:
    (folder / "name.mp4").mkdir()
    return folder / "name.mp4"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("option", ["out", "json", "save_state"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (in_a_file, "nothing can be written to"),
        (a_folder, "is a folder; name a file"),
        (lambda folder: Path("/proc/name.mp4"), "nothing can be written to /proc"),
    ],
)
def test_places_are_tried_before_the_first_frame(
    clip, bundle, tmp_path, capsys, monkeypatch, option, make, words
):
    monkeypatch.setattr(command, "StreamBundle", None)  # which is not come to
    assert stream(clip, bundle, **{option: make(tmp_path)}) == 1
    error = capsys.readouterr().err
    assert words in error
    assert f"--{option.replace('_', '-')}" in error
    assert len(error.strip().splitlines()) == 1


def test_folders_are_made_and_names_may_be_in_any_script(clip, bundle, tmp_path):
    video = clip.rename(clip.with_name("vidéo 内視鏡 1.mp4"))
    out, report = tmp_path / "ü 1" / "größe.mp4", tmp_path / "a" / "b" / "報告.json"
    state = tmp_path / "c" / "state"
    assert stream(video, bundle, out=out, json=report, save_state=state) == 0
    assert len(frames_of(out)) == 10
    assert json.loads(report.read_text(encoding="utf-8"))["source"] == str(video)
    assert state.is_file()


def test_what_fails_at_the_end_leaves_the_rest(clip, bundle, tmp_path, monkeypatch, capsys):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.StreamingSession, "save", full)
    monkeypatch.setattr(command.GrowingVideo, "close", full)
    report = tmp_path / "report.json"
    options = {"json": report, "save_state": tmp_path / "state", "out": tmp_path / "out.mp4"}
    assert stream(clip, bundle, **options) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert json.loads(report.read_text())["frames"] == 10


def test_a_full_disk_is_named_with_the_file(clip, bundle, tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    out = tmp_path / "overlay.mp4"
    out.symlink_to("/dev/full")
    assert stream(clip, bundle, out=out) == 1
    error = capsys.readouterr().err
    assert f"{out} cannot be written" in error
    assert "No space left on device" in error


def test_masks_do_not_mix_with_those_of_another_run(clip, bundle, tmp_path, capsys):
    masks = tmp_path / "masks"
    assert stream(clip, bundle, masks=masks, max_frames=2) == 0
    before = {file.name: file.read_bytes() for file in masks.iterdir()}
    assert stream(clip, bundle, masks=masks) == 1
    assert "holds 2 masks already" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in masks.iterdir()} == before
