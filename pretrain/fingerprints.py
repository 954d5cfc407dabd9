"""Digests that tell whether files changed, and whether copies hold the same."""

import hashlib
import json
import os
from collections.abc import Iterable
from typing import Any

END = 4096
"""Bytes at either end of a file that its content is known by; .gz ends with a check sum."""


def digest(plain: Any) -> str:
    """Digest of plain JSON."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def identity_of(files: Iterable[str]) -> str:
    """Digest of the paths, sizes and times of change of files."""
    stats = [(file, os.stat(file)) for file in files]
    return digest([[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats])


def content_of(files: Iterable[str]) -> str:
    """Digest of the sizes, beginnings and ends of files: the same for a copy elsewhere."""
    parts: list[Any] = []
    for file in files:
        size = os.path.getsize(file)
        with open(file, "rb") as stream:
            ends = stream.read(END)
            stream.seek(max(0, size - END))
            ends += stream.read(END)
        parts.append([size, hashlib.sha256(ends).hexdigest()])
    return digest(parts)
