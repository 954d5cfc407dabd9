"""Videos and what is known about them, from a table; parts of a split share no video.

A table in CSV or JSON has a row for each video: `video`, a path that counts from the table's
folder, and either `label`, the video's class, or `phases`, the path of a CSV with the columns
`frame` and `phase`. Further columns, all optional: `split` (train, val or test), `patient`, `name`,
and `fps` of a folder of images. Where no row says `split`, five folds are drawn by patient, or by
video where there is none.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.data.sources import SPLITS
from nnunet_plugins.data.splits import grouped_splits
from nnunet_plugins.evaluation.phase import UNKNOWN

Target = Literal["label", "phases"]
PARTS = {"train": "train", "validation": "val", "test": "test"}
COLUMNS = ("video", "label", "phases", "split", "patient", "name", "fps")


@dataclass(frozen=True)
class LabelledVideo:
    """A row of a table."""

    name: str
    path: Path
    """Video file or folder of images."""
    target: str
    """Name of a class, or path of the phases' CSV."""
    patient: str
    """Or the video itself: what must not be in two parts of a split."""
    split: str | None
    fps: float | None


def videos_of_part(
    table: str | Path, target: Target, classes: Sequence[str], part: str, fold: int = 0
) -> list[dict[str, Any]]:
    """One {"image", "label", "name", "fps"} for each video of a part, for MONAI's datasets.

    Args:
        table: CSV or JSON.
        target: The column that holds what is known.
        classes: Names of the classes or phases, in the order of the network's logits.
        part: "train", "validation" or "test".
        fold: Which, where the table has no splits.

    Raises:
        FileNotFoundError: If the table or something it lists is missing.
        ValueError: If the table cannot be read, a class is unknown, a video or a patient is in two
            parts, or the part is empty.
    """
    table = Path(table)
    videos = [_listed(row, table, target) for row in read_rows(table)]
    if target == "label":
        for video in videos:
            _class_index(video.target, classes, table)
    check_split(videos, table)
    names = _part(videos, PARTS[part], fold)
    chosen = [video for video in videos if video.name in names]
    if not chosen:
        raise ValueError(f"{table} has no video for {part}; give rows the split {PARTS[part]}")
    return [
        {
            "image": str(video.path),
            "label": list(classes).index(video.target) if target == "label" else video.target,
            "name": video.name,
            "fps": video.fps,
        }
        for video in chosen
    ]


def check_split(videos: Sequence[LabelledVideo], table: Path) -> None:
    """Refuse rows that would let a training see what it is tested on.

    Raises:
        ValueError: If a video is listed twice, or a patient is in two parts.
    """
    paths: dict[Path, LabelledVideo] = {}
    names: set[str] = set()
    parts: dict[str, str | None] = {}
    for video in videos:
        path = video.path.resolve()
        if path in paths:
            first, second = paths[path].split, video.split
            where = f"in {first} and {second}" if first != second else "twice"
            raise ValueError(
                f"{table} lists {video.path} {where}; a video belongs to one part, as its frames "
                "resemble each other: keep one row"
            )
        if video.name in names:
            raise ValueError(f"{table} has two videos called {video.name}; give them a `name` each")
        if parts.setdefault(video.patient, video.split) != video.split:
            raise ValueError(
                f"{table} has {video.patient} in {parts[video.patient]} and {video.split}; all "
                "videos of a patient belong to one part"
            )
        paths[path] = video
        names.add(video.name)


def read_phases(file: str | Path, phases: Sequence[str], frames: int) -> NDArray[np.int64]:
    """Phase of each of so many frames, (t,).

    A row holds until the next one, so that annotations of every frame, of every second and of
    changes alone are read alike. Frames before the first row are `UNKNOWN`, as are those of a row
    without phase.

    Args:
        file: CSV of `frame`, counted from 0, and `phase`, by name.
        phases: Names, in the order of the network's logits.
        frames: How many.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, frames do not rise, or a phase is unknown.
    """
    file = Path(file)
    found = np.full(frames, UNKNOWN, np.int64)
    last = -1
    for row in read_rows(file):
        try:
            frame, phase = int(row["frame"]), (row["phase"] or "").strip()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} has a row {row}; give the columns frame, a number, and phase, a name"
            ) from error
        if frame <= last:
            raise ValueError(f"{file}: frame {frame} follows {last}; frames must rise")
        found[frame:] = _class_index(phase, phases, file) if phase else UNKNOWN
        last = frame
    return found


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, with commas or semicolons, or of a JSON list of objects.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist; give a table of videos in CSV or JSON")
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix.lower() == ".json":
            rows = json.loads(text)
        else:
            lines = text.splitlines()
            separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
            rows = list(csv.DictReader(lines, delimiter=separator))
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise ValueError(f"{table} holds no rows; give a header and a row for each entry")
    return rows


def _listed(row: dict[str, Any], table: Path, target: Target) -> LabelledVideo:
    unknown = [str(key) for key in row if key not in COLUMNS]
    if unknown:
        raise ValueError(f"{table} has {', '.join(unknown)}; known are {', '.join(COLUMNS)}")
    if any(row.get(column) in (None, "") for column in ("video", target)):
        raise ValueError(f"{table}: a row has no `video` or no `{target}`; each needs both")
    path, known = table.parent / str(row["video"]), str(row[target]).strip()
    if target == "phases":
        known = str(table.parent / known)
    for file in (path, *([Path(known)] if target == "phases" else [])):
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist; {table.name} lists it")
    split = row.get("split") or None
    if split not in (None, *SPLITS):
        raise ValueError(f"{table}: {split!r} is no split; known are {', '.join(SPLITS)}")
    name = str(row.get("name") or (path.name if path.is_dir() else path.stem))
    try:
        fps = float(row["fps"]) if row.get("fps") else None
    except ValueError as error:
        raise ValueError(f"{table}: {row['fps']!r} is no frame rate; give a number") from error
    patient = row.get("patient")
    patient = name if patient in (None, "") else str(patient)
    return LabelledVideo(name, path, known, patient, split, fps)


def _part(videos: Sequence[LabelledVideo], part: str, fold: int) -> set[str]:
    """Names of the videos of train, val or test."""
    if any(video.split for video in videos):
        return {video.name for video in videos if (video.split or "train") == part}
    if part == "test":
        return set()
    folds = grouped_splits({video.name: video.patient for video in videos})
    if fold not in range(len(folds)):
        raise ValueError(f"there is no fold {fold!r}; take 0 to {len(folds) - 1}")
    return set(folds[fold][part])


def _class_index(name: str, classes: Sequence[str], file: Path) -> int:
    if name not in classes:
        raise ValueError(
            f"{file} names {name!r} and the bundle knows {', '.join(classes)}; correct the name, "
            "or list the classes in the bundle's configs/dataset.json"
        )
    return list(classes).index(name)
