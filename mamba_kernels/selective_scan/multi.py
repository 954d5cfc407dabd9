"""Several directions over one sequence with one gate and one output, as in Vision Mamba and Vivim.

A direction is an order of the tokens and a scan of its own. Backends that read tokens in any order
need no reordered copies; for the others `one_by_one` makes them, and is the definition.

Shapes: k directions, b batch, d channels, l tokens, n states per channel, g groups of channels.
Source: Zhu et al., "Vision Mamba", 2024, arXiv:2401.09417, Algorithm 1; Yang et al., "Vivim", 2024,
arXiv:2401.14168, Section III-B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mamba_kernels.checks import check_permutation, check_scan, checked_order
from mamba_kernels.dispatch import Backend, choose, without_autocast
from mamba_kernels.native.library import missing
from mamba_kernels.selective_scan import (
    cpu_backend,
    cpu_multi,
    reference,
    torch_backend,
    triton_backend,
    triton_multi,
)
from mamba_kernels.selective_scan.directions import Direction, refused

Order = Literal["forward", "reverse"] | Tensor


class MultiScan(Protocol):
    """What a backend is: `one_by_one` has the contract."""

    def __call__(
        self, directions: list[Direction], z: Tensor | None, delta_softplus: bool
    ) -> tuple[Tensor, list[Tensor]]: ...


def one_by_one(
    scan: Callable[..., tuple[Tensor, Tensor]],
    directions: list[Direction],
    z: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Reorder, scan, reorder back and add up, with the scan of a single direction.

    Args:
        scan: With the contract of `reference.selective_scan`.
        directions: At least one.
        z: Gate of all directions before SiLU, (b, d, l). No gate if None.
        delta_softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.

    Returns:
        The sum of their outputs (b, d, l), float64 if `u` is, else float32, and the last state of
        each, (b, d, n).
    """
    dtype = torch.float64 if directions[0].u.dtype == torch.float64 else torch.float32
    total, states = None, []
    for x in directions:
        operands = (x.u.to(dtype), x.delta, x.B, x.C, z)
        if x.order is not None:
            check_permutation(x.order)
            u, delta, B, C, gate = (None if v is None else v[..., x.order] for v in operands)
        else:
            u, delta, B, C, gate = operands
        y, state = scan(
            u, delta, x.A, B, C, x.D, gate, x.delta_bias, x.initial_state, delta_softplus, x.reverse
        )
        if x.order is not None:
            y = y[..., torch.argsort(x.order)]
        total = y if total is None else total + y
        states.append(state)
    assert total is not None
    return total, states


BACKENDS: dict[str, Backend[MultiScan]] = {  # best first
    "triton": Backend(
        triton_multi.selective_scan_multi,
        triton_backend.missing,
        frozenset({"cuda", "xpu"}),
        partial(refused, triton_backend.refuses),
    ),
    "cpu": Backend(
        cpu_multi.selective_scan_multi,
        missing,
        frozenset({"cpu"}),
        partial(refused, cpu_backend.refuses),
    ),
    "torch": Backend(partial(one_by_one, torch_backend.selective_scan)),
    "reference": Backend(partial(one_by_one, reference.selective_scan), forward_mode=True),
}


def selective_scan_multi(
    u: Tensor | Sequence[Tensor],
    delta: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    C: Sequence[Tensor],
    D: Sequence[Tensor] | None = None,
    z: Tensor | None = None,
    delta_bias: Sequence[Tensor] | None = None,
    *,
    orders: Sequence[Order],
    combine: Literal["sum", "mean"] = "sum",
    delta_softplus: bool = True,
    initial_state: Sequence[Tensor] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, list[Tensor]]:
    """Scan one sequence in several orders and add up the gated outputs at their tokens.

    Each direction i is `selective_scan` of u[i], delta[i], ... over the tokens in orders[i], with
    the gate z of all. Operands are given, and outputs come back, in the order of the sequence.

    Args:
        u: Input of each direction, (b, d, l), or one tensor for all.
        delta: Step sizes before bias and softplus, (b, d, l) each.
        A: Decay rates, (d, n) each, negative.
        B: Input weights, (b, n, l) or (b, g, n, l) each.
        C: Output weights, of the shapes of `B`.
        D: Weights of the skip, (d,) each. No skip if None.
        z: Gate before SiLU, (b, d, l). No gate if None.
        delta_bias: Added to `delta`, (d,) each. Zeros if None.
        orders: For each direction "forward", "reverse", or the token at each position of the
            scan, (l,), integers, a permutation such as `mamba_kernels.scan_order` makes.
        combine: Whether outputs are summed or averaged over directions.
        delta_softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.
        initial_state: States before the first token scanned, (b, d, n) each, float32 (float64 if
            `u` is), differentiable. Zeros if None.
        backend: One of `available_backends()`, or "auto" for the best one here.

    Returns:
        Outputs (b, d, l) in the dtype of `u`, float32 for float16, and the last state of each
        direction, (b, d, n). All are differentiable.

    Raises:
        ValueError: Shapes, devices or numbers of directions do not fit, an order is none, or the
            backend or `combine` is unknown.
        TypeError: An operand is no tensor or has an unsupported dtype.
    """
    if combine not in ("sum", "mean"):
        raise ValueError(f"combine is {combine!r}; expected 'sum' or 'mean'")
    k = len(orders)
    lists = {"delta": delta, "A": A, "B": B, "C": C}
    optional = {"D": D, "delta_bias": delta_bias, "initial_state": initial_state}
    inputs = [u] * k if isinstance(u, Tensor) else u
    for name, values in {"u": inputs, **lists, **optional}.items():
        if values is not None and (isinstance(values, Tensor) or len(values) != k or k == 0):
            got = "one tensor" if isinstance(values, Tensor) else f"{len(values)} entries"
            raise ValueError(f"{name} has {got}; expected one for each of the {k} orders, >= 1")
    columns = (
        inputs,
        *lists.values(),
        *([None] * k if x is None else x for x in optional.values()),
    )
    directions = [
        _direction(values, z, order) for *values, order in zip(*columns, orders, strict=True)
    ]
    first = directions[0].u
    for x in directions:
        if x.u.shape != first.shape or x.u.device != first.device:
            raise ValueError(
                f"u has shapes {tuple(first.shape)} on {first.device} and {tuple(x.u.shape)} on "
                f"{x.u.device}; expected the same for all directions, which share tokens"
            )
    run = choose(BACKENDS, backend, first.device, directions, z, delta_softplus)
    with without_autocast(first.device):
        y, states = run(directions, z, delta_softplus)
        y = y if combine == "sum" else y / k
    return y if first.dtype == torch.float16 else y.to(first.dtype), states


def _direction(values: list[Any], z: Tensor | None, order: Order) -> Direction:
    """Checked operands of one direction."""
    u, delta, A, B, C, D, delta_bias, initial_state = values
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if B.dim() == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    operands = (u, delta, A, B, C, D, delta_bias, initial_state)
    if isinstance(order, Tensor):
        return Direction(*operands, checked_order(order, u), False)
    if order not in ("forward", "reverse"):
        raise ValueError(f"an order is {order!r}; expected 'forward', 'reverse' or a permutation")
    return Direction(*operands, None, order == "reverse")
