"""Small videos of every kind, made by numpy: the pixels say which frame they are of."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (48, 64)
PIXELS = {"gif": "rgb8", "libx264": "yuv420p", "mpeg4": "yuv420p", "mpeg2video": "yuv420p"}


def moving(count, size=SIZE, seed=0, start=0) -> np.ndarray:
    """Frames (t, h, w, 3): coarse noise that moves over a bright ground, each unlike the others."""
    random = np.random.default_rng(seed)
    h, w = size
    tile = random.integers(40, 255, (h // 4, w // 4 + 16 * count, 3))
    wide = np.kron(tile, np.ones((4, 4, 1))).astype(np.uint8)
    return np.stack([wide[:, 3 * i : 3 * i + w] for i in range(start, start + count)])


def write_video(path, frames, codec="libx264", fps=25, **options) -> Path:
    """A video file; options are the encoder's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = PIXELS[codec]
        stream.codec_context.max_b_frames = int(options.get("bf", 0))
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def write_frames(folder, frames) -> Path:
    """A folder of images."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


def decoded(path) -> list[np.ndarray]:
    """All frames, read in order by PyAV alone, without damaged packets."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        for packet in container.demux(video=0):
            try:
                frames += [picture.to_ndarray(format="rgb24") for picture in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return frames


KINDS = {
    "h264-bframes.mp4": ("libx264", {"g": "70", "bf": "3", "sc_threshold": "0"}),
    "h264-opengop.mkv": ("libx264", {"g": "40", "bf": "3", "x264-params": "open-gop=1"}),
    "mpeg4.avi": ("mpeg4", {"g": "40"}),
    "mpeg4-bframes.avi": ("mpeg4", {"g": "40", "bf": "2"}),
    "mpeg2.mpeg": ("mpeg2video", {"g": "40", "bf": "2"}),
    "animated.gif": ("gif", {}),
    "h264.mov": ("libx264", {"g": "1"}),
}
"""A name of each format: its encoder and options."""
