"""One self-contained HTML page about an nnU-Net training: Dice, pictures, curves, machine.

Everything is read from what stock nnU-Net leaves behind: `summary.json` of the validation, the
predictions beside it, the raw dataset, and the text logs of the training. Checkpoints are not
opened: they hold pickled objects.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from nnunet_plugins.doctor import machine
from nnunet_plugins.html_page import (
    COLOURS,
    FAINT,
    INK,
    figure,
    image_html,
    style_axis,
    table_html,
    write_page,
)

Labels = Mapping[str, int | Sequence[int]]
"""Labels or regions by name, as in nnU-Net's dataset.json, "background" and "ignore" included."""

_PLANES = ("axial", "coronal", "sagittal")
_ROWS = ("reference", "prediction")


@dataclass(frozen=True)
class DiceRow:
    """Dice of one class over cases: 0 to 1, population standard deviation.

    Cases in which neither reference nor prediction hold the class do not count; where no case
    counts the numbers are NaN.
    """

    name: str
    mean: float
    std: float
    worst: float
    cases: int


@dataclass(frozen=True)
class _Case:
    name: str
    reference: Path
    prediction: Path
    dice: dict[str, float]
    mean: float
    """Over the classes that count; NaN if none does."""


def dice_table(summary_json: Path, labels: Labels) -> list[DiceRow]:
    """One row per foreground class or region, in the order of `labels`.

    Raises:
        ValueError: The summary has no numbers for one of the labels, or no cases.
    """
    cases = _read_cases(summary_json, labels)
    rows = []
    for name in _foreground(labels):
        dice = np.array([case.dice[name] for case in cases])
        dice = dice[~np.isnan(dice)]
        numbers = (dice.mean(), dice.std(), dice.min()) if dice.size else (np.nan,) * 3
        rows.append(DiceRow(name, *map(float, numbers), cases=dice.size))
    return rows


def format_dice_table(rows: Sequence[DiceRow]) -> str:
    """The table as aligned plain text, with the mean over classes as its last line."""
    table = _dice_cells(rows)
    width = max(len(line[0]) for line in table)
    lines = [line[0].ljust(width) + "".join(cell.rjust(8) for cell in line[1:]) for line in table]
    return "\n".join(line.rstrip() for line in lines)


def write_report(
    *,
    title: str,
    commands: Sequence[str],
    results_folder: Path,
    raw_dataset: Path,
    output: Path,
    summary: Path | None = None,
    timings: Mapping[str, float] | None = None,
) -> Path:
    """Write the page and return its path; what is missing of pictures and logs is said in it.

    Args:
        title: Heading of the page.
        commands: What was typed, in order.
        results_folder: nnU-Net's `Trainer__Plans__configuration`, with its `fold_*` folders.
        raw_dataset: The raw dataset trained on: dataset.json, imagesTr and labelsTr.
        output: The HTML file. It is replaced as a whole.
        summary: A summary.json with the predictions beside it; None for the validation of the
            first fold that has one.
        timings: Wall-clock seconds by step.

    Raises:
        FileNotFoundError: There is no validation summary or no dataset.json.
        ValueError: The summary does not belong to the dataset's labels.
    """
    summary = summary or _find_summary(results_folder)
    dataset = json.loads((raw_dataset / "dataset.json").read_text(encoding="utf-8"))
    cases = _read_cases(summary, dataset["labels"])
    body = [
        f"<p>{html.escape(results_folder.name)} &middot; {html.escape(raw_dataset.name)}</p>",
        "<h2>Dice on the validation cases</h2>",
        table_html(_dice_cells(dice_table(summary, dataset["labels"])), style="n last"),
        "<h2>Best, median and worst case</h2>",
        *(_case_html(k, case, raw_dataset, dataset) for k, case in _three_cases(cases).items()),
        "<h2>Training</h2>",
        _curves_html(results_folder, summary, list(_foreground(dataset["labels"]))),
        "<h2>Commands</h2>",
        f"<pre>{html.escape(chr(10).join(commands))}</pre>",
        "<h2>Time</h2>" if timings else "",
        table_html([(name, _duration(seconds)) for name, seconds in (timings or {}).items()]),
        "<h2>Machine and versions</h2>",
        table_html(list(machine().items())),
    ]
    return write_page(output, title, body)


def _foreground(labels: Labels) -> dict[str, tuple[int, ...]]:
    """Classes to score by name, each as the label values it covers."""
    values = {
        name: tuple(int(v) for v in (value if isinstance(value, Sequence) else [value]))
        for name, value in labels.items()
        if name != "ignore"
    }
    return {name: value for name, value in values.items() if set(value) != {0}}


def _read_cases(summary_json: Path, labels: Labels) -> list[_Case]:
    content = json.loads(summary_json.read_text(encoding="utf-8"))["metric_per_case"]
    if not content:
        raise ValueError(f"{summary_json} holds no cases")
    cases = []
    for entry in content:
        # Keys are "3" for a label and "(1, 2)" for a region.
        scores = {tuple(map(int, re.findall(r"\d+", k))): v for k, v in entry["metrics"].items()}
        missing = [name for name, value in _foreground(labels).items() if value not in scores]
        if missing:
            raise ValueError(
                f"{summary_json} has no numbers for {', '.join(missing)}; "
                "give the dataset.json that the network was trained with"
            )
        dice = {name: float(scores[v]["Dice"]) for name, v in _foreground(labels).items()}
        counted = [value for value in dice.values() if not np.isnan(value)]
        prediction = Path(entry["prediction_file"])
        if not prediction.exists():  # the results were moved after the validation
            prediction = summary_json.parent / prediction.name
        name = prediction.name.split(".")[0]
        mean = float(np.mean(counted or np.nan))
        cases.append(_Case(name, Path(entry["reference_file"]), prediction, dice, mean))
    return cases


def _find_summary(results_folder: Path) -> Path:
    found = sorted(results_folder.glob("fold_*/validation/summary.json"))
    if not found:
        raise FileNotFoundError(
            f"no fold_*/validation/summary.json in {results_folder}; "
            "let nnUNetv2_train finish, or run it again with --val"
        )
    return found[0]


def _three_cases(cases: Sequence[_Case]) -> dict[str, _Case]:
    """Best, median and worst by mean Dice, as many of them as there are different cases."""
    ranked = sorted((c for c in cases if not np.isnan(c.mean)), key=lambda c: -c.mean)
    if not ranked:
        return {}
    places = {"Best": 0, "Worst": len(ranked) - 1, "Median": len(ranked) // 2}
    kept = {place: kind for kind, place in reversed(places.items())}
    return {kept[place]: ranked[place] for place in sorted(kept)}


def read_training_logs(folder: Path) -> dict[int, dict[str, list[float]]]:
    """What nnU-Net's text logs say by epoch, under the words they use.

    These are "train_loss" and "val_loss" of one number and "Pseudo dice" of one per class. Every
    run of a training writes a log; what a run starts at replaces the earlier ones from there on.
    """
    epochs: dict[int, dict[str, list[float]]] = {}
    logs = folder.glob("training_log_*.txt")
    for log in sorted(logs, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)]):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        run: dict[int, dict[str, list[float]]] = {}
        for line in lines:
            if match := re.search(r": Epoch (\d+) *$", line):
                run[int(match[1])] = {}
            elif run and (match := re.search(r": (train_loss|val_loss|Pseudo dice) (.*)", line)):
                text = re.sub(r"float\d+", "", match[2])  # numpy 2 writes np.float32(0.5)
                numbers = re.findall(r"-?(?:nan|inf|\d+\.?\d*(?:e[-+]?\d+)?)", text)
                run[max(run)][match[1]] = [float(number) for number in numbers]
        start = min(run, default=math.inf)
        epochs = {epoch: values for epoch, values in epochs.items() if epoch < start} | run
    return {epoch: values for epoch, values in epochs.items() if values}


def _curves_html(results_folder: Path, summary: Path, classes: Sequence[str]) -> str:
    folders = (summary.parent.parent, *sorted(results_folder.glob("fold_*")))
    epochs = next(filter(None, map(read_training_logs, folders)), None)
    if epochs is None:
        return "<p>No training_log_*.txt with a finished epoch was found.</p>"
    drawn = figure(10, 3.4)
    axes = drawn.subplots(1, 2)
    style = {"marker": "o" if len(epochs) < 3 else None, "linewidth": 1.6}
    for key, name, colour in (("train_loss", "training", 1), ("val_loss", "validation", 0)):
        axes[0].plot(*_series(epochs, key), label=name, color=COLOURS[colour], **style)
    at, dice = _series(epochs, "Pseudo dice")
    for index, (name, line) in enumerate(zip(classes, zip(*dice, strict=False), strict=False)):
        axes[1].plot(at, line, label=name, color=COLOURS[index % len(COLOURS)], **style)
    axes[1].set_ylim(0, 1)
    for axis, title in zip(axes, ("loss", "pseudo Dice"), strict=True):
        style_axis(axis, title, "epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    note = (
        "Pseudo Dice is nnU-Net's estimate on patches of the validation cases, not on whole cases."
    )
    return image_html(drawn, note)


def _series(epochs: Mapping[int, Mapping[str, list[float]]], key: str) -> tuple[list, list]:
    known = [epoch for epoch in sorted(epochs) if key in epochs[epoch]]
    values = [epochs[epoch][key] for epoch in known]
    return known, values if key == "Pseudo dice" else [value[0] for value in values]


def _case_html(kind: str, case: _Case, raw_dataset: Path, dataset: dict[str, Any]) -> str:
    ending = dataset["file_ending"]
    image = raw_dataset / "imagesTr" / f"{case.name}_0000{ending}"
    reference = raw_dataset / "labelsTr" / f"{case.name}{ending}"
    reference = reference if reference.exists() else case.reference
    caption = f"{kind}: {case.name}, mean Dice {case.mean:.3f}"
    files = (image, reference, case.prediction)
    if missing := [str(path) for path in files if not path.exists()]:
        return f"<p>{html.escape(f'{caption}; no picture without {missing}')}</p>"
    return image_html(overlay_figure(*files, dataset["labels"], case.dice), caption)


def overlay_figure(
    image: Path, reference: Path, prediction: Path, labels: Labels, dice: Mapping[str, float]
) -> Figure:
    """Reference (above) and prediction (below) on the three slices that show most of every class.

    Grey spans the 0.5 to 99.5 percentile of the labelled voxels, and a third more on each side.
    """
    (voxels, spacing), (truth, _), (guess, _) = map(_read_lps, (image, reference, prediction))
    classes = _foreground(labels)
    focus = truth if truth.any() else guess
    inside = voxels[np.isin(focus, [v for values in classes.values() for v in values])]
    low, high = np.percentile(inside if inside.size else voxels, (0.5, 99.5))
    grey = {"cmap": "gray", "vmin": low - (high - low) / 3, "vmax": high + (high - low) / 3}
    d, h, w = size = np.array(voxels.shape) * spacing
    drawn = figure(10, 20 * max(h, d) / (w + w + h) + 0.8)
    axes = drawn.subplots(2, 3, width_ratios=(w, w, h))
    for plane, at in enumerate(_telling_slices(focus, list(classes.values()))):
        high_mm, wide_mm = np.delete(size, plane)
        upright = {"origin": "lower", "extent": (0, wide_mm, 0, high_mm)}
        axial = {"origin": "upper", "extent": (0, wide_mm, high_mm, 0)}
        for axis, seg, whose in zip(axes[:, plane], (truth, guess), _ROWS, strict=True):
            box = axial if plane == 0 else upright
            axis.imshow(voxels.take(at, plane), interpolation="bicubic", **grey, **box)
            _draw_classes(axis, seg.take(at, plane), np.delete(spacing, plane), classes)
            axis.set_title(f"{whose}, {_PLANES[plane]}", color=FAINT, fontsize=9)
            axis.set_axis_off()
    present = [n for n, v in classes.items() if np.isin(truth, v).any() or np.isin(guess, v).any()]
    colours = dict(zip(classes, cycle(COLOURS), strict=False))
    handles = [Patch(color=colours[n], label=f"{n} {_number(dice[n])}") for n in present]
    legend = {"loc": "outside lower center", "ncols": 6, "frameon": False, "labelcolor": INK}
    drawn.legend(handles=handles, fontsize=9, **legend)
    return drawn


def _read_lps(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels (z, y, x), from foot to head, front to back, right to left; spacing in mm."""
    image = sitk.ReadImage(str(path))
    image = sitk.DICOMOrient(image, "LPS") if image.GetDimension() == 3 else sitk.JoinSeries(image)
    return sitk.GetArrayFromImage(image), np.array(image.GetSpacing()[::-1])


def _telling_slices(seg: NDArray[Any], classes: Sequence[tuple[int, ...]]) -> list[int]:
    """Along each axis the slice with most of every class, each measured by its largest slice."""
    scores = [np.zeros(n) for n in seg.shape]
    for values in classes:
        mask = np.isin(seg, values)
        for axis, score in enumerate(scores):
            area = mask.sum(axis=tuple({0, 1, 2} - {axis}))
            score += area / max(area.max(), 1)
    return [int(score.argmax()) if score.any() else score.size // 2 for score in scores]


def _draw_classes(
    axis: Axes, seg: NDArray[Any], spacing: NDArray[Any], classes: Mapping[str, tuple[int, ...]]
) -> None:
    rows, columns = ((np.arange(n) + 0.5) * mm for n, mm in zip(seg.shape, spacing, strict=True))
    for values, colour in zip(classes.values(), cycle(COLOURS), strict=False):
        mask = np.isin(seg, values).astype(float)
        if mask.any() and min(mask.shape) > 1:
            axis.contourf(columns, rows, mask, levels=(0.5, 2), colors=colour, alpha=0.2)
            axis.contour(columns, rows, mask, levels=(0.5,), colors=colour, linewidths=1.2)


def _dice_cells(rows: Sequence[DiceRow]) -> list[tuple[str, ...]]:
    means = [row.mean for row in rows if row.cases]
    return [
        ("class", "mean", "std", "worst", "cases"),
        *((r.name, *map(_number, (r.mean, r.std, r.worst)), str(r.cases)) for r in rows),
        ("all classes", _number(float(np.mean(means or np.nan))), "", "", ""),
    ]


def _number(dice: float) -> str:
    return "-" if np.isnan(dice) else f"{dice:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
