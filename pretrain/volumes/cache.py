"""Prepared volumes on disk: written once, then mapped into memory by every process."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.entries import publish
from pretrain.looking import LeftOut
from pretrain.volumes.first_pass import Kept, identity
from pretrain.volumes.preparation import Preparation, Prepared, prepare
from pretrain.volumes.reading import UnusableScan, read_channels
from pretrain.volumes.scans import Scan

FORMAT = 1
"""Raised when what the same preparation stores changes."""
LEFT_OUT = "left_out.json"


class VolumeCache:
    """Prepared volumes of one preparation in a folder, which several preparations may share.

    An entry is a folder of its own, named by the scan's identity and the preparation. It appears
    whole or not at all, so processes need not wait for each other: who comes second throws his
    work away. A scan that proves unusable leaves the reason as its entry, so that every process
    and every later run leaves it out.
    """

    def __init__(self, folder: Path | str, preparation: Preparation) -> None:
        self.folder = Path(folder)
        self.preparation = preparation

    def open(self, kept: Kept) -> Prepared:
        """A scan's entry, made if there is none; its volume is a map of the file, to copy from.

        Raises:
            UnusableScan: If the scan cannot be used; a warning says so the first time.
            RuntimeError: If its files changed since the first pass.
            OSError: If the disk is full, or the files are gone.
        """
        entry = self.entry(kept)
        if not entry.is_dir():
            self._make(kept, entry)
        if reason := _reason(entry):
            raise UnusableScan(reason)
        volume = np.load(entry / "volume.npy", mmap_mode="r", allow_pickle=False)
        return Prepared(volume, np.load(entry / "foreground.npy", allow_pickle=False))

    def entry(self, kept: Kept) -> Path:
        """Folder of a scan's entry."""
        key = json.dumps([FORMAT, kept.identity, self.preparation.plain()], sort_keys=True)
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def left_out(self, kept: Iterable[Kept]) -> tuple[LeftOut[Scan], ...]:
        """Those of the scans that proved unusable at first use, so far, in any process."""
        reasons = ((one.scan, _reason(self.entry(one))) for one in kept)
        return tuple(LeftOut(scan, reason) for scan, reason in reasons if reason)

    def _make(self, kept: Kept, entry: Path) -> None:
        if identity(kept.scan) != kept.identity:
            raise RuntimeError(f"{kept.scan} changed since the first pass; start again")
        try:
            prepared = prepare(
                read_channels(kept.scan, self.preparation.channels), self.preparation
            )
        except UnusableScan as error:
            record = json.dumps({"scan": str(kept.scan), "reason": str(error)})
            if publish(entry, {LEFT_OUT: lambda file: _write_text(file, record)}):
                warnings.warn(f"{kept.scan} is left out: {error}", stacklevel=2)
            return
        volume = np.ascontiguousarray(prepared.volume, dtype=self.preparation.dtype)
        publish(
            entry,
            {
                "foreground.npy": lambda file: _write_array(file, prepared.foreground),
                "volume.npy": lambda file: _write_array(file, volume),
            },
        )


def _reason(entry: Path) -> str | None:
    """Why an entry's scan is unusable; None if it is not, or not known to be."""
    try:
        return str(json.loads((entry / LEFT_OUT).read_text())["reason"])
    except FileNotFoundError:
        return None


def _write_text(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _write_array(file: Path, array: NDArray[Any]) -> None:
    """As np.save, which however forgets that it was the disk that was full."""
    with file.open("wb") as stream:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(array.data)
        stream.flush()
        os.fsync(stream.fileno())
