"""Entries of a cache: folders that appear whole or not at all, whoever writes them."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path


def publish(entry: Path, files: Mapping[str, Callable[[Path], None]]) -> bool:
    """Write an entry's files beside its place, then move it there.

    Returns:
        False if another process came first; its entry stays.

    Raises:
        OSError: If it cannot be written; nothing is left of it.
    """
    draft = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        for name, write in files.items():
            write(draft / name)
        os.rename(draft, entry)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                number,
                "the disk of the cache is full; free space there, or name another folder",
                str(entry.parent),
            ) from error
        raise
    return True
