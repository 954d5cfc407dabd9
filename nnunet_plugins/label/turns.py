"""Who may compute: one after the other, in the order of asking, and not more than can wait."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class TooMany(RuntimeError):
    """The queue is full."""


class Turns:
    """A queue before something of which only so much fits into a machine.

    Args:
        slots: How many compute at once.
        waiting: How many more may wait.
    """

    def __init__(self, slots: int = 1, waiting: int = 32) -> None:
        self.slots, self.most = slots, waiting
        self._changed = threading.Condition()
        self._running = 0
        self._line: deque[object] = deque()

    @contextlib.contextmanager
    def turn(self) -> Iterator[int]:
        """Wait for one's turn, and have it; gives how many were before.

        Raises:
            TooMany: If too many wait already.
        """
        ticket = object()
        with self._changed:
            if self._running >= self.slots and len(self._line) >= self.most:
                raise TooMany(
                    f"{self.most} requests wait already, which is the most; try again in a while"
                )
            before = self._running + len(self._line)
            self._line.append(ticket)
            self._changed.wait_for(lambda: self._running < self.slots and self._line[0] is ticket)
            self._line.popleft()
            self._running += 1
            self._changed.notify_all()
        try:
            yield before
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def state(self) -> dict[str, int]:
        """How many `running` and how many `waiting`."""
        with self._changed:
            return {"running": self._running, "waiting": len(self._line)}
