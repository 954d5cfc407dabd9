"""Files, files played as cameras, and cameras that go away and come back."""

import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from nnunet_plugins.stream.decoding import Health, decoded, rgb
from nnunet_plugins.stream.sources import (
    Camera,
    CameraGone,
    Paced,
    VideoFile,
    is_camera,
    open_source,
)
from tests.nnunet_plugins.stream.conftest import packets_of, pictures, write_clip


def test_a_file_gives_its_frames_in_order(clip):
    source = VideoFile(clip)
    arrivals = list(source)
    assert [a.number for a in arrivals] == list(range(10))
    np.testing.assert_allclose([a.time for a in arrivals], np.arange(10) / 25, atol=1e-3)
    for arrival, frame in zip(arrivals, pictures(10), strict=True):
        assert np.abs(arrival.picture.astype(int) - frame).mean() < 30  # colour is subsampled
    assert (source.fps, source.announced(), source.health) == (25, 10, Health(10))


def test_frames_at_the_beginning_can_be_left_out(clip):
    source = VideoFile(clip, skip=7)
    assert [a.number for a in source] == [7, 8, 9]
    assert source.announced() == 3


def test_a_corrupt_frame_is_skipped_and_counted(clip):
    position, size = packets_of(clip)[4]
    data = bytearray(clip.read_bytes())
    data[position + 6 : position + size] = bytes(size - 6)
    clip.write_bytes(data)
    source = VideoFile(clip)
    numbers = [a.number for a in source]
    assert source.health.corrupt == 1
    assert (len(numbers), source.health.frames) == (9, 10)


def test_a_broken_tail_ends_with_what_was_seen(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(10))
    path.write_bytes(path.read_bytes()[: packets_of(path)[6][0]])
    assert 5 <= len(list(VideoFile(path))) <= 6


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no video file; give one, a camera's number"):
        open_source(str(tmp_path / "none.mp4"))
    nonsense = tmp_path / "nonsense.mp4"
    nonsense.write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError, match=r"nonsense.mp4 cannot be decoded"):
        list(VideoFile(nonsense))


def test_a_pixel_format_without_rgb_is_refused():
    class OnAnotherDevice:
        format = SimpleNamespace(name="vaapi")

        def to_ndarray(self, format):
            raise av.error.InvalidDataError(22, "Invalid argument")

    with pytest.raises(ValueError, match="pixel format vaapi, which cannot be made RGB"):
        rgb(OnAnotherDevice())


def test_a_file_can_be_played_at_its_own_pace(clip):
    source = Paced(VideoFile(clip))
    start = time.perf_counter()
    arrivals = list(source)
    assert time.perf_counter() - start >= 9 / 25
    gaps = np.diff([a.arrived for a in arrivals])
    assert gaps.min() > 0.5 / 25


@pytest.mark.parametrize("name", ["0", "/dev/video0", "rtsp://host/stream"])
def test_cameras_are_known_by_their_names(name):
    assert is_camera(name)
    assert isinstance(open_source(name), Camera)
    assert not is_camera("folder/0.mp4")


class Unreliable:
    """Opens a file, a few times; then nothing."""

    def __init__(self, path: Path, times: int) -> None:
        self.path, self.times, self.asked = path, times, 0

    def __call__(self, name: str) -> av.container.InputContainer:
        self.asked += 1
        if self.asked > self.times:
            raise OSError(19, "No such device")
        return av.open(str(self.path))


def test_a_camera_that_comes_back_goes_on(clip):
    said, opener = [], Unreliable(clip, 3)
    camera = iter(Camera("0", opener, (0.01, 0.01), said.append))
    arrivals = [next(camera) for _ in range(30)]
    with pytest.raises(CameraGone, match=r"0 did not come back \(No such device\)"):
        next(camera)
    assert [a.number for a in arrivals] == list(range(30))
    assert opener.asked == 3 + 2
    assert said[0] == "0 is gone (it sends no more); trying again in 0.01 s"
    times = [a.time for a in arrivals]
    assert times == sorted(times)


def test_a_camera_that_is_not_there_is_refused_at_once(clip):
    opener = Unreliable(clip, 0)
    with pytest.raises(CameraGone, match="0 cannot be opened: No such device; check"):
        list(Camera("0", opener, (60.0,)))
    assert opener.asked == 1


def test_a_camera_that_is_waited_for_can_be_stopped(clip):
    camera = Camera("0", Unreliable(clip, 1), (60.0,), lambda _: camera.stop())
    assert len(list(camera)) == 10


def test_a_container_without_video_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container, pytest.raises(ValueError, match="holds no video"):
        list(decoded(container, Health()))
