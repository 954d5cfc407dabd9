"""Mamba blocks by the operators that they consist of: the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels.causal_conv1d import causal_conv1d
from mamba_kernels.mamba_block.weights import State, States
from mamba_kernels.selective_scan import selective_scan_multi

if TYPE_CHECKING:
    from mamba_kernels.mamba_block import MambaBlock


def mamba_blocks(
    blocks: Sequence[MambaBlock], x: Tensor, states: States | None, return_states: bool
) -> tuple[Tensor, list[list[State]]]:
    """See the operator of this name."""
    every = []
    for i, block in enumerate(blocks):
        x, after = _block(block, x, None if states is None else states[i])
        every.append(after)
    return x, every if return_states else []


def _block(
    block: MambaBlock, x: Tensor, states: Sequence[State] | None
) -> tuple[Tensor, list[State]]:
    weights, dtype = block.weights, block.dtype
    normed = F.rms_norm(x, x.shape[-1:], weights.norm, block.eps)
    xz = F.linear(normed.to(dtype), weights.in_proj.to(dtype))
    u, z = xz.transpose(1, 2).chunk(2, dim=1)
    scans, convs = [], []
    for i, (own, order) in enumerate(zip(weights.directions, block.orders, strict=True)):
        mixed, conv = causal_conv1d(
            u, own.conv, own.conv_bias, activation="silu",
            order=order if isinstance(order, Tensor) else None,
            reverse=isinstance(order, str) and order == "reverse",
            initial_state=None if states is None else states[i][0], return_last_state=True,
        )  # fmt: skip
        selected = F.linear(mixed.transpose(1, 2), own.x_proj.to(dtype)).float()
        low, B, C = (v.transpose(1, 2) for v in torch.split(selected, own.split, dim=-1))
        scans.append((mixed, own.dt_proj @ low, own.A, B, C, own.D, own.dt_bias))
        convs.append(conv.float())
    us, deltas, As, Bs, Cs, Ds, biases = (list(values) for values in zip(*scans, strict=True))
    y, last = selective_scan_multi(
        us, deltas, As, Bs, Cs, Ds, z, biases, orders=block.orders,
        initial_state=None if states is None else [scan for _, scan in states],
    )  # fmt: skip
    out = x + F.linear(y.transpose(1, 2).to(dtype), weights.out_proj.to(dtype)).float()
    return out, list(zip(convs, last, strict=True))
