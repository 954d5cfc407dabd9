"""Looking through all data before the first step: what is used, what is left out and why."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tqdm import tqdm

Source = TypeVar("Source")
Kept = TypeVar("Kept")
OnBad = Literal["leave_out", "stop"]
NAMED = 10
"""So many bad ones are named in an error."""


@dataclass(frozen=True)
class LeftOut(Generic[Source]):
    """A scan or a video that is not used, and the reason."""

    source: Source
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def look_through(
    sources: Sequence[Source],
    look: Callable[[Source], Kept | LeftOut[Source]],
    *,
    kind: str,
    title: str,
    on_bad: OnBad,
    workers: int,
) -> tuple[tuple[Kept, ...], tuple[LeftOut[Source], ...]]:
    """What `look` keeps and what it leaves out, in the order of `sources`, with a progress bar.

    Args:
        sources: Scans or videos.
        look: Called for each, in threads.
        kind: What one is called.
        title: Of the progress bar.
        on_bad: "leave_out" bad ones, or "stop" and name them.
        workers: Threads.

    Raises:
        ValueError: If nothing can be used, or one cannot and `on_bad` is "stop".
    """
    if on_bad not in ("leave_out", "stop"):
        raise ValueError(f"on_bad is {on_bad!r}; give 'leave_out' or 'stop'")
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        looks = pool.map(look, sources)
        found = list(tqdm(looks, desc=title, total=len(sources), unit=kind, disable=None))
    finally:
        pool.shutdown(cancel_futures=True)
    kept = tuple(one for one in found if not isinstance(one, LeftOut))
    left_out = tuple(one for one in found if isinstance(one, LeftOut))
    if left_out and (on_bad == "stop" or not kept):
        named = "\n".join(map(str, left_out[:NAMED]))
        more = f"\nand {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        raise ValueError(
            f"{len(left_out)} of {len(sources)} {kind}s cannot be used:\n{named}{more}"
        )
    if not kept:
        raise ValueError(f"there are no {kind}s to look through; give some")
    return kept, left_out
