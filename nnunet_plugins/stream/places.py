"""Where a stream writes, tried before its first frame: hours of answers must find their place."""

import tempfile
from collections.abc import Mapping
from pathlib import Path


def check_places(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Make the folders of files that will be written, and see that nothing is written over.

    Args:
        written: File of each option; None where it was not given.
        read: What must stay as it is, by what it is called.

    Raises:
        ValueError: If a file is a folder, is one that is read, or is given to two options.
        OSError: If nothing can be written to its folder.
    """
    taken = {name: path for name, path in read.items() if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file")
        for name, other in taken.items():
            if _same(path, other):
                raise ValueError(f"{option} {path} would replace {name}; name another file")
        check_folder(option, path.parent)
        taken[f"what {option} writes"] = path


def check_folder(option: str, folder: Path) -> None:
    """Make a folder, and see that files can be written to it.

    Raises:
        OSError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{option}: nothing can be written to {folder} ({reason})") from error


def _same(path: Path, other: Path) -> bool:
    """Whether two paths are one file, by any name."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
