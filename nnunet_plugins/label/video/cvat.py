"""Labels of a video in CVAT's "Segmentation mask 1.1": PNG masks in a zip, and colours of classes.

Source: CVAT's documentation of the format, which is Pascal VOC's with a `labelmap.txt`. CVAT calls
frames of a video frame_000000 and so on.
"""

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_plugins.data.masks import Labels
from nnunet_plugins.label.colours import colour
from nnunet_plugins.label.video.prompts import UNLABELLED

LABELMAP, CLASSES, OBJECTS = "labelmap.txt", "SegmentationClass/", "SegmentationObject/"
LISTING = "ImageSets/Segmentation/default.txt"
LARGEST = 2**26
"""Bytes of a mask or a text in an archive; what unpacks to more is refused."""
Colours = dict[tuple[int, int, int], int]
"""Classes by red, green and blue."""


def write_cvat(file: Path, labels: Iterable[Labels], names: dict[str, int]) -> None:
    """An archive that CVAT imports, without the frames about which nothing is known."""
    values = {0: "background"} | {value: name for name, value in names.items()}
    colours = {0: (0, 0, 0)} | {value: colour(value) for value in values if value}
    lines = ["# label:color_rgb:parts:actions"]
    lines += [f"{values[v]}:{','.join(map(str, colours[v]))}::" for v in sorted(values)]
    palette = [part for v in range(256) for part in colours.get(v, (0, 0, 0))]
    known = []
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(LABELMAP, "\n".join(lines) + "\n")
        for index, frame in enumerate(labels):
            if (frame == UNLABELLED).all():
                continue
            known.append(index)
            picture = Image.fromarray(frame, "P")
            picture.putpalette(palette)
            buffer = io.BytesIO()
            picture.save(buffer, "png")
            for folder in (CLASSES, OBJECTS):  # one object of each class
                archive.writestr(f"{folder}frame_{index:06d}.png", buffer.getvalue())
        archive.writestr(LISTING, "".join(f"frame_{i:06d}\n" for i in known))


def read_cvat(file: Path, names: dict[str, int], size: tuple[int, int, int]) -> dict[int, Labels]:
    """Classes (h, w) of the frames in an archive, by their numbers from 0.

    Nothing is unpacked to the disk.

    Args:
        file: As CVAT exports it, or a zip of grey PNG masks without `labelmap.txt`.
        names: Values of the classes.
        size: Frames, rows and columns of the video.

    Raises:
        ValueError: If it is no such archive, or holds other classes, frames or sizes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {e.filename: e for e in archive.infolist() if not e.is_dir()}
            colours = None
            if LABELMAP in entries:
                colours = _colours(_unpacked(archive, entries[LABELMAP]), names)
            folder = CLASSES if any(name.startswith(CLASSES) for name in entries) else ""
            wanted = {n: e for n, e in entries.items() if n.startswith(folder) and _is_mask(n)}
            if len(wanted) > size[0]:
                raise ValueError(f"the archive holds {len(wanted)} masks for {size[0]} frames")
            found: dict[int, Labels] = {}
            for name, entry in wanted.items():
                index = _number(name)
                if index in found or index >= size[0]:
                    raise ValueError(f"{name[-80:]!r} is no frame of this video, or one of two")
                data = _unpacked(archive, entry)
                found[index] = _classes(data, name, size[1:], colours, max(names.values()))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError("the archive cannot be read; send the zip as CVAT exports it") from error
    if not found:
        raise ValueError("the archive holds no masks in SegmentationClass/ or beside it")
    return found


def all_frames(masks: dict[int, Labels], size: tuple[int, int, int]) -> Iterator[Labels]:
    """Classes (h, w) of each frame of a video of `size`; without a mask it is `UNLABELLED`."""
    gap = np.full(size[1:], UNLABELLED, np.uint8)
    return (masks.get(index, gap) for index in range(size[0]))


def _is_mask(name: str) -> bool:
    return name.lower().endswith(".png") and not name.startswith(OBJECTS)


def _number(name: str) -> int:
    found = re.search(r"(\d{1,9})\.png$", name, re.IGNORECASE)
    if not found:
        raise ValueError(f"{name[-80:]!r} has no frame's number at its end")
    return int(found[1])


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes, of which no more are unpacked than are taken."""
    with archive.open(entry) as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{entry.filename[-80:]!r} is larger than {LARGEST // 2**20} MiB")
    return data


def _colours(text: bytes, names: dict[str, int]) -> Colours:
    """Colours of a labelmap's lines, NAME:RED,GREEN,BLUE:PARTS:ACTIONS."""
    known = {"background": 0} | names
    found: Colours = {}
    for line in text.decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        parts = rest.partition(":")[0].split(",")
        if name not in known or len(parts) != 3 or not all(p.strip().isdigit() for p in parts):
            raise ValueError(
                f"{line[:80]!r} in labelmap.txt is no class of this model; its classes are "
                f"{', '.join(known)}"
            )
        red, green, blue = (int(p) for p in parts)
        found[red, green, blue] = known[name]
    return found


def _classes(
    data: bytes, name: str, size: tuple[int, int], colours: Colours | None, highest: int
) -> Labels:
    """Classes of a mask: by its colours, or its grey values where there is no labelmap."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.size[::-1] != tuple(size):
                raise ValueError(
                    f"{name[-80:]!r} has {picture.size[::-1]} rows and columns and the video "
                    f"{tuple(size)}"
                )
            pixels = np.asarray(picture if colours is None else picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name[-80:]!r} is no picture that can be read") from error
    if colours is None:
        if pixels.ndim != 2 or pixels.max() > highest:
            raise ValueError(f"{name[-80:]!r} is no grey mask with the values 0 to {highest}")
        return pixels.astype(np.uint8)
    labels = np.full(pixels.shape[:2], UNLABELLED, np.uint8)
    for shade, value in colours.items():
        labels[(pixels == shade).all(-1)] = value
    if (labels == UNLABELLED).any():
        raise ValueError(f"{name[-80:]!r} has colours that labelmap.txt does not name")
    return labels
