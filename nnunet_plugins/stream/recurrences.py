"""What the compiled operators compute, in operators that every exporter knows.

The recurrence becomes torch's `scan`, a loop whose body is one token, which ONNX has too; it is not
unrolled. For inference: there are no gradients.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of e channels, k taps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan  # documented by torch as a prototype
from torch.nn import functional as F

from mamba_kernels.selective_scan.directions import Lists


def decompositions() -> dict[Any, Callable[..., Any]]:
    """For `torch.export.ExportedProgram.run_decompositions`: these operators and no others."""
    ops = torch.ops.mambamed
    return {
        ops.scan_forward.default: scan_forward,
        ops.multi_forward.default: multi_forward,
        ops.conv_forward.default: conv_forward,
    }


def scan_forward(u: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`mambamed::scan_forward`: output, last state, and no states for a backward pass."""
    *operands, _ = rest
    y, last = _scanned(u, *operands)
    return y.to(u.dtype), last, y.new_empty(0)


def multi_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`mambamed::multi_forward`: summed outputs, last states, and none for a backward pass.

    Raises:
        ValueError: If a direction has an order of its own.
    """
    p, total, states = Lists(*args[:-1]), None, []
    for x in p.directions():
        if x.order is not None:
            raise ValueError("only scans from the first or the last token can be exported")
        y, last = _scanned(
            x.u, x.delta, x.A, x.B, x.C, x.D, p.z, x.delta_bias, x.initial_state, p.softplus,
            x.reverse,
        )  # fmt: skip
        total = y if total is None else total + y
        states.append(last)
    assert total is not None
    return total, torch.stack(states), total.new_empty(0)


def conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    order: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """`mambamed::conv_forward`: output (b, d, l) and the last k - 1 inputs.

    Raises:
        ValueError: If the tokens have an order of their own.
    """
    if order is not None:
        raise ValueError("only convolutions from the first or the last token can be exported")
    past, taps = weight.shape[1] - 1, weight.unsqueeze(1).to(x.dtype)
    start = x.new_zeros(*x.shape[:2], past) if initial_state is None else initial_state.to(x.dtype)
    if reverse:
        padded, taps = torch.cat([x, start.flip(-1)], dim=-1), taps.flip(-1)
        last = padded[..., :past].flip(-1)
    else:
        padded = torch.cat([start, x], dim=-1)
        last = padded[..., x.shape[-1] :].clone()
    y = F.conv1d(padded, taps, None if bias is None else bias.to(x.dtype), groups=x.shape[1])
    return (F.silu(y) if silu else y), last


def _scanned(
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
) -> tuple[Tensor, Tensor]:
    """See `mamba_kernels.selective_scan.reference`: (b, d, l) float32 and (b, d, n)."""
    (b, d, _), (g, n) = u.shape, B.shape[1:3]
    u, dt, A, B, C = (x.float() for x in (u, delta, A, B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.float()[:, None]
    dt = F.softplus(dt) if softplus else dt
    grouped = (-1, b, g, d // g)  # tokens first
    dt_tokens, dtu = (x.permute(2, 0, 1).reshape(grouped) for x in (dt, dt * u))
    decay = torch.exp(dt_tokens.unsqueeze(-2) * A.view(g, d // g, n).mT)  # (l, b, g, n, e)
    added = dtu.unsqueeze(-2) * B.permute(3, 0, 1, 2).unsqueeze(-1)
    read = C.permute(3, 0, 1, 2).unsqueeze(-2).contiguous()  # (l, b, g, 1, n)
    state = u.new_zeros(b, d, n) if initial_state is None else initial_state.float()
    state = state.view(b, g, d // g, n).mT.contiguous()
    last, y = scan(_token, state, (decay, added, read), reverse=reverse)
    last = last.mT.reshape(b, d, n)
    y = y.reshape(-1, b, d).permute(1, 2, 0)
    if D is not None:
        y = y + D.float()[:, None] * u
    if z is not None:
        y = y * F.silu(z.float())
    return y, last


def _token(state: Tensor, operands: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One token's state (b, g, n, e) and output (b, g, 1, e) from the state before."""
    decay, added, read = operands
    state = decay * state + added
    return state, torch.matmul(read, state)
