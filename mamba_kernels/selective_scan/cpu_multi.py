"""Several directions over one sequence by the compiled library, for CPUs, as torch operators.

All directions of some channels are one task, so that their sum need not leave the cache. Work is
cut into tasks by shape alone, so that results do not depend on the number of threads.

Shapes: k directions, b batch, d channels, l tokens, n states per channel, g groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.native.library import run_together
from mamba_kernels.native.operator import Operator
from mamba_kernels.selective_scan.cpu_backend import ScanCall, kept_size, slab_of
from mamba_kernels.selective_scan.directions import OPTIONS, SCHEMA, Direction, Lists, save, saved

SLABS = {"forward": (64, 32, 16), "backward": (128, 64)}  # channels of a task, best first
LONGEST = {64: 1024, 32: 2048}  # tokens, or a slab's sums and copies do not fit into caches


def selective_scan_multi(
    directions: Sequence[Direction], z: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, list[Tensor]]:
    """See `multi.one_by_one`. Gradients can be taken once, not of gradients."""
    lists = Lists.of(directions, z, delta_softplus)
    keep = torch.is_grad_enabled() and lists.require_grad()
    y, last, _ = MULTI_FORWARD(*lists, keep)
    return y, list(last.unbind())


def _calls(p: Lists, slab: int) -> list[ScanCall]:
    """For each direction one call, with its inputs set, and the gate that of the first."""
    calls: list[ScanCall] = []
    for u, delta, A, B, C, D, bias, start, order, reverse in p.directions():
        gate = None if calls else p.z
        call = ScanCall(slab, (u, delta, A, B, C, D, gate, bias, start), p.softplus, reverse)
        call.point(order=order)
        calls.append(call)
    return calls


def _new_outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the outputs, the last states and the states at chunk starts."""
    p, keep = Lists(*args[:-1]), args[-1]
    u, k, n = p.u[0], len(p.delta), p.A[0].shape[1]
    kept = k * kept_size(u, p.A[0], p.B[0]) if keep else 0
    dtype = torch.float32 if u.dtype == torch.float16 else u.dtype
    return (
        torch.empty_like(u, dtype=dtype),
        u.new_empty(k, *u.shape[:2], n, dtype=torch.float32),
        u.new_empty(kept, dtype=torch.float32),
    )


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    p, keep = Lists(*args[:-1]), args[-1]
    outputs = y, last, checkpoints = _new_outputs(*args)
    tokens = p.u[0].shape[2]
    slabs = [x for x in SLABS["forward"] if tokens <= LONGEST.get(x, tokens)]
    calls = _calls(p, slab_of(slabs, p.u[0], p.B[0]))
    calls[0].view(y=y)
    for call, own_last in zip(calls, last, strict=True):
        call.point(last=own_last)
    if keep:
        for call, own_checkpoints in zip(calls, checkpoints.view(len(calls), -1), strict=True):
            call.point(checkpoints=own_checkpoints)
    run_together("mk_multi_forward", len(calls) * calls[0].work, calls)
    return outputs


MULTI_FORWARD = Operator(
    "multi_forward",
    f"({SCHEMA}, {OPTIONS}, bool keep) -> (Tensor, Tensor, Tensor)",
    _forward,
    _new_outputs,
)


def _backward(grad_y: Tensor, grad_last: Tensor, checkpoints: Tensor, *args: Any) -> Any:
    p = Lists(*args)
    calls = _calls(p, slab_of(SLABS["backward"], p.u[0], p.B[0]))
    grad_u, grad_delta, grad_z, _, grad_initial, *_ = gradients = list(_new_gradients(*args))
    k, (b, g, n, l), d = len(calls), p.B[0].shape, p.u[0].shape[1]
    grad_A = torch.empty_like(grad_initial)
    slabs = -(-d // g // calls[0].slab)
    parts = grad_A.new_empty(2, k, slabs, b, g, l, n)
    per_channel = grad_A.new_empty(2, k, b, d)
    grad_last, kept = grad_last.float().contiguous(), checkpoints.view(k, -1)
    calls[0].view(grad_y=grad_y, grad_z=None if p.z is None else grad_z)
    for i, call in enumerate(calls):
        call.point(
            grad_last=grad_last[i], checkpoints=kept[i], grad_A=grad_A[i],
            grad_B=parts[0, i], grad_C=parts[1, i], grad_D=per_channel[0, i],
            grad_bias=per_channel[1, i], grad_initial=grad_initial[i],
        )  # fmt: skip
        shared = len(grad_u) == 1
        call.view(grad_u=grad_u[0 if shared else i], grad_delta=grad_delta[i])
        call.set(adds_u=shared and i > 0)
    run_together("mk_multi_backward", k * calls[0].work, calls)
    gradients[3] = grad_A.sum(1)
    gradients[5:] = parts[:, :, 0] if slabs == 1 else parts.sum(2), per_channel.sum(2)
    return tuple(gradients)


def _new_gradients(*args: Any) -> tuple[Any, ...]:
    """Of u, delta and z; stacked, of A, of initial_state, of B and C, and of D and delta_bias."""
    p = Lists(*args)
    u, k, (b, g, n, l), d = p.u[0], len(p.delta), p.B[0].shape, p.u[0].shape[1]
    sizes = ((k, d, n), (k, b, d, n), (2, k, b, g, l, n), (2, k, d))
    return (
        [torch.empty_like(x) for x in p.u],
        [torch.empty_like(x) for x in p.delta],
        u.new_empty(0) if p.z is None else torch.empty_like(p.z),
        *(u.new_empty(size, dtype=torch.float32) for size in sizes),
    )


def _gradient_shapes(
    grad_y: Tensor, grad_last: Tensor, checkpoints: Tensor, *args: Any
) -> tuple[Any, ...]:
    return _new_gradients(*args)


MULTI_BACKWARD = Operator(
    "multi_backward",
    f"(Tensor grad_y, Tensor grad_last, Tensor checkpoints, {SCHEMA}, {OPTIONS}) "
    "-> (Tensor[], Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _gradient_shapes,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    save(ctx, Lists(*inputs[:-1]), output[2])
    ctx.keep = inputs[-1]


def _gradients(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None
) -> tuple[Any, ...]:
    refuse_create_graph()
    p, kept = saved(ctx)
    u = p.u[0]
    if not ctx.keep:  # recorded where no gradients were wanted, as exported programs may be
        kept = MULTI_FORWARD(*p, True)[2]
    if grad_y is None:
        grad_y = u.new_zeros(1, dtype=torch.float32).expand(u.shape)
    if grad_last is None:
        size = len(p.delta), *u.shape[:2], p.A[0].shape[1]
        grad_last = u.new_zeros(size, dtype=torch.float32)
    grad_u, grad_delta, grad_z, grad_A, grad_initial, weights, channels = MULTI_BACKWARD(
        grad_y, grad_last, kept, *p
    )
    of_B, of_C = weights.transpose(-1, -2).unbind()
    of_D, of_bias = channels.unbind()
    stacked = (grad_A, of_B, of_C, of_D, of_bias, grad_initial)
    return (
        grad_u,
        grad_delta,
        *(
            [grad.to(x.dtype) for grad, x in zip(grads, own, strict=False)]
            for grads, own in zip(stacked, p.operands[2:], strict=True)
        ),
        None if p.z is None else grad_z,
        [None] * len(p.orders),
        *[None] * 4,
    )


MULTI_FORWARD.differentiate(_gradients, _save)
