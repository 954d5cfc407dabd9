"""Orders in which the tokens of a 2-D or 3-D grid can be scanned.

An order is a permutation: `tokens[:, order]` is the sequence, and `sequence[:, inverse(order)]`
the tokens of the grid again, in raster order (the last axis fastest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

Edge = tuple[int, int]  # an edge of a box: number of cells, raster distance between them
Grid = tuple[int, ...]


def scan_order(name: str, grid: Sequence[int], *, seed: int = 0) -> Tensor:
    """The order in which to visit the cells of a grid.

    - "raster": row by row, jumping from the end of each to the start of the next.
    - "zigzag": row by row, each other row and plane backwards; all steps go to a neighbour.
    - "hilbert": a Hilbert curve generalised to any sizes, which stays in one neighbourhood before
      it moves on; all steps go to a neighbour but for a few diagonal ones on odd sizes.
      Source: the recursive splitting of J. Cerveny's "gilbert", github.com/jakubcerveny/gilbert.
    - "shuffle": a permutation drawn from `seed`, the same on every platform and version.

    Args:
        name: One of `SCAN_ORDERS`.
        grid: Sizes of the grid, two or three.
        seed: Which permutation "shuffle" gives; the others ignore it.

    Returns:
        int64 tensor of as many cells as the grid has: at i, the raster index of the i-th visited.

    Raises:
        ValueError: The order is unknown, or the grid is not 2-D or 3-D with sizes of at least 1.
    """
    if name not in _ORDERS:
        raise ValueError(f"unknown scan order {name!r}; known are: {', '.join(SCAN_ORDERS)}")
    sizes = tuple(int(size) for size in grid)
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"grid is {sizes}; expected two or three sizes of at least 1")
    order = _visited(name, sizes, seed if name == "shuffle" else 0)
    return torch.tensor(order, dtype=torch.int64, device="cpu")


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`: `order[inverse(order)]` is 0, 1, 2, ..."""
    positions = torch.empty_like(order)
    positions[order] = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return positions


@lru_cache(maxsize=64)
def _visited(name: str, grid: Grid, seed: int) -> tuple[int, ...]:
    """Numbers, not a tensor: one made under `torch.device("meta")` would spoil the cache."""
    return tuple(_ORDERS[name](grid, seed))


def _raster(grid: Grid, seed: int) -> list[int]:
    return list(range(math.prod(grid)))


def _zigzag(grid: Grid, seed: int) -> list[int]:
    order = [0]
    for axis in range(len(grid) - 1, -1, -1):
        stride = len(order)
        there, back = order, order[::-1]
        order = [
            layer * stride + cell
            for layer in range(grid[axis])
            for cell in (back if layer % 2 else there)
        ]
    return order


def _shuffle(grid: Grid, seed: int) -> list[int]:
    origin = _mixed(seed)
    return sorted(range(math.prod(grid)), key=lambda i: _mixed(origin + i * 0x9E3779B97F4A7C15))


def _mixed(x: int) -> int:
    """The 64-bit finaliser of splitmix64 (Steele et al., 2014), which is one-to-one."""
    mask = 0xFFFFFFFFFFFFFFFF
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def _hilbert(grid: Grid, seed: int) -> list[int]:
    strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    edges = sorted(zip(grid, strides, strict=True), key=lambda edge: -edge[0])
    a, b, c = (*edges, (1, 0))[:3]
    return list(_curve(0, a, b, c))


def _curve(start: int, a: Edge, b: Edge, c: Edge) -> Iterator[int]:
    """Visit a box from its corner `start` to the other end of its edge `a`.

    The box is split into boxes that are visited one after the other, each ending beside the start
    of the next. Edges keep the direction in which they leave the start by the sign of their step.
    """
    if sorted((a[0], b[0], c[0]))[1] == 1:
        count, step = max(a, b, c)
        yield from (start + i * step for i in range(count))
        return
    (a1, a2), (b1, b2), (c1, c2) = _halves(a), _halves(b), _halves(c)
    if 2 * a[0] > 3 * max(b[0], c[0]):  # long: one half after the other
        yield from _curve(start, a1, b, c)
        yield from _curve(start + _length(a1), a2, b, c)
    elif 3 * b[0] > 4 * c[0]:  # flat: out along b, across along a, back along b
        yield from _curve(start, b1, c, a1)
        yield from _curve(start + _length(b1), a, b2, c)
        yield from _curve(start + _end(a) + _end(b1), _back(b1), c, _back(a2))
    elif 3 * c[0] > 4 * b[0]:  # flat: out along c, across along a, back along c
        yield from _curve(start, c1, a1, b)
        yield from _curve(start + _length(c1), a, b, c2)
        yield from _curve(start + _end(a) + _end(c1), _back(c1), _back(a2), b)
    else:  # near a cube
        top, far = start + _length(b1), _end(c)
        yield from _curve(start, b1, c1, a1)
        yield from _curve(top, c, a1, b2)
        yield from _curve(start + _end(b1) + far, a, _back(b1), _back(c2))
        yield from _curve(top + _end(a) + far, _back(c), _back(a2), b2)
        yield from _curve(start + _end(a) + _end(b1), _back(b1), c1, _back(a2))


def _halves(edge: Edge) -> tuple[Edge, Edge]:
    """Two parts of an edge, the first of even length if that is possible."""
    count, step = edge
    first = count // 2
    if first % 2 and count > 2:
        first += 1
    return (first, step), (count - first, step)


def _length(edge: Edge) -> int:
    """Raster distance from the start of an edge to just beyond its end."""
    return edge[0] * edge[1]


def _end(edge: Edge) -> int:
    """Raster distance from the start of an edge to its last cell."""
    return (edge[0] - 1) * edge[1]


def _back(edge: Edge) -> Edge:
    return edge[0], -edge[1]


_ORDERS: dict[str, Callable[[Grid, int], list[int]]] = {
    "raster": _raster,
    "zigzag": _zigzag,
    "hilbert": _hilbert,
    "shuffle": _shuffle,
}
SCAN_ORDERS: tuple[str, ...] = tuple(_ORDERS)
