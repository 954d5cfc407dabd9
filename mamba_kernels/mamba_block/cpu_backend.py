"""A whole Mamba block by the compiled library, for CPUs, in one call.

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
from mamba_kernels.mamba_block.weights import BlockWeights, DirectionWeights, State
from mamba_kernels.native.library import (
    BLOCK,
    CHUNK,
    DTYPES,
    TILES,
    Block,
    Call,
    Inner,
    multiplies_bfloat16,
    run_at,
)
from mamba_kernels.selective_scan.cpu_multi import LONGEST

if TYPE_CHECKING:
    from mamba_kernels.mamba_block import MambaBlock
    from mamba_kernels.selective_scan.multi import Order

DIRECTIONS, PANEL = 8, 64  # MK_DIRECTIONS, MK_PANEL
BEFORE, AFTER = ("conv_state", "state"), ("next_conv_state", "next_state")


class Packed:
    """Weights as the library wants them, and its structures but for what changes with each call.

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
    block: MambaBlock, x: Tensor, states: Sequence[State] | None, return_states: bool
) -> str | None:
    """What of these the library cannot take, or None."""
    if block.packed is None:
        return (
            f"channels that are no multiples of {BLOCK}, more than {MOST_TAPS} taps, more than "
            f"{DIRECTIONS} directions, or factors that this CPU does not multiply"
        )
    if torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack():
        return "tensors whose operators are recorded"
    if block.dtype == torch.bfloat16 and not multiplies_bfloat16():
        return "factors of bfloat16 with this instruction set"
    return None


def mamba_block(
    block: MambaBlock, x: Tensor, states: Sequence[State] | None, return_states: bool
) -> tuple[Tensor, list[State]]:
    """See `MambaBlock.__call__`."""
    p, x = block.packed, x.contiguous()
    assert p is not None
    (b, l, c), d, kind, size = x.shape, p.inner, DTYPES[p.dtype], p.dtype.itemsize
    out, after = torch.empty_like(x), _new_states(p, b) if return_states else []
    features = {"normed": b * l * c * size, "xz": 2 * b * l * d * size, "y": b * l * d * size}
    own = {
        "u": b * l * d * size,
        "low": 4 * b * -(-l // CHUNK) * CHUNK * p.rank,
        "weights": 4 * b * l * p.columns,
    }
    memory = Memory(sum(features.values()) + p.count * sum(own.values()))
    words = p.words[:]

    def fill(at: dict[str, int], first: int, values: dict[str, int]) -> None:
        for name, value in values.items():
            words[first + at[name]] = value

    places = {name: memory.take(count) for name, count in features.items()}
    fill(Block.at, 0, {"rows": b * l, "x": x.data_ptr(), "out": out.data_ptr(), **places})
    words[Block.at["directions"]] = words.buffer_info()[0] + 8 * Block.words
    xz, y = places["xz"], places["y"]
    arrays = array("q", [
        *(xz, kind, 2 * l * d, 1, 2 * d, 0),
        *(xz + d * size, kind, 2 * l * d, 1, 2 * d, 0),
        *(y, kind, l * d, 1, d, 0),
    ])  # fmt: skip
    sizes = {"batch": b, "tokens": l, "slab": slab_of(l)}
    kept = []
    for i in range(p.count):
        first = Block.words + i * Inner.words
        at = first + Inner.at["x"]  # and z and y, which follow
        words[at : at + len(arrays)] = arrays
        fill(Inner.at, first, sizes | {name: memory.take(count) for name, count in own.items()})
        for names, pairs in ((BEFORE, states), (AFTER, after)):
            if pairs:
                pair = [state.contiguous() for state in pairs[i]]
                kept.append(pair)
                fill(Inner.at, first, dict(zip(names, (s.data_ptr() for s in pair), strict=True)))
    run_at("mk_block_forward", b * l * c * d, words)
    return out, after


class Memory:
    """Scratch of one call, handed out front to back.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.whole = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.next = self.whole.data_ptr()

    def take(self, count: int) -> int:
        """Address of so many bytes."""
        taken = self.next
        self.next += count
        return taken


def slab_of(tokens: int) -> int:
    """Channels of a task."""
    return next((slab for slab, most in LONGEST.items() if tokens <= most), BLOCK)


def _new_states(p: Packed, b: int) -> list[State]:
    conv, scan = (
        torch.empty(p.count, b, p.inner, last, dtype=torch.float32, device="cpu")
        for last in (p.taps - 1, p.states)
    )
    return list(zip(conv, scan, strict=True))
