"""Where frames come from: a video file, a file played at its own pace, a camera.

A source is iterated over once. `fps` is known once the first frame has come; `health` is complete
when the iteration has ended.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import av
from av.container import InputContainer

from nnunet_plugins.stream.decoding import Arrival, Health, decoded

DEVICES = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's name for cameras of this machine, by `sys.platform`."""
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each attempt to reach a camera that is gone."""
TIMEOUT = 10.0
"""Seconds without data after which a camera counts as gone."""


class Source(Protocol):
    """What a stream reads from."""

    live: bool
    """Whether frames come at their own pace, waiting or not."""
    health: Health

    @property
    def fps(self) -> float | None:
        """Frames per second that it says it gives."""

    def __iter__(self) -> Iterator[Arrival]: ...

    def stop(self) -> None:
        """End a wait; called by another thread than the one that iterates."""

    def announced(self) -> int | None:
        """Frames that there should be; None if nobody knows."""


def open_source(name: str, *, live: bool = False, skip: int = 0) -> Source:
    """The source that a command line names.

    Args:
        name: Video file; or camera: a number, a device such as /dev/video0, or an address such as
            rtsp://HOST/PATH.
        live: Play a file at its own pace.
        skip: Leave out so many frames at a file's beginning.

    Raises:
        FileNotFoundError: If it is no camera and there is no such file.
    """
    if is_camera(name):
        return Camera(name)
    file = VideoFile(Path(name), skip)
    return Paced(file) if live else file


def is_camera(name: str) -> bool:
    """Whether a name is that of a camera and not of a file."""
    device = name.startswith("/dev/") and not Path(name).is_file()  # /dev/shm holds files
    return name.isdigit() or device or "://" in name


class VideoFile:
    """A video file's frames, as fast as they are asked for.

    A file that breaks off gives the frames before, and a note.

    Args:
        path: The file.
        skip: Frames to leave out at the beginning.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: While iterating: if there is no video in it, or its frames cannot be made RGB.
    """

    live = False

    def __init__(self, path: Path, skip: int = 0) -> None:
        self.path, self.skip, self.health = path, skip, Health()
        self.fps: float | None = None
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is no video file; give one, a camera's number or /dev/video0, or an "
                "address that begins with rtsp://"
            )

    def __iter__(self) -> Iterator[Arrival]:
        try:
            with av.open(str(self.path)) as container:
                self.fps = rate_of(container)
                for arrival in decoded(container, self.health):
                    if arrival.number >= self.skip:
                        yield arrival
        except av.FFmpegError as error:
            if not self.health.frames:
                raise ValueError(f"{self.path} cannot be decoded: {error.strerror}") from error
            self.health.notes.append(
                f"{self.path} broke off after frame {self.health.frames}: {error.strerror}"
            )

    def stop(self) -> None:
        """Nothing waits."""

    def announced(self) -> int | None:
        """Frames that the file says it has, less those that are left out."""
        with contextlib.suppress(av.FFmpegError), av.open(str(self.path)) as container:
            frames = sum(stream.frames for stream in container.streams.video[:1])
            return max(0, frames - self.skip) or None
        return None


class Paced:
    """A file's frames at the times at which they were taken, as a camera would give them.

    Args:
        file: What is played.
    """

    live = True

    def __init__(self, file: Source) -> None:
        self.file, self.health = file, file.health
        self._stopped = threading.Event()

    @property
    def fps(self) -> float | None:
        """That of the file."""
        return self.file.fps

    def __iter__(self) -> Iterator[Arrival]:
        start = None
        for arrival in self.file:
            now = time.perf_counter()
            start = now - arrival.time if start is None else start
            due = start + arrival.time
            if self._stopped.wait(max(0.0, due - now)):
                return
            yield replace(arrival, arrived=max(now - arrival.decoding, due))

    def stop(self) -> None:
        """Play no further."""
        self._stopped.set()

    def announced(self) -> int | None:
        """Those of the file."""
        return self.file.announced()


class CameraGone(RuntimeError):
    """A camera did not come back."""


class Camera:
    """A camera's frames. One that goes away is asked again a few times, at growing intervals.

    Args:
        name: A number, a device or an address.
        opener: Gives an open container for a name.
        waits: Seconds before each new attempt; they start again with the next frame.
        say: Takes a sentence about what happens.

    Raises:
        ValueError: While iterating: if it gives no video, or frames that cannot be made RGB.
        CameraGone: While iterating: if it cannot be reached, or not again.
    """

    live = True

    def __init__(
        self,
        name: str,
        opener: Callable[[str], InputContainer] | None = None,
        waits: Sequence[float] = WAITS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.name, self.waits = name, tuple(waits)
        self.opener, self.say = opener or open_camera, say or _to_stderr
        self.health = Health()
        self.fps: float | None = None
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Arrival]:
        start, attempt = time.perf_counter(), 0
        while not self._stopped.is_set():
            try:
                with self.opener(self.name) as container:
                    self.fps = self.fps or rate_of(container)
                    for arrival in decoded(container, self.health):
                        attempt = 0
                        yield replace(arrival, time=arrival.arrived - start)
                reason = "it sends no more"
            except (av.FFmpegError, OSError) as error:
                reason = error.strerror or str(error)
            if self._stopped.is_set():
                return
            if not self.health.frames or attempt == len(self.waits):
                raise CameraGone(self._gone(reason))
            self._wait(self.waits[attempt], reason)
            attempt += 1

    def stop(self) -> None:
        """Ask no further."""
        self._stopped.set()

    def announced(self) -> None:
        """A camera has no end."""

    def _wait(self, seconds: float, reason: str) -> None:
        note = f"{self.name} is gone ({reason})"
        self.health.notes.append(f"{note} after frame {self.health.frames}")
        self.say(f"{note}; trying again in {seconds:g} s")
        self._stopped.wait(seconds)

    def _gone(self, reason: str) -> str:
        if self.health.frames:
            return f"{self.name} did not come back ({reason}); connect it and start again"
        return f"{self.name} cannot be opened: {reason}; check that it is there and not in use"


def open_camera(name: str) -> InputContainer:
    """A camera of this machine, or one at an address, with as little buffered as possible."""
    if "://" in name:
        options = {"fflags": "nobuffer"}
        if name.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        return av.open(name, options=options, timeout=TIMEOUT)
    device = DEVICES.get(sys.platform, "v4l2")
    path = f"/dev/video{name}" if device == "v4l2" and name.isdigit() else name
    return av.open(path, format=device, timeout=TIMEOUT)


def rate_of(container: InputContainer) -> float | None:
    """Frames per second that a container says it has."""
    for stream in container.streams.video[:1]:
        rate = stream.average_rate or stream.guessed_rate
        return float(rate) if rate else None
    return None


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)
