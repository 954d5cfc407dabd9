"""Videos with masks as an nnU-Net raw dataset, complete or not at all.

Beside what nnU-Net reads stand `videos.json`, which knows what each case was, and
`splits_final.json`, five folds grouped by patient or video. Planning copies the latter to the
preprocessed folder, where training finds it; a splits_final.json that is there already stays.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_plugins.data.cases import CHANNELS, ENDING, CaseRecord, Cutting, write_cases
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.data.sources import Video
from nnunet_plugins.data.splits import Split, grouped_splits

VIDEOS_JSON = "videos.json"
SPLITS_JSON = "splits_final.json"


def convert_videos(
    videos: Sequence[Video],
    folder: Path,
    *,
    scheme: LabelScheme,
    cutting: Cutting | None = None,
    split_clips: bool = False,
) -> dict[str, CaseRecord]:
    """Write an nnU-Net raw dataset of videos and return the record of each case.

    Args:
        videos: With masks; those of the split `test` may lack them and go to imagesTs. If some
            are of the split `val`, there is one fold, theirs.
        folder: What to create, `nnUNet_raw/DatasetXXX_Name`.
        scheme: Classes.
        cutting: Stride and length of clips; all frames of a video are one case if None.
        split_clips: Spread the clips of one video over training and validation, which leaks:
            for trials with a single video.

    Raises:
        FileExistsError: If the folder exists.
        FileNotFoundError: If masks are missing.
        ValueError: If a patient is in two given splits, or frames and masks do not fit.
    """
    _refuse_leaks(videos)
    if all(video.split != "train" for video in videos):
        raise ValueError("no video is of the split train; nnU-Net needs some to train on")
    with appearing_folder(folder) as partial:
        cutting = cutting or Cutting()
        records = _write_all(videos, partial, cutting, scheme)
        training = {case: record for case, record in records.items() if record.split != "test"}
        splits = _splits(training, split_clips)
        if splits:
            _write_json(partial / SPLITS_JSON, splits)
        _write_json(partial / "dataset.json", {
            "channel_names": CHANNELS,
            "labels": scheme.dataset_labels,
            "numTraining": len(training),
            "file_ending": ENDING,
            "name": folder.name,
            "description": f"Videos as (t, h, w); {VIDEOS_JSON} says what each case was.",
            "stride": cutting.stride,
        })  # fmt: skip
    return records


def convert_images(
    videos: Sequence[Video], folder: Path, *, cutting: Cutting | None = None
) -> dict[str, CaseRecord]:
    """Write videos without masks as a folder that `nnUNetv2_predict -i` takes.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If frames cannot be read.
    """
    with appearing_folder(folder) as partial:
        return _write_all(videos, partial, cutting or Cutting(), None)


def named_dataset(name: str) -> Path:
    """The raw dataset that somebody names: a folder, or its number or name in `nnUNet_raw`."""
    raw = os.environ.get("nnUNet_raw")
    if Path(name).exists() or not raw:
        return Path(name)
    pattern = f"Dataset{int(name):03d}_*" if name.isdecimal() else name
    return next(iter(sorted(Path(raw).glob(pattern))), Path(name))


def dataset_folder(number: int, name: str, raw: Path | None) -> Path:
    """Where a new dataset belongs, `nnUNet_raw/DatasetXXX_Name`.

    Args:
        number: 1 to 999.
        name: Letters, digits, `_` and `-`.
        raw: Folder of raw datasets; the variable nnUNet_raw names it if None.

    Raises:
        FileExistsError: If a raw or preprocessed dataset has that number.
        ValueError: If number or name cannot be used, or nobody says where raw datasets are.
    """
    if not 1 <= number <= 999 or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"dataset {number} {name!r} cannot be: nnU-Net wants a number from 1 to 999 and a "
            "name of letters, digits, _ and -"
        )
    if raw is None and not os.environ.get("nnUNet_raw"):
        raise ValueError("nnUNet_raw is not set; set it, or give --raw")
    raw = raw or Path(os.environ["nnUNet_raw"])
    places = [raw]
    if os.environ.get("nnUNet_preprocessed"):
        places.append(Path(os.environ["nnUNet_preprocessed"]))
    taken = [path for place in places for path in place.glob(f"Dataset{number:03d}_*")]
    if taken:
        raise FileExistsError(f"number {number} is taken by {taken[0]}; give another --id")
    return raw / f"Dataset{number:03d}_{name}"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The cases of `videos.json`.

    Raises:
        FileNotFoundError: If the folder was not made from videos.
    """
    file = folder / VIDEOS_JSON
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {VIDEOS_JSON}; `mambamed dataset` writes it")
    return json.loads(file.read_text(encoding="utf-8"))["cases"]


@contextmanager
def appearing_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears when it is complete; nothing is left of it after an error."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; delete it or choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        partial.mkdir()
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(
    videos: Sequence[Video], folder: Path, cutting: Cutting, scheme: LabelScheme | None
) -> dict[str, CaseRecord]:
    records: dict[str, CaseRecord] = {}
    for video in tqdm(videos, desc="Converting", unit="video", disable=None):
        for case, record in write_cases(video, folder, cutting, scheme).items():
            if case in records:
                raise ValueError(f"{video.frames} would overwrite case {case}; rename one")
            records[case] = record
    if not records:
        raise ValueError("no clip has a labelled frame; nothing could be trained")
    _write_json(folder / VIDEOS_JSON, {
        "first_number": cutting.first_number,
        "clip_length": cutting.clip_length,
        "cases": {case: asdict(record) for case, record in records.items()},
    })  # fmt: skip
    return records


def _refuse_leaks(videos: Sequence[Video]) -> None:
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for video in videos:
        splits[video.group].add(video.split)
    leaking = [group for group, parts in splits.items() if len(parts) > 1]
    if leaking:
        raise ValueError(
            f"{', '.join(leaking)} would be in more than one of train, val and test; "
            "the videos of a patient belong together"
        )


def _splits(training: Mapping[str, CaseRecord], split_clips: bool) -> list[Split]:
    """The given split or grouped folds; none if there is only one group."""
    held_out = sorted(case for case, record in training.items() if record.split == "val")
    if held_out:
        return [{"train": sorted(training.keys() - set(held_out)), "val": held_out}]
    groups = {case: case if split_clips else record.group for case, record in training.items()}
    if len(set(groups.values())) < 2:
        return []
    weights = {case: len(record.frames) for case, record in training.items()}
    return grouped_splits(groups, weights=weights)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
