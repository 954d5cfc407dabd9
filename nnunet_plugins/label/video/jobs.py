"""Work that takes long: begun, watched and cancelled, one after the other."""

import logging
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nnunet_plugins.label.turns import TooMany

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """The client wants no more of it."""


@dataclass
class Job:
    """Something that is being done, frame by frame."""

    about: dict[str, Any]
    """What it is, for clients."""
    total: int
    """Frames."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    done: int = 0
    status: str = "WAITING"
    """WAITING, RUNNING, DONE, CANCELED or ERROR."""
    detail: str = ""
    """Why it ended, where it failed."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the work found so far."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more is done."""
        return self.status in ("DONE", "CANCELED", "ERROR")

    def advance(self, frames: int) -> None:
        """Count frames.

        Raises:
            Cancelled: If no more are wanted.
        """
        self.done += frames
        if self.cancelled.is_set():
            raise Cancelled

    def told(self) -> dict[str, Any]:
        """What clients are told."""
        frames = {"frames_done": self.done, "frames_total": self.total}
        said = {"detail": self.detail} if self.detail else {}
        return {"id": self.id, "status": self.status, **frames, **self.about, **said, **self.result}


class Jobs:
    """Jobs of a server, one at a time in the order of asking, and those that ended lately.

    Args:
        waiting: How many may wait or run.
        kept: How many are remembered.
    """

    def __init__(self, waiting: int = 32, kept: int = 200) -> None:
        self.most, self.kept = waiting, kept
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "video")

    def begin(self, job: Job, work: Callable[[Job], None]) -> Job:
        """Let a job be done.

        Raises:
            FileExistsError: If one about the same waits or runs.
            TooMany: If too many do.
        """
        with self._lock:
            alive = [other for other in self._jobs.values() if not other.ended]
            subject = _subject(job)
            if any(_subject(other) == subject for other in alive):
                raise FileExistsError(
                    f"{' and '.join(subject)} are at work already; wait for the end of that job, "
                    "or cancel it"
                )
            if len(alive) >= self.most:
                raise TooMany(f"{self.most} jobs wait already, which is the most; try again later")
            for old in [j for j in self._jobs.values() if j.ended][: -self.kept or None]:
                del self._jobs[old.id]
            self._jobs[job.id] = job
        self._worker.submit(self._run, job, work)
        return job

    def get(self, identity: str) -> Job:
        """A job.

        Raises:
            FileNotFoundError: If there is none of this name.
        """
        with self._lock:
            if identity not in self._jobs:
                raise FileNotFoundError(f"there is no job {identity[:80]!r}; GET /video/jobs/")
            return self._jobs[identity]

    def all(self) -> list[Job]:
        """All that are remembered, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def close(self) -> None:
        """Cancel everything and wait for the frames at hand."""
        for job in self.all():
            job.cancelled.set()
        self._worker.shutdown(cancel_futures=True)

    def _run(self, job: Job, work: Callable[[Job], None]) -> None:
        job.status, status = "RUNNING", "DONE"
        try:
            job.advance(0)
            work(job)
        except Cancelled:
            status = "CANCELED"
        except (ValueError, OSError) as error:
            job.detail, status = str(error)[:1000], "ERROR"
        except Exception as error:
            logger.exception("job %s", job.about)
            kind = type(error).__name__
            job.detail, status = f"the server failed at this ({kind}); its log says where", "ERROR"
        job.status = status


def _subject(job: Job) -> tuple[str, str]:
    return job.about["model"], job.about["image"]
