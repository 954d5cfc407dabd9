"""How clips are drawn."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn; the defaults are EndoMamba's.

    Args:
        frames: Frames of a clip.
        stride: Frames of the video from one frame of the clip to the next.
        fps: Frames of a clip a second. The stride of a video is then its own rate by this one,
            rounded, at least 1; `stride` serves videos whose rate is unknown. None: the stride
            of every video is `stride`.
        size: (h, w) of a clip in pixels.
        scale: Least and largest share of the frame's area that a random crop shows.
        ratio: Least and largest width of a crop by its height.
        flip: Whether to flip left and right, half of the time.
        colour: Brightness, contrast and saturation change by up to this share; 0 for none.
        clips: Of an epoch; None for as many as fit into the usable stretches side by side.
        seed: Not negative.

    Raises:
        ValueError: If a value cannot be.
    """

    frames: int = 16
    stride: int = 4
    size: tuple[int, int] = (224, 224)
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    colour: float = 0.2
    seed: int = 0
    fps: float | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    clips: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "scale", "ratio"):
            pair = tuple(getattr(self, name))  # lists come from JSON
            if len(pair) != 2:
                raise ValueError(f"{name} is {pair}; give two numbers")
            object.__setattr__(self, name, pair)
        for name, least in (("frames", 1), ("stride", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {least}")
        if min(self.size) < 1:
            raise ValueError(f"size is {self.size}; give two positive numbers (h, w) of pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; give two rising shares from 0 to 1")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; give two rising positive numbers")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour is {self.colour}; give a share from 0 to below 1")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise ValueError(f"fps is {self.fps}; give a positive rate or None")
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"clips is {self.clips}; give at least 1, or None")

    def stride_of(self, fps: float | None) -> int:
        """Stride of a video of so many frames a second."""
        if self.fps is None or fps is None:
            return self.stride
        return max(1, round(fps / self.fps))

    def span(self, fps: float | None) -> int:
        """Frames of such a video from the first to the last frame of a clip, both counted."""
        return (self.frames - 1) * self.stride_of(fps) + 1

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain JSON; `ClipSettings(**plain)` gives it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
