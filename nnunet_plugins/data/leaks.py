"""Cases that training must not share with validation or test: same patient, or same pictures.

Pictures are compared as 32 x 32 thumbnails of grey from which their blurred copy is taken away:
what is left correlates by 0.99 and more between a frame and a smaller, darker, strongly
compressed copy of it, and by less than 0.9 between frames of different colonoscopies.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from nnunet_plugins.data.cases import ENDING
from nnunet_plugins.data.from_videos import SPLITS_JSON, VIDEOS_JSON, read_records
from nnunet_plugins.data.splits import Split

ALIKE = 0.95
"""Correlation of thumbnails from which two frames count as one."""

_SIZE = 32
_BLUR = 4.0
"""Standard deviation of the copy that is taken away, in pixels of the thumbnail."""

_Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Comparison:
    """Two lists of cases that must have nothing in common."""

    title: str
    left: Sequence[str]
    right: Sequence[str]


def check_leaks(
    dataset: Path, *, splits: Path | None = None, alike: float = ALIKE, pictures: bool = True
) -> list[str]:
    """One sentence for each leak between training and validation of a fold, or training and test.

    Args:
        dataset: Raw dataset made from videos.
        splits: Folds to check; the dataset's own splits_final.json if None.
        alike: Correlation from which frames of two cases count as the same picture.
        pictures: Whether to compare pictures, which reads every image.

    Raises:
        FileNotFoundError: If there are no splits, no videos.json or an image is missing.
        ValueError: If the splits cannot be read or name cases that the dataset does not have.
    """
    records = read_records(dataset)
    comparisons = _comparisons(splits or dataset / SPLITS_JSON, records)
    thumbnails = _thumbnails(dataset, records) if pictures else {}
    found = []
    for comparison in tqdm(comparisons, desc="Comparing", unit="fold", disable=None):
        found += [f"{comparison.title}: {leak}" for leak in _shared_groups(comparison, records)]
        if pictures:
            same = _same_pictures(comparison, records, thumbnails, alike)
            found += [f"{comparison.title}: {leak}" for leak in same]
    return found


def dataset_of(path: Path) -> tuple[Path, Path | None]:
    """Dataset and splits file that a user means by a dataset's folder or by a splits file.

    Raises:
        FileNotFoundError: If the dataset of a splits file cannot be told.
    """
    if path.is_dir():
        return path, None
    if (path.parent / VIDEOS_JSON).is_file():
        return path.parent, path
    raise FileNotFoundError(
        f"{path.parent} holds no {VIDEOS_JSON}; give the raw dataset of these splits with --dataset"
    )


def _comparisons(splits: Path, records: _Records) -> list[_Comparison]:
    test = [case for case, record in records.items() if record["split"] == "test"]
    rest = [case for case in records if case not in set(test)]
    found = [_Comparison("test", rest, test)] if test else []
    if not splits.is_file() and not test:
        raise FileNotFoundError(f"{splits} does not exist; nothing is split, nothing can leak")
    for number, fold in enumerate(_read_splits(splits) if splits.is_file() else []):
        unknown = sorted({*fold["train"], *fold["val"]} - records.keys())
        if unknown:
            raise ValueError(f"{splits} names {unknown[0]}, which is no case of the dataset")
        found.append(_Comparison(f"fold {number}", fold["train"], fold["val"]))
    return found


def _read_splits(file: Path) -> list[Split]:
    try:
        folds = json.loads(file.read_text(encoding="utf-8"))
        return [{"train": fold["train"], "val": fold["val"]} for fold in folds]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no list of folds with train and val: {error!r}") from error


def _shared_groups(comparison: _Comparison, records: _Records) -> Iterator[str]:
    left: dict[str, str] = {records[case]["group"]: case for case in comparison.left}
    for case in comparison.right:
        group = records[case]["group"]
        if case in set(comparison.left):
            yield f"{case} is in both parts"
        elif group in left:
            yield f"{left[group]} and {case} are both of {group}"


def _thumbnails(dataset: Path, records: _Records) -> dict[str, NDArray[np.float32]]:
    """Unit vectors (t, pixels) of every case; frames of one colour are zero."""
    places = {"train": "imagesTr", "val": "imagesTr", "test": "imagesTs"}
    thumbnails = {}
    for case, record in tqdm(records.items(), desc="Reading", unit="case", disable=None):
        file = dataset / places[record["split"]] / f"{case}_0001{ENDING}"
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; {VIDEOS_JSON} lists its case")
        green = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        thumbnails[case] = _thumbnails_of(green)
    return thumbnails


def _thumbnails_of(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(t, h, w) -> (t, pixels)."""
    small = [
        Image.fromarray(frame).resize((_SIZE, _SIZE), Image.Resampling.BOX) for frame in frames
    ]
    values = np.stack([np.asarray(image, np.float32) for image in small])
    values -= ndimage.gaussian_filter(values, (0, _BLUR, _BLUR))
    vectors = values.reshape(len(values), -1)
    vectors -= vectors.mean(axis=1, keepdims=True)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > _SIZE / 10, vectors / np.maximum(length, 1e-6), 0)


def _same_pictures(
    comparison: _Comparison,
    records: _Records,
    thumbnails: Mapping[str, NDArray[np.float32]],
    alike: float,
) -> Iterator[str]:
    """Pairs of cases of different patients that show the same."""
    for right in comparison.right:
        for left in comparison.left:
            if records[left]["group"] == records[right]["group"]:
                continue
            correlation = thumbnails[left] @ thumbnails[right].T
            pairs = np.argwhere(correlation >= alike)
            if len(pairs):
                i, j = np.unravel_index(correlation.argmax(), correlation.shape)
                names = (records[left]["frames"][i], records[right]["frames"][j])
                yield (
                    f"{left} and {right} show the same in {len(pairs)} of "
                    f"{correlation.size} pairs of frames, as "
                    f"{names[0]} and {names[1]} (correlation {correlation[i, j]:.3f})"
                )
