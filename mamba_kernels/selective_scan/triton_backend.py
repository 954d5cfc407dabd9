"""Selective scan in Triton kernels of this project, for NVIDIA, AMD and Intel GPUs.

The kernels are in `triton_kernels`, which is imported, and triton with it, when a scan first runs.
`triton_launch` gives them memory and grids; here they become two operators of torch, so that
`torch.compile` takes them as they are.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.selective_scan import triton_launch
from mamba_kernels.selective_scan.triton_launch import Problem, kept_size

MOST_STATES = 256
INSTALLED = importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """Why Triton cannot be used here, or None."""
    if not INSTALLED:
        return "triton is not installed"
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        return "there is no GPU"
    return None


def refuses(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> str | None:
    """What of the arguments of a scan the kernels cannot take, or None."""
    for x in (u, delta, A, *rest):
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return "float64, for its scans are float32"
    if A.shape[1] > MOST_STATES:
        return f"{A.shape[1]} states per channel, for {MOST_STATES} are its most"
    return None


OPERANDS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? initial_state, bool delta_softplus, bool reverse"
)
DIFFERENTIABLE = 9  # of these, the first


def _problem(*args: Any) -> Problem:
    """Of `OPERANDS`, which have no order."""
    with_order: Any = (*args[:DIFFERENTIABLE], None, *args[DIFFERENTIABLE:])
    return Problem(*with_order)


@torch.library.custom_op(
    "mamba_kernels::triton_scan",
    mutates_args=(),
    schema=f"({OPERANDS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b, d, l), the last state (b, d, n), and the states that `_scan_grad` needs.

    Args:
        args: `OPERANDS`; whether states are kept, or the third output is empty.
    """
    y, last, kept = _outputs(*args)
    triton_launch.forward([_problem(*args[:-1])], [(y, last, kept if args[-1] else None)])
    return y, last, kept


@_scan.register_fake
def _outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `_scan`, not yet filled."""
    p, keep = _problem(*args[:-1]), args[-1]
    return (
        torch.empty_like(p.u, dtype=torch.float32 if p.u.dtype == torch.float16 else p.u.dtype),
        p.u.new_empty((*p.u.shape[:2], p.A.shape[1]), dtype=torch.float32),
        # of one axis, so that nothing depends on l:
        p.u.new_empty(kept_size(p.u, p.A) if keep else 0, dtype=torch.float32),
    )


@torch.library.custom_op(
    "mamba_kernels::triton_scan_grad",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor? grad_last, Tensor kept, {OPERANDS}) -> Tensor[]",
)
def _scan_grad(*args: Any) -> list[Tensor]:
    """Gradients of u to initial_state, empty for what is absent.

    Args:
        args: Gradients of the first two outputs of `_scan`, its third output, and `OPERANDS`.
    """
    grads = _grads(*args)
    grad_y, grad_last, kept = args[:3]
    triton_launch.backward([_problem(*args[3:])], [grad_y], [grad_last], [kept], [grads])
    return grads


@_scan_grad.register_fake
def _grads(*args: Any) -> list[Tensor]:
    """The outputs of `_scan_grad`, not yet filled."""
    operands = args[3:][:DIFFERENTIABLE]
    return [operands[0].new_empty(0) if x is None else torch.empty_like(x) for x in operands]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs[:DIFFERENTIABLE])
    *ctx.options, ctx.keep = inputs[DIFFERENTIABLE:]


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    refuse_create_graph()
    kept, *operands = ctx.saved_tensors
    if not ctx.keep:  # recorded where no gradients were wanted, as exported programs may be
        kept = _scan(*operands, *ctx.options, True)[2]
    if grad_y is None:
        grad_y = operands[0].new_zeros(()).expand_as(operands[0])
    grads = _scan_grad(grad_y, grad_last, kept, *operands, *ctx.options)
    known = [None if x is None else grad for x, grad in zip(operands, grads, strict=True)]
    return (*known, *[None] * 3)  # the flags


_scan.register_autograd(_backward, setup_context=_save)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan`. Gradients can be taken once, not of gradients."""
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    y, last, _ = _scan(*operands, delta_softplus, reverse, keep)
    return y, last
