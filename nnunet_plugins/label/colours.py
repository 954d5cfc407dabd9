"""One colour for each value of a label, the same in pictures, legends and lists."""

import colorsys

import numpy as np
from numpy.typing import NDArray

from nnunet_plugins.data.overlay import COLOURS

GOLDEN = 0.618034
"""Share of the colour circle between one value and the next, so that neighbours differ."""
LISTED = 255
"""Values whose colours are told beforehand."""


def colour(value: int) -> tuple[int, int, int]:
    """Red, green and blue of a label's value: the overlay's own first, then round the circle."""
    if 0 < value <= len(COLOURS):
        return COLOURS[value - 1]
    light = 0.95 - 0.25 * (value % 3) / 2
    red, green, blue = colorsys.hsv_to_rgb(value * GOLDEN % 1, 0.65, light)
    return round(255 * red), round(255 * green), round(255 * blue)


def hexadecimal(value: int) -> str:
    """A label's colour as `#rrggbb`."""
    return "#" + bytes(colour(value)).hex()


def drawn(labels: NDArray[np.integer], hidden: frozenset[int] = frozenset()) -> NDArray[np.uint8]:
    """Labels (h, w) as colours (h, w, 4), clear where there is none or it is hidden."""
    values, where = np.unique(labels, return_inverse=True)
    shown = [0 if v == 0 or v in hidden else 255 for v in values.tolist()]
    rows = zip(values.tolist(), shown, strict=True)
    table = np.array(
        [(*colour(v), alpha) if alpha else (0, 0, 0, 0) for v, alpha in rows], np.uint8
    )
    return table[where.reshape(labels.shape)]
