"""Several directions over one sequence in Triton: all of them in one launch of each kernel.

Directions are an axis of the grid. Each gives outputs of its own, which torch adds up and gates:
programs that added to one sum would have to wait for each other or would do so in any order.

Shapes: k directions, b batch, d channels, l tokens, n states per channel, g groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels.checks import check_permutation
from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.selective_scan import triton_launch
from mamba_kernels.selective_scan.directions import (
    LISTED,
    OPTIONS,
    SCHEMA,
    Direction,
    Lists,
    save,
    saved,
)
from mamba_kernels.selective_scan.triton_launch import Problem, kept_size


def selective_scan_multi(
    directions: Sequence[Direction], z: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, list[Tensor]]:
    """See `multi.one_by_one`. Gradients can be taken once, not of gradients."""
    for x in directions:
        if x.order is not None:
            check_permutation(x.order)
    lists = Lists.of(directions, None, delta_softplus)
    keep = torch.is_grad_enabled() and lists.require_grad()
    ys, lasts, _ = _scans(*lists, keep)
    y = ys.sum(0)
    return y if z is None else y * F.silu(z.float()), list(lasts.unbind())


def _problems(p: Lists) -> list[Problem]:
    return [
        Problem(*x[:6], None, x.delta_bias, x.initial_state, x.order, p.softplus, x.reverse)
        for x in p.directions()
    ]


@torch.library.custom_op(
    "mamba_kernels::triton_scans",
    mutates_args=(),
    schema=f"({SCHEMA}, {OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _scans(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (k, b, d, l), last states (k, b, d, n), and the states that `_scans_grad` needs.

    Args:
        args: `Lists` without gate; whether states are kept, or the third output is empty.
    """
    ys, lasts, kept = _outputs(*args)
    each = kept.view(len(ys), -1) if args[-1] else [None] * len(ys)
    triton_launch.forward(_problems(Lists(*args[:-1])), list(zip(ys, lasts, each, strict=True)))
    return ys, lasts, kept


@_scans.register_fake
def _outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `_scans`, not yet filled."""
    p, keep = Lists(*args[:-1]), args[-1]
    u, A, k = p.u[0], p.A[0], len(p.delta)
    shapes = (k, *u.shape), (k, *u.shape[:2], A.shape[1]), (k * kept_size(u, A) if keep else 0,)
    ys, lasts, kept = (u.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return ys, lasts, kept


@torch.library.custom_op(
    "mamba_kernels::triton_scans_grad",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor? grad_last, Tensor kept, {SCHEMA}, {OPTIONS}) -> Tensor[]",
)
def _scans_grad(*args: Any) -> list[Tensor]:
    """Gradients of each direction, one after the other, of u to initial_state as `LISTED` has
    them, empty for what is absent.

    Args:
        args: Gradients of the first two outputs of `_scans`, its third output, and `Lists`.
    """
    grads_y, grads_last, kept = args[:3]
    problems, grads = _problems(Lists(*args[3:])), _grads(*args)
    k = len(problems)
    own = [grads[i * len(grads) // k : (i + 1) * len(grads) // k] for i in range(k)]
    triton_launch.backward(
        problems,
        list(grads_y),
        [None] * k if grads_last is None else list(grads_last),
        list(kept.view(k, -1)),
        [[*x[:6], kept, *x[6:]] for x in own],  # with no gate, its gradient is never looked at
    )
    return grads


@_scans_grad.register_fake
def _grads(*args: Any) -> list[Tensor]:
    """The outputs of `_scans_grad`, not yet filled."""
    kept, p = args[2], Lists(*args[3:])
    operands: list[Any] = [x for own in p.directions() for x in own[: len(LISTED)]]
    return [kept.new_empty(0) if x is None else torch.empty_like(x) for x in operands]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    save(ctx, Lists(*inputs[:-1]), output[2])
    ctx.keep = inputs[-1]


def _backward(
    ctx: Any, grads_y: Tensor | None, grads_last: Tensor | None, _: None
) -> tuple[Any, ...]:
    refuse_create_graph()
    p, kept = saved(ctx)
    if not ctx.keep:  # recorded where no gradients were wanted, as exported programs may be
        kept = _scans(*p, True)[2]
    if grads_y is None:
        grads_y = p.u[0].new_zeros(()).expand(len(p.delta), *p.u[0].shape)
    grads = _scans_grad(grads_y, grads_last, kept, *p)
    columns = [grads[i :: len(LISTED)] for i in range(len(LISTED))]
    if len(p.u) == 1:
        columns[0] = [torch.stack(columns[0]).sum(0)]
    known = [own if x else [] for own, x in zip(columns, p.operands, strict=True)]
    return (*known, None, [None] * len(p.orders), *[None] * 4)


_scans.register_autograd(_backward, setup_context=_save)
