"""The first pass over all videos: what can be learned from, what is left out and why."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.entries import publish
from pretrain.fingerprints import content_of, digest, identity_of
from pretrain.looking import LeftOut, OnBad, look_through
from pretrain.videos.inspection import Inspection, Limits, UnusableVideo, inspect
from pretrain.videos.sources import Video

FORMAT = 1
"""Raised when what is stored of a video changes."""
FOUND = "found.json"


@dataclass(frozen=True)
class Kept:
    """A video that is used.

    Args:
        video: Where it is.
        identity: Digest of its files' paths, sizes and times of change: the key of the cache.
        content: Digest of their sizes, beginnings and ends: the same for a copy elsewhere.
        seen: Frames, size, borders and usable stretches.
    """

    video: Video
    identity: str
    content: str
    seen: Inspection

    @property
    def fps(self) -> float | None:
        """Frames a second: the manifest's, else the file's."""
        return self.video.fps or self.seen.fps


@dataclass(frozen=True)
class Findings:
    """What the first pass found, in the order of the videos."""

    kept: tuple[Kept, ...]
    left_out: tuple[LeftOut[Video], ...]
    limits: Limits

    @property
    def fingerprint(self) -> str:
        """Digest of what is learned from: a copy of the data has the same, changed data has not.

        It covers the order, names below the common folder, content (`Kept.content`), sources,
        weights and rates of the videos kept, and the limits.
        """
        top = os.path.commonpath([os.path.dirname(kept.video.path) for kept in self.kept])
        videos = [
            [
                os.path.relpath(kept.video.path, top),
                kept.content,
                kept.video.source,
                kept.video.weight,
                kept.fps,
            ]
            for kept in self.kept
        ]
        return digest([videos, self.limits.plain()])


def first_pass(
    videos: list[Video],
    cache: Path | str,
    *,
    limits: Limits | None = None,
    on_bad: OnBad = "leave_out",
    workers: int = 4,
) -> Findings:
    """Decode every video once, with a progress bar, and remember what was seen.

    What is seen of a video is stored as soon as it is complete: a pass that was stopped goes on
    where it was, and the next one is done at once. Files that changed are looked at again.

    Args:
        videos: What `find_videos` gave.
        cache: Folder for what is seen; runs may share it.
        limits: When frames are left out.
        on_bad: "leave_out" bad videos, or "stop" and name them.
        workers: Threads. Each holds a few frames of one video in memory.

    Raises:
        ValueError: If no video can be used, or one cannot and `on_bad` is "stop".
        OSError: If the cache cannot be written.
    """
    limits = limits or Limits()
    look = partial(_look, limits=limits, cache=Path(cache))
    kept, left_out = look_through(
        videos, look, kind="video", title="Checking videos", on_bad=on_bad, workers=workers
    )
    return Findings(kept, left_out, limits)


def describe(findings: Findings) -> dict[str, Any]:
    """The findings as plain JSON, for the run's folder; `find_videos` reads it as a manifest."""
    return {
        "fingerprint": findings.fingerprint,
        "limits": findings.limits.plain(),
        "videos": [
            {
                "path": kept.video.path,
                "source": kept.video.source,
                "weight": kept.video.weight,
                "fps": kept.fps,
                "frames": kept.seen.frames,
                "size": list(kept.seen.size),
                "box": list(kept.seen.box),
                "usable": [list(segment) for segment in kept.seen.segments],
                "left_out": [list(stretch) for stretch in kept.seen.left_out],
                "identity": kept.identity,
                "content": kept.content,
            }
            for kept in findings.kept
        ],
        "left_out": [
            {"path": bad.source.path, "source": bad.source.source, "reason": bad.reason}
            for bad in findings.left_out
        ],
    }


def _look(video: Video, limits: Limits, cache: Path) -> Kept | LeftOut[Video]:
    """What is stored of a video, stored now if it was not."""
    try:
        files = video.files
        identity = identity_of(files)
        key = digest([FORMAT, identity, limits.plain()])
        record = cache / "first_pass" / key[:2] / key / FOUND
        if not record.exists():
            text = json.dumps(_see(video, files, limits))
            publish(record.parent, {FOUND: lambda file: _write(file, text)})
        found = json.loads(record.read_text())
    except FileNotFoundError:
        return LeftOut(video, "it is missing")
    except PermissionError as error:
        return LeftOut(video, f"it cannot be read: {error.strerror}")
    if "reason" in found:
        return LeftOut(video, found["reason"])
    return Kept(video, identity, found["content"], Inspection.from_plain(found["seen"]))


def _see(video: Video, files: tuple[str, ...], limits: Limits) -> dict[str, Any]:
    """Plain JSON of what is seen, or of the reason why nothing is."""
    try:
        return {"content": content_of(files), "seen": inspect(video.path, limits).plain()}
    except UnusableVideo as error:
        return {"path": video.path, "reason": str(error)}


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
