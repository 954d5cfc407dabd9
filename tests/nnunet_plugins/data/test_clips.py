import struct
import wave

import av
import numpy as np
import pytest
from PIL import Image

from nnunet_plugins.data import FrameStream, draw_overlay, read_clip, write_overlay, write_video


@pytest.mark.parametrize(("ending", "pixels"), [("mkv", "bgr0"), ("avi", "bgr0"), ("mov", "rgb24")])
def test_a_lossless_video_is_read_as_it_was_written(tmp_path, draw, ending, pixels):
    images, _ = draw.video(0)
    clip = read_clip(draw.lossless(tmp_path / f"clip.{ending}", images, pixels))
    np.testing.assert_array_equal(clip.frames, images)
    assert clip.names == ("0001", "0002", "0003", "0004", "0005", "0006")
    assert clip.fps == 10
    assert clip.notes == ()


def test_an_animated_gif_is_read(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = [Image.new("RGB", (9, 7), colour) for colour in colours]
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=100)
    clip = read_clip(tmp_path / "clip.gif")
    assert clip.frames.shape == (3, 7, 9, 3)
    assert [tuple(frame[3, 3]) for frame in clip.frames] == colours


def test_frames_of_a_folder_come_in_natural_order(tmp_path, draw):
    images, _ = draw.video(1, frames=11)
    draw.frames(tmp_path, images, [f"frame_{i}" for i in range(11)])
    (tmp_path / "._frame_0.png").write_bytes(b"what a Mac leaves")
    (tmp_path / "notes.txt").write_text("no frame")
    clip = read_clip(tmp_path)
    np.testing.assert_array_equal(clip.frames, images)
    assert clip.names[1:3] == ("frame_1", "frame_2")
    assert clip.fps is None


def test_grey_and_transparent_frames_are_converted_and_said(tmp_path, draw):
    grey = draw.video(0)[0][..., 0]
    for index, mode in enumerate(["L", "RGBA"]):
        draw.frames(tmp_path, [np.asarray(Image.fromarray(grey[index]).convert(mode))], [mode])
    clip = read_clip(tmp_path)
    np.testing.assert_array_equal(clip.frames, np.stack([grey[:2]] * 3, axis=-1))
    assert [note.split(":")[0] for note in clip.notes] == [
        "grey frames",
        "frames with transparency",
    ]
    video = read_clip(draw.lossless(tmp_path / "clip.mkv", grey))
    np.testing.assert_array_equal(video.frames[..., 1], grey)
    assert video.notes == clip.notes[:1]
    rgba = np.stack([grey] * 3 + [np.full_like(grey, 99)], axis=-1)
    video = read_clip(draw.lossless(tmp_path / "clip.mov", rgba, "rgba"))
    np.testing.assert_array_equal(video.frames, rgba[..., :3])
    assert video.notes == clip.notes[1:]


@pytest.fixture
def encoded(tmp_path, draw):
    """An H.264 file that begins with its index, as for streaming, so that a part can be read."""
    path = write_video(tmp_path / "whole.mp4", draw.video(0, frames=40)[0], fps=20)
    streamable = tmp_path / "streamable.mp4"
    with (
        av.open(str(path)) as old,
        av.open(str(streamable), "w", options={"movflags": "faststart"}) as new,
    ):
        copy = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                new.mux(packet)
    return streamable


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_broken_video_gives_the_frames_before_the_break(encoded, tmp_path, damage):
    content = bytearray(encoded.read_bytes())
    broken = tmp_path / "broken.mp4"
    middle = len(content) * 7 // 10
    end = middle + 400 if damage == "overwritten" else len(content)
    content[middle:end] = bytes(end - middle) if damage == "overwritten" else b""
    broken.write_bytes(content)
    whole, clip = read_clip(encoded), read_clip(broken)
    assert 0 < len(clip.frames) < 40
    np.testing.assert_array_equal(clip.frames, whole.frames[: len(clip.frames)])
    assert f"broke after frame {len(clip.frames)} of 40" in clip.notes[0]
    assert f"({len(clip.frames) / 20:.2f} s)" in clip.notes[0]


def test_what_cannot_be_decoded_at_all_is_refused_with_where_it_broke(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"no video at all" * 99)
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be decoded: it broke before the first"):
        read_clip(tmp_path / "text.mp4")


def test_zero_frames_are_refused(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    (tmp_path / "empty").mkdir()
    for name in ("sound.wav", "empty"):
        with pytest.raises(ValueError, match="holds no frames"):
            read_clip(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4 does not exist"):
        read_clip(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            {"1": ("L", (8, 8)), "2": ("L", (8, 9))},
            "frame 2 has 8 x 9 pixels and those before 8 x 8",
        ),
        ({"1": ("I;16", (8, 8))}, "of type I;16"),
    ],
)
def test_frames_that_would_be_spoiled_are_refused(tmp_path, images, message):
    for name, (mode, size) in images.items():
        Image.new(mode, size).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path)


def test_pages_and_twins_are_refused(tmp_path):
    page = Image.new("L", (8, 8))
    page.save(tmp_path / "1.tif", save_all=True, append_images=[page])
    with pytest.raises(ValueError, match="several pages"):
        read_clip(tmp_path)
    for ending in ("jpg", "tif"):
        page.save(tmp_path / f"1.{ending}")
    with pytest.raises(ValueError, match="called like another frame"):
        read_clip(tmp_path)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        read_clip(tmp_path)


def test_a_video_that_asks_to_be_turned_is_turned(tmp_path, draw):
    path = write_video(tmp_path / "clip.mp4", draw.video(0)[0])
    upright = read_clip(path).frames
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 4 + 20 + 8 + 8
    height = upright.shape[1]
    content[matrix : matrix + 36] = struct.pack(
        ">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, height << 16, 0, 1 << 30
    )
    path.write_bytes(content)
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.frames, np.rot90(upright, -1, axes=(1, 2)))
    assert "turned by -90 degrees" in clip.notes[0]


def test_a_stream_can_be_read_again_and_numbers_as_asked(tmp_path, draw):
    stream = FrameStream(
        draw.lossless(tmp_path / "clip.mkv", draw.video(0)[0][..., 0]), first_number=0
    )
    assert [name for name, _ in stream][:2] == ["0000", "0001"]
    assert [name for name, _ in stream][-1] == "0005"
    assert len(stream.notes) == 1


@pytest.mark.parametrize("size", [(16, 16), (17, 19), (1, 2)])
def test_written_video_keeps_time_size_and_nearly_the_picture(tmp_path, size):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(*size, 1)
    images = np.repeat(np.stack([ramp, ramp[::-1]]), 3, axis=-1).astype(np.uint8)
    clip = read_clip(write_video(tmp_path / "clip.mp4", images, fps=30000 / 1001))
    h, w = size
    assert clip.frames.shape == (2, h + h % 2, w + w % 2, 3)
    assert clip.fps == pytest.approx(30000 / 1001)
    assert np.abs(clip.frames[:, :h, :w].astype(int) - images).mean() < 8
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_failed_write_leaves_nothing(tmp_path, draw):
    images, labels = draw.video(0)
    for frames, message in (
        ([], "no frames"),
        ([images[0], images[0][:9]], "differs from the first"),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / "clip.mp4", frames)
    with pytest.raises(ValueError, match="positive"):
        write_video(tmp_path / "clip.mp4", images, fps=-1)
    with pytest.raises(ValueError, match="zip"):
        write_overlay(tmp_path / "clip.mp4", images, labels[:-1])
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_draws_classes_and_nothing_else(draw):
    images, labels = draw.video(0, classes=2)
    for alpha in (0.0, 0.3):
        drawn = draw_overlay(images[0], labels[0], alpha=alpha)
        np.testing.assert_array_equal(drawn[labels[0] == 0], images[0][labels[0] == 0])
        contour = np.abs(drawn.astype(int) - images[0]).sum(-1) > 0
        assert contour.any()
        assert (contour[labels[0] > 0]).all() == (alpha > 0)
    colours = {tuple(drawn[labels[0] == value][0]) for value in (1, 2)}
    assert len(colours) == 2
    with pytest.raises(ValueError, match="do not fit"):
        draw_overlay(images[0], labels[0][1:])
