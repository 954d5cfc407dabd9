"""The first pass over all scans: what can be learned from, what is left out and why."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pretrain.fingerprints import content_of, digest, identity_of
from pretrain.looking import LeftOut, OnBad, look_through
from pretrain.volumes.preparation import Preparation
from pretrain.volumes.reading import (
    Size,
    UnusableScan,
    check_size,
    read_channels,
    read_geometry,
)
from pretrain.volumes.scans import Scan


@dataclass(frozen=True)
class Kept:
    """A scan that is used.

    Args:
        scan: Its files.
        identity: Digest of their paths, sizes and times of change: the key of the cache.
        content: Digest of their sizes, beginnings and ends: the same for a copy elsewhere.
        shape: Voxels along (d, h, w) after preparation, before the foreground is cut out.
    """

    scan: Scan
    identity: str
    content: str
    shape: Size


@dataclass(frozen=True)
class Findings:
    """What the first pass found, in the order of the scans, for one preparation."""

    kept: tuple[Kept, ...]
    left_out: tuple[LeftOut[Scan], ...]
    preparation: Preparation

    @property
    def fingerprint(self) -> str:
        """Digest of what is learned from: a copy of the data has the same, changed data has not.

        It covers the order, names below the common folder, content (`Kept.content`) and weights of
        the scans kept, and the preparation.
        """
        top = os.path.commonpath([os.path.dirname(kept.scan.files[0]) for kept in self.kept])
        scans = [
            [os.path.relpath(kept.scan.path, top), kept.content, kept.scan.series, kept.scan.weight]
            for kept in self.kept
        ]
        return digest([scans, self.preparation.plain()])


def first_pass(
    scans: list[Scan],
    preparation: Preparation,
    *,
    check: Literal["headers", "voxels"] = "headers",
    on_bad: OnBad = "leave_out",
    workers: int = 4,
) -> Findings:
    """Look through all scans, with a progress bar.

    Args:
        scans: What `find_scans` gave.
        preparation: What will be done to them; its spacing decides their size.
        check: "headers" looks at sizes and spacings; "voxels" also reads every file to its end and
            refuses truncated, not finite and constant ones, as is else done at first use.
        on_bad: "leave_out" bad scans, or "stop" and name them.
        workers: Threads. With "voxels" each holds one scan in memory.

    Raises:
        ValueError: If every scan is bad, or one is and `on_bad` is "stop".
    """
    if check not in ("headers", "voxels"):
        raise ValueError(f"check is {check!r}; give 'headers' or 'voxels'")
    look = partial(_look, preparation=preparation, voxels=check == "voxels")
    kept, left_out = look_through(
        scans, look, kind="scan", title=f"Checking {check}", on_bad=on_bad, workers=workers
    )
    return Findings(kept, left_out, preparation)


def describe(findings: Findings) -> dict[str, Any]:
    """The findings as plain JSON, for the run's folder; `find_scans` reads it as a manifest."""
    return {
        "fingerprint": findings.fingerprint,
        "preparation": findings.preparation.plain(),
        "scans": [
            {
                "path": kept.scan.path,
                "series": kept.scan.series,
                "weight": kept.scan.weight,
                "shape": list(kept.shape),
                "identity": kept.identity,
                "content": kept.content,
            }
            for kept in findings.kept
        ],
        "left_out": [
            {"path": bad.source.path, "series": bad.source.series, "reason": bad.reason}
            for bad in findings.left_out
        ],
    }


def identity(scan: Scan) -> str:
    """Digest of the paths, sizes and times of change of a scan's files."""
    return identity_of(scan.files)


def _look(scan: Scan, preparation: Preparation, voxels: bool) -> Kept | LeftOut[Scan]:
    try:
        if voxels:
            read_channels(scan, preparation.channels)
        shape, spacing = preparation.shape_of(read_geometry(scan, preparation.channels))
        check_size(shape, spacing)
        return Kept(scan, identity(scan), content_of(scan.files), shape)
    except UnusableScan as error:
        return LeftOut(scan, str(error))
    except OSError as error:
        return LeftOut(scan, f"it cannot be read: {error.strerror}")
