"""A full disk, wherever its error comes out."""

import errno

FULL = "the disk of the studies is full; free some space, nothing was lost"


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is that of a full disk or a quota."""
    while error is not None:
        if _is_of_disk(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def told(error: BaseException) -> str:
    """The sentence of an error: `FULL` for the system's own, which is none."""
    return FULL if _is_of_disk(error) else str(error)


def _is_of_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
