"""Who may compute: one after the other, in the order of asking, and not more than can wait."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PAUSE = 0.05
"""Seconds before work that gives way looks again."""


class TooMany(RuntimeError):
    """The queue is full."""


class Turns:
    """A queue before a machine that only one may use, of all threads and processes.

    Two locks stand between processes, and end with the process that has them: who computes has one,
    and the line of those who wait has the other, for as long as there is one. Work that gives way
    begins only where nobody has either, so whoever asks waits for no more than what is running.

    Args:
        folder: Of the locks, the same for all processes.
        waiting: How many may wait.
    """

    def __init__(self, folder: Path, waiting: int = 32) -> None:
        self.most = waiting
        self._folder = folder
        self._computing, self._ahead = self._locks()
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        """The first is whose turn it is."""

    @contextlib.contextmanager
    def turn(self) -> Iterator[int]:
        """Wait for one's turn, and have it; gives how many were before.

        Raises:
            TooMany: If too many wait already.
        """
        ticket = object()
        with self._changed:
            before = len(self._line)
            if before > self.most:
                raise TooMany(
                    f"{self.most} requests wait already, which is the most; try again in a while"
                )
            self._line.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._line[0] is ticket)
            if not self._ahead.is_locked:
                self._ahead.acquire()
            with self._computing:
                yield before
        finally:
            self._leave(ticket)

    @contextlib.contextmanager
    def turn_after_all(self) -> Iterator[None]:
        """Wait until nobody computes and nobody waits, in any process, and have a turn."""
        computing, ahead = self._locks()
        while not _begun(computing, ahead):
            time.sleep(PAUSE)
        try:
            yield
        finally:
            computing.release()

    def state(self) -> dict[str, int]:
        """How many `running` and how many `waiting` of this process."""
        with self._changed:
            running = int(bool(self._line) and self._computing.is_locked)
            return {"running": running, "waiting": len(self._line) - running}

    def _locks(self) -> tuple[FileLock, FileLock]:
        """Of who computes, and of who waits."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files = (self._folder / f"{what}.lock" for what in ("computing", "waiting"))
        computing, ahead = (FileLock(file, thread_local=False) for file in files)
        return computing, ahead

    def _leave(self, ticket: object) -> None:
        with self._changed:
            self._line.remove(ticket)
            if not self._line and self._ahead.is_locked:
                self._ahead.release()
            self._changed.notify_all()


def _begun(computing: FileLock, ahead: FileLock) -> bool:
    """Take the machine if nobody has it or waits for it."""
    with contextlib.suppress(Timeout), ahead.acquire(blocking=False):
        computing.acquire(blocking=False)
        return True
    return False
