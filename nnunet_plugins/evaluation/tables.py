"""Figures of a report as CSV and as aligned text."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nnunet_plugins.evaluation.bootstrap import Estimate
from nnunet_plugins.evaluation.report import Report


def write_tables(report: Report, folder: Path) -> None:
    """Write summary.csv, videos.csv and frames.csv; an empty field is a figure that is not there.

    Raises:
        OSError: The folder cannot be written.
    """
    _write(folder / "summary.csv", summary_rows(report))
    _write(folder / "videos.csv", _video_rows(report))
    _write(folder / "frames.csv", _frame_rows(report))


def summary_rows(report: Report) -> Iterator[Sequence[str]]:
    """Header, then each figure: protocol, metric, class, mean, interval, videos that have it."""
    yield "protocol", "metric", "class", "mean", "low95", "high95", "videos"
    for metric, found in report.summary.items():
        numbers = (found.value, found.low, found.high)
        yield *metric, *map(_field, numbers), str(found.videos)


def summary_text(report: Report) -> str:
    """The summary for a terminal."""
    rows = [("protocol", "metric", "class", "mean [95 % interval]", "videos")]
    rows += [(*m, interval(found), str(found.videos)) for m, found in report.summary.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows)
    return "\n".join(line.rstrip() for line in lines)


def interval(found: Estimate, space: str = " ") -> str:
    """As in 0.812 [0.790, 0.831], with `space` after the mean."""
    text = number(found.value)
    if np.isnan(found.low):
        return text
    return f"{text}{space}[{number(found.low)}, {number(found.high)}]"


def number(value: float) -> str:
    """Three decimals, a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def _video_rows(report: Report) -> Iterator[Sequence[str]]:
    yield "video", "protocol", "metric", "class", "value"
    for video, scores in report.videos.items():
        for metric, value in scores.values.items():
            yield video, *metric, _field(value)


def _frame_rows(report: Report) -> Iterator[Sequence[str]]:
    yield "video", "frame", "class", "Dice", "Jaccard", "precision", "recall"
    for video, scores in report.videos.items():
        for label, columns in scores.frames.items():
            for t, frame in enumerate(scores.frame_names):
                yield video, frame, label, *(_field(column[t]) for column in columns.values())


def _field(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _write(path: Path, rows: Iterable[Sequence[str]]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    partial.replace(path)
