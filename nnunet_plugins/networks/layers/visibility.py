"""Features of which only some tokens may be seen, as in masked pretraining.

`visible` is (b, 1, d, h, w) bool over the tokens of the coarsest grid; None where all are seen.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def visible_on(visible: Tensor, grid: Sequence[int]) -> Tensor:
    """The same mask on a finer grid: (b, 1, d, h, w) bool -> (b, 1, *grid) bool."""
    return F.interpolate(visible.float(), size=tuple(grid)).bool()  # to the nearest token


def hide(x: Tensor, visible: Tensor | None) -> Tensor:
    """Features with zeros where no token is visible: (b, c, ...) -> (b, c, ...).

    After every operation that looks at neighbours, this makes a dense network compute what a
    sparse one does: nothing comes from hidden voxels. What works voxel by voxel needs it not.
    """
    return x if visible is None else x * visible_on(visible, x.shape[2:])
