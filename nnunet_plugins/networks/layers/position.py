"""Fixed position embedding of the tokens of a grid of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WAVELENGTH = 10_000.0
"""Ratio of the longest to the shortest wavelength (Vaswani et al., 2017)."""


def sincos_position(
    grid: Sequence[int], channels: int, device: torch.device | str | None = None
) -> Tensor:
    """Sine and cosine of each axis' index, (l, channels) float32 for l raster-ordered tokens.

    The channels are shared out evenly over sine and cosine of each axis; what does not divide
    stays zero. A position's embedding does not depend on the grid around it, so weights trained
    on one grid meet the same embeddings on a larger one.

    Args:
        grid: Tokens along each axis.
        channels: Channels of a token, at least two for each axis.
        device: Where the embedding is wanted; it is computed on the CPU, in float64.

    Raises:
        ValueError: If there are fewer than two channels for each axis.
    """
    waves = channels // (2 * len(grid))
    if waves == 0:
        raise ValueError(
            f"{channels} channels cannot hold a sine and a cosine for each of {len(grid)} axes; "
            f"use at least {2 * len(grid)}"
        )
    omega = WAVELENGTH ** -(torch.arange(waves, device="cpu", dtype=torch.float64) / waves)
    axes = [torch.arange(size, device="cpu", dtype=torch.float64) for size in grid]
    parts = []
    for index in torch.meshgrid(*axes, indexing="ij"):
        phase = index.flatten()[:, None] * omega
        parts += [phase.sin(), phase.cos()]
    embedding = torch.cat(parts, dim=1).float()
    return F.pad(embedding, (0, channels - embedding.shape[1])).to(device)
