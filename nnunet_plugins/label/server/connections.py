"""Connections without a request end in time, whatever trickles in on them."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0
"""Seconds until the first request of a connection is there, its headers whole."""
MOST = 256
"""Connections at once."""


class Connection(H11Protocol):
    """uvicorn's, but it is closed if no request is at work on it for too long.

    A new one has `PATIENCE` seconds, one that was used uvicorn's `timeout_keep_alive`. Where there
    are more than `MOST`, the one that was without a request for longest is closed; a request that
    is at work, or waits for its turn, never is.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    @property
    def at_work(self) -> bool:
        """Whether a request has come that is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait(PATIENCE)
        others = [other for other in self.connections if not other.transport.is_closing()]
        if len(others) > MOST:
            idle = [other for other in others if not other.at_work]
            min(idle, key=lambda other: other._idle_since).transport.abort()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._wait(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self._end)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if not self.at_work:
            self.transport.abort()
