"""Which scans there are: a folder looked through to its bottom, or a list of files."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from pretrain.manifests import MANIFESTS, positive, read_entries

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
LABELS = ("labelsTr", "labelsTs")
"""nnU-Net's folders of label maps, which are no scans."""


@dataclass(frozen=True)
class Scan:
    """One scan on disk.

    Args:
        files: Absolute paths: the file, the file and the voxels that its header names, or the
            slices of a DICOM series in their order.
        series: DICOM series UID; empty for other formats.
        weight: How often the scan is drawn, relative to the others.
    """

    files: tuple[str, ...]
    series: str = ""
    weight: float = 1.0

    @property
    def path(self) -> str:
        """The file, or the folder that holds the series."""
        return os.path.dirname(self.files[0]) if self.series else self.files[0]

    def __str__(self) -> str:
        return f"{self.path} (series {self.series})" if self.series else self.path


def find_scans(source: Path | str) -> list[Scan]:
    """Every scan of a folder or a manifest, sorted by path or in the manifest's order.

    Folders are searched to their bottom for NIfTI, NRRD and MetaImage files and for DICOM series,
    one scan for each series UID of a folder. Hidden files and nnU-Net's `labelsTr` and `labelsTs`
    are passed over. A manifest is a JSON list of paths or of {"path", "weight", "series"}, or an
    object with such a list under "scans" (as `describe` gives); a CSV with the header `path` or
    `path,weight`; or a text file with one path a line. Its paths are relative to its folder, may
    be folders, and need not exist: the first pass leaves out what is missing.

    Raises:
        FileNotFoundError: If there is no such source, or a folder without scans.
        ValueError: If the manifest cannot be read.
    """
    source = Path(source).absolute()
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; give a folder of scans or a manifest")
    listed = source.is_file() and source.suffix in MANIFESTS
    scans = list(_read_manifest(source) if listed else _expand(source))
    if not scans:
        what = "lists no scans" if listed else f"holds no scans ({', '.join(VOLUMES)} or DICOM)"
        raise FileNotFoundError(f"{source} {what}; give another folder or manifest")
    return scans


def _expand(path: Path) -> Iterator[Scan]:
    """The scan in a file, or all those under a folder."""
    if not path.is_dir():
        yield Scan((str(path), *_voxel_file(path)))
        return
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in LABELS)
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        for file in files:
            if file.name.endswith(VOLUMES):
                yield Scan((str(file), *_voxel_file(file)))
        if any(map(_is_dicom, files)):
            yield from _series(folder)


def _voxel_file(header: Path) -> tuple[str, ...]:
    """The single file of voxels named by a detached header; nothing for other formats."""
    if header.suffix not in (".mhd", ".nhdr") or not header.is_file():
        return ()
    with header.open("rb") as stream:
        text = stream.read(1 << 16).decode("latin-1")
    named = re.search(r"^(?:ElementDataFile\s*=|data ?file:)[ \t]*(.+?)\s*$", text, re.M | re.I)
    if named is None or re.match(r"LIST\b|LOCAL$|.*%", named[1]):
        return ()
    return (str(header.parent / named[1]),)


def _is_dicom(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in (".dcm", ".ima"):
        return True
    if suffix and not suffix[1:].isdigit():  # names without suffix, or ending in a UID
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _series(folder: str) -> Iterator[Scan]:
    reader = sitk.ImageSeriesReader
    for series in sorted(reader.GetGDCMSeriesIDs(folder)):
        yield Scan(tuple(reader.GetGDCMSeriesFileNames(folder, series)), series)


def _read_manifest(manifest: Path) -> Iterator[Scan]:
    for entry in read_entries(manifest, "scans"):
        path = manifest.parent / str(entry["path"])
        weight = positive(entry, "weight", manifest) or 1.0
        found = [scan for scan in _expand(path) if entry.get("series", scan.series) == scan.series]
        if not found:
            raise ValueError(f"{manifest} lists {path}, which holds no scan; correct the entry")
        yield from (replace(scan, weight=weight) for scan in found)
