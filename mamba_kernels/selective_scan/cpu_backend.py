"""Selective scan by the compiled library, for CPUs: forward and backward as torch operators.

The backward pass recomputes states from those kept at the start of each chunk. Work is cut into
tasks by shape alone, so that results do not depend on the number of threads.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.native.library import BLOCK, CHUNK, DTYPES, Call, Scan, as_float32
from mamba_kernels.native.operator import Operator

SLABS = {"forward": (64, 32, 16), "backward": (128, 64)}  # channels of a task, best first
ENOUGH_TASKS = 8  # or the next smaller slab is taken


def refuses(*operands: Any) -> str | None:
    """The first operand of a dtype that the library does not have, or None."""
    for x in operands:
        if isinstance(x, Tensor) and x.dtype not in DTYPES and x.is_floating_point():
            return f"an operand of dtype {x.dtype}"
    return None


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
    y, last, _ = SCAN_FORWARD(*operands, delta_softplus, reverse, keep)
    return y, last


OPERANDS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? initial_state"
)


def kept_size(u: Tensor, A: Tensor, B: Tensor) -> int:
    """Number of elements of the states at chunk starts, which the backward pass needs."""
    (batch, channels, tokens), states, groups = u.shape, A.shape[1], B.shape[1]
    chunks = (tokens + CHUNK - 1) // CHUNK
    per_group = (channels // groups + BLOCK - 1) // BLOCK * BLOCK
    return batch * groups * chunks * states * per_group


def _new_outputs(u: Tensor, A: Tensor, B: Tensor, keep: bool) -> tuple[Tensor, ...]:
    """Memory for the outputs, the last state and the states at chunk starts."""
    dtype = torch.float32 if u.dtype == torch.float16 else u.dtype
    return (
        torch.empty_like(u, dtype=dtype),
        u.new_empty((*u.shape[:2], A.shape[1]), dtype=torch.float32),
        u.new_empty(kept_size(u, A, B) if keep else 0, dtype=torch.float32),
    )


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    outputs = y, last, checkpoints = _new_outputs(u, A, B, keep)
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    call = ScanCall(slab_of(SLABS["forward"], u, B), operands, softplus, reverse)
    call.point(last=last, checkpoints=checkpoints if keep else None)
    call.view(y=y)
    call.run("mk_scan_forward", call.work)
    return outputs


def _forward_shapes(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Any:
    return _new_outputs(u, A, B, keep=rest[-1])


SCAN_FORWARD = Operator(
    "scan_forward",
    f"({OPERANDS}, bool softplus, bool reverse, bool keep) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
)


def _new_gradients(u: Tensor, delta: Tensor, A: Tensor, z: Tensor | None) -> dict[str, Tensor]:
    """Memory for those gradients that the library writes once and for all."""
    return {
        "grad_u": torch.empty_like(u),
        "grad_delta": torch.empty_like(delta),
        "grad_z": u.new_empty(0) if z is None else torch.empty_like(z),
        "grad_initial": u.new_empty(u.shape[0], u.shape[1], A.shape[1], dtype=torch.float32),
    }


def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    operands = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    call = ScanCall(slab_of(SLABS["backward"], u, B), operands, softplus, reverse)
    grads = _new_gradients(u, delta, A, z)
    (batch, channels, tokens), states, groups = u.shape, A.shape[1], B.shape[1]
    slabs = -(-channels // groups // call.slab)
    grad_B, grad_C = (
        u.new_empty(slabs, batch, groups, tokens, states, dtype=torch.float32) for _ in "BC"
    )
    grad_A = torch.empty_like(grads["grad_initial"])
    grad_D, grad_bias = grad_A.new_empty(2, batch, channels)
    grad_last = grad_last.float().contiguous()
    call.point(
        grad_last=grad_last, checkpoints=checkpoints, grad_B=grad_B, grad_C=grad_C,
        grad_A=grad_A, grad_D=grad_D, grad_bias=grad_bias, grad_initial=grads["grad_initial"],
    )  # fmt: skip
    call.view(grad_y=grad_y, grad_u=grads["grad_u"], grad_delta=grads["grad_delta"])
    if z is not None:
        call.view(grad_z=grads["grad_z"])
    call.run("mk_scan_backward", call.work)
    return (
        grads["grad_u"],
        grads["grad_delta"],
        grad_A.sum(0).to(A.dtype),
        _over_slabs(grad_B, B),
        _over_slabs(grad_C, C),
        grad_D.sum(0),
        grads["grad_z"],
        grad_bias.sum(0),
        grads["grad_initial"],
    )


def _over_slabs(partial: Tensor, like: Tensor) -> Tensor:
    """(slabs, b, g, l, n) -> (b, g, n, l)."""
    whole = partial[0] if len(partial) == 1 else partial.sum(0)
    return whole.to(like.dtype).transpose(-1, -2)


def _backward_shapes(
    grad_y: Tensor,
    grad_last: Tensor,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    *rest: Any,
) -> Any:
    grads = _new_gradients(u, delta, A, z)
    (batch, groups, states, tokens), channels = B.shape, u.shape[1]
    weights = (batch, groups, tokens, states)
    return (
        grads["grad_u"],
        grads["grad_delta"],
        A.new_empty(A.shape),
        B.new_empty(weights).transpose(-1, -2),
        C.new_empty(weights).transpose(-1, -2),
        u.new_empty(channels, dtype=torch.float32),
        grads["grad_z"],
        u.new_empty(channels, dtype=torch.float32),
        grads["grad_initial"],
    )


SCAN_BACKWARD = Operator(
    "scan_backward",
    f"(Tensor grad_y, Tensor grad_last, Tensor checkpoints, {OPERANDS}, bool softplus, "
    f"bool reverse) -> ({', '.join(['Tensor'] * 9)})",
    _backward,
    _backward_shapes,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.softplus, ctx.reverse, ctx.keep = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # zeros of the size of the states that are kept
    ctx.save_for_backward(*operands, output[2])


def _gradients(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None
) -> tuple[Any, ...]:
    refuse_create_graph()
    *operands, checkpoints = ctx.saved_tensors
    u, A, D, delta_bias, initial_state = (operands[i] for i in (0, 2, 5, 7, 8))
    if not ctx.keep:  # recorded where no gradients were wanted, as exported programs may be
        checkpoints = SCAN_FORWARD(*operands, ctx.softplus, ctx.reverse, True)[2]
    if grad_y is None:
        grad_y = u.new_zeros(1, dtype=torch.float32).expand(u.shape)
    if grad_last is None:
        grad_last = u.new_zeros((*u.shape[:2], A.shape[1]), dtype=torch.float32)
    grads = SCAN_BACKWARD(grad_y, grad_last, checkpoints, *operands, ctx.softplus, ctx.reverse)
    return (
        *grads[:5],
        None if D is None else grads[5].to(D.dtype),
        None if operands[6] is None else grads[6],
        None if delta_bias is None else grads[7].to(delta_bias.dtype),
        None if initial_state is None else grads[8],
        *[None] * 3,
    )


SCAN_FORWARD.differentiate(_gradients, _save)


def slab_of(slabs: Sequence[int], u: Tensor, B: Tensor) -> int:
    """Channels of a task: the first of `slabs` that makes enough tasks, or the last."""
    batch, groups, per_group = u.shape[0], B.shape[1], u.shape[1] // B.shape[1]
    enough = (x for x in slabs if batch * groups * -(-per_group // x) >= ENOUGH_TASKS)
    return next(enough, slabs[-1])


class ScanCall(Call):
    """One pass over a scan, with its inputs set.

    Args:
        slab: Channels of a task.
        operands: u, delta, A, B, C, D, z, delta_bias and initial_state.
        softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.
        reverse: Scan from the last position to the first.
    """

    def __init__(
        self, slab: int, operands: Sequence[Tensor | None], softplus: bool, reverse: bool
    ) -> None:
        u, delta, A, B, C, D, z, delta_bias, initial_state = operands
        assert u is not None
        assert A is not None
        assert B is not None
        states = A.shape[1]
        self.work = u.numel() * states
        self.slab = slab
        super().__init__(Scan, *u.shape, states, B.shape[1], slab, softplus, reverse)
        self.point(A=as_float32(A), D=as_float32(D), bias=as_float32(delta_bias))
        self.point(initial=as_float32(initial_state))
        self.view(u=u, delta=delta, z=z, B=B, C=C)
