"""Tables of videos and of the part each is in, for `from-videos` and for bundles of classes.

A video has one row: `video` and, where there is something to say, `masks`, `label`, `patient`,
`split` and `fps`. Paths count from the table's folder where they lie in it.
"""

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_plugins.data.sources import SPLITS, Video, find_videos
from nnunet_plugins.data.splits import shared_out

COLUMNS = ("video", "masks", "label", "patient", "split", "name", "fps")


@dataclass(frozen=True)
class Row:
    """A video of a table."""

    video: Video
    label: str | None
    """Its class, the name of the folder it lies in."""
    split: str | None


def list_rows(
    source: Path,
    *,
    classes: bool = False,
    group_by: str | None = None,
    fps: float | None = None,
    parts: Sequence[float] | None = None,
    seed: int = 0,
) -> list[Row]:
    """The videos of a folder, each in one part; those of a patient are in the same.

    Args:
        source: What `find_videos` takes.
        classes: Each folder in `source` is a class, and a source of its own.
        group_by: Finds the patient in a video's name, as in `find_videos`.
        fps: Frame rate of folders of images.
        parts: Shares of patients for train, val and test, of each class; none are named if None.
        seed: Of the draw.

    Raises:
        FileNotFoundError: If there are no videos.
        ValueError: If two videos have one name, there are not three shares, or too few patients.
    """
    if parts is not None and (len(parts) != len(SPLITS) or min(parts) < 0 or not any(parts)):
        given = " ".join(f"{share:g}" for share in parts)
        raise ValueError(f"--parts {given} are no shares; give three, as 80 10 10")
    folders: list[tuple[str | None, Path]] = [(None, source)]
    if classes and source.is_dir():
        found = sorted(path for path in source.iterdir() if path.is_dir())
        folders = [(path.name, path) for path in found if not path.name.startswith(".")]
    labelled = [
        (video, label)
        for label, folder in folders
        for video in find_videos(folder, group_by=group_by, fps=fps)
    ]
    labels = {video.name: label for video, label in labelled}
    if len(labels) < len(labelled):
        raise ValueError(f"{source}: two videos of different classes have one name; rename one")
    splits: dict[str, str] = {}
    if parts is not None:
        named = [(split, share) for split, share in zip(SPLITS, parts, strict=True) if share]
        groups = {video.name: video.group for video, _ in labelled}
        shares = [share for _, share in named]
        drawn = shared_out(groups, shares, strata=labels, seed=seed)
        splits = {n: split for (split, _), names in zip(named, drawn, strict=True) for n in names}
    return [Row(video, label, splits.get(video.name)) for video, label in labelled]


def write_table(rows: Sequence[Row], out: Path) -> None:
    """Write a table, whole or not at all, with the columns that say something.

    Raises:
        FileExistsError: If the file exists.
        ValueError: If it ends neither in .csv nor in .json.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; delete it or choose another")
    if out.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"{out} ends neither in .csv nor in .json; name a table one of these")
    entries = [_entry(row, out.parent) for row in rows]
    used = [column for column in COLUMNS if any(entry[column] for entry in entries)]
    entries = [{column: entry[column] for column in used} for entry in entries]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", newline="", encoding="utf-8") as stream:
            if out.suffix.lower() == ".json":
                json.dump(entries, stream, indent=2, ensure_ascii=False)
            else:
                table = csv.DictWriter(stream, used)
                table.writeheader()
                table.writerows(entries)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _entry(row: Row, folder: Path) -> dict[str, str | float | None]:
    video = row.video
    return {
        "video": _beside(video.frames, folder),
        "masks": _beside(video.masks, folder) if video.masks and not row.label else None,
        "label": row.label,
        "patient": video.group,
        "split": row.split,
        "name": video.name,
        "fps": video.fps,
    }


def _beside(path: Path, folder: Path) -> str:
    path, folder = path.absolute(), folder.absolute()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
