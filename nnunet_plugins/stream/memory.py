"""Memory that a stream needs again with the next frame stays with the process."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt."""
OPTIONS = {_TRIM_THRESHOLD: 2**30, _TOP_PAD: 2**26, _MMAP_THRESHOLD: 2**25}
"""Bytes that are kept before any are given back, that are asked for at once, and from which on a
block is a mapping of its own."""


def keep_freed_memory() -> bool:
    """Have this process keep freed memory, up to 1 GiB, instead of giving it back.

    Otherwise features of every layer are memory that is new to the process, which the system
    clears page by page: a tenth of a frame's time. What is kept does not grow.

    Returns:
        Whether it is so now: only glibc, on Linux, can be told.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(*option) for option in OPTIONS.items()])
