"""Causal convolution by the compiled library, for CPUs: forward and backward as torch operators.

The backward pass keeps nothing but the inputs. Work is cut into tasks by shape alone, so that
results do not depend on the number of threads.

Shapes: b batch, d channels, l tokens, k taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.native.library import DTYPES, Call, Conv, changed_in_place
from mamba_kernels.native.operator import Operator

MOST_TAPS = 4  # MK_TAPS of api.h
SLAB, SMALL_SLAB, FEW_TASKS = 64, 16, 8  # channels of a task: usual, and where tasks are few


def refuses(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, *options: Any
) -> str | None:
    """What the library does not have of these operands, or None."""
    for operand in (x, weight, bias, initial_state):
        if operand is not None and operand.dtype not in DTYPES:
            return f"an operand of dtype {operand.dtype}"
    taps = weight.shape[1]
    return f"{taps} taps, more than {MOST_TAPS}" if taps > MOST_TAPS else None


def refuses_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> str | None:
    """What the library does not have of these operands, or None."""
    return refuses(x, weight, bias, state)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    order: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `reference.causal_conv1d`. Gradients can be taken once, not of gradients."""
    y, last = CONV_FORWARD(x, weight, bias, initial_state, order, silu, reverse)
    return y, last


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> Tensor:
    """See `causal_conv1d.causal_conv1d_update`. Equals the sequence's convolution bit by bit."""
    y: Tensor = CONV_UPDATE(x, state, weight, bias, silu)
    return y


OPERANDS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? order"


def _new_outputs(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Memory for the outputs and the last state."""
    return torch.empty_like(x), x.new_empty((*x.shape[:2], weight.shape[1] - 1))


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    outputs = y, last = _new_outputs(x, weight)
    call = _call(x, weight, bias, initial_state, order, silu, reverse)
    call.view(y=y, last=last)
    call.run("mk_conv_forward", x.numel())
    return outputs


CONV_FORWARD = Operator(
    "conv_forward",
    f"({OPERANDS}, bool silu, bool reverse) -> (Tensor, Tensor)",
    _forward,
    _new_outputs,
)


def _new_gradients(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for those of the inputs and of the initial state."""
    return torch.empty_like(x), x.new_empty(
        (*x.shape[:2], weight.shape[1] - 1), dtype=torch.float32
    )


def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, ...]:
    grad_x, grad_initial = _new_gradients(x, weight)
    b, d, k = *x.shape[:2], weight.shape[1]
    grad_weight = x.new_empty(b, d, k, dtype=torch.float32)
    grad_bias = x.new_empty(b, d, dtype=torch.float32)
    call = _call(x, weight, bias, initial_state, order, silu, reverse)
    call.view(grad_y=grad_y, grad_last=grad_last, grad_x=grad_x, grad_initial=grad_initial)
    call.view(grad_weight=grad_weight, grad_bias=grad_bias)
    call.run("mk_conv_backward", 2 * x.numel())
    return grad_x, grad_weight.sum(0), grad_bias.sum(0), grad_initial


def _backward_shapes(
    grad_y: Tensor, grad_last: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    grad_x, grad_initial = _new_gradients(x, weight)
    (d, k), kind = weight.shape, torch.float32
    return grad_x, x.new_empty(d, k, dtype=kind), x.new_empty(d, dtype=kind), grad_initial


CONV_BACKWARD = Operator(
    "conv_backward",
    f"(Tensor grad_y, Tensor grad_last, {OPERANDS}, bool silu, bool reverse) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*operands)


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    refuse_create_graph()
    operands = ctx.saved_tensors
    grads = CONV_BACKWARD(grad_y, grad_last, *operands, ctx.silu, ctx.reverse)
    return (
        *(
            None if operand is None else grad.to(operand.dtype)
            for operand, grad in zip(operands[:4], grads, strict=True)
        ),
        None,
        None,
        None,
    )


CONV_FORWARD.differentiate(_gradients, _save)


def _update(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = torch.empty_like(x)
    (b, d), k = x.shape, weight.shape[1]
    with changed_in_place(state) as whole:
        call = Call(Conv, b, d, 1, k, SLAB, silu)
        call.view(x=x, weight=weight, bias=bias, initial=whole, last=whole, y=y)
        call.run("mk_conv_forward", x.numel())
    return y


def _update_shapes(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


CONV_UPDATE = Operator(
    "conv_update",
    "(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, bool silu) -> Tensor",
    _update,
    _update_shapes,
)


def _call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Call:
    """One pass over a sequence, with its inputs set."""
    (batch, channels, tokens), taps = x.shape, weight.shape[1]
    few = batch * -(-channels // SLAB) < FEW_TASKS
    call = Call(Conv, batch, channels, tokens, taps, SMALL_SLAB if few else SLAB, silu, reverse)
    call.point(order=order)
    call.view(x=x, weight=weight, bias=bias, initial=initial_state)
    return call
