"""A report on disk: CSV tables and one self-contained HTML page."""

import html
from collections.abc import Iterator
from pathlib import Path

from nnunet_plugins.doctor import machine
from nnunet_plugins.evaluation.plots import (
    frame_strips,
    threshold_curves,
    video_bars,
    worst_frames,
)
from nnunet_plugins.evaluation.report import Report
from nnunet_plugins.evaluation.scores import (
    ALL_CLASSES,
    FLOW,
    FRAME_MEAN,
    PROTOCOLS,
    VPS,
    Metric,
)
from nnunet_plugins.evaluation.tables import interval, number, write_tables
from nnunet_plugins.html_page import image_html, table_html, write_page

_MAIN = (
    (FRAME_MEAN, "Dice"),
    (FRAME_MEAN, "Jaccard"),
    (VPS, "maxDice"),
    (VPS, "S-measure"),
    (VPS, "MAE"),
    (FLOW, "flow-warped IoU"),
)
"""What the table of videos shows."""


def write_report(report: Report, folder: Path, *, title: str = "Video segmentation") -> Path:
    """Write summary.csv, videos.csv, frames.csv and report.html; the path of the last.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(report, folder)
    return write_page(folder / "report.html", title, [*_body(report)])


def _body(report: Report) -> Iterator[str]:
    frames = sum(len(scores.frame_names) for scores in report.videos.values())
    yield f"<p>{len(report.videos)} videos, {frames} frames</p>"
    yield from (f"<p>{html.escape(note)}</p>" for note in report.notes)
    for protocol, meaning in PROTOCOLS.items():
        yield from _protocol(report, protocol, meaning)
    curves = threshold_curves(report)
    if curves:
        yield "<h2>VPS curves</h2>"
        yield image_html(curves, "Mean over videos at each threshold; dots are the maxima.")
    yield "<h2>Videos</h2>"
    caption = (
        "Frame-mean Dice. Dashed: mean over videos; shaded, with one class: its 95 % interval."
    )
    yield image_html(video_bars(report), caption)
    yield _video_table(report)
    yield "<h2>Frames</h2>"
    caption = "Dice of each frame, mean over its classes. Grey: no class in truth or prediction."
    yield image_html(frame_strips(report), caption)
    if report.worst:
        yield "<h2>Worst frames</h2>"
        caption = "Filled: truth. Line: prediction. Number: Dice, mean over classes."
        yield image_html(worst_frames(report.worst, report.classes), caption)
    yield "<h2>Machine and versions</h2>"
    yield table_html([*machine().items()])


def _protocol(report: Report, protocol: str, meaning: str) -> Iterator[str]:
    """The table of one protocol: a figure a row, a class a column."""
    found = {metric: e for metric, e in report.summary.items() if metric.protocol == protocol}
    if not found:
        return
    labels = list(dict.fromkeys(metric.label for metric in found))
    names = list(dict.fromkeys(metric.name for metric in found))
    space = " " if len(labels) == 1 else "\n"
    rows = [
        (name, *(interval(found[Metric(protocol, name, label)], space) for label in labels))
        for name in names
    ]
    yield f"<h2>{html.escape(protocol[0].upper() + protocol[1:])}</h2>"
    yield f"<p>{html.escape(meaning)}</p>"
    yield table_html(rows, "n", header=("", *map(_title, labels)))


def _video_table(report: Report) -> str:
    """A video a row: the main figures of the only class, or Dice of each of several."""
    if len(report.classes) == 1:
        (label,) = report.classes
        columns = {f"{p}: {name}": Metric(p, name, label) for p, name in _MAIN}
    else:
        labels = (*report.classes, ALL_CLASSES)
        columns = {f"{_title(label)}: Dice": Metric(FRAME_MEAN, "Dice", label) for label in labels}
    columns = {title: metric for title, metric in columns.items() if metric in report.summary}
    rows = [
        (name, *(number(scores.values[metric]) for metric in columns.values()))
        for name, scores in report.videos.items()
    ]
    return table_html(rows, "n", header=("", *columns))


def _title(label: str) -> str:
    return f"class {label}" if label.isdigit() else label
