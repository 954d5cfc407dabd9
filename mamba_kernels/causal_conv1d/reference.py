"""Causal convolution of each channel with its own taps, as its definition: one token at a time.

Slow on purpose, differentiated by autograd, and sharing no code with any other backend.

Shapes: b batch, d channels, l tokens, k taps.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mamba_kernels.checks import check_permutation


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
    reverse: bool,
    order: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Convolve and return the outputs and the last state.

    In the order of the scan, y[t] = bias + sum over i < k of weight[i] * x[t - (k - 1) + i].

    Args:
        x: Input, (b, d, l).
        weight: Taps, (d, k), the last one for the token itself.
        bias: (d,). Zeros if None.
        initial_state: The k - 1 inputs before the first token, (b, d, k - 1). Zeros if None.
        silu: Whether SiLU follows.
        reverse: Scan from the last position to the first.
        order: The token at each position, (l,) int64. Position is token if None.

    Returns:
        Outputs (b, d, l) and the last k - 1 inputs (b, d, k - 1), both in the dtype of `x`.
        Arithmetic is float64 if `x` is float64, float32 otherwise.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    (b, d, l), k = x.shape, weight.shape[1]
    if initial_state is None:
        initial_state = x.new_zeros(b, d, k - 1)
    window = list(initial_state.to(dtype).unbind(-1))
    if order is None:
        tokens = list(range(l))
    else:
        check_permutation(order)
        tokens = order.tolist()
    outputs = {}
    for t in reversed(tokens) if reverse else tokens:
        window.append(x[..., t].to(dtype))
        y = torch.zeros_like(window[-1]) if bias is None else bias.to(dtype).expand(b, d)
        for tap, value in zip(weight.to(dtype).unbind(-1), window, strict=True):
            y = y + tap * value
        outputs[t] = y * torch.sigmoid(y) if silu else y
        window.pop(0)
    state = torch.stack(window, dim=-1) if window else initial_state
    return torch.stack([outputs[t] for t in range(l)], dim=-1).to(x.dtype), state.to(x.dtype)
