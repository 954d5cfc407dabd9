"""Readers of videos that stay open between clips, a few in each process."""

import os
from collections import OrderedDict
from typing import Any

from pretrain.fingerprints import identity_of
from pretrain.videos.decoding import Reader, open_reader
from pretrain.videos.first_pass import Kept


class OpenVideos:
    """The readers used last, at most so many; every process, and every copy, opens its own.

    Args:
        most: Readers open at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        self._inherited = self._readers
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._readers)

    def get(self, kept: Kept) -> Reader:
        """The reader of a video, opened if it is not.

        Raises:
            RuntimeError: If its files changed since the first pass.
            OSError: If they are gone.
        """
        if self._process != os.getpid():  # a fork shares the place in its parent's files
            self._inherited = self._readers  # never closed: their threads are the parent's
            self._readers, self._process = OrderedDict(), os.getpid()
        reader = self._readers.pop(kept.identity, None)
        if reader is None:
            while len(self._readers) >= self.most:
                self._readers.popitem(last=False)[1].close()
            reader = open_unchanged(kept)
        self._readers[kept.identity] = reader
        return reader

    def forget(self, kept: Kept) -> None:
        """Close the reader of a video, if it is open."""
        reader = self._readers.pop(kept.identity, None)
        if reader is not None:
            reader.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["most"])  # type: ignore[misc]


def open_unchanged(kept: Kept) -> Reader:
    """A new reader of a video.

    Raises:
        RuntimeError: If its files changed since the first pass.
        OSError: If they are gone.
    """
    if identity_of(kept.video.files) != kept.identity:
        raise RuntimeError(f"{kept.video} changed since the first pass; start again")
    return open_reader(kept.video.path, kept.seen.entries)
