"""Causal convolution in plain torch operators, for any device: one multiply-add per tap over all
tokens at once, with its own backward pass that keeps nothing but the input.

Shapes: b batch, d channels, l tokens, k taps.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels.checks import check_permutation
from mamba_kernels.dispatch import refuse_create_graph


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
    if order is not None:
        check_permutation(order)
        y, last = causal_conv1d(x[..., order], weight, bias, initial_state, silu, reverse, None)
        return y[..., torch.argsort(order)], last
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    past = weight.shape[1] - 1
    if initial_state is None:
        state = x.new_zeros((*x.shape[:2], past), dtype=dtype)
    else:
        state = initial_state.to(dtype)
    if reverse:
        padded = torch.cat([x.to(dtype), state.flip(-1)], dim=-1)
        last = padded[..., :past].flip(-1)
        weight = weight.flip(-1)
    else:
        padded = torch.cat([state, x.to(dtype)], dim=-1)
        last = padded[..., x.shape[2] :].clone()
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    operands = (padded, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands):
        apply: Callable[..., Tensor] = _Convolution.apply
        y = apply(*operands, silu)
    else:
        y = _convolve(*operands)
        y = F.silu(y, inplace=True) if silu else y
    return y.to(x.dtype), last.to(x.dtype)


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> Tensor:
    """See `causal_conv1d.causal_conv1d_update`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    window = torch.cat([state.to(dtype), x.to(dtype).unsqueeze(-1)], dim=-1)
    state.copy_(window[..., 1:])
    y = (window * weight.to(dtype)).sum(-1)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if silu else y).to(x.dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor:
        ctx.save_for_backward(padded, weight, bias)
        ctx.silu = silu
        y = _convolve(padded, weight, bias)
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        padded, weight, bias = ctx.saved_tensors
        if ctx.silu:
            y = _convolve(padded, weight, bias)
            slope = torch.sigmoid(y)
            grad = grad * slope * (1 + y * (1 - slope))
        length = grad.shape[-1]
        grad_padded = torch.zeros_like(padded)
        grad_weight = torch.empty_like(weight)
        for i, tap in enumerate(weight.unbind(-1)):
            window = slice(i, i + length)
            grad_padded[..., window].addcmul_(grad, tap[:, None])
            grad_weight[:, i] = (grad * padded[..., window]).sum((0, 2))
        return grad_padded, grad_weight, None if bias is None else grad.sum((0, 2)), None


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(b, d, l + k - 1) -> (b, d, l), without activation."""
    taps = weight.unsqueeze(-1).unbind(1)
    length = padded.shape[-1] - len(taps) + 1
    y = padded[..., :length] * taps[0]
    for i, tap in enumerate(taps[1:], start=1):
        y.addcmul_(padded[..., i : i + length], tap)
    return y if bias is None else y.add_(bias.unsqueeze(-1))
