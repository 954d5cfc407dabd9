"""Planes, frames and colours that the page shows, without any server."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.data.clips import FrameStream, write_video
from nnunet_plugins.data.overlay import COLOURS
from nnunet_plugins.label.colours import LISTED, colour, drawn, hexadecimal
from nnunet_plugins.label.opened import Opened, stamp
from nnunet_plugins.label.page_files import FILES, FOLDER, TYPES
from nnunet_plugins.label.planes import (
    Volume,
    grey,
    read_labels,
    read_video_labels,
    read_volume,
    statistics,
    window,
)
from nnunet_plugins.label.seeking import SeekableVideo


def write_nifti(file: Path, voxels: np.ndarray, codes: str = "LPS", spacing=(1, 2, 3)) -> Path:
    """Voxels (i, j, k) whose axes increase towards the directions of three letters."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(codes):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)
    return file


def as_seen(file: Path) -> np.ndarray:
    """(z, y, x) from feet to head, front to back, right to left, as nibabel finds it."""
    canonical = nibabel.as_closest_canonical(nibabel.load(file))
    return np.asarray(canonical.dataobj)[::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SLA", "AIL"])
def test_volumes_are_turned_as_people_look_at_them(codes, tmp_path):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    file = write_nifti(tmp_path / "a.nii.gz", voxels, codes)
    volume, expected = read_volume(file), as_seen(file)
    assert np.array_equal(volume.voxels, expected)
    spacing = dict(zip(codes, (1.0, 2.0, 3.0), strict=True))
    wanted = [next(spacing[c] for c in pair if c in spacing) for pair in ("SI", "AP", "RL")]
    assert volume.spacing == pytest.approx(wanted)
    assert np.array_equal(volume.plane("axial", 1), expected[1])
    assert np.array_equal(volume.plane("coronal", 2), expected[::-1, 2])
    assert np.array_equal(volume.plane("sagittal", 3), expected[::-1, :, 3])


def test_an_oblique_volume_is_turned_to_its_nearest_axes(tmp_path):
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    angle = np.deg2rad(20)
    c, s = np.cos(angle), np.sin(angle)
    image.SetDirection((-c, s, 0, -s, -c, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    expected = sitk.GetArrayFromImage(image)[:, ::-1, ::-1]
    assert np.array_equal(read_volume(tmp_path / "a.nrrd").voxels, expected)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SLA", "AIL"])
def test_places_are_those_of_the_file(codes, tmp_path):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = sitk.ReadImage(str(write_nifti(tmp_path / "a.nii.gz", voxels, codes)))
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    image.SetDirection((turn @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    image.SetOrigin((7, -8, 9))
    sitk.WriteImage(image, str(tmp_path / "b.nrrd"))
    volume = read_volume(tmp_path / "b.nrrd")
    for z, y, x in np.ndindex(volume.voxels.shape):
        index = (volume.places.in_file @ (x, y, z, 1)).tolist()
        assert image[index] == volume.voxels[z, y, x]
        place = volume.places.in_patient @ (x, y, z, 1)
        assert place == pytest.approx(image.TransformIndexToPhysicalPoint(index))


def test_planes_that_are_not_there_are_refused():
    volume = Volume(np.zeros((2, 3, 4)), (1, 1, 1))
    for name, index in (("axial", 2), ("coronal", -1), ("oblique", 0), ("sagittal", 10**9)):
        with pytest.raises(ValueError, match="plane"):
            volume.plane(name, index)


def test_files_that_cannot_be_shown_are_refused(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 3)), np.eye(4)), tmp_path / "four.nii")
    colours = sitk.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "colours.mha"))
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)).header
    header["dim"] = [3, 1300, 1300, 1300, 1, 1, 1, 1]
    (tmp_path / "large.nii").write_bytes(bytes(header.binaryblock) + bytes(100))
    for name, words in (
        ("bad.nii.gz", "damaged"), ("four.nii", "4 axes"), ("colours.mha", "3 values"),
        ("large.nii", "too many"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_volume(tmp_path / name)


@pytest.mark.parametrize("bad", [0.5, -1, 70000])
def test_what_is_no_label_is_refused(bad, tmp_path):
    voxels = np.zeros((2, 3, 4))
    write_nifti(tmp_path / "a.nii", voxels)
    assert read_labels(tmp_path / "a.nii").voxels.dtype == np.uint8
    voxels[1, 1, 1] = bad
    for read in (read_labels, read_video_labels):
        with pytest.raises(ValueError, match="whole numbers"):
            read(write_nifti(tmp_path / "b.nii", voxels))


def test_labels_of_videos_stay_as_they_are(tmp_path):
    masks = np.random.default_rng(0).integers(0, 300, (3, 4, 5)).astype(np.uint16)
    image = sitk.GetImageFromArray(masks)
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert np.array_equal(read_video_labels(tmp_path / "a.nii.gz").voxels, masks)


def test_windows_hold_nearly_everything():
    rng = np.random.default_rng(0)
    values = rng.normal(100, 10, (20, 30, 40))
    values[0, 0, 0], values[0, 0, 1] = 1e6, np.nan
    found = window(values)
    assert 60 < found["low"] < 90 < 110 < found["high"] < 140
    assert found["most"] == 1e6
    for flat in (np.zeros((2, 2, 2)), np.full((2, 2, 2), np.nan), np.full((1, 1, 1), 7)):
        assert window(flat)["low"] < window(flat)["high"]


def test_grey_is_linear_between_the_ends():
    values = np.array([[-5, 0, 50, 100, 200, np.nan, np.inf, -np.inf]])
    assert grey(values, 0, 100).tolist() == [[0, 0, 128, 255, 255, 0, 255, 0]]
    for low, high in ((1, 1), (2, 1), (np.nan, 1), (0, np.inf)):
        with pytest.raises(ValueError, match="low must be below high"):
            grey(values, low, high)


def test_colours_are_those_of_overlays_and_differ():
    assert [colour(value) for value in range(1, 9)] == list(COLOURS)
    assert len({hexadecimal(value) for value in range(1, LISTED + 1)}) == LISTED


def test_labels_are_drawn_in_the_colours_of_their_values():
    labels = np.random.default_rng(0).integers(0, 12, (7, 9))
    picture = drawn(labels, frozenset({3}))
    for place, value in np.ndenumerate(labels):
        wanted = (0, 0, 0, 0) if value in (0, 3) else (*colour(int(value)), 255)
        assert tuple(picture[place].tolist()) == wanted


def test_statistics_count_and_find():
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[2, 1:4, 2:5] = 3
    voxels[1, 2, 3] = 3
    voxels[0, 0, 0] = 7
    found = statistics(Volume(voxels, (1, 1, 1)))
    assert found["counts"] == [
        {"value": 3, "voxels": 10, "at": [2, 2, 3]},
        {"value": 7, "voxels": 1, "at": [0, 0, 0]},
    ]
    assert found["profile"] == [
        [1, 1, 9, 0], [1, 3, 4, 3, 0], [1, 0, 3, 4, 3, 0]
    ]  # fmt: skip
    assert statistics(Volume(np.zeros((1, 2, 3), np.uint8), (1, 1, 1)))["counts"] == []


def moving(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Frames that all differ."""
    rows, columns = np.indices(size)
    return [
        np.stack([(rows * 3 + 9 * i) % 256, (columns * 3) % 256, np.full(size, 5 * i % 256)], -1)
        .astype(np.uint8)
        for i in range(count)
    ]  # fmt: skip


def write_with_keys(file: Path, frames: list[np.ndarray], codec: str, **options: str) -> Path:
    """A video with a frame to begin with every eight."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 8
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"bf": "3"}), ("a.avi", "mpeg4", {"bf": "2"}), ("a.mkv", "libx264", {})],
)
def test_any_frame_is_that_of_the_stream(name, codec, options, tmp_path):
    file = write_with_keys(tmp_path / name, moving(40), codec, **options)
    expected = [frame for _, frame in FrameStream(file)]
    video = SeekableVideo(file)
    assert len(video) == len(expected) == 40
    assert (video.height, video.width, video.fps) == (48, 64, 10)
    order = np.random.default_rng(0).permutation(40).tolist()
    for index in [39, 0, 17, 16, 17, 8, 7, *order]:
        assert np.array_equal(video.frame(index), expected[index]), index
    for index in (-1, 40):
        with pytest.raises(ValueError, match="no frame"):
            video.frame(index)


def test_a_frame_is_found_without_decoding_all_before_it(tmp_path, monkeypatch):
    file = write_with_keys(tmp_path / "a.mp4", moving(64), "libx264")
    video = SeekableVideo(file)
    count = 0

    def counted(frames):
        nonlocal count
        for frame in frames:
            count += 1
            yield frame

    plain = SeekableVideo._decoded
    monkeypatch.setattr(SeekableVideo, "_decoded", lambda self: counted(plain(self)))
    video.frame(61)
    assert count <= 8


def test_threads_share_a_video(tmp_path):
    file = write_with_keys(tmp_path / "a.mp4", moving(24), "libx264")
    expected = [frame for _, frame in FrameStream(file)]
    video, wrong = SeekableVideo(file), []

    def look(seed: int) -> None:
        for index in np.random.default_rng(seed).permutation(24).tolist():
            if not np.array_equal(video.frame(index), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        SeekableVideo(tmp_path / "bad.mp4")
    cut = write_video(tmp_path / "whole.mp4", moving(10), 10)
    (tmp_path / "cut.mp4").write_bytes(cut.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"damaged|no frames"):
        SeekableVideo(tmp_path / "cut.mp4")


class Block:
    """So many bytes of a file."""

    def __init__(self, file: Path) -> None:
        self.nbytes = int(file.read_text(encoding="utf-8"))


def counting(calls: list[str]) -> Callable[[Path], Block]:
    def read(file: Path) -> Block:
        calls.append(file.name)
        return Block(file)

    return read


def test_the_newest_files_stay_open_within_a_bound(tmp_path):
    for name, size in (("a", 40), ("b", 40), ("c", 40), ("large", 500)):
        (tmp_path / name).write_text(str(size))
    calls: list[str] = []
    read, opened = counting(calls), Opened(files=3, size=100)
    for name in "abacb":
        opened.get(tmp_path / name, read)
    assert calls == ["a", "b", "c", "b"]  # b was the oldest when c came
    opened.get(tmp_path / "large", read)
    opened.get(tmp_path / "large", read)
    assert calls == ["a", "b", "c", "b", "large"]
    few = Opened(files=1)
    calls.clear()
    for name in "abab":
        few.get(tmp_path / name, read)
    assert calls == list("abab")


def test_a_file_that_changes_is_opened_again_and_a_failure_is_not_kept(tmp_path):
    file = tmp_path / "a"
    file.write_text("x")
    calls: list[str] = []
    read, opened = counting(calls), Opened()
    with pytest.raises(ValueError, match="invalid literal"):
        opened.get(file, read)
    file.write_text("12")
    before = stamp(file)
    assert opened.get(file, read) is opened.get(file, read)
    (tmp_path / "new").write_text("13")
    os.replace(tmp_path / "new", file)
    assert stamp(file) != before
    assert opened.get(file, read).nbytes == 13
    assert len(calls) == 3


def test_many_threads_open_a_file_once(tmp_path):
    (tmp_path / "a").write_text("1")
    calls, found, opened, go = [], [], Opened(), threading.Event()

    def read(file: Path) -> Block:
        calls.append(file)
        go.wait(5)
        return Block(file)

    def look() -> None:
        found.append(opened.get(tmp_path / "a", read))

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert len(calls) == len(set(map(id, found))) == 1
    assert len(found) == 6


def test_the_page_is_whole_and_loads_nothing_from_elsewhere():
    assert sorted(FILES.values()) == sorted(file.name for file in FOLDER.iterdir())
    for file in FOLDER.iterdir():
        text = file.read_text(encoding="utf-8")
        assert file.suffix in TYPES
        assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
        for imported in re.findall(r'^import .* from "\./(.*)";', text, re.MULTILINE):
            assert (FOLDER / imported).is_file()
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address in FILES
