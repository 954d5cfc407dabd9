"""What one thread hands to another."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
POLL = 0.1
"""Seconds after which a waiting thread looks whether it shall stop."""


class Handover(Generic[Item]):
    """A queue of bounded length between a giver and a taker, either of which may end it.

    Args:
        size: Items that wait at most.
        newest_wins: Where it is full, forget the oldest item, and count it, instead of letting the
            giver wait.
    """

    def __init__(self, size: int, *, newest_wins: bool = False) -> None:
        self.size, self.newest_wins = size, newest_wins
        self.dropped = 0
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = self._left = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> bool:
        """Hand an item over; False if the taker has left."""
        with self._changed:
            if self.newest_wins and len(self._items) == self.size:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._left or len(self._items) < self.size)
            if self._left:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def close(self, error: BaseException | None = None) -> None:
        """No more comes; the taker gets what waits, and then the error if there is one."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def leave(self) -> None:
        """Nothing more is taken."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()

    def taken(self, stop: threading.Event | None = None) -> Iterator[Item]:
        """Items as they come, until the giver closes or `stop` is set.

        Raises:
            BaseException: That with which the giver closed.
        """
        while stop is None or not stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed, POLL)
                if not self._items:
                    if not self._closed:
                        continue
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
