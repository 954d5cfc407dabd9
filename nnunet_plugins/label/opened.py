"""Files that were looked at last, kept open within a bound of memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Sized(Protocol):
    """What knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Opened:
    """The newest of opened files; one that changes on the disk is opened again.

    Several threads may ask at once: a file is opened by one, and the others wait for that.

    Args:
        files: How many are kept.
        size: Bytes that they have together, unless a single one has more.
    """

    def __init__(self, files: int = 8, size: int = 2**30) -> None:
        self.files, self.size = files, size
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, file: Path, read: Callable[[Path], T]) -> T:
        """What `read` gives for a file.

        Raises:
            OSError: If there is no such file.
            Exception: Whatever `read` raises.
        """
        key = (read, file, stamp(file))
        with self._lock:
            entry = self._entries.get(key)
            mine = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
            self._entries.move_to_end(key)
        if mine:
            self._fill(key, entry, file, read)
        return entry.result()

    def _fill(self, key: Hashable, entry: Future[T], file: Path, read: Callable[[Path], T]) -> None:
        try:
            entry.set_result(read(file))
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            entry.set_exception(error)
            return
        with self._lock:
            while len(self._entries) > 1 and self._too_much():
                self._entries.popitem(last=False)

    def _too_much(self) -> bool:
        done = [entry.result().nbytes for entry in self._entries.values() if entry.done()]
        return len(self._entries) > self.files or sum(done) > self.size


def stamp(file: Path) -> str:
    """What differs between two versions of a file.

    Raises:
        OSError: If there is no such file.
    """
    status = file.stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
