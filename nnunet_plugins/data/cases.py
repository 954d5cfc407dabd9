"""One video as cases of nnU-Net: NIfTI files with time first, a file for each colour channel.

Voxels are 1 x 1 x 1 in size. nnU-Net moves the axis of largest spacing to the front and resamples
axes that differ from the median: with equal spacings, time stays first and no frame is resampled.
Two corner pixels of every frame are at least 1 of 255: without them nnU-Net would crop black
borders and black frames away, of each video others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_plugins.data.clips import Frame, FrameStream
from nnunet_plugins.data.masks import Labels, LabelScheme, MaskFolder, MaskVideo
from nnunet_plugins.data.sources import Video

ENDING = ".nii.gz"
CHANNELS = {"0": "rgb_to_0_1", "1": "rgb_to_0_1", "2": "rgb_to_0_1"}
"""Channel names of dataset.json; nnU-Net chooses by them to divide by 255."""


class _Item(NamedTuple):
    name: str
    frame: Frame
    labels: Labels | None
    """None where nobody has labelled."""


@dataclass(frozen=True)
class CaseRecord:
    """What a case was before it was NIfTI: an entry of videos.json."""

    video: str
    group: str
    split: str
    source: str
    fps: float | None
    """Frames per second of the source, before any stride."""
    stride: int
    first_frame: int
    """Index of the first frame in the source."""
    frames: tuple[str, ...]
    labelled: tuple[str, ...]
    size: tuple[int, int]
    """Height and width in pixels."""
    notes: tuple[str, ...] = ()
    """What was converted or lost, a sentence each."""


@dataclass(frozen=True)
class Cutting:
    """Which frames become a case."""

    stride: int = 1
    """Every so manyth frame is kept."""
    clip_length: int | None = None
    """At most so many kept frames a case; a video is one case if None."""
    first_number: int = 1
    """Number of a video file's first frame in the names of its masks."""

    def __post_init__(self) -> None:
        if self.stride < 1 or (self.clip_length is not None and self.clip_length < 1):
            raise ValueError(
                f"stride {self.stride} and clip length {self.clip_length} must be at least 1"
            )


def write_cases(
    video: Video, folder: Path, cutting: Cutting, scheme: LabelScheme | None
) -> dict[str, CaseRecord]:
    """Write a video's cases to the folder's imagesTr and labelsTr, or imagesTs and labelsTs.

    Args:
        video: What to write; its masks are needed unless it is for the test.
        folder: A raw dataset that is being made.
        cutting: Stride and length.
        scheme: Classes; None to write images alone, straight into the folder.

    Returns:
        The record of each case by its name. Clips without a labelled frame are left out.

    Raises:
        FileNotFoundError: If masks are needed and there are none.
        ValueError: If frames cannot be read, or masks do not fit them.
    """
    stream = FrameStream(video.frames, first_number=cutting.first_number)
    masks = _open_masks(video, scheme)
    items = _kept_items(stream, masks, cutting, scheme)
    part = "Ts" if video.split == "test" else "Tr"
    images = folder / f"images{part}" if scheme else folder
    records: dict[str, CaseRecord] = {}
    notes: list[str] = []
    first, length = 0, cutting.clip_length
    for number in count():
        clip = list(islice(items, length))
        if not clip:
            break
        name = video.name if length is None else f"{video.name}_clip{number:03d}"
        labelled = tuple(item.name for item in clip if item.labels is not None)
        if labelled or masks is None:
            _write(images / name, clip)
            if scheme and masks:
                _write_labels(folder / f"labels{part}" / name, clip, scheme)
            records[name] = CaseRecord(
                video.name, video.group, video.split, str(video.frames), stream.fps or video.fps,
                cutting.stride, first, tuple(item.name for item in clip), labelled,
                clip[0].frame.shape[:2],
            )  # fmt: skip
        else:
            notes.append(f"{name} has no labelled frame and is left out")
        first += len(clip) * cutting.stride
    notes = [*stream.notes, *notes]
    return {name: replace(record, notes=tuple(notes)) for name, record in records.items()}


def _open_masks(video: Video, scheme: LabelScheme | None) -> MaskFolder | MaskVideo | None:
    if scheme is None or (video.masks is None and video.split == "test"):
        return None
    if video.masks is None:
        raise FileNotFoundError(
            f"{video.frames} has no masks; give a folder of masks, or `mambamed dataset images` "
            "to convert videos that are only to be segmented"
        )
    if video.masks.is_dir():
        return MaskFolder(video.masks, scheme, by_number=video.frames.is_file())
    return MaskVideo(video.masks, scheme)


def _kept_items(
    stream: FrameStream,
    masks: MaskFolder | MaskVideo | None,
    cutting: Cutting,
    scheme: LabelScheme | None,
) -> Iterator[_Item]:
    """Every so manyth frame with its labels; masks of the others are checked too."""
    for index, (name, frame) in enumerate(stream):
        labels = masks.take(name) if masks else None
        if labels is not None and labels.shape != frame.shape[:2]:
            raise ValueError(
                f"{stream.path}: frame {name} has {frame.shape[1]} x {frame.shape[0]} pixels and "
                f"its mask {labels.shape[1]} x {labels.shape[0]}; they need one size"
            )
        if index % cutting.stride:
            continue
        if labels is None and isinstance(masks, MaskFolder) and scheme and not scheme.sparse:
            raise ValueError(
                f"{masks.folder} has no mask for frame {name} (it has {masks.example}, ...); "
                "give --ignore-unlabelled if only some frames are labelled"
            )
        yield _Item(name, frame, labels)
    if isinstance(masks, MaskFolder) and masks.left and stream.broken:
        stream.note(f"{len(masks.left)} masks after the break are not used")
    elif masks and not stream.broken:
        masks.check_end()


def _write(path: Path, clip: list[_Item]) -> None:
    frames = np.stack([item.frame for item in clip])
    corners = frames[:, [0, -1], [0, -1]]
    frames[:, [0, -1], [0, -1]] = np.maximum(corners, 1)  # nnU-Net crops to what is not zero
    for channel in range(3):
        _write_volume(path.with_name(f"{path.name}_{channel:04d}{ENDING}"), frames[..., channel])


def _write_labels(path: Path, clip: list[_Item], scheme: LabelScheme) -> None:
    unlabelled = np.full(clip[0].frame.shape[:2], scheme.ignore, np.uint8)
    labels = [unlabelled if item.labels is None else item.labels for item in clip]
    _write_volume(path.with_name(path.name + ENDING), np.stack(labels))


def _write_volume(path: Path, voxels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(path), useCompression=True)
