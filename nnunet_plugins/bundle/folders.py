"""Folders that appear when they are complete, in place of older ones."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def partial_of(out: Path) -> Path:
    """A hidden folder beside another, of this process."""
    return out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")


def replace_folder(partial: Path, out: Path) -> None:
    """Put a finished folder in its place; an old one goes when the new one is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    old = partial.with_suffix(".old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def replaced_folder(out: Path, own: set[str]) -> Iterator[Path]:
    """An empty folder that takes the place of `out` when it is complete; else nothing changes.

    Args:
        out: What to make.
        own: Names that an older result may hold; a folder with others is not replaced.

    Raises:
        FileExistsError: If there is something else.
    """
    there = {file.name for file in out.iterdir()} if out.is_dir() else set()
    if not there <= own or (out.exists() and not out.is_dir()):
        raise FileExistsError(
            f"{out} holds {min(there - own, default='something else')}, which is no result of "
            "this, and is not replaced; name another folder with --output_dir"
        )
    partial = partial_of(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
