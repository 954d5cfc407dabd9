"""Logits of a piece of a video that equal those of the whole, whatever it is cut into.

Networks of windows get the frames around the piece that their windows over it cover. Networks that
remember go on from what the frames before have left, which is kept in files.

Shapes: c channels, k classes, h w frame.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_plugins.bundle.inferer import VideoInferer, members_of
from nnunet_plugins.bundle.stream_inferer import StreamInferer
from nnunet_plugins.streaming import StreamingSession
from nnunet_plugins.video_windows import window_step

BATCH = 8
"""Frames of windowed networks that come together."""
KEPT = 4
"""Memories of a video that are kept, the newest."""
ReadFrame = Callable[[int], Tensor]
"""A frame as the network takes it, (c, h, w), by its number from 0."""


@dataclass(frozen=True)
class Piece:
    """Frames from `start` to before `end`, of a video of `total`."""

    start: int
    end: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= self.total:
            raise ValueError(
                f"frames {self.start} to before {self.end} are no piece of a video of "
                f"{self.total}; start is from 0 on and end at most {self.total}"
            )

    def __len__(self) -> int:
        return self.end - self.start


def windowed(
    inferer: VideoInferer, network: nn.Module, read: ReadFrame, piece: Piece
) -> Iterator[list[Tensor]]:
    """Logits (k, h, w) of the piece's frames, some at a time."""
    first, last = covered(piece, inferer.length, inferer.overlap)
    logits = iter(inferer.stream(map(read, range(first, last)), network))
    wanted = islice(logits, piece.start - first, piece.end - first)
    while batch := list(islice(wanted, BATCH)):
        yield batch


def covered(piece: Piece, length: int, overlap: float) -> tuple[int, int]:
    """First frame, and the one after the last, of all windows that see the piece.

    Windows stand where they do in the whole video, the last one at its end.
    """
    if piece.total <= length:
        return 0, piece.total
    step = window_step(length, overlap)
    last_whole = (piece.total - length) // step * step
    first = min(max(0, (piece.start - length) // step + 1) * step, last_whole)
    if piece.end > piece.total - length:
        return first, piece.total
    return first, (piece.end - 1) // step * step + length


class Remembering:
    """A network that remembers, in the middle of a video.

    Args:
        inferer: Its views and how many frames it takes at once.
        network: The one that answers; only its decoder may differ from the served one.
        served: The one in whose name the memory is kept.
        origin: The frame at which nothing was remembered.
    """

    def __init__(
        self, inferer: StreamInferer, network: nn.Module, served: nn.Module, origin: int
    ) -> None:
        self.inferer, self.origin = inferer, origin
        self.sessions = [StreamingSession(member) for member in members_of(network)]
        self.served = members_of(served)

    @property
    def next(self) -> int:
        """The frame that comes next."""
        return self.origin + self.sessions[0].index

    def step(self, read: ReadFrame, piece: Piece) -> list[Tensor]:
        """Logits (k, h, w) of the frames that come next, those outside the piece left out.

        Steps begin and end where they do in the whole video, so that rounding is the same too.
        """
        first, last = self.next, min(self.next + self.inferer.chunk, piece.total)
        clip = torch.stack([read(i) for i in range(first, last)], dim=1)
        logits = list(self.inferer._step(clip, self.sessions))
        return logits[max(0, piece.start - first) : piece.end - first]

    def save(self, folder: Path) -> None:
        """Keep what is remembered, whole or not at all; the oldest memories of the folder go."""
        name = f"memory_{self.origin:08d}_{self.next:08d}"
        partial = folder / f".{name}.{os.getpid()}.partial"
        for left in folder.glob(".memory_*.partial"):  # of a server that was killed
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        for number, file in self._files(partial):
            self._as_served(number, lambda session, file=file: session.save(file))
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
        for old in sorted(memories(folder), key=lambda m: m.stat().st_mtime_ns)[:-KEPT]:
            shutil.rmtree(old)

    def load(self, memory: Path) -> None:
        """Go on from what was kept.

        Raises:
            ValueError: If it is of other weights or sizes, or damaged.
        """
        for number, file in self._files(memory):
            self._as_served(number, lambda session, file=file: session.load(file))

    def _files(self, folder: Path) -> list[tuple[int, Path]]:
        return [(i, folder / f"member_{i}.safetensors") for i in range(len(self.sessions))]

    def _as_served(self, number: int, act: Callable[[StreamingSession], None]) -> None:
        """Files name the weights of the served network, whose encoder is the same."""
        session = self.sessions[number]
        own, session.model = session.model, self.served[number]
        try:
            act(session)
        finally:
            session.model = own


def remembering(
    inferer: StreamInferer, network: nn.Module, served: nn.Module, start: int, folder: Path
) -> Remembering:
    """A network that goes on at a frame from the longest memory of those before it.

    It stands at most a step before the frame. Without a memory it begins at the frame, or at the
    video's if that is nearer than a step. A memory that cannot be used is removed.
    """
    if start < inferer.chunk:
        return Remembering(inferer, network, served, 0)
    for memory in sorted(memories(folder), key=_origin):
        if _next(memory) != _step_before(start, _origin(memory), inferer.chunk):
            continue
        found = Remembering(inferer, network, served, _origin(memory))
        try:
            found.load(memory)
            return found
        except (ValueError, OSError):
            shutil.rmtree(memory, ignore_errors=True)
    return Remembering(inferer, network, served, start)


def memories(folder: Path) -> list[Path]:
    """What is kept of a video."""
    name = re.compile(r"memory_\d{8}_\d{8}")
    return [f for f in folder.iterdir() if name.fullmatch(f.name)] if folder.is_dir() else []


def continue_at(folder: Path, done: int, chunk: int) -> int:
    """The last frame, at most `done`, at which all frames of the video before are remembered."""
    reached = {_next(m) for m in memories(folder) if _origin(m) == 0} | {0}
    if _step_before(done, 0, chunk) in reached:
        return done
    return max(frame for frame in reached if frame <= done)


def _step_before(frame: int, origin: int, chunk: int) -> int:
    """Where the step begins that a frame is in."""
    return origin + (frame - origin) // chunk * chunk


def _origin(memory: Path) -> int:
    return int(memory.name.split("_")[1])


def _next(memory: Path) -> int:
    return int(memory.name.split("_")[2])
