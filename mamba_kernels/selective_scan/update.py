"""One token of the selective scan, with the state updated in place."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels.checks import check_groups, check_operands, check_rank, check_state
from mamba_kernels.dispatch import Backend, choose
from mamba_kernels.native.library import missing
from mamba_kernels.selective_scan import cpu_backend, cpu_update


class Update(Protocol):
    """What a backend is: `selective_state_update` has the contract."""

    def __call__(
        self,
        state: Tensor,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> Tensor: ...


def _in_torch(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """In plain torch operators, for any device and dtype."""
    dtype, (b, _, n) = state.dtype, state.shape
    groups = B.shape[1] if B.dim() == 3 else 1
    x, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        dt = F.softplus(dt)
    B, C = (w.to(dtype).reshape(b, groups, 1, n) for w in (B, C))
    drive = (dt * x).reshape(b, groups, -1, 1) * B
    decay = torch.exp(dt.unsqueeze(-1) * A.to(dtype))
    state.copy_(torch.addcmul(drive.view_as(state), decay, state))
    y = (state.reshape(b, groups, -1, n) * C).sum(-1).view_as(u)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y if u.dtype == torch.float16 else y.to(u.dtype)


BACKENDS: dict[str, Backend[Update]] = {  # best first
    "cpu": Backend(
        cpu_update.selective_state_update, missing, frozenset({"cpu"}), cpu_backend.refuses
    ),
    "torch": Backend(_in_torch, forward_mode=True),
}


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
) -> Tensor:
    """Advance a state by one token, in place, and return the output of that token.

    Equals `selective_scan` over one token from that state. For inference: gives no gradients.
    Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2.

    Args:
        state: State before the token, (b, d, n), float32 (float64 if `u` is); after the call the
            state after the token.
        u: Input, (b, d).
        delta: Step size before bias and softplus, (b, d).
        A: Decay rate, (d, n), negative.
        B: Input weights, (b, n), or (b, g, n) for g groups of d / g channels.
        C: Output weights, of the shape of `B`.
        D: Weight of the skip, (d,). No skip if None.
        z: Gate before SiLU, (b, d). No gate if None.
        delta_bias: Added to `delta`, (d,). Zeros if None.
        delta_softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.

    Returns:
        Output (b, d) in the dtype of `u`, float32 for float16.

    Raises:
        ValueError: Shapes or devices do not fit, or the backend that `use_backend` forces cannot
            take the operands.
        TypeError: An operand is no tensor or has an unsupported dtype.
    """
    check_rank("u", u, "b, d")
    check_rank("A", A, "d, n")
    (b, d), n = u.shape, A.shape[1]
    grouped = isinstance(B, Tensor) and B.dim() == 3
    weights = (b, B.shape[1], n) if grouped else (b, n)
    check_operands(
        "u",
        u,
        required={
            "state": (state, (b, d, n)),
            "delta": (delta, (b, d)),
            "A": (A, (d, n)),
            "B": (B, weights),
            "C": (C, weights),
        },
        optional={
            "D": (D, (d,)),
            "z": (z, (b, d)),
            "delta_bias": (delta_bias, (d,)),
        },
    )
    check_state("state", state, u)
    if grouped:
        check_groups(B, d)

    arguments = (state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return choose(BACKENDS, "auto", u.device, *arguments)(*arguments)
