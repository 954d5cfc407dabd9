import errno
import json
import os
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pretrain.videos import Limits, describe, find_videos, first_pass, inspection
from pretrain.videos.decoding import VideoFile
from tests.pretrain.videos.generated import decoded, moving, write_frames, write_video

module = sys.modules[first_pass.__module__]


def look(tmp_path, **options):
    return first_pass(find_videos(tmp_path / "videos"), tmp_path / "cache", **options)


def only(tmp_path, **options):
    (kept,) = look(tmp_path, **options).kept
    return kept.seen


def test_a_good_video(tmp_path):
    write_video(tmp_path / "videos/a.mp4", moving(60), fps=30)
    (kept,) = look(tmp_path).kept
    assert (kept.seen.frames, kept.fps, kept.seen.size) == (60, 30.0, (48, 64))
    assert kept.seen.box == (0, 0, 48, 64)
    assert (kept.seen.segments, kept.seen.left_out) == (((0, 60),), ())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_stretches_that_show_nothing_are_left_out(kind, tmp_path):
    frames = moving(100)
    frames[10:20] = 0
    frames[30:40] = (0, 0, 180)
    frames[50:70] = frames[50]  # the first of them is new
    frames[80:85] = frames[80]  # too few to be frozen
    if kind == "file":
        write_video(tmp_path / "videos/a.mp4", frames, crf="10")
    else:
        write_frames(tmp_path / "videos/a", frames)
    seen = only(tmp_path)
    assert seen.left_out == (
        (10, 20, "dark"),
        (30, 40, "of one colour"),
        (51, 70, "equal to the one before"),
    )
    assert seen.segments == ((0, 10), (20, 30), (40, 51), (70, 100))


def test_limits_say_when(tmp_path):
    frames = moving(60)
    frames[20:26] = frames[20]
    write_frames(tmp_path / "videos/a", frames)
    assert len(only(tmp_path).segments) == 1
    assert only(tmp_path, limits=Limits(frozen=5)).segments == ((0, 21), (26, 60))


@pytest.mark.parametrize("noise", [0, 12])
def test_black_borders_are_found(noise, tmp_path):
    random = np.random.default_rng(0)
    frames = random.integers(0, noise + 1, (40, 96, 128, 3)).astype(np.uint8)
    frames[:, 16:80, 32:120] = moving(40, (64, 88))
    write_video(tmp_path / "videos/a.mp4", frames, crf="10")
    top, left, bottom, right = only(tmp_path).box
    assert abs(np.subtract((top, left, bottom, right), (16, 32, 80, 120))).max() <= 1


def test_a_truncated_video_keeps_what_comes_before(tmp_path):
    path = write_video(tmp_path / "videos/a.avi", moving(90), "mpeg4", g="10")
    data = path.read_bytes()
    begin, end = data.index(b"movi"), data.index(b"idx1")
    path.write_bytes(data[: (begin + end) // 2])
    seen = only(tmp_path)
    assert 30 < seen.frames < 60
    assert seen.segments[0][0] == 0
    assert seen.segments[-1][1] in (seen.frames - 1, seen.frames)
    assert seen.left_out[-1] == (seen.frames, 90, "announced but not there")


def test_a_video_damaged_in_the_middle_is_usable_on_both_sides(tmp_path):
    path = write_video(tmp_path / "videos/a.mp4", moving(120), g="20", bf="0", sc_threshold="0")
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)
    seen = only(tmp_path)
    assert len(seen.segments) == 2
    gap = seen.left_out[0]
    assert gap.reason == "damaged"
    assert (seen.segments[0], seen.segments[1][0]) == ((0, gap.start), gap.stop)
    assert 0 < gap.stop - gap.start <= 40
    reader = VideoFile(str(path), seen.entries)
    want = decoded(path)
    for number in (seen.segments[1][1] - 5, gap.stop, 3):
        (frame,) = reader.read([number])
        np.testing.assert_array_equal(frame, want[number])
    reader.close()


def test_an_image_that_cannot_be_read_or_has_another_size_is_left_out(tmp_path):
    folder = write_frames(tmp_path / "videos/a", moving(20))
    (folder / "frame_5.png").write_bytes(b"no image")
    Image.fromarray(moving(1, (32, 32))[0]).save(folder / "frame_9.png")
    seen = only(tmp_path)
    assert seen.segments == ((0, 5), (6, 9), (10, 20))
    assert [one.reason for one in seen.left_out] == ["damaged", "of another size than the first"]


def sound(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


BAD = {
    "empty": (lambda path: path.touch(), "the file is empty"),
    "garbage": (lambda path: path.write_bytes(b"\1" * 999), "it cannot be opened"),
    "sound": (sound, "it holds no video"),
    "black": (
        lambda path: write_video(path, np.zeros((20, 48, 64, 3), np.uint8)),
        "none of its 20 frames is usable: 20 dark",
    ),
    "still": (
        lambda path: write_video(path, np.full((20, 48, 64, 3), 90, np.uint8)),
        "none of its 20 frames is usable: 20 of one colour",
    ),
    "header-only": (
        lambda path: path.write_bytes(
            write_video(path, moving(20)).read_bytes()[: path.stat().st_size // 20]
        ),
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_video_is_left_out_with_the_reason_once_and_again(case, tmp_path):
    make, words = BAD[case]
    write_video(tmp_path / "videos/good.mp4", moving(20))
    make(tmp_path / "videos/bad.mp4")
    for _ in range(2):
        findings = look(tmp_path)
        assert len(findings.kept) == 1
        (bad,) = findings.left_out
        assert words in bad.reason
        assert str(bad).startswith(str(tmp_path / "videos/bad.mp4"))
    with pytest.raises(ValueError, match=r"1 of 2 videos cannot be used:\n.*bad\.mp4: "):
        look(tmp_path, on_bad="stop")


def test_only_bad_videos_are_refused(tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(12):
        (tmp_path / f"videos/{number}.mp4").touch()
    with pytest.raises(ValueError, match=r"12 of 12 videos cannot be used(.*\n){11}and 2 more"):
        look(tmp_path)
    with pytest.raises(ValueError, match="on_bad is 'skip'; give"):
        look(tmp_path, on_bad="skip")


def test_what_is_missing_or_may_not_be_read_is_left_out_but_not_for_ever(tmp_path, monkeypatch):
    write_video(tmp_path / "videos/a.mp4", moving(20))
    (tmp_path / "list.txt").write_text("videos/a.mp4\nvideos/b.mp4\n")
    videos = find_videos(tmp_path / "list.txt")
    findings = first_pass(videos, tmp_path / "cache")
    assert [bad.reason for bad in findings.left_out] == ["it is missing"]
    write_video(tmp_path / "videos/b.mp4", moving(20))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "inspect", refuse)
        findings = first_pass(videos, tmp_path / "cache")
    assert [bad.reason for bad in findings.left_out] == ["it cannot be read: Permission denied"]
    assert len(first_pass(videos, tmp_path / "cache").kept) == 2


def test_a_second_pass_decodes_nothing_and_a_changed_file_is_seen_anew(tmp_path, monkeypatch):
    for number in range(3):
        write_video(tmp_path / f"videos/{number}.mp4", moving(20, seed=number))
    first, opened = look(tmp_path), []
    original = inspection.open_container
    monkeypatch.setattr(
        inspection, "open_container", lambda path: opened.append(path) or original(path)
    )
    assert look(tmp_path) == first
    assert opened == []
    write_video(tmp_path / "videos/1.mp4", moving(30, seed=9))
    assert [kept.seen.frames for kept in look(tmp_path).kept] == [20, 30, 20]
    assert {os.path.basename(path) for path in opened} == {"1.mp4"}


def test_a_pass_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    for number in range(4):
        write_video(tmp_path / f"videos/{number}.mp4", moving(20, seed=number))
    original, looked = module.inspect, []

    def stopped(path, limits):
        looked.append(os.path.basename(path))
        if looked == ["0.mp4", "1.mp4", "2.mp4"]:
            raise KeyboardInterrupt
        return original(path, limits)

    monkeypatch.setattr(module, "inspect", stopped)
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, workers=1)
    before = len(looked)
    assert len(look(tmp_path, workers=1).kept) == 4
    assert "2.mp4" in looked[before:]
    assert not {"0.mp4", "1.mp4"} & set(looked[before:])


def test_a_copy_has_the_same_fingerprint_and_changed_data_another(tmp_path):
    for number in range(2):
        write_video(tmp_path / f"videos/{number}.mp4", moving(20, seed=number))
    original = look(tmp_path)
    shutil.copytree(tmp_path / "videos", tmp_path / "else/videos")
    copy = first_pass(find_videos(tmp_path / "else/videos"), tmp_path / "cache")
    assert copy.fingerprint == original.fingerprint
    assert copy.kept[0].identity != original.kept[0].identity
    assert look(tmp_path, limits=Limits(dark=9)).fingerprint != original.fingerprint
    write_video(tmp_path / "else/videos/1.mp4", moving(20, seed=9))
    changed = first_pass(find_videos(tmp_path / "else/videos"), tmp_path / "cache")
    assert changed.fingerprint != original.fingerprint


def test_the_description_repeats_the_run(tmp_path):
    write_video(tmp_path / "videos/a.mp4", moving(20))
    write_frames(tmp_path / "videos/b", moving(20))
    (tmp_path / "videos/c.mp4").touch()
    (tmp_path / "list.csv").write_text(
        "path,source,weight,fps\nvideos/a.mp4,x,2,\nvideos/b,y,1,5\nvideos/c.mp4,y,1,\n"
    )
    findings = first_pass(find_videos(tmp_path / "list.csv"), tmp_path / "cache")
    (tmp_path / "run.json").write_text(json.dumps(describe(findings)))
    plain = json.loads((tmp_path / "run.json").read_text())
    again = first_pass(find_videos(tmp_path / "run.json"), tmp_path / "cache")
    assert again.fingerprint == findings.fingerprint == plain["fingerprint"]
    assert [kept.seen for kept in again.kept] == [kept.seen for kept in findings.kept]
    assert [bad["reason"] for bad in plain["left_out"]] == ["the file is empty"]


def test_many_known_videos_are_found_again_at_once(tmp_path):
    path = write_video(tmp_path / "videos/0.mp4", moving(20))
    for number in range(1, 40):
        shutil.copy(path, tmp_path / f"videos/{number}.mp4")
    look(tmp_path)
    started = time.process_time()
    assert len(look(tmp_path).kept) == 40
    assert time.process_time() - started < 0.4  # 2,000 in 20 s of one core, at worst


def test_real_videos(shared, tmp_path):
    videos = find_videos(shared / "data/video_unlabelled")
    findings = first_pass(videos, tmp_path)
    assert len(findings.kept) == 16
    assert not findings.left_out
    by_name = {os.path.basename(kept.video.path): kept.seen for kept in findings.kept}
    assert by_name["lungUS_Reg_pat1Image_133043.mpeg"].frames == 246
    top, left, bottom, right = by_name["sinus_endoscopy_bag1_35f.mp4"].box
    assert left > 200
    assert right < 800
    assert bottom - top > 450
