"""One token of the selective scan by the compiled library, as a torch operator on its state.

Equals `cpu_backend.selective_scan` over one token bit by bit.
Shapes: b batch, d channels, n states per channel, g groups of channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mamba_kernels.native.library import Call, Scan, as_float32, changed_in_place
from mamba_kernels.native.operator import Operator

SLAB = 64  # channels of a task


def selective_state_update(
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
    """See `update.selective_state_update`."""
    y: Tensor = SCAN_UPDATE(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y


def _new_output(state: Tensor, u: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(u, dtype=torch.float32 if u.dtype == torch.float16 else u.dtype)


def _update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    (batch, channels), states = u.shape, A.shape[1]
    groups = B.shape[1] if B.dim() == 3 else 1
    y = _new_output(state, u)
    with changed_in_place(state) as whole:
        call = Call(Scan, batch, channels, 1, states, groups, SLAB, softplus)
        call.point(A=as_float32(A), D=as_float32(D), bias=as_float32(delta_bias), last=whole)
        call.view(u=u, delta=delta, z=z, y=y)
        for name, x in (("B", B), ("C", C)):
            of_batch, *_, of_states = x.stride()
            call.place(name, x, (of_batch, x.stride(1), of_states))  # one group's is not used
        call.run("mk_scan_step", state.numel())
    return y


SCAN_UPDATE = Operator(
    "scan_update",
    "(Tensor(a!) state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
    "Tensor? z, Tensor? delta_bias, bool softplus) -> Tensor",
    _update,
    _new_output,
)
