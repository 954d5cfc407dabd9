"""From an open container to RGB frames; what cannot be decoded is skipped and counted."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
from av.container import InputContainer

from nnunet_plugins.data.clips import Frame


@dataclass(frozen=True)
class Arrival:
    """A frame and when it came."""

    picture: Frame
    """(h, w, 3) uint8 RGB."""
    number: int
    """How many frames came before it, those that were skipped or dropped included."""
    time: float
    """Seconds since the stream began, by the stream's clock."""
    arrived: float
    """`time.perf_counter()` when its data came, before they were decoded."""
    decoding: float
    """Seconds that decoding took."""


@dataclass
class Health:
    """What happened to a source so far."""

    frames: int = 0
    """Frames that came, those that could not be decoded included."""
    corrupt: int = 0
    """Of these, frames that could not be decoded and were skipped."""
    notes: list[str] = field(default_factory=list)
    """What was lost, a sentence each."""


def decoded(container: InputContainer, health: Health) -> Iterator[Arrival]:
    """Frames of a container's first video stream, until it ends.

    Raises:
        av.FFmpegError: If the container cannot be read further.
        ValueError: If there is no video in it, or its frames cannot be made RGB.
    """
    if not container.streams.video:
        raise ValueError(f"{container.name} holds no video; give one with frames")
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}
    seconds_per_frame = float(1 / (stream.average_rate or 25))
    for packet in container.demux(stream):
        arrived = time.perf_counter()
        try:
            pictures = packet.decode()
        except av.FFmpegError:
            health.frames += 1
            health.corrupt += 1
            continue
        for picture in pictures:
            number = health.frames
            health.frames += 1
            if picture.is_corrupt:
                health.corrupt += 1
                continue
            seconds = number * seconds_per_frame if picture.time is None else picture.time
            pixels = rgb(picture)
            yield Arrival(pixels, number, seconds, arrived, time.perf_counter() - arrived)


def rgb(picture: av.VideoFrame) -> Frame:
    """A decoded picture as (h, w, 3) uint8, turned as its stream asks players to.

    Raises:
        ValueError: If it cannot be converted.
    """
    try:
        pixels = picture.to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(
            f"frames have the pixel format {picture.format.name}, which cannot be made RGB; "
            "convert the video, for example with ffmpeg -pix_fmt yuv420p"
        ) from error
    return np.ascontiguousarray(np.rot90(pixels, round(picture.rotation / 90)))
