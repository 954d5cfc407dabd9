"""What a network says about a frame: classes of its pixels, or one class of the frame.

Shapes: k classes, h w frame.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nnunet_plugins.data.clips import Frame
from nnunet_plugins.data.overlay import draw_overlay

TEXT_HEIGHT = 18
"""Of a frame's height, one part in so many is the height of text on it."""


class Answer(Protocol):
    """About one frame."""

    def draw(self, picture: Frame) -> Frame:
        """The frame with the answer on it, as a new array."""

    def classes(self) -> list[int]:
        """Classes that are seen, background aside where there is one."""


@dataclass(frozen=True)
class Segmentation:
    """A class for each pixel."""

    labels: NDArray[np.uint8]
    """(h, w); 0 is the background."""

    def draw(self, picture: Frame) -> Frame:
        """A tint inside and a line on the contour, one colour a class."""
        return draw_overlay(picture, self.labels)

    def classes(self) -> list[int]:
        """Classes of at least a pixel."""
        return [i for i in np.unique(self.labels).tolist() if i]


@dataclass(frozen=True)
class FrameClass:
    """A class for the frame."""

    index: int
    name: str
    probability: float

    def draw(self, picture: Frame) -> Frame:
        """The name and its probability in the upper left corner."""
        size = max(10, picture.shape[0] // TEXT_HEIGHT)
        image = Image.fromarray(picture)
        text, place = f"{self.name} {100 * self.probability:.0f} %", (size // 2, size // 2)
        ImageDraw.Draw(image).text(
            place, text, "white", ImageFont.load_default(size), stroke_width=2, stroke_fill="black"
        )
        return np.asarray(image)

    def classes(self) -> list[int]:
        """The one."""
        return [self.index]


def frame_class(logits: Tensor, names: list[str]) -> FrameClass:
    """The likeliest class by its logits (k,)."""
    probabilities = logits.float().softmax(0).cpu()
    index = int(probabilities.argmax())
    name = names[index] if index < len(names) else f"class {index}"
    return FrameClass(index, name, float(probabilities[index]))


def head_of(outputs: Any) -> str:
    """ "segmentation" for logits (k, h, w) of a frame, "classes" for (k,).

    Raises:
        ValueError: If they are neither.
    """
    if isinstance(outputs, Tensor) and outputs.ndim in (2, 4):
        return "segmentation" if outputs.ndim == 4 else "classes"
    raise ValueError(
        "this network's head gives neither class maps nor classes of frames, which is what can be "
        "drawn; stream a bundle for segmentation, classification or phases"
    )
