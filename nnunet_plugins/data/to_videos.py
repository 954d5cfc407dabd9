"""Predictions of nnU-Net back as what doctors and annotators look at: mask images and videos."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from nnunet_plugins.data.cases import CHANNELS, ENDING
from nnunet_plugins.data.from_videos import appearing_folder, read_records
from nnunet_plugins.data.masks import LabelScheme
from nnunet_plugins.data.overlay import write_overlay

_Voxels = NDArray[np.uint8]
_Record = Mapping[str, Any]


def write_predictions(
    predictions: Path,
    dataset: Path,
    out: Path,
    *,
    images: Path | None = None,
    fps: float | None = None,
    overlay: bool = True,
) -> list[str]:
    """Write `NAME/masks/FRAME.png` and `NAME/overlay.mp4` for each predicted video.

    Masks are 0 and 255 with one class and the class index with several, under the names and in
    the size of the frames. Clips of one video are joined. A frame all of whose voxels are ignored
    gets no mask, so that labels of a sparse dataset come back as they were.

    Args:
        predictions: Folder of label maps, NIfTI.
        dataset: The raw dataset that the network was trained on; it names the classes.
        out: What to create.
        images: Folder of `convert_images` that was predicted; the dataset's own images if None.
        fps: Frame rate of the overlay; the source's if None, less the stride.
        overlay: Whether to write the overlay.

    Returns:
        Names of the videos.

    Raises:
        FileExistsError: If `out` exists.
        FileNotFoundError: If there are no predictions, or no videos.json.
        ValueError: If predictions do not belong to the videos, or differ from them in size.
    """
    records = read_records(images or dataset)
    scheme = LabelScheme.of_dataset(dataset)
    videos = _by_video(_predicted(predictions, records), records)
    with appearing_folder(out) as partial:
        for name, cases in tqdm(videos.items(), desc="Writing", unit="video", disable=None):
            (partial / name / "masks").mkdir(parents=True)
            for case in cases:
                labels = _labels(predictions, case, records[case], scheme)
                _write_masks(partial / name / "masks", records[case]["frames"], labels, scheme)
            if overlay:
                clips = (_frames(images or dataset, case, records[case]) for case in cases)
                drawn = (_labels(predictions, case, records[case], scheme) for case in cases)
                path = partial / name / "overlay.mp4"
                rate = fps or _rate(records[cases[0]])
                write_overlay(path, chain.from_iterable(clips), _shown(drawn, scheme), rate)
    return list(videos)


def _predicted(predictions: Path, records: Mapping[str, _Record]) -> list[str]:
    """Names of the predicted cases."""
    files = sorted(predictions.glob(f"*{ENDING}")) if predictions.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{predictions} holds no predictions ({ENDING})")
    cases = [file.name.removesuffix(ENDING) for file in files]
    strange = [case for case in cases if case not in records]
    if strange:
        raise ValueError(
            f"{predictions / strange[0]}{ENDING} belongs to no video of the dataset; give the "
            "dataset, or with --images the folder, that was predicted"
        )
    return cases


def _by_video(cases: list[str], records: Mapping[str, _Record]) -> dict[str, list[str]]:
    """Cases of each video in the order of their frames."""
    videos: defaultdict[str, list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: records[case]["first_frame"]):
        videos[records[case]["video"]].append(case)
    return dict(sorted(videos.items()))


def _labels(predictions: Path, case: str, record: _Record, scheme: LabelScheme) -> _Voxels:
    """Classes of a case, (t, h, w)."""
    path = predictions / f"{case}{ENDING}"
    labels = _read(path)
    expected = (len(record["frames"]), *record["size"])
    if labels.shape != expected:
        raise ValueError(f"{path} has shape {labels.shape} and its clip {expected} (t, h, w)")
    highest = scheme.ignore if scheme.sparse else len(scheme.names)
    if labels.min() < 0 or labels.max() > highest:
        raise ValueError(f"{path} holds {labels.max()}; the dataset has labels 0 to {highest}")
    return labels.astype(np.uint8)


def _frames(folder: Path, case: str, record: _Record) -> _Voxels:
    """Frames of a case as they were converted, (t, h, w, 3)."""
    parts = {"train": "imagesTr", "val": "imagesTr", "test": "imagesTs"}
    inner = folder / parts[record["split"]]
    place = inner if inner.is_dir() else folder
    channels = [_read(place / f"{case}_{channel:04d}{ENDING}") for channel in range(len(CHANNELS))]
    return np.stack(channels, axis=-1)


def _read(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the overlay needs the dataset's images")
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def _write_masks(folder: Path, names: Sequence[str], labels: _Voxels, scheme: LabelScheme) -> None:
    for name, frame in zip(names, labels, strict=True):
        unlabelled = scheme.sparse and (frame == scheme.ignore).all()
        if not unlabelled:
            Image.fromarray(scheme.decode(frame)).save(folder / f"{name}.png")


def _shown(clips: Iterable[_Voxels], scheme: LabelScheme) -> Iterator[_Voxels]:
    """Frame by frame, nothing where voxels are ignored."""
    for labels in clips:
        yield from np.where(labels == scheme.ignore, 0, labels).astype(np.uint8)


def _rate(record: _Record) -> float | None:
    """Frames per second at which the kept frames show the source's speed."""
    return record["fps"] / record["stride"] if record["fps"] else None
