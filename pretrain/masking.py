"""Which tokens of a volume or clip are shown, and how a volume is cut into what they see."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def random_visible(
    batch: int, grid: Sequence[int], mask_ratio: float, seeds: Tensor | None = None
) -> Tensor:
    """A random choice of visible tokens, equally many in each sample: (b, 1, *grid) bool.

    Args:
        batch: Samples.
        grid: Tokens along each axis.
        mask_ratio: Share of hidden tokens; at least one is hidden and one visible.
        seeds: (b,) integers that decide the choice of each sample, whatever batch it is in; drawn
            from torch's generator if None.

    Raises:
        ValueError: If the ratio is not between 0 and 1 or the grid is a single token.
    """
    length = prod(grid)
    if not 0 < mask_ratio < 1 or length < 2:
        raise ValueError(
            f"mask ratio {mask_ratio} on {length} tokens leaves none to hide or none to show; use "
            "a ratio between 0 and 1 and a volume of at least two tokens"
        )
    kept = min(max(round(length * (1 - mask_ratio)), 1), length - 1)
    if seeds is None:
        seeds = torch.randint(2**62, (batch,))
    visible = torch.zeros(batch, length, dtype=torch.bool)
    for row, seed in zip(visible, seeds.tolist(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        row[torch.randperm(length, generator=generator)[:kept]] = True
    return visible.view(batch, 1, *grid)


def to_patches(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The voxels that each token stands for: (b, c, d, h, w) -> (b, l, c, voxels of a patch)."""
    for axis, tokens in enumerate(grid):
        x = x.unflatten(2 + 2 * axis, (tokens, -1))  # type: ignore[no-untyped-call]
    axes = range(len(grid))
    order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
    return x.permute(order).flatten(1, len(grid)).flatten(3)


def from_patches(x: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """The inverse of `to_patches`: (b, l, c, voxels of a patch) -> (b, c, *size)."""
    batch, _, channels, _ = x.shape
    patch = [n // tokens for n, tokens in zip(size, grid, strict=True)]
    x = x.reshape(batch, *grid, channels, *patch)
    axes = len(grid)
    order = [0, axes + 1]
    for axis in range(axes):
        order += [1 + axis, axes + 2 + axis]
    return x.permute(order).reshape(batch, channels, *size)
