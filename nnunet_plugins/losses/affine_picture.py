"""A picture of what an affine regressor has learnt.

Shapes: n pairs, p p pixels of a patch.
"""

import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.losses.affine import AffineRegressor
from nnunet_plugins.losses.affine_training import AffineTraining, edge_pairs

PAIRS = 8


def warped_back(second: Tensor, matrix: Tensor) -> Tensor:
    """Patches moved onto the first of their pair: (n, p, p) and matrices (n, 2, 3) -> (n, p, p)."""
    turn, move = matrix[:, :, :2].inverse(), matrix[:, :, 2:]
    back = torch.cat([turn, -turn @ move], dim=2)
    grid = F.affine_grid(back, [len(second), 1, *second.shape[1:]], align_corners=False)
    return F.grid_sample(second[:, None], grid, align_corners=False)[:, 0]


@torch.no_grad()
def write_picture(regressor: AffineRegressor, options: AffineTraining, path: Path) -> None:
    """Write a PNG of held-out pairs: first, second, and both before and after the regressor.

    In the last two rows the first is red and the second green, so that where they agree is yellow.
    """
    generator = torch.Generator().manual_seed(options.seed + 2)
    first, second, _ = edge_pairs(PAIRS, options, generator)
    back = warped_back(second, regressor(first, second))
    rows = {
        "first": _colours(first, first, first),
        "second": _colours(second, second, second),
        "both": _colours(first, second),
        "both, second\nwarped back": _colours(first, back),
    }
    figure = Figure(figsize=(1.3 * PAIRS, 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), PAIRS)
    for line, (name, colours) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, patch in zip(line, colours, strict=True):
            axis.imshow(patch.numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png", dpi=100)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _colours(red: Tensor, green: Tensor, blue: Tensor | None = None) -> Tensor:
    """Patches as the colours of a picture, no blue if None: (n, p, p) each -> (n, p, p, 3)."""
    blue = torch.zeros_like(red) if blue is None else blue
    return torch.stack([red, green, blue], dim=-1).clamp(0, 1)
