"""Whole Mamba blocks behind their norms and beside their shortcuts, prepared for inference.

Shapes: b batch, l tokens, c outer and d inner channels, n states per channel, r rank of the step
sizes, k taps.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4 and Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mamba_kernels.checks import check_operands, check_rank, checked_order
from mamba_kernels.dispatch import Backend, choose, without_autocast
from mamba_kernels.mamba_block import cpu_backend, reference
from mamba_kernels.mamba_block.weights import BlockWeights, DirectionWeights, State, States
from mamba_kernels.native.library import missing
from mamba_kernels.selective_scan.multi import Order

__all__ = ["BlockWeights", "DirectionWeights", "MambaBlock", "mamba_blocks"]


class Blocks(Protocol):
    """What a backend is: `mamba_blocks` has the contract."""

    def __call__(
        self,
        blocks: Sequence[MambaBlock],
        x: Tensor,
        states: States | None,
        return_states: bool,
    ) -> tuple[Tensor, list[list[State]]]: ...


BACKENDS: dict[str, Backend[Blocks]] = {  # best first
    "cpu": Backend(cpu_backend.mamba_blocks, missing, frozenset({"cpu"}), cpu_backend.refuses),
    "torch": Backend(reference.mamba_blocks),
    "reference": Backend(reference.mamba_blocks),  # of operators of that backend, then
}


class MambaBlock:
    """Tokens plus what Mamba, in one or several directions, makes of their RMSNorm.

    For inference: weights are laid out once, and only a copy sees a later change of them; there
    are no gradients, and torch.compile and exporters cannot look inside. By the compiled library a
    sequence that is mixed forward gives in parts what it gives in one, bit by bit.

    Args:
        weights: Of the block, on one device.
        orders: For each direction "forward", "reverse", or the token at each of its positions,
            (l,), integers, a permutation such as `mamba_kernels.scan_order` makes.
        eps: Of RMSNorm.
        dtype: Of the factors of products, which are summed in float32: float32, or bfloat16, as
            are features between products then.

    Raises:
        ValueError: Shapes, devices or numbers of directions do not fit.
        TypeError: A weight is no tensor or has an unsupported dtype.
    """

    def __init__(
        self,
        weights: BlockWeights,
        orders: Sequence[Order],
        eps: float = 1e-5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weights.check()
        if len(weights.directions) != len(orders):
            raise ValueError(
                f"{len(weights.directions)} directions came with {len(orders)} orders; give one "
                "order to each direction"
            )
        for order in orders:
            if not isinstance(order, Tensor) and order not in ("forward", "reverse"):
                raise ValueError(
                    f"an order is {order!r}; expected 'forward', 'reverse' or a tensor with the "
                    "token at each position"
                )
        if dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"factors of {dtype} are not supported; use float32 or bfloat16")
        self.weights, self.orders = weights.detached(), list(orders)
        self.eps, self.dtype = eps, dtype
        self.packed = cpu_backend.packed(self.weights, self.orders, eps, dtype)

    def __reduce__(self) -> tuple[object, ...]:
        """How it is copied and pickled: laid out anew, for the library is given addresses."""
        return MambaBlock, (self.weights, self.orders, self.eps, self.dtype)

    def __call__(
        self, x: Tensor, states: Sequence[State] | None = None, return_states: bool = False
    ) -> tuple[Tensor, list[State]]:
        """Mix tokens along the sequence: `mamba_blocks` with this block alone.

        Args:
            x: Tokens, (b, l, c), float32.
            states: Of each direction, or zeros if None.
            return_states: Also return the states that these tokens leave.

        Returns:
            (b, l, c), float32, and with `return_states` of each direction the state after the last
            of its tokens, else no states.

        Raises:
            ValueError: Shapes, devices or the dtype of `x` do not fit, or an order is no
                permutation.
            TypeError: An operand is no tensor, or a state not float32.
        """
        y, after = mamba_blocks([self], x, None if states is None else [states], return_states)
        return y, after[0] if return_states else []

    def check(self, x: Tensor, states: Sequence[State] | None) -> None:
        """Refuse what `__call__` says."""
        check_rank("x", x, "b, l, c")
        first, (b, _, c) = self.weights.directions[0], x.shape
        if c != len(self.weights.norm) or x.device != first.A.device or x.dtype != torch.float32:
            raise ValueError(
                f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}; expected torch.float32 "
                f"of (b, l, {len(self.weights.norm)}) on {first.A.device}, where the weights are"
            )
        for order in self.orders:
            if isinstance(order, Tensor):
                checked_order(order, x.transpose(1, 2))
        if states is not None and len(states) != len(self.orders):
            raise ValueError(
                f"{len(states)} states came for {len(self.orders)} directions; give one to each"
            )
        (d, n), k = first.A.shape, first.conv.shape[1]
        for conv, scan in states or ():
            wanted = {"conv state": (conv, (b, d, k - 1)), "scan state": (scan, (b, d, n))}
            check_operands("x", x, required=wanted, optional={})
            if {conv.dtype, scan.dtype} != {torch.float32}:
                raise TypeError(
                    f"states are {conv.dtype} and {scan.dtype}; expected torch.float32, for "
                    "rounded states drift: keep them in that dtype between calls"
                )


@torch.no_grad()
def mamba_blocks(
    blocks: Sequence[MambaBlock],
    x: Tensor,
    states: States | None = None,
    return_states: bool = False,
) -> tuple[Tensor, list[list[State]]]:
    """Mix tokens along the sequence by one block after another, on CPUs in one call of the library.

    Args:
        blocks: One at least, of as many outer channels.
        x: Tokens, (b, l, c), float32.
        states: For each block, of each direction what the tokens before have left: the last inputs
            of its convolution, (b, d, k - 1), and the state of its scan, (b, d, n), float32. Zeros
            if None.
        return_states: Also return the states that these tokens leave.

    Returns:
        (b, l, c), float32, and with `return_states` for each block, of each direction, the state
        after the last of its tokens, else no states.

    Raises:
        ValueError: There is no block; shapes, devices or the dtype of `x` do not fit; or an order
            is no permutation.
        TypeError: An operand is no tensor, or a state not float32.
    """
    if not blocks or (states is not None and len(states) != len(blocks)):
        given = "" if states is None else f" and states of {len(states)}"
        raise ValueError(f"{len(blocks)} blocks came{given}; give one at least, and each its own")
    for i, block in enumerate(blocks):
        block.check(x, None if states is None else states[i])
    arguments = blocks, x, states, return_states
    run = choose(BACKENDS, "auto", x.device, *arguments)
    with without_autocast(x.device):
        return run(*arguments)
