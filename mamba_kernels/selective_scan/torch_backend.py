"""Selective scan in plain torch operators, for any device: chunked, with its own backward pass.

Decays and states, n times larger than the input, exist for one chunk of tokens at a time. Inside
a chunk everything is computed for all tokens at once but the recurrence itself, one multiply-add
per token. The backward pass recomputes each chunk from the state at its start. Decays are
multiplied, never divided by, so that no step size overflows.

Shapes: t tokens of a block of chunks, b batch, g groups of e channels (d = g * e), n states, l
all tokens.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from mamba_kernels.dispatch import refuse_create_graph, without_autocast
from mamba_kernels.selective_scan.torch_chunks import (
    Inputs,
    Rates,
    adjoint_of,
    from_slab,
    states_of,
    sum_over_channels,
    sum_over_states,
    to_slab,
)

CHUNK_ELEMENTS = 1 << 17  # of one work array: two or three of them stay in a core's cache
CHUNK_TOKENS = (16, 128)  # fewer cost memory for states at chunk starts, more bring nothing
CHUNKS_PER_BLOCK = 8  # arrays without the axis n are laid out for so many chunks at once


class Problem(NamedTuple):
    """The arguments of a scan, as the front door hands them over."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    delta_softplus: bool
    reverse: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation."""
        return torch.float64 if self.u.dtype == torch.float64 else torch.float32

    @property
    def slab(self) -> tuple[int, int, int, int]:
        """Shape of a state, (b, g, n, e)."""
        (b, d, _), (g, n) = self.u.shape, self.B.shape[1:3]
        return b, g, n, d // g

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        b, d, length = self.u.shape
        fewest, most = CHUNK_TOKENS
        fitting = CHUNK_ELEMENTS // (b * d * self.A.shape[1])
        return min(max(fewest, min(fitting, most)), length)

    def blocks(self, against: bool = False) -> Iterator[slice]:
        """Slices of tokens that are laid out together, in the order of the scan or against it."""
        size = self.chunk * CHUNKS_PER_BLOCK
        return _spans(self.u.shape[2], size, self.reverse != against)

    def chunks(self, tokens: int, against: bool = False) -> Iterator[slice]:
        """Slices of a block of so many tokens, in the order of the scan or against it."""
        return _spans(tokens, self.chunk, self.reverse != against)

    def time_first(self, x: Tensor, tokens: slice) -> Tensor:
        """(b, d, l) -> (t, b, g, e), contiguous and in the dtype of the computation."""
        x = x[..., tokens].permute(2, 0, 1).to(self.dtype)
        return x.reshape(*x.shape[:2], self.B.shape[1], -1).contiguous()

    def layout(self, tokens: slice) -> tuple[Tensor, Tensor, Inputs]:
        """Of some tokens: u and the step size before softplus, (t, b, g, e), and the operands."""
        u, raw = self.time_first(self.u, tokens), self.time_first(self.delta, tokens)
        if self.delta_bias is not None:
            raw = raw + self.per_channel(self.delta_bias)
        dt = F.softplus(raw) if self.delta_softplus else raw
        B, C = (x[..., tokens].permute(3, 0, 1, 2).to(self.dtype) for x in (self.B, self.C))
        return u, raw, Inputs(dt, dt * u, B.contiguous(), C.contiguous())

    def per_channel(self, x: Tensor) -> Tensor:
        """(d,) -> (g, e)."""
        return x.to(self.dtype).reshape(self.B.shape[1], -1)


def _spans(length: int, size: int, backwards: bool) -> Iterator[slice]:
    starts = range(0, length, size)
    for start in reversed(starts) if backwards else starts:
        yield slice(start, min(start + size, length))


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
    """See `reference.selective_scan`. Gradients can be taken once, not of gradients."""
    scan = _untraced_scan if torch.compiler.is_compiling() else _scan
    return scan(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse)


def _scan(*args: Any) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:9]):
        apply: Callable[..., tuple[Tensor, Tensor]] = _SelectiveScan.apply
        return apply(*args)
    return _forward(Problem(*args), None)


# torch.compile would unroll the loop over tokens; this breaks its graph instead. It imports the
# compiler (seconds) at the first call, the public torch.compiler.disable already here.
_untraced_scan = _disable_dynamo(_scan)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        checkpoints: list[Tensor] = []
        outputs = _forward(Problem(*args), checkpoints)
        ctx.options = args[9:]
        ctx.save_for_backward(*args[:9], *checkpoints)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        saved = ctx.saved_tensors
        problem = Problem(*saved[:9], *ctx.options)
        with without_autocast(grad_y.device):
            return (*_backward(problem, saved[9:], grad_y, grad_last), None, None)


def _forward(p: Problem, checkpoints: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Outputs and last state; appends the state before each chunk to `checkpoints`."""
    rates = Rates.of(p.A, p.B.shape[1], p.dtype)
    if p.initial_state is None:
        state = rates.natural.new_zeros(p.slab)
    else:
        state = to_slab(p.initial_state, p.B.shape[1])
    decay, states = p.u.new_empty(2, p.chunk, *p.slab, dtype=p.dtype).unbind()
    out = torch.empty_like(p.u, dtype=torch.float32 if p.u.dtype == torch.float16 else None)

    for tokens in p.blocks():
        u, _, inputs = p.layout(tokens)
        y = torch.empty_like(u)
        for span in p.chunks(len(u)):
            if checkpoints is not None:
                checkpoints.append(state)
            x, t = inputs.at(span), span.stop - span.start
            state = states_of(x, rates, state, decay[:t], states[:t], p.reverse).clone()
            sum_over_states(x.C, states[:t], y[span])
        if p.D is not None:
            y.addcmul_(u, p.per_channel(p.D))
        if p.z is not None:
            y *= F.silu(p.time_first(p.z, tokens))
        out[..., tokens] = _channels_first(y)
    return out, from_slab(state).contiguous()


def _backward(
    p: Problem, checkpoints: tuple[Tensor, ...], grad_y: Tensor, grad_last: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the nine operands, computed from the chunk scanned last to the first."""
    rates = Rates.of(p.A, p.B.shape[1], p.dtype)
    sweep = _Sweep(p, rates, iter(reversed(checkpoints)), to_slab(grad_last, p.B.shape[1]))
    grad_u, grad_delta = torch.empty_like(p.u), torch.empty_like(p.delta)
    grad_B, grad_C = torch.empty_like(p.B), torch.empty_like(p.C)
    grad_z = None if p.z is None else torch.empty_like(p.z)
    grad_D, grad_bias = rates.natural.new_zeros(2, p.u.shape[1]).unbind()

    for tokens in p.blocks(against=True):
        u, raw, x = p.layout(tokens)
        grad = p.time_first(grad_y, tokens)
        z = None if p.z is None else p.time_first(p.z, tokens)
        ungated = grad if z is None else grad * F.silu(z)
        y, gx = sweep.block(x, ungated)

        du = gx.dtu * x.dt
        if p.D is not None:
            du.addcmul_(ungated, p.per_channel(p.D))
            y.addcmul_(u, p.per_channel(p.D))
            grad_D += (ungated * u).sum((0, 1)).flatten()
        draw = gx.dt.addcmul_(gx.dtu, u)
        if p.delta_softplus:
            draw *= torch.sigmoid(raw)
        grad_bias += draw.sum((0, 1)).flatten()
        if z is not None and grad_z is not None:
            slope = torch.sigmoid(z)
            slope.addcmul_(F.silu(z), 1 - slope)
            grad_z[..., tokens] = _channels_first(grad * y * slope)
        grad_u[..., tokens] = _channels_first(du)
        grad_delta[..., tokens] = _channels_first(draw)
        grad_B[..., tokens] = gx.B.permute(1, 2, 3, 0)
        grad_C[..., tokens] = gx.C.permute(1, 2, 3, 0)

    return (
        grad_u,
        grad_delta,
        from_slab(sweep.grad_A).to(p.A.dtype),
        grad_B,
        grad_C,
        None if p.D is None else grad_D.to(p.D.dtype),
        grad_z,
        None if p.delta_bias is None else grad_bias.to(p.delta_bias.dtype),
        None if p.initial_state is None else from_slab(sweep.grad_state),
    )


class _Sweep:
    """The backward pass through the recurrence, block by block against the scan.

    Args:
        p: The scan.
        rates: Its decay rates.
        starts: States at chunk starts, the last chunk's first.
        grad_state: Gradient of the last state, (b, g, n, e); becomes that of the initial one.
    """

    def __init__(
        self, p: Problem, rates: Rates, starts: Iterator[Tensor], grad_state: Tensor
    ) -> None:
        self.p = p
        self.rates = rates
        self.starts = starts
        self.grad_state = grad_state
        self.grad_A = torch.zeros_like(rates.natural)
        self.memory = p.u.new_empty(3, p.chunk + 1, *p.slab, dtype=p.dtype).unbind()

    def block(self, inputs: Inputs, grad_y: Tensor) -> tuple[Tensor, Inputs]:
        """The sums over states that forward gave, and the gradients of its operands."""
        y = torch.empty_like(grad_y)
        grads = Inputs(*(torch.empty_like(x) for x in inputs))
        for span in self.p.chunks(len(y), against=True):
            self._chunk(inputs.at(span), grad_y[span], y[span], grads.at(span))
        return y, grads

    def _chunk(self, x: Inputs, grad_y: Tensor, y: Tensor, grads: Inputs) -> None:
        t, reverse = len(y), self.p.reverse
        decay, grad_states = (memory[:t] for memory in self.memory[:2])
        around = self.memory[2][: t + 1]  # the states and the one before them
        states, before = (around[:-1], around[1:]) if reverse else (around[1:], around[:-1])
        start = next(self.starts)
        around[t if reverse else 0] = start
        states_of(x, self.rates, start, decay, states, reverse)
        sum_over_states(x.C, states, y)
        sum_over_channels(grad_y, states, grads.C)
        self.grad_state = adjoint_of(x, grad_y, self.grad_state, decay, grad_states, reverse)
        sum_over_states(x.B, grad_states, grads.dtu)
        sum_over_channels(x.dtu, grad_states, grads.B)

        grad_exponent = decay.mul_(grad_states).mul_(before)
        scratch = grad_states
        torch.mul(grad_exponent, self.rates.natural, out=scratch)
        torch.sum(scratch, -2, out=grads.dt)
        torch.mul(grad_exponent, x.dt.unsqueeze(-2), out=scratch)
        self.grad_A += scratch.sum((0, 1))


def _channels_first(x: Tensor) -> Tensor:
    """(t, b, g, e) -> (b, d, t)."""
    return x.flatten(2).permute(1, 2, 0)
