"""Training the affine regressor on edges of random shapes, seen through random matrices.

Nothing is read: shapes are drawn as they are needed, so no pair is seen twice and the held-out ones
are new by construction.

Shapes: n pairs, p p pixels of a patch; coordinates from -1 to 1, x before y.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.losses.affine import AffineRegressor
from nnunet_plugins.losses.edges import sobel_edges

HARMONICS = 4
SMALLEST_PATCH = 8
HELD_OUT = 4096
STILL = 0.1
"""Share of pairs whose matrix is the identity."""
FAINT = 0.15
"""Share of pairs in training whose second stands out little from its ground, or not at all."""
FULL_CONTRAST = 0.3
"""What an edge must rise above its ground by to count in full."""
WEIGHT_STEP = 1 / 128
"""Trained weights are rounded to multiples of it: they compress to less than half, and matrices err
by 0.2 % more."""


@dataclass(frozen=True)
class AffineTraining:
    """How a regressor is trained.

    Args:
        patch: Pixels along each axis of a patch.
        steps: Optimiser steps.
        batch: Pairs a step.
        learning_rate: Highest of a one-cycle schedule of AdamW.
        strength: Largest difference of a number of the matrix from the identity's: 0.25 turns by
            14 degrees, scales by a quarter, moves by an eighth of a patch.
        seed: Of weights and shapes.

    Raises:
        ValueError: If patches are odd or too small to hold a shape, or there is nothing to train.
    """

    patch: int = 32
    steps: int = 8000
    batch: int = 256
    learning_rate: float = 2e-3
    strength: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patch < SMALLEST_PATCH or self.patch % 2:
            raise ValueError(
                f"patches are {self.patch} pixels wide; an even number of at least "
                f"{SMALLEST_PATCH} is needed"
            )
        if min(self.steps, self.batch) < 1:
            raise ValueError(
                f"{self.steps} steps of {self.batch} pairs train nothing; give one at least of each"
            )


@dataclass(frozen=True)
class AffineAccuracy:
    """On held-out pairs; matrix errors are means of absolute differences over all six numbers.

    Args:
        error: Of predicted matrices.
        identity_error: Of the identity, guessed for every pair: what knowing nothing costs.
        still_distance: Mean Frobenius distance from the identity predicted for pairs that do not
            differ but for the second being blurred and faded.
        moved_distance: The same for the other pairs.
        order: Share of pairs of pairs, one still and one moved, whose distances are in that order.
        blank_distance: The distance for pairs whose second is blank instead; sqrt(2) is right.
    """

    error: float
    identity_error: float
    still_distance: float
    moved_distance: float
    order: float
    blank_distance: float


def train_regressor(
    options: AffineTraining | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> tuple[AffineRegressor, AffineAccuracy]:
    """A regressor trained from nothing, now frozen, and how accurate it is.

    Args:
        options: How it is trained; the defaults take some minutes on a CPU.
        device: Where it is trained; pairs are drawn on the CPU, alike for all.
        progress: Called after every step with its number, from 1, and its loss.
    """
    options = options or AffineTraining()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        regressor = AffineRegressor(options.patch).to(device)
        generator = torch.Generator().manual_seed(options.seed)
        optimizer = torch.optim.AdamW(regressor.parameters(), options.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, options.learning_rate, total_steps=options.steps
        )
        for step in range(1, options.steps + 1):
            first, second, matrix = (
                x.to(device) for x in edge_pairs(options.batch, options, generator, FAINT)
            )
            loss = F.mse_loss(regressor(first, second), matrix)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, loss.item())
        optimizer.zero_grad(set_to_none=True)
    regressor = regressor.eval().requires_grad_(False)
    for weight in regressor.parameters():
        weight.copy_((weight / WEIGHT_STEP).round() * WEIGHT_STEP)
    return regressor, accuracy(regressor, options)


@torch.no_grad()
def accuracy(regressor: AffineRegressor, options: AffineTraining) -> AffineAccuracy:
    """How well a regressor does on pairs of another seed than the training's."""
    device = regressor.identity.device
    generator = torch.Generator().manual_seed(options.seed + 1)
    first, second, matrix = (x.to(device) for x in edge_pairs(HELD_OUT, options, generator))
    still = (matrix == regressor.identity).all((-2, -1))
    distance = regressor.distance(first, second)
    return AffineAccuracy(
        error=float((regressor(first, second) - matrix).abs().mean()),
        identity_error=float((regressor.identity - matrix).abs().mean()),
        still_distance=float(distance[still].mean()),
        moved_distance=float(distance[~still].mean()),
        order=float((distance[still][:, None] < distance[~still]).float().mean()),
        blank_distance=float(regressor.distance(first, torch.zeros_like(second)).mean()),
    )


def edge_pairs(
    n: int, options: AffineTraining, generator: torch.Generator, faint: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Edges (n, p, p), the same seen through matrices (n, p, p), and the matrices (n, 2, 3).

    The first are clean as those of a ground truth, half of the second blurred, faded and on a
    noisy ground as those of a network. Both hold at least a line across the patch, before a share
    `faint` of the second fades further, half of it to nothing. A matrix shrinks with that: that of
    a blank patch is zero, since it sees one point of the first everywhere.
    """
    kept: list[tuple[Tensor, ...]] = []
    missing = n
    while missing > 0:
        count = missing + missing // 8 + 1
        shape = _random_shapes(count, generator)
        matrix = _random_matrices(count, options.strength, generator)
        points = _grid(options.patch)
        seen = torch.einsum("nij,hwj->nhwi", matrix, F.pad(points, (0, 1), value=1.0))
        first = sobel_edges(_inside(shape, points.expand(count, -1, -1, -1)))
        second = sobel_edges(_inside(shape, seen))
        enough = torch.minimum(first.sum((1, 2)), second.sum((1, 2))) >= options.patch
        second, contrast = _predicted(second[enough], generator, faint)
        matrix = matrix[enough] * (contrast / FULL_CONTRAST).clamp(max=1)
        kept.append((first[enough], second, matrix))
        missing -= int(enough.sum())
    first, second, matrix = (torch.cat(parts)[:n] for parts in zip(*kept, strict=True))
    return first, second, matrix


def _random_shapes(n: int, generator: torch.Generator) -> Tensor:
    """Closed curves around points in and about the patch, by centre, radius and harmonics."""
    centre = 2.4 * torch.rand(n, 2, generator=generator) - 1.2
    radius = 0.25 + 1.25 * torch.rand(n, 1, generator=generator)
    waves = torch.randn(n, 2 * HARMONICS, generator=generator)
    decay = torch.arange(1, HARMONICS + 1).repeat(2)
    return torch.cat([centre, radius, 0.25 * waves / decay], dim=1)


def _random_matrices(n: int, strength: float, generator: torch.Generator) -> Tensor:
    moved = (torch.rand(n, 1, 1, generator=generator) >= STILL).float()
    difference = strength * (2 * torch.rand(n, 2, 3, generator=generator) - 1)
    return torch.eye(2, 3) + moved * difference


def _grid(patch: int) -> Tensor:
    """Centres of the pixels, (p, p, 2)."""
    axis = (torch.arange(patch) + 0.5) * 2 / patch - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)


def _inside(shape: Tensor, points: Tensor) -> Tensor:
    """Whether points (n, h, w, 2) are inside their shape: (n, h, w) of 0 and 1."""
    x, y = (points - shape[:, None, None, :2]).unbind(-1)
    distance = torch.hypot(x, y)
    turn = torch.complex(x, y) / distance.clamp(min=1e-6)  # exp(i * angle)
    waves = torch.complex(*shape[:, 3:].chunk(2, dim=1))[..., None, None]  # (n, k, 1, 1)
    radius, power = torch.ones_like(distance), torch.ones_like(turn)
    for k in range(HARMONICS):
        power = power * turn
        radius = radius + (waves[:, k] * power).real
    return (distance < shape[:, 2, None, None] * radius).float()


def _predicted(edges: Tensor, generator: torch.Generator, faint: float) -> tuple[Tensor, Tensor]:
    """Half of the edges as a network may predict them: blurred, faded, on a noisy ground.

    A share `faint` stands out by less than `FULL_CONTRAST`, half of it by nothing. Also gives back
    by how much each stands out, (n, 1, 1), 1 for those left as they are.
    """

    def uniform() -> Tensor:
        return torch.rand(len(edges), 1, 1, generator=generator)

    blurred = F.avg_pool2d(edges[:, None], 3, stride=1, padding=1)[:, 0]
    soft = torch.where(uniform() < 0.5, (1.5 * blurred).clamp(max=1), edges)
    fades = uniform() < faint
    contrast = torch.where(
        fades,
        FULL_CONTRAST * (2 * uniform() - 1).clamp(min=0),
        FULL_CONTRAST + (1 - FULL_CONTRAST) * uniform(),
    )
    ground = (1 - contrast) * uniform()
    noise = 0.05 * torch.randn(edges.shape, generator=generator) * (uniform() < 0.5)
    predicted = (ground + contrast * soft + noise).clamp(0, 1)
    clean = ~fades & (uniform() < 0.5)
    return torch.where(clean, edges, predicted), torch.where(clean, 1.0, contrast)
