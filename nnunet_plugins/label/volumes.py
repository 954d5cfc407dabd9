"""Files of volumes, looked at before a library reads their voxels: whole in themselves, and no
larger than they can be.

Formats can name another file for the voxels: whoever sends such a header would be shown any file
that the server may read.
"""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import SimpleITK as sitk

from nnunet_plugins.label.names import VOLUMES, ending_of

READERS = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".mha": "MetaImageIO",
}
"""SimpleITK's for each ending; it would also take others by what is in a file."""
LARGEST = 2**31
"""Bytes of voxels that a volume may announce."""
RATIO = 1040
"""Times that gzip makes anything smaller, at most."""
TEXT = ("NrrdImageIO", "MetaImageIO")
"""Formats whose headers are text."""
HEADER = 2**20
"""Bytes within which a header of text has to end."""
_LOCAL = re.compile(rb"\nElementDataFile[ \t]*[=:][ \t]*LOCAL\r?\n")  # a line, where headers end
_ELSEWHERE = re.compile(rb"data\s*file\s*:", re.IGNORECASE)


def check_alone(file: Path) -> None:
    """Refuse a volume whose voxels are elsewhere, or that is another format than its name says.

    It is asked of every file of the studies before anything reads it, so it is quick.

    Raises:
        ValueError: If it is such a file, or cannot be read.
    """
    ending = ending_of(file.name, VOLUMES)
    try:
        known = sitk.ImageFileReader.GetImageIOFromFileName(str(file)) == READERS[ending]
        begin = _begin(file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError("the file cannot be read as a volume; is it damaged?") from error
    if not known:
        raise ValueError("the file cannot be read as a volume; is it damaged?")
    if not _ALONE[READERS[ending]](begin):
        raise ValueError(
            "the file does not say that its voxels follow its header, and other files are not "
            "read; send a volume in one file"
        )


def _begin(file: Path) -> bytes:
    """As much as shows where the voxels are: a header of text, or the first bytes of a NIfTI's."""
    with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
        return stream.read(HEADER if READERS[ending_of(file.name, VOLUMES)] in TEXT else 1024)


def _nifti_alone(begin: bytes) -> bool:
    return begin[344:348] == b"n+1\0" or begin[4:8] == b"n+2\0"


def _nrrd_alone(begin: bytes) -> bool:
    return b"\n\n" in begin and not _ELSEWHERE.search(begin)


def _meta_alone(begin: bytes) -> bool:
    return begin.lower().count(b"elementdatafile") == 1 and bool(_LOCAL.search(begin))


_ALONE = {"NiftiImageIO": _nifti_alone, "NrrdImageIO": _nrrd_alone, "MetaImageIO": _meta_alone}


def read_header(file: Path) -> sitk.ImageFileReader:
    """The header of a volume in one file, whose voxels are not read.

    Raises:
        ValueError: If it is none, or announces more voxels than are taken or than it can hold.
    """
    check_alone(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError("the file cannot be read as a volume; is it damaged?") from error
    size, plain = file.stat().st_size, file.name.lower().endswith(".nii")
    if announced(reader) > (size - _offset(_begin(file)) if plain else RATIO * size):
        raise ValueError(
            f"the file announces {by(reader.GetSize())} voxels and is too short for them"
        )
    return reader


def check_end(file: Path, reader: sitk.ImageFileReader) -> None:
    """See that a compressed NIfTI holds what it announces, a little of it in memory at a time.

    Raises:
        ValueError: If it ends before, or is damaged.
    """
    left = announced(reader)
    try:
        with gzip.open(file) as stream:
            begin = stream.read(HEADER)
            left += int(_offset(begin)) - len(begin)
            while left > 0 and (part := stream.read(min(left, HEADER))):
                left -= len(part)
    except (OSError, EOFError, OverflowError, zlib.error) as error:
        raise ValueError("the label cannot be read to its end; is it damaged?") from error
    if left > 0:
        raise ValueError("the label cannot be read to its end; is it damaged?")


def _offset(begin: bytes) -> float:
    """Bytes before the voxels of a NIfTI."""
    order = "<" if begin[0] else ">"  # of 348 or 540, the header's size
    if begin[4:8] == b"n+2\0":
        return struct.unpack_from(f"{order}q", begin, 168)[0]
    return struct.unpack_from(f"{order}f", begin, 108)[0]


def announced(reader: sitk.ImageFileReader) -> int:
    """Bytes of the voxels that a header announces."""
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(\d+)-bit", kind)
    if bits is None:
        raise ValueError(f"voxels of the kind {kind} are not taken; send numbers")
    numbers = reader.GetNumberOfComponents() * (2 if "complex" in kind else 1)
    return math.prod(reader.GetSize()) * numbers * int(bits[1]) // 8


def by(size: tuple[int, ...]) -> str:
    """A size in words."""
    return " x ".join(map(str, size))
