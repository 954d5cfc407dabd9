"""Networks that remember, over a video of any length: every frame is seen once.

Shapes: b videos, c channels, k classes, t h w clip, v views.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from nnunet_plugins.bundle.inferer import members_of, of_videos
from nnunet_plugins.streaming import StreamingSession


class StreamInferer(Inferer):
    """Logits of videos from frames and those before them, a few frames at a time.

    There are no windows and no overlap: a `StreamingSession` for each network of an ensemble keeps
    what the frames so far left, so memory is that of `chunk` frames. How many they are changes the
    logits by rounding alone.

    Args:
        mirror_axes: Of (t, h, w): axes along which predictions of mirrored frames are averaged,
            each of them a stream of its own; None or empty for none.
        chunk: Frames of a step: 1 answers at once, more are faster.

    Raises:
        ValueError: If time would be mirrored, or a step has no frame.
    """

    def __init__(self, mirror_axes: Sequence[int] | None = None, chunk: int = 8) -> None:
        super().__init__()
        axes = sorted(set(mirror_axes or ()))
        if not set(axes) <= {1, 2}:
            raise ValueError(
                "time has a direction and cannot be mirrored; take --mirror_axes [1,2]"
            )
        if chunk < 1:
            raise ValueError(f"a step of {chunk} frames answers nothing; take --chunk 1 or more")
        self.chunk = chunk
        from_last = [axis - 3 for axis in axes]
        self.views = [v for n in range(len(axes) + 1) for v in combinations(from_last, n)]

    def __call__(
        self, inputs: Tensor | Iterable[Tensor], network: nn.Module, *args: Any, **kwargs: Any
    ) -> Tensor | Iterator[Tensor]:
        """Videos in memory, (b, c, t, h, w) -> (b, k, t, h, w); or one that is being read.

        Of the latter, frames (c, h, w), what is known about each comes in turn; it is computed
        while it is asked for.
        """
        return of_videos(self.stream, inputs, network)

    def stream(self, frames: Iterable[Tensor], network: nn.Module) -> Iterator[Tensor]:
        """Logits of frames in turn: (c, h, w) each -> (k, h, w), or (k,) of heads of classes."""
        sessions = [StreamingSession(member) for member in members_of(network)]
        frames = iter(frames)
        while chunk := list(islice(frames, self.chunk)):
            yield from self._step(torch.stack(chunk, dim=1), sessions)

    def _step(self, clip: Tensor, sessions: Sequence[StreamingSession]) -> Iterable[Tensor]:
        """Logits of each of the next frames, (c, t, h, w) -> t of (k, ...), float32."""
        views = torch.stack([clip.flip(axes) for axes in self.views])
        outputs = [session.step(views) for session in sessions]
        logits = torch.stack(outputs).float().mean(0)
        if logits.ndim == 5:  # maps (v, k, t, h, w), which are turned back
            pairs = zip(logits, self.views, strict=True)
            logits = torch.stack([maps.flip(axes) for maps, axes in pairs]).transpose(1, 2)
        return logits.mean(0)
