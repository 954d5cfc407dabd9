r"""TOKI: hidden tokens filled in by a state space between the visible ones beside them.

Source: Tang et al., "MambaMIM", Medical Image Analysis 2025, arXiv:2408.08070, section 3.4.

Between two visible tokens :math:`y_i, y_{i+1}` with Q hidden ones, Eq. 8 asks for

    z_j = sum_{n=0..j} C' A'^(j-n) B' s_n,    s_n = lerp(y_i, y_{i+1}, n / (Q + 2)),

A', B', C' discretised, and for z_0 = C' B' s_0 = y_i. The latter fixes what the paper leaves to
learning: s_0 is y_i, so C' B' = E. The three matrices are functions of one generator and commute,
B' cancels, and with it the inverse (dA')^-1 by which it diverges as dA' goes to 0:

    z_j = sum_{n=0..j} A'^(j-n) s_n,    that is    z_j = A' z_{j-1} + s_j,    z_0 = y_i.

What is left to learn is A'. Were it free, its powers would overflow: at a spectral radius of 2,
32 steps multiply by 4e9. So A' is the learned matrix divided by its norm where that exceeds 1
(`contraction`), which keeps the state space stable; then no token can exceed j + 1 times the
largest beside it. From A' = 0, where training starts, TOKI is
linear interpolation. Hidden tokens before the first visible one, or after the last, have one
neighbour, which stands for both.

The released code computes something else, which `mode="as_released"` gives: with anchors at the
visible, the first and the last token, g tokens apart,

    z_j = sum_{n=0..j} A^(g-1-n) lerp(y_i, y_{i+1}, n / (g - 1)),    z_{l-1} = A y_{l-1},

for the anchors too, and A unbounded.

Shapes: b batch, l tokens in scan order, c channels.
"""

import torch
from torch import Tensor

from mamba_kernels.dispatch import without_autocast

MODES = ("paper", "as_released")


def interpolate(
    tokens: Tensor, visible: Tensor, transition: Tensor, *, mode: str = "paper"
) -> Tensor:
    """The tokens with the hidden ones computed from the visible ones.

    All samples at once: the longest run of hidden tokens takes that many matrix products.

    Args:
        tokens: (b, l, c), in scan order. In "paper" mode hidden rows are never read; in
            "as_released" the first and the last row are, hidden or not.
        visible: (b, l) bool.
        transition: The learned matrix A, (c, c).
        mode: "paper", or "as_released" for the values of the authors' code (see the module).

    Returns:
        (b, l, c) in float32, or float64 if so are the tokens. Visible rows are the tokens' own
        in "paper" mode, and what the released code computes for them in "as_released".

    Raises:
        ValueError: If the mode is unknown, or in "paper" mode a sample shows no token.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    with without_autocast(tokens.device):
        tokens, transition = tokens.to(dtype), transition.to(dtype)
        if mode == "paper":
            return _paper(tokens, visible, transition)
        if mode == "as_released":
            return _as_released(tokens, visible, transition)
    raise ValueError(f"unknown mode {mode!r}; use one of {', '.join(MODES)}")


def contraction(transition: Tensor) -> Tensor:
    """The matrix, divided by a bound of its spectral norm where that bound exceeds 1: (c, c).

    The bound is the Schatten norm of order 16, (trace (A^T A)^8)^(1/16): at least the spectral
    norm, at most c^(1/16) times it, three matrix products, and smooth.
    """
    magnitude = transition.detach().abs()
    size = (magnitude.sum(0).amax() * magnitude.sum(1).amax()).sqrt().clamp(min=1.0)
    power = transition / size  # so that the powers stay within range
    for _ in range(3):
        power = power.mT @ power
    bound = size * power.norm().clamp(min=1e-30) ** (1 / 8)  # not 0, where roots have no slope
    return transition / bound.clamp(min=1.0)


def _paper(tokens: Tensor, visible: Tensor, transition: Tensor) -> Tensor:
    batch, length, _ = tokens.shape
    if not visible.any(1).all():
        raise ValueError(
            "a sample shows no token, and there is nothing to interpolate between; show at least "
            "one token of each"
        )
    # The first and the last visible token once more at the ends, as anchors of the outer runs.
    first = visible.int().argmax(1)
    last = length - 1 - visible.flip(1).int().argmax(1)
    here = torch.arange(batch, device=tokens.device)
    padded = torch.cat([tokens[here, first][:, None], tokens, tokens[here, last][:, None]], dim=1)
    shown = torch.nn.functional.pad(visible, (1, 1), value=True)
    left, right = _anchors(shown)
    offset = torch.arange(length + 2, device=tokens.device) - left
    gap = right - left
    drive = _between(padded, left, right, offset / (gap + 1).to(tokens.dtype))
    filled = _along_runs(drive, offset, gap, contraction(transition))
    return torch.where(visible[..., None], tokens, filled[:, 1:-1])


def _as_released(tokens: Tensor, visible: Tensor, transition: Tensor) -> Tensor:
    length = tokens.shape[1]
    anchors = visible.clone()
    anchors[:, [0, -1]] = True
    left, right = _anchors(anchors)
    offset = torch.arange(length, device=tokens.device) - left
    gap = right - left
    drive = _between(tokens, left, right, offset / (gap - 1).clamp(min=1).to(tokens.dtype))
    exponent = gap - 1 - offset
    exponent[:, -1] = 1  # the last token: A y
    drive = _powers(drive, exponent, transition)
    identity = torch.eye(len(transition), dtype=tokens.dtype, device=tokens.device)
    return _along_runs(drive, offset, gap, identity)


def _anchors(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Of every token the nearest anchor at or before it and the nearest after it, (b, l) each.

    The first and the last token are anchors; the last one's own right neighbour is itself.
    """
    place = torch.arange(anchors.shape[1], device=anchors.device)
    left = torch.where(anchors, place, 0).cummax(1).values
    after = torch.where(anchors, place, place[-1]).flip(1).cummin(1).values.flip(1)
    return left, torch.cat([after[:, 1:], after[:, -1:]], dim=1)


def _between(tokens: Tensor, left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation of each token's two anchors, (b, l, c)."""
    y0, y1 = (tokens.gather(1, i[..., None].expand_as(tokens)) for i in (left, right))
    return torch.lerp(y0, y1, weight[..., None])


def _along_runs(drive: Tensor, offset: Tensor, gap: Tensor, transition: Tensor) -> Tensor:
    """z_j = transition z_{j-1} + drive_j along every run at once, from z_0 = drive_0: (b, l, c).

    Rows are sorted by their offset j, those of the longest runs first: then the rows of an offset
    continue the first rows of the one before it, each offset in one product.
    """
    key = offset * (gap.max() + 1) - gap
    order = key.flatten().argsort(stable=True)
    counts: list[int] = offset.flatten().bincount().tolist()
    steps = torch.split(drive.flatten(0, 1)[order], counts)
    states = [steps[0]]
    for step in steps[1:]:
        states.append(torch.addmm(step, states[-1][: len(step)], transition.mT))
    home = torch.empty_like(order)
    home[order] = torch.arange(len(order), device=order.device)
    return torch.cat(states)[home].view_as(drive)


def _powers(rows: Tensor, exponent: Tensor, transition: Tensor) -> Tensor:
    """transition^exponent row for every row, the largest exponents first: (b, l, c)."""
    order = exponent.flatten().argsort(descending=True, stable=True)
    counts = exponent.flatten().bincount().tolist()[::-1]
    blocks = torch.split(rows.flatten(0, 1)[order], counts)
    done = blocks[0]
    for block in blocks[1:]:
        done = torch.cat([done @ transition.mT, block])
    home = torch.empty_like(order)
    home[order] = torch.arange(len(order), device=order.device)
    return done[home].view_as(rows)
