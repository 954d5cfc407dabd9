import av
import numpy as np
import pytest

from pretrain.videos import decoding
from pretrain.videos.decoding import FrameFolder, VideoFile
from pretrain.videos.inspection import Limits, inspect
from tests.pretrain.videos.generated import KINDS, decoded, moving, write_frames, write_video

COUNT = 150
SEEKABLE = set(KINDS) - {"animated.gif"}


@pytest.fixture(scope="module", params=KINDS)
def file(request, tmp_path_factory):
    codec, options = KINDS[request.param]
    path = tmp_path_factory.mktemp("videos") / request.param
    return write_video(path, moving(COUNT), codec, **options)


def test_every_frame_reached_from_anywhere_is_the_frame(file):
    """Against a decoding from the first frame to the last."""
    want, seen = decoded(file), inspect(str(file), Limits())
    assert len(want) == seen.frames >= COUNT - 1
    assert len(np.unique([frame.tobytes() for frame in want])) == len(want)
    reader = VideoFile(str(file), seen.entries)
    for number in np.random.default_rng(0).permutation(len(want)):
        (frame,) = reader.read([int(number)])
        np.testing.assert_array_equal(frame, want[number])
    reader.close()


def test_frames_at_a_stride_in_a_file_just_opened(file):
    want, seen = decoded(file), inspect(str(file), Limits())
    for start in (0, 39, 77, 111):
        reader = VideoFile(str(file), seen.entries)
        numbers = [start, start, *range(start + 3, start + 38, 7)]
        for number, frame in zip(numbers, reader.read(numbers), strict=True):
            np.testing.assert_array_equal(frame, want[number])
        reader.close()


def test_seeking_spares_decoding(file, monkeypatch):
    seen, count = inspect(str(file), Limits()), 0
    if file.name not in SEEKABLE:
        assert seen.entries == ()
        return
    assert [entry.number for entry in seen.entries]
    original = decoding.pictures

    def counted(container, stream):
        nonlocal count
        for picture in original(container, stream):
            count += 1
            yield picture

    monkeypatch.setattr(decoding, "pictures", counted)
    reader = VideoFile(str(file), seen.entries)
    last = seen.entries[-1].number
    list(reader.read([last + 5]))
    reader.close()
    assert count < 20 < last


def test_a_seek_that_leads_elsewhere_is_noticed(file):
    want, seen = decoded(file), inspect(str(file), Limits())
    wrong = tuple(entry._replace(time=entry.time + 1) for entry in seen.entries)
    reader = VideoFile(str(file), wrong)
    (frame,) = reader.read([120])
    np.testing.assert_array_equal(frame, want[120])
    reader.close()


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(30))
    reader = VideoFile(str(path))
    with pytest.raises(RuntimeError, match=r"a\.mp4: frame 30 is not there any more"):
        list(reader.read([30]))


def test_a_folder_of_images_in_natural_order(tmp_path):
    frames = moving(12)
    reader = FrameFolder(str(write_frames(tmp_path / "a", frames)))
    np.testing.assert_array_equal(list(reader.read([2, 10, 11])), frames[[2, 10, 11]])


def test_a_turned_video_stands_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(20))
    turned = tmp_path / "turned.mp4"
    with av.open(str(path)) as source, av.open(str(turned), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    data = bytearray(turned.read_bytes())
    at = data.index(b"tkhd") + 44  # the matrix of the track: 16.16 numbers a b u c d v
    data[at : at + 20] = b"".join(
        n.to_bytes(4, "big", signed=True) for n in (0, 65536, 0, -65536, 0)
    )
    turned.write_bytes(data)
    seen = inspect(str(turned), Limits())
    assert seen.size == (64, 48)
    reader = VideoFile(str(turned), seen.entries)
    (frame,) = reader.read([7])
    np.testing.assert_array_equal(np.rot90(frame, 1), decoded(path)[7])
    reader.close()
