"""Selective scan as its definition: one multiply-add per token, in a loop.

Slow on purpose, differentiated by autograd, and sharing no code with any other backend: every
other backend in this folder is tested against it.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Item = TypeVar("Item")


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
    """Run the recurrence and return the outputs and the last state.

    With dt = softplus(delta + delta_bias), for each token t

        h[t] = exp(dt[t] * A) * h[t - 1] + dt[t] * u[t] * B[t]
        y[t] = (sum over n of C[t] * h[t] + D * u[t]) * silu(z[t])

    Args:
        u: Input, (b, d, l).
        delta: Step size before bias and softplus, (b, d, l).
        A: Decay rate, (d, n), negative.
        B: Input weights, (b, g, n, l).
        C: Output weights, (b, g, n, l).
        D: Weight of the skip, (d,). No skip if None.
        z: Gate before SiLU, (b, d, l). No gate if None.
        delta_bias: Added to `delta`, (d,). Zeros if None.
        initial_state: State before the first token, (b, d, n). Zeros if None.
        delta_softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.
        reverse: Scan from the last token to the first.

    Returns:
        Outputs (b, d, l) in the dtype of `u`, float32 for float16, and the last state (b, d, n).
        States and arithmetic are float64 if `u` is float64, float32 otherwise.
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    out_dtype = torch.float32 if u.dtype == torch.float16 else u.dtype
    u, dt, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    channels_per_group = u.shape[1] // B.shape[1]

    state = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    tokens = [x.unbind(-1) for x in (u, dt, B, C)]  # gradients of x[..., t] would be l times l
    outputs = []
    for ut, dtt, Bt, Ct in _in_order(list(zip(*tokens, strict=True)), reverse):
        Bt, Ct = (x.repeat_interleave(channels_per_group, dim=1) for x in (Bt, Ct))  # (b, d, n)
        state = torch.exp(dtt[..., None] * A) * state + (dtt * ut)[..., None] * Bt
        outputs.append((state * Ct).sum(dim=-1))
    y = torch.stack(_in_order(outputs, reverse), dim=-1)

    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(out_dtype), state


def _in_order(items: list[Item], reverse: bool) -> list[Item]:
    return items[::-1] if reverse else items
