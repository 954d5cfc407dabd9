"""Names that requests may use, and the files that they stand for, inside one folder."""

import re
from pathlib import Path

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_name(name: str, what: str) -> str:
    """The name of a new file or folder, without its ending, if it is a plain one.

    Raises:
        ValueError: If it has other characters than letters, digits, dots, - and _, begins with a
            dot, has more than 128 characters, or holds an ending of a file.
    """
    if not _PLAIN.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{name[:80]!r} cannot be the name of {what}; use up to 128 letters, digits, dots, - "
            "and _, no path"
        )
    if any(ending in f"{name.lower()}." for ending in (f"{e}." for e in VOLUMES + VIDEOS)):
        raise ValueError(f"{name!r} holds the ending of a file; leave that out of {what}")
    return name


def ending_of(filename: str, allowed: tuple[str, ...]) -> str:
    """Ending of an uploaded file.

    Raises:
        ValueError: If it is none of those that are allowed.
    """
    for ending in allowed:
        if filename.lower().endswith(ending):
            return ending
    raise ValueError(
        f"{filename[-80:]!r} is not of a type that is taken here; send {', '.join(allowed)}"
    )


def confined(folder: Path, *parts: str) -> Path:
    """A path below a folder, links resolved.

    Raises:
        ValueError: If it leads out of the folder.
    """
    root = folder.resolve()
    try:
        path = root.joinpath(*parts).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # loops, NUL, too long
        raise ValueError("this is no name of a file; name a study of the list") from error
    if not path.is_relative_to(root) or path == root:
        raise ValueError("this leads out of the folder of studies; name a study of the list")
    return path


def is_video(path: Path) -> bool:
    """Whether a study is a video, by its ending."""
    return path.name.lower().endswith(VIDEOS)
