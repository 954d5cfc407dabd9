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


class NewerCandidate(ValueError):
    """The candidate is not the one that was looked at."""


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
        with self._lock():
            self._settle()
            self._report(self.candidate).unlink(missing_ok=True)
            write_weights(weights, self.candidate)
            report = report | {"weights": digest(self.candidate)}
            write_text(self._report(self.candidate), json.dumps(report, indent=2))

    def candidate_report(self) -> dict[str, Any] | None:
        """How the candidate was made and how it scored; None if there is none."""
        return _report_in(self._report(self.candidate), self.candidate)

    def model_report(self) -> dict[str, Any] | None:
        """The same of the weights in use, if they were promoted here."""
        reports = (self._report(self.model), self._report(self.candidate))
        return _report_in(reports[0], self.model) or _report_in(reports[1], self.model)

    def promote(self, seen: str) -> dict[str, Any]:
        """Serve the candidate from now on, and give its report.

        Of several at once one promotes. One that is killed leaves the old weights in use and the
        candidate, or the new weights in use, of which the report is found all the same.

        Args:
            seen: Digest of the candidate that was looked at, the `weights` of its report.

        Raises:
            FileNotFoundError: If there is no candidate.
            NewerCandidate: If it is another one.
        """
        with self._lock():
            self._settle()
            report = self.candidate_report()
            if report is None:
                raise FileNotFoundError(
                    f"{self.folder.name} has no candidate; train it first, then promote"
                )
            if report["weights"] != seen:
                raise NewerCandidate(
                    f"the candidate of {self.folder.name} is not the one you saw; look at it"
                )
            served = self.served
            if served is not None:
                _copy(served, self.previous)
            os.replace(self.candidate, self.model)
            self._settle()
        return report

    def restore(self) -> None:
        """Serve again what was served before the last promotion.

        Raises:
            FileNotFoundError: If nothing was.
        """
        with self._lock():
            if not self.previous.is_file():
                name = self.folder.name
                raise FileNotFoundError(f"{name} has no weights from before a promotion")
            self._report(self.model).unlink(missing_ok=True)
            os.replace(self.previous, self.model)

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _settle(self) -> None:
        """Lay the report beside promoted weights, where their promotion has not come so far."""
        report = self._report(self.candidate)
        if not self.candidate.is_file() and _report_in(report, self.model) is not None:
            os.replace(report, self._report(self.model))

    def _report(self, weights: Path) -> Path:
        return weights.with_suffix(".json")


def _report_in(file: Path, weights: Path) -> dict[str, Any] | None:
    """The report in a file, if it is of these weights; None also where one of the two is missing.

    They may be moved away at any time, by a promotion.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return report if report["weights"] == digest(weights) else None
    except FileNotFoundError:
        return None


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
