"""Plots of a report: threshold curves, Dice by video and by frame, the worst frames."""

import math
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_plugins.evaluation.inputs import Classes
from nnunet_plugins.evaluation.polyp import THRESHOLDS
from nnunet_plugins.evaluation.report import Report, WorstFrame, frame_dice
from nnunet_plugins.evaluation.scores import FRAME_MEAN, Metric
from nnunet_plugins.html_page import COLOURS, FAINT, INK, PAPER, figure, style_axis

_LEGEND = {"frameon": False, "labelcolor": INK, "fontsize": 8}
_CURVES = ("Dice", "IoU", "Spe", "Sen", "precision", "E-measure")


def threshold_curves(report: Report) -> Figure | None:
    """VPS curves of each class with their maxima; None where there are none."""
    found = {label: report.mean_curves(label) for label in report.classes}
    found = {label: curves for label, curves in found.items() if curves}
    if not found:
        return None
    columns = min(len(found), 2)
    rows = math.ceil(len(found) / columns)
    drawn = figure(10, 3.6 * rows)
    axes = [*drawn.subplots(rows, columns, squeeze=False).flat]
    for axis, (label, curves) in zip(axes, found.items(), strict=False):
        for name, colour in zip(_CURVES, COLOURS, strict=False):
            best = int(curves[name].argmax())
            shown = f"{name}, max {curves[name][best]:.3f} at {THRESHOLDS[best]:.2f}"
            axis.plot(THRESHOLDS, curves[name], color=colour, label=shown, linewidth=1.5)
            axis.plot(THRESHOLDS[best], curves[name][best], "o", color=colour, markersize=3)
        style_axis(axis, label, "threshold")
        axis.set_ylim(0, 1.02)
        axis.legend(**_LEGEND)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    return drawn


def video_bars(report: Report) -> Figure:
    """Frame-mean Dice of each video and class, worst first."""
    labels = list(report.classes)
    dice = np.array(
        [
            [scores.values[Metric(FRAME_MEAN, "Dice", label)] for label in labels]
            for scores in report.videos.values()
        ]
    )
    order = np.argsort([-np.nanmean(row) if not np.isnan(row).all() else -2 for row in dice])
    names = [list(report.videos)[i] for i in order]
    drawn = figure(10, 1.1 + len(names) * (0.16 + 0.12 * len(labels)))
    axis = drawn.subplots()
    height = 0.8 / len(labels)
    for index, (label, colour) in enumerate(zip(labels, cycle(COLOURS), strict=False)):
        at = np.arange(len(names)) - 0.4 + height * (len(labels) - index - 0.5)
        axis.barh(at, dice[order, index], height, color=colour, label=label)
        mean = report.estimate(FRAME_MEAN, "Dice", label)
        axis.axvline(mean.value, color=colour, linewidth=1, linestyle="--")
        if len(labels) == 1 and not np.isnan(mean.low):
            axis.axvspan(mean.low, mean.high, color=colour, alpha=0.12, linewidth=0)
    style_axis(axis, "", "Dice, mean over frames")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_xlim(0, 1)
    if len(labels) > 1:
        drawn.legend(loc="outside lower center", ncols=6, **_LEGEND)
    return drawn


def frame_strips(report: Report) -> Figure:
    """Dice of each frame of each video, mean over its classes; grey where there is no class."""
    lines = {name: frame_dice(scores) for name, scores in report.videos.items()}
    longest = max(map(len, lines.values()))
    strips = np.full((len(lines), longest), np.nan)
    for row, dice in enumerate(lines.values()):
        strips[row, : len(dice)] = dice
        strips[row, : len(dice)][np.isnan(dice)] = -1
    drawn = figure(10, 1.1 + 0.2 * len(lines))
    axis = drawn.subplots()
    colours = colormaps["viridis"].with_extremes(under="#3a4250", bad=PAPER)
    image = axis.imshow(
        strips, aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="nearest"
    )
    style_axis(axis, "", "frame")
    axis.grid(visible=False)
    axis.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    bar = drawn.colorbar(image, ax=axis, pad=0.01)
    bar.ax.tick_params(colors=FAINT)
    bar.outline.set_visible(False)
    return drawn


def worst_frames(frames: list[WorstFrame], classes: Classes) -> Figure:
    """Pictures of frames with the truth filled and the prediction as a line."""
    columns = 4
    rows = math.ceil(len(frames) / columns)
    h, w = frames[0].truth.shape
    drawn = figure(10, rows * (10 / columns * h / w + 0.3) + 0.5)
    axes = [*drawn.subplots(rows, columns, squeeze=False).flat]
    for axis in axes:
        axis.set_axis_off()
    for axis, frame in zip(axes, frames, strict=False):
        axis.imshow(frame.picture)
        for covered, colour in zip(classes.values(), cycle(COLOURS), strict=False):
            truth, prediction = (np.isin(m, covered) for m in (frame.truth, frame.prediction))
            if truth.any():
                axis.contourf(truth, levels=(0.5, 2), colors=colour, alpha=0.3)
            if prediction.any():
                axis.contour(prediction, levels=(0.5,), colors="white", linewidths=2)
                axis.contour(prediction, levels=(0.5,), colors=colour, linewidths=1.2)
        title = f"{frame.video}, {frame.frame}: {frame.dice:.2f}"
        axis.set_title(title, color=FAINT, fontsize=8)
    colours = zip(classes, cycle(COLOURS), strict=False)
    handles = [Patch(color=colour, label=label) for label, colour in colours]
    drawn.legend(handles=handles, loc="outside lower center", ncols=6, **_LEGEND)
    return drawn
