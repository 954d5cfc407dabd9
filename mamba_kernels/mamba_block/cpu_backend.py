"""Mamba blocks by the compiled library, for CPUs, any number of them in one call.

Shapes: b batch, l tokens, c outer and d inner channels, n states per channel, r rank of the step
sizes, k taps.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels.causal_conv1d.cpu_backend import MOST_TAPS
from mamba_kernels.mamba_block.weights import BlockWeights, DirectionWeights, State, States
from mamba_kernels.native.library import (
    BLOCK,
    DTYPES,
    TILES,
    Block,
    Call,
    Inner,
    multiplies_bfloat16,
    run_at,
)
from mamba_kernels.native.operator import are_plain, are_recorded
from mamba_kernels.selective_scan.cpu_multi import LONGEST

if TYPE_CHECKING:
    from mamba_kernels.mamba_block import MambaBlock
    from mamba_kernels.selective_scan.multi import Order

DIRECTIONS, PANEL = 8, 64  # MK_DIRECTIONS, MK_PANEL


class Packed:
    """Weights as the library wants them, and its structures, which point to them.

    Args:
        weights: Of the block, float32 on a CPU.
        orders: Of its directions.
        eps: Of RMSNorm.
        dtype: Of the factors of products.
    """

    def __init__(
        self, weights: BlockWeights, orders: Sequence[Order], eps: float, dtype: torch.dtype
    ) -> None:
        first = weights.directions[0]
        (self.inner, self.states), self.channels = first.A.shape, len(weights.norm)
        self.rank, self.taps, self.dtype = first.dt_proj.shape[1], first.conv.shape[1], dtype
        self.columns = -(-sum(first.split) // BLOCK) * BLOCK
        self.count = len(orders)
        self.tiles = dtype == torch.bfloat16 and multiplies_bfloat16() == TILES
        block = Call(Block, 0, self.channels, self.inner, DTYPES[dtype], self.tiles)
        block.set(count=self.count)
        block.point(
            eps=torch.tensor([eps], dtype=torch.float32, device="cpu"),
            in_proj=panels(weights.in_proj * weights.norm, dtype),
            out_proj=panels(weights.out_proj, dtype),
        )
        calls = [self._direction(*own) for own in zip(weights.directions, orders, strict=True)]
        self.kept = [x for call in (block, *calls) for x in call.kept]
        self.words = array("q", [word for call in (block, *calls) for word in call.words])
        self.address = self.words.buffer_info()[0]
        self.words[Block.at["directions"]] = self.address + 8 * Block.words

    def _direction(self, own: DirectionWeights, order: Order) -> Call:
        sizes = 0, self.inner, 0, self.states, self.rank, self.taps, 0
        call = Call(Inner, *sizes, isinstance(order, str) and order == "reverse")
        x_proj = F.pad(own.x_proj, (0, 0, 0, self.columns - len(own.x_proj)))
        call.set(columns=self.columns, dtype=DTYPES[self.dtype], tiles=self.tiles)
        call.point(
            order=_own(order.to("cpu", torch.int64)) if isinstance(order, Tensor) else None,
            conv=_own(own.conv.t()),
            conv_bias=_own(own.conv_bias),
            x_proj=panels(x_proj, self.dtype),
            dt_proj=_own(own.dt_proj.reshape(-1, BLOCK, self.rank).transpose(1, 2)),
            dt_bias=_own(own.dt_bias),
            A=_own(own.A),
            D=_own(own.D),
        )
        return call


def _own(x: Tensor) -> Tensor:
    """The same without gaps, in memory that nobody else changes."""
    return x.clone(memory_format=torch.contiguous_format)


def panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight (columns, depth) as product.h wants it."""
    together = 2 if dtype == torch.bfloat16 else 1  # depths in four bytes
    parts = torch.split(weight.to(dtype), PANEL)
    return torch.cat(
        [part.reshape(len(part), -1, together).transpose(0, 1).flatten() for part in parts]
    )


def packed(
    weights: BlockWeights, orders: Sequence[Order], eps: float, dtype: torch.dtype
) -> Packed | None:
    """Weights for the library, or None if it does not take them."""
    (d, taps), c = weights.directions[0].conv.shape, len(weights.norm)
    fits = d % BLOCK == c % BLOCK == 0 and taps <= MOST_TAPS and len(orders) <= DIRECTIONS
    here = weights.norm.device.type == "cpu"
    able = dtype == torch.float32 or multiplies_bfloat16() > 0
    return Packed(weights, orders, eps, dtype) if fits and here and able else None


def refuses(
    blocks: Sequence[MambaBlock], x: Tensor, states: States | None, return_states: bool
) -> str | None:
    """What of these the library cannot take, or None."""
    if any(block.packed is None for block in blocks):
        return (
            f"channels that are no multiples of {BLOCK}, more than {MOST_TAPS} taps, more than "
            f"{DIRECTIONS} directions, or factors that this CPU does not multiply"
        )
    if are_recorded() or not are_plain([x, *(states or ())]):
        return "tensors whose operators are recorded or transformed"
    if any(block.dtype == torch.bfloat16 for block in blocks) and not multiplies_bfloat16():
        return "factors of bfloat16 with this instruction set"
    return None


def mamba_blocks(
    blocks: Sequence[MambaBlock], x: Tensor, states: States | None, return_states: bool
) -> tuple[Tensor, list[list[State]]]:
    """See the operator of this name."""
    (b, l, c), x = x.shape, x.contiguous()
    parts = [block.packed for block in blocks if block.packed]
    out = torch.empty_like(x)
    before = [_pair(state) for own in states or () for state in own]
    after = [_new_states(p, b) for p in parts] if return_states else []
    arrays = [
        array("q", [tensor.data_ptr() for state in given for tensor in state])
        for given in (before, [state for own in after for state in own])
    ]
    arrays.append(array("q", [p.address for p in parts]))
    first, second, addresses = (kept.buffer_info()[0] if kept else 0 for kept in arrays)
    call = array("q", [
        *(b, l, slab_of(l), x.data_ptr(), out.data_ptr(), first, second, len(parts), addresses)
    ])  # fmt: skip
    run_at("mk_blocks_forward", b * l * c * max(p.inner for p in parts), call)
    return out, after


def _pair(state: State) -> State:
    return state[0].contiguous(), state[1].contiguous()


def slab_of(tokens: int) -> int:
    """Channels of a task."""
    return next((slab for slab, most in LONGEST.items() if tokens <= most), BLOCK)


def _new_states(p: Packed, b: int) -> list[State]:
    conv, scan = (
        torch.empty(p.count, b, p.inner, last, dtype=torch.float32, device="cpu")
        for last in (p.taps - 1, p.states)
    )
    return list(zip(conv, scan, strict=True))
