"""What `torch_backend` does to one chunk of tokens, forward and backward.

Shapes: t tokens of a chunk, b batch, g groups of e channels (d = g * e), n states per channel.
Work arrays are laid out (t, b, g, n, e): one token is one contiguous slab, and the long axis e
is the one that vectorises.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """Operands of some consecutive tokens, or the gradients of a loss with respect to them."""

    dt: Tensor  # (t, b, g, e); as a gradient, the part through the decay only
    dtu: Tensor  # (t, b, g, e), dt * u
    B: Tensor  # (t, b, g, n)
    C: Tensor  # (t, b, g, n)

    def at(self, tokens: slice) -> Inputs:
        """The part of some of the tokens, as views."""
        return Inputs(self.dt[tokens], self.dtu[tokens], self.B[tokens], self.C[tokens])


class Rates(NamedTuple):
    """The decay rates A, (g, n, e)."""

    natural: Tensor
    binary: Tensor  # A * log2(e): on CPU exp2 is two to three times as fast as exp

    @classmethod
    def of(cls, A: Tensor, groups: int, dtype: torch.dtype) -> Rates:
        natural = to_slab(A, groups)
        wide = torch.float32 if A.device.type == "mps" else torch.float64  # which MPS has not
        return cls(natural.to(dtype), (natural.to(wide) * math.log2(math.e)).to(dtype))


def to_slab(x: Tensor, groups: int) -> Tensor:
    """(..., d, n) -> (..., g, n, e)."""
    return x.reshape(*x.shape[:-2], groups, -1, x.shape[-1]).transpose(-1, -2).contiguous()


def from_slab(x: Tensor) -> Tensor:
    """(..., g, n, e) -> (..., d, n)."""
    return x.transpose(-1, -2).flatten(-3, -2)


def states_of(
    x: Inputs, rates: Rates, start: Tensor, decay: Tensor, states: Tensor, reverse: bool
) -> Tensor:
    """Fill `decay` and `states`, (t, b, g, n, e), and return the last state, a view.

    Args:
        x: Operands of the chunk.
        rates: Decay rates.
        start: State before the chunk, (b, g, n, e).
        decay: Filled with exp(dt * A).
        states: Filled with the state after each token.
        reverse: Scan from the last token to the first.
    """
    torch.mul(x.dt.unsqueeze(-2), rates.binary, out=decay).exp2_()
    torch.mul(x.dtu.unsqueeze(-2), x.B.unsqueeze(-1), out=states)
    steps = list(zip(decay.unbind(), states.unbind(), strict=True))
    last = start
    for factor, state in reversed(steps) if reverse else steps:
        state.addcmul_(factor, last)
        last = state
    return last


def sum_over_states(weight: Tensor, x: Tensor, out: Tensor) -> None:
    """out[..., e] = sum over n of weight[..., n] * x[..., n, e], with contiguous operands."""
    torch.bmm(_flat(weight), x.flatten(0, 2), out=_flat(out))


def sum_over_channels(weight: Tensor, x: Tensor, out: Tensor) -> None:
    """out[..., n] = sum over e of weight[..., e] * x[..., n, e], with contiguous operands."""
    torch.bmm(_flat(weight), x.flatten(0, 2).transpose(1, 2), out=_flat(out))


def _flat(x: Tensor) -> Tensor:
    return x.view(-1, 1, x.shape[-1])


def adjoint_of(
    x: Inputs,
    grad_y: Tensor,
    grad_after: Tensor,
    decay: Tensor,
    grad_states: Tensor,
    reverse: bool,
) -> Tensor:
    """Fill `grad_states`, (t, b, g, n, e), and return the gradient of the state before the chunk.

    Args:
        x: Operands of the chunk.
        grad_y: Gradient of the sums over states, (t, b, g, e).
        grad_after: Gradient of the state after the chunk by all that follows, (b, g, n, e).
        decay: As `states_of` filled it.
        grad_states: Filled with the gradient of the state after each token.
        reverse: The direction of the scan; the adjoint runs against it.
    """
    torch.mul(grad_y.unsqueeze(-2), x.C.unsqueeze(-1), out=grad_states)
    steps = list(zip(decay.unbind(), grad_states.unbind(), strict=True))
    if not reverse:
        steps.reverse()
    (factor, later), *earlier = steps
    later += grad_after
    for before, grad in earlier:
        grad.addcmul_(factor, later)
        factor, later = before, grad
    return factor * later
