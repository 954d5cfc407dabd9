"""One video at a time with all that is known of it: masks, truth, probabilities, pictures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.evaluation.masks import Stack, as_labels, find_videos, read_stack
from nnunet_plugins.evaluation.pictures import find_pictures, read_pictures

Classes = Mapping[str, tuple[int, ...]]
"""Label values of each class or nnU-Net region by its name."""

Labels = Mapping[str, int | Sequence[int]]
"""Labels or regions by name, as in nnU-Net's dataset.json, "background" and "ignore" included."""


@dataclass(frozen=True)
class Video:
    """Arrays of one video, t frames of h x w pixels."""

    name: str
    prediction: NDArray[np.int16]
    """Class numbers, (t, h, w)."""
    truth: NDArray[np.int16]
    """Class numbers, (t, h, w)."""
    probability: NDArray[np.floating] | None
    """Of each class in order, (k, t, h, w), 0..1."""
    pictures: NDArray[np.uint8] | None
    """(t, h, w, 3)"""
    frame_names: list[str]


@dataclass(frozen=True)
class Sources:
    """Where the videos lie, matched by name."""

    predictions: dict[str, Path]
    truths: dict[str, Path]
    probabilities: dict[str, Path] | None
    pictures: dict[str, list[Path]] | None
    ignore: int | None

    @property
    def names(self) -> list[str]:
        return sorted(self.truths)

    def labels(self, name: str) -> tuple[Stack, Stack]:
        """Class numbers of prediction and truth of one video.

        Raises:
            ValueError: They do not belong to the same frames, or cannot be read.
        """
        both = []
        for path in (self.predictions[name], self.truths[name]):
            stack = read_stack(path)
            both.append(Stack(as_labels(stack, str(path), self.ignore), stack.frames))
        prediction, truth = both
        if prediction.frames and truth.frames:
            _check_frames(name, "prediction", prediction.frames, truth.frames)
        _check_shape(name, "prediction", prediction.array.shape, truth.array.shape)
        return prediction, truth

    def read(self, classes: Classes) -> Iterator[Video]:
        """Every video, in the order of names."""
        for name in self.names:
            prediction, truth = self.labels(name)
            shape = truth.array.shape
            names = truth.frames or prediction.frames or [str(i) for i in range(len(truth.array))]
            probability = pictures = None
            if self.probabilities is not None:
                maps = _read_probability(self.probabilities[name], classes)
                _check_frames(name, "probability map", maps.frames or names, names)
                _check_shape(name, "probability map", maps.array.shape[1:], shape)
                probability = maps.array
            if self.pictures is not None:
                pictures = read_pictures(self.pictures[name])
                _check_shape(name, "picture", pictures.shape[:3], shape)
            yield Video(name, prediction.array, truth.array, probability, pictures, names)


def find_sources(
    prediction: Path,
    truth: Path,
    *,
    probabilities: Path | None,
    frames: Path | None,
    ignore: int | None,
) -> Sources:
    """Match the videos of the folders; predictions without truth are left out.

    Raises:
        FileNotFoundError: A folder lacks videos that the truth has, or holds none.
    """
    truths = find_videos(truth)
    return Sources(
        _only(truths, find_videos(prediction), prediction),
        truths,
        _only(truths, _find_probabilities(probabilities), probabilities) if probabilities else None,
        _only(truths, find_pictures(frames), frames) if frames else None,
        ignore,
    )


def read_labels(given: Path | None, prediction: Path) -> Labels | None:
    """Labels of the given dataset.json, or of the one that nnU-Net leaves beside predictions.

    Raises:
        FileNotFoundError: The given file is not there.
        ValueError: The file is no dataset.json.
    """
    beside = prediction / "dataset.json"
    path = given or (beside if beside.is_file() else None)
    if path is None:
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no 'labels' ({error}); give nnU-Net's file") from error


def classes_of(sources: Sources, labels: Labels | None) -> dict[str, tuple[int, ...]]:
    """The classes to score: those of `labels`, else every number found but 0; reads every mask.

    Raises:
        ValueError: A mask holds a number that `labels` lacks, or there is no class at all.
    """
    values: set[int] = set()
    for name in sources.names:
        for stack in sources.labels(name):
            found = {int(value) for value in np.unique(stack.array)} - {0, sources.ignore}
            if labels is not None and (strange := found - _covered(labels)):
                raise ValueError(
                    f"{name} holds class {min(strange)}, which the dataset.json lacks; it has "
                    f"{', '.join(foreground(labels))}"
                )
            values |= found
    if labels is not None:
        return foreground(labels)
    if not values:
        raise ValueError("every mask, predicted and true, is empty; name the classes by --labels")
    return {str(value): (value,) for value in sorted(values)}


def foreground(labels: Labels) -> dict[str, tuple[int, ...]]:
    """Classes of a dataset.json without background and "ignore"; a region covers several values."""
    classes = {
        name: tuple(int(v) for v in (value if isinstance(value, Sequence) else [value]))
        for name, value in labels.items()
        if name != "ignore"
    }
    return {name: values for name, values in classes.items() if set(values) != {0}}


def _covered(labels: Labels) -> set[int]:
    return {value for values in foreground(labels).values() for value in values}


def _only(wanted: Mapping[str, Path], found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of {len(wanted)} videos: {', '.join(missing[:5])}; "
            "files and folders are matched by name"
        )
    return {name: found[name] for name in wanted}


def _find_probabilities(folder: Path) -> dict[str, Path]:
    archives = {file.stem: file for file in sorted(folder.glob("*.npz"))}
    return archives or find_videos(folder, inner="probabilities")


def _read_probability(path: Path, classes: Classes) -> Stack:
    """(k, t, h, w): nnU-Net's npz, or grey PNGs from 0 to 255 for a single class."""
    if path.suffix != ".npz":
        if len(classes) > 1:
            raise ValueError(
                f"{path} holds one map a frame and there are {len(classes)} classes; give npz "
                "files of nnUNetv2_predict --save_probabilities"
            )
        stack = read_stack(path)
        scale = 255 if stack.array.dtype == np.uint8 else 1
        return Stack(stack.array[None].astype(np.float32) / scale, stack.frames)
    try:
        with np.load(path, allow_pickle=False) as archive:
            maps = archive["probabilities"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} holds no array 'probabilities' ({error})") from error
    if maps.ndim != 4 or len(maps) not in (len(classes), len(classes) + 1):
        raise ValueError(
            f"{path} has shape {maps.shape}; (k, t, h, w) with k = {len(classes)} classes, or one "
            "more for the background, is needed"
        )
    return Stack(maps[-len(classes) :].astype(np.float32))


def _check_shape(name: str, what: str, shape: Sequence[int], truth: Sequence[int]) -> None:
    if tuple(shape) != tuple(truth):
        t, h, w = truth
        raise ValueError(
            f"{name}: the {what} has shape {tuple(shape)} and the truth {t} frames of {h} x {w} "
            "pixels; both must be of the same frames"
        )


def _check_frames(name: str, what: str, found: list[str], truth: list[str]) -> None:
    for names, others, whose in ((truth, found, what), (found, truth, "truth")):
        missing = [frame for frame in names if frame not in set(others)]
        if missing:
            raise ValueError(
                f"{name}: the {whose} lacks {len(missing)} frames: {', '.join(missing[:5])}; "
                "frames are matched by file name"
            )
