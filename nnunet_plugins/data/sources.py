"""Where videos and their masks lie, in the layouts that people have.

One sub-folder for each video, `NAME/frames` and `NAME/masks`; `videos/NAME.mp4` beside
`masks/NAME` (a folder of images, or a video); a table in CSV or JSON; or videos alone.
"""

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_plugins.data.clips import VIDEO_ENDINGS, images_in, natural_key

SPLITS = ("train", "val", "test")
_COLUMNS = {"video", "masks", "name", "patient", "group", "split", "fps"}


@dataclass(frozen=True)
class Video:
    """One video, where its masks are, and whose it is."""

    name: str
    frames: Path
    """Video file or folder of images."""
    masks: Path | None
    """Folder of images or video file; None if there are none."""
    group: str
    """Patient, or the video itself: what must not be in two parts of a split."""
    split: str = "train"
    fps: float | None = None
    """Frames per second of a folder of images; a video file knows its own."""


def find_videos(
    source: Path, *, group_by: str | None = None, fps: float | None = None
) -> list[Video]:
    """The videos of a folder, a table or a single file, in natural order of their names.

    Args:
        source: Folder, `.csv` or `.json` table, or video file.
        group_by: Regular expression; its first group in a video's name, or all that it matches,
            is the patient. Every video is a patient of its own if None. A table's own `patient`
            or `group` goes before it.
        fps: Frame rate of folders of images for which a table gives none.

    Raises:
        FileNotFoundError: If there are no videos, or a table names files that are not there.
        ValueError: If a table cannot be understood, two videos have one name, or `group_by` does
            not match a name.
    """
    source = Path(source)
    if source.suffix.lower() in (".csv", ".json"):
        videos = [_listed(row, source, group_by) for row in _rows(source)]
    else:
        found = _lying_in(source)
        videos = [Video(_case_name(n), f, m, _group(n, group_by)) for n, f, m in found]
    if not videos:
        raise FileNotFoundError(
            f"{source} holds no videos; give NAME/frames and NAME/masks for each video, "
            "videos/NAME.mp4 and masks/NAME, a CSV or JSON table, or a video"
        )
    twice = [name for name, times in Counter(video.name for video in videos).items() if times > 1]
    if twice:
        raise ValueError(f"{source}: {len(twice)} names stand for two videos each, as {twice[0]}")
    videos = [replace(video, fps=video.fps or fps) for video in videos]
    return sorted(videos, key=lambda video: natural_key(video.name))


def _lying_in(source: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, frames and masks of each video of a folder."""
    if source.is_file():
        return [(source.stem, source, None)] if _is_video(source) else []
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist; give a folder, a table or a video")
    if (source / "videos").is_dir():
        videos = [path for path in sorted((source / "videos").iterdir()) if _is_clip(path)]
        return [(_stem(path), path, _masks_of(path, source / "masks")) for path in videos]
    if images_in(source):
        return [(source.name, source, None)]
    folders = [folder for folder in sorted(source.iterdir()) if (folder / "frames").is_dir()]
    if folders:
        return [(folder.name, folder / "frames", _if_there(folder / "masks")) for folder in folders]
    return [(_stem(path), path, None) for path in sorted(source.iterdir()) if _is_clip(path)]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".")


def _is_clip(path: Path) -> bool:
    return bool(images_in(path)) if path.is_dir() else _is_video(path)


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _if_there(path: Path) -> Path | None:
    return path if path.exists() else None


def _masks_of(video: Path, folder: Path) -> Path | None:
    candidates = [folder / _stem(video)]
    candidates += [folder / (_stem(video) + ending) for ending in VIDEO_ENDINGS]
    return next((path for path in candidates if path.exists()), None)


def _case_name(name: str) -> str:
    """A name that nnU-Net's file names can bear: letters and digits of any script, `.` and `-`."""
    return re.sub(r"[^\w.-]+", "_", name)


def find_group(name: str, group_by: str) -> str | None:
    """What a regular expression finds in a name: its first group, or all; None if it matches not.

    Raises:
        ValueError: If it is no regular expression.
    """
    try:
        match = re.search(group_by, name)
    except re.error as error:
        raise ValueError(f"{group_by!r} is no regular expression: {error}") from error
    if not match:
        return None
    return match[1] if match.re.groups else match[0]


def _group(name: str, group_by: str | None) -> str:
    if group_by is None:
        return name
    found = find_group(name, group_by)
    if found is None:
        raise ValueError(f"{group_by!r} matches nothing in {name}; it must find the patient there")
    return found


def _rows(table: Path) -> list[dict[str, Any]]:
    if not table.is_file():
        raise FileNotFoundError(f"{table} does not exist; give a folder, a table or a video")
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if table.suffix.lower() == ".json" else _csv_rows(text)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{table} is no list of objects; each needs at least a `video`")
    unknown = sorted({str(key) for row in rows for key in row} - _COLUMNS)
    if unknown:
        raise ValueError(
            f"{table} has {', '.join(unknown)}; known are {', '.join(sorted(_COLUMNS))}"
        )
    return rows


def _csv_rows(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines()
    separator = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    return list(csv.DictReader(lines, delimiter=separator))


def _listed(row: dict[str, Any], table: Path, group_by: str | None) -> Video:
    """A row of a table; its paths count from the table's folder."""
    if not row.get("video"):
        raise ValueError(f"{table}: a row has no `video`, the path of a file or folder")
    frames = table.parent / row["video"]
    masks = table.parent / row["masks"] if row.get("masks") else None
    absent = [path for path in (frames, masks) if path and not path.exists()]
    if absent:
        raise FileNotFoundError(f"{absent[0]} does not exist; {table.name} lists it")
    split = row.get("split") or "train"
    if split not in SPLITS:
        raise ValueError(f"{table}: {split!r} is no split; known are {', '.join(SPLITS)}")
    inner = frames.name == "frames" and frames.is_dir()
    name = str(row.get("name") or (frames.parent.name if inner else _stem(frames)))
    group = row.get("patient") or row.get("group") or _group(name, group_by)
    try:
        fps = float(row["fps"]) if row.get("fps") else None
    except ValueError as error:
        raise ValueError(f"{table}: {row['fps']!r} is no frame rate; give a number") from error
    return Video(_case_name(name), frames, masks, str(group), split, fps)
