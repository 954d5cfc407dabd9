"""The weights of a served model: those in use, a candidate, and those before."""

import hashlib
import json
import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from nnunet_plugins.bundle.training import write_weights
from nnunet_plugins.label.opened import stamp

SETTLED = 2 * 10**9
"""Nanoseconds after which a file cannot change again at the time that it already bears."""


class Shelf:
    """Folder of a model's weights beside the studies; the bundle itself is never changed.

    `model.pt` is served if it is there, else what the bundle came with. A training leaves
    `candidate.pt` and `candidate.json`, how that scored. Promotion moves them to `model.pt` and
    `model.json`, and what was served to `previous.pt`. Every file appears whole or not at all.

    Args:
        folder: Of the weights; made when something is written.
        shipped: The bundle's own weights, which need not exist.
    """

    def __init__(self, folder: Path, shipped: Path) -> None:
        self.folder, self.shipped = folder, shipped
        self.model, self.candidate = folder / "model.pt", folder / "candidate.pt"
        self.previous = folder / "previous.pt"

    @property
    def served(self) -> Path | None:
        """File of the weights in use; None if there are none yet."""
        return next((file for file in (self.model, self.shipped) if file.is_file()), None)

    def put_candidate(self, weights: dict[str, Tensor], report: dict[str, Any]) -> None:
        """Keep the outcome of a training; an older candidate goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._report(self.candidate).unlink(missing_ok=True)
            write_weights(weights, self.candidate)
            report = report | {"weights": digest(self.candidate)}
            write_text(self._report(self.candidate), json.dumps(report, indent=2))

    def candidate_report(self) -> dict[str, Any] | None:
        """How the candidate was made and how it scored; None if there is none."""
        return self._read_report(self.candidate)

    def model_report(self) -> dict[str, Any] | None:
        """The same of the weights in use, if they were promoted here."""
        return self._read_report(self.model)

    def promote(self) -> dict[str, Any]:
        """Serve the candidate from now on, and give its report.

        Raises:
            FileNotFoundError: If there is no candidate.
        """
        report = self.candidate_report()
        if report is None:
            raise FileNotFoundError(
                f"{self.folder.name} has no candidate; train it first, then promote"
            )
        with self._lock():
            served = self.served
            if served is not None:
                _copy(served, self.previous)
            os.replace(self._report(self.candidate), self._report(self.model))
            os.replace(self.candidate, self.model)
        return report

    def restore(self) -> None:
        """Serve again what was served before the last promotion.

        Raises:
            FileNotFoundError: If nothing was.
        """
        if not self.previous.is_file():
            raise FileNotFoundError(f"{self.folder.name} has no weights from before a promotion")
        with self._lock():
            self._report(self.model).unlink(missing_ok=True)
            os.replace(self.previous, self.model)

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    def _report(self, weights: Path) -> Path:
        return weights.with_suffix(".json")

    def _read_report(self, weights: Path) -> dict[str, Any] | None:
        """The report of a file of weights; None where one of the two is missing or of another."""
        file = self._report(weights)
        if not (weights.is_file() and file.is_file()):
            return None
        report = json.loads(file.read_text(encoding="utf-8"))
        return report if report["weights"] == digest(weights) else None


def digest(file: Path) -> str:
    """First 16 characters of a file's SHA-256, remembered as long as the file does not change."""
    age = time.time_ns() - file.stat().st_mtime_ns
    return _remembered(file, stamp(file)) if age > SETTLED else _hash(file)


@lru_cache(maxsize=64)
def _remembered(file: Path, version: str) -> str:
    return _hash(file)


def _hash(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]


def write_text(file: Path, text: str) -> None:
    """A text file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
