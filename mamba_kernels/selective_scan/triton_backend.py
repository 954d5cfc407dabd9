"""Selective scan in Triton kernels of this project, for NVIDIA, AMD and Intel GPUs.

The kernels are in `triton_kernels`, which is imported, and triton with it, when a scan first runs.
Here they get memory and grids, and become two operators of torch, so that `torch.compile` takes
them as they are. Where several programs add to one gradient, each writes its part and the parts
are summed in a fixed order; how a scan is cut depends on shapes alone. So runs are bit-equal.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph

CHUNK = 4  # tokens whose steps are unrolled
SPAN = 64  # tokens between states kept for the backward pass
FORWARD = (512, 4)  # elements of a program's state, and its states at most that are inner
BACKWARD = (256, 16)  # fewer, for it holds the states of a whole chunk in registers
MOST_CHANNELS = 32  # of a program: with more, its threads have more than one each
MOST_STATES = 256
FEW_PROGRAMS = 512  # with fewer, a GPU idles: time is cut, at almost twice the work
MANY_PROGRAMS = 2048  # what cutting aims at
LEAST_SEGMENT = 128  # tokens; shorter ones give more states to carry than tokens to scan


INSTALLED = importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """Why Triton cannot be used here, or None."""
    if not INSTALLED:
        return "triton is not installed"
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        return "there is no GPU"
    return None


def refuses(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> str | None:
    """What of the arguments of a scan the kernels cannot take, or None."""
    for x in (u, delta, A, *rest):
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return "float64, for its scans are float32"
    if A.shape[1] > MOST_STATES:
        return f"{A.shape[1]} states per channel, for {MOST_STATES} are its most"
    return None


class Problem(NamedTuple):
    """The arguments of a scan.

    Args:
        residual: Added before the gate, float32 of the shape of `u`. Nothing if None.
        order: Tokens in the order of the scan, int32 (l,); `reverse` walks it backwards. Their
            own order if None.

    The others are those of `reference.selective_scan`.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    residual: Tensor | None
    order: Tensor | None
    delta_softplus: bool
    reverse: bool


class Plan:
    """How one kernel sees a scan: grid, sizes, and operands as `triton_kernels` wants them.

    Args:
        p: The scan.
        shape: Of the kernel's programs, `FORWARD` or `BACKWARD`.
    """

    def __init__(self, p: Problem, shape: tuple[int, int]) -> None:
        (b, d, self.length), self.groups = p.u.shape, p.B.shape[1]
        n = p.A.shape[1]
        elements, inner = shape
        padded, in_group = _power_of_two(n), d // self.groups
        channels = min(max(elements // padded, 1), MOST_CHANNELS, _power_of_two(in_group))
        self.blocks = _blocks(in_group, channels)
        self.segment = _segment(b * self.groups * self.blocks, self.length)
        self.segments = _blocks(self.length, self.segment)
        self.grid = (self.groups * self.blocks, b, self.segments)
        self.steps = _blocks(self.length, CHUNK) * CHUNK
        self.state = (b, d, n)
        self.sizes = (d, n, self.length, self.blocks, self.segment)
        self.consts: dict[str, Any] = {
            "NO": padded // min(padded, inner),
            "NI": min(padded, inner),
            "D": channels,
            "T": CHUNK,
            "REVERSE": p.reverse,
            "SOFTPLUS": p.delta_softplus,
            "num_warps": 1,
            "enable_fp_fusion": True,
        }
        self.u, self.delta, self.z, self.residual = map(_sequence, (p.u, p.delta, p.z, p.residual))
        self.A = (p.A.float() * math.log2(math.e)).contiguous()
        self.B, self.C = self._packed(p.B), self._packed(p.C)
        self.skip, self.bias, self.start, self.order = (
            None if x is None else x.contiguous()
            for x in (p.D, p.delta_bias, p.initial_state, p.order)
        )

    @property
    def packed_shape(self) -> tuple[int, int, int, int]:
        """Of packed weights: b, g, tokens and states, the latter two with room to spare."""
        return self.grid[1], self.groups, self.steps, self.consts["NO"] * self.consts["NI"]

    def _packed(self, weights: Tensor) -> Tensor:
        """(b, g, n, l) -> packed, zero in the room to spare."""
        packed = weights.new_zeros(self.packed_shape, dtype=torch.float32)
        packed[:, :, : self.length, : self.state[2]] = weights.transpose(-1, -2)
        return packed

    def unpacked(self, parts: Tensor) -> Tensor:
        """The sum (b, g, n, l) of parts (blocks, packed)."""
        return parts.sum(0)[:, :, : self.length, : self.state[2]].transpose(-1, -2)

    def float_states(self, *items: int) -> Tensor:
        """Memory for (items, b, d, n)."""
        return self.A.new_empty(*items, *self.state)

    def arriving(self, kernels: ModuleType, grad_y: Tensor | None, start: Tensor | None) -> Any:
        """What arrives at each segment: `start` if there is one segment, else carried from it.

        Args:
            kernels: The module of the kernels.
            grad_y: For the backward pass, the gradient of the outputs.
            start: The initial state or, for the backward pass, the gradient of the last one.

        Returns:
            (segments, b, d, n), or None for zeros.
        """
        if self.segments == 1:
            return start
        ends = self.float_states(self.segments)
        elapsed = self.A.new_empty(ends.shape[:-1])
        rest = (self.bias, self.order, ends, elapsed, *self.sizes)
        if grad_y is None:
            kernels.segment_forward[self.grid](
                self.u, self.delta, self.A, self.B, *rest, **self.consts
            )
        else:
            kernels.segment_backward[self.grid](
                _sequence(grad_y), self.z, self.delta, self.A, self.C, *rest, **self.consts
            )
        size, block = self.A.numel(), 256
        kernels.carry[(_blocks(size, block), self.grid[1])](
            self.A, ends, elapsed, start, self.state[2], size, self.segments,
            BLOCK=block, BACKWARD=grad_y is not None, enable_fp_fusion=True,
        )  # fmt: skip
        return ends


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _segment(programs: int, length: int) -> int:
    """Tokens of a segment, a multiple of SPAN, when one segment makes so many programs."""
    count = 1
    if programs < FEW_PROGRAMS:
        count = max(1, min(MANY_PROGRAMS // programs, length // LEAST_SEGMENT))
    return _blocks(_blocks(length, count), SPAN) * SPAN


def _sequence(x: Tensor | None) -> tuple[Any, ...] | None:
    return None if x is None else (x, *x.stride())


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device; this makes it that of the operands."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)


def _kernels() -> ModuleType:
    from mamba_kernels.selective_scan import triton_kernels

    return triton_kernels


OPERANDS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? initial_state, Tensor? residual, Tensor? order, "
    "bool delta_softplus, bool reverse"
)
DIFFERENTIABLE = 10  # of these, the first


@torch.library.custom_op(
    "mamba_kernels::triton_scan",
    mutates_args=(),
    schema=f"({OPERANDS}, bool in_float32, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (b, d, l), the last state (b, d, n), and the states that `_scan_grad` needs.

    Args:
        args: A `Problem`; whether outputs are float32 whatever the dtype of `u`; whether states
            are kept, or the third output is empty.
    """
    p, keep = Problem(*args[:-2]), args[-1]
    y, last, kept = _outputs(*args)
    with _on(p.u.device):
        kernels, plan = _kernels(), Plan(p, FORWARD)
        kernels.forward[plan.grid](
            plan.u, plan.delta, plan.z, plan.residual, _sequence(y),
            plan.A, plan.B, plan.C, plan.skip, plan.bias, plan.order,
            plan.arriving(kernels, None, plan.start), kept if keep else None, last,
            *plan.sizes, SPAN=SPAN, **plan.consts,
        )  # fmt: skip
    return y, last, kept


@_scan.register_fake
def _outputs(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of `_scan`, not yet filled."""
    p, in_float32, keep = Problem(*args[:-2]), *args[-2:]
    (b, d, length), n = p.u.shape, p.A.shape[1]
    wide = in_float32 or p.u.dtype == torch.float16
    kept = _blocks(length, SPAN) * b * d * n if keep else 0
    return (
        torch.empty_like(p.u, dtype=torch.float32 if wide else p.u.dtype),
        p.u.new_empty(b, d, n, dtype=torch.float32),
        p.u.new_empty(kept, dtype=torch.float32),  # of one axis, so that nothing depends on l
    )


@torch.library.custom_op(
    "mamba_kernels::triton_scan_grad",
    mutates_args=(),
    schema=f"(Tensor grad_y, Tensor? grad_last, Tensor kept, {OPERANDS}) -> Tensor[]",
)
def _scan_grad(*args: Any) -> list[Tensor]:
    """Gradients of u to residual, empty for what is absent.

    Args:
        args: Gradients of the first two outputs of `_scan`, its third output, and a `Problem`.
    """
    grad_y, grad_last, kept = args[:3]
    p, grads = Problem(*args[3:]), _grads(*args)
    gu, gdelta, gA, gB, gC, gD, gz, gbias, gstart, gresidual = grads
    with _on(p.u.device):
        kernels, plan = _kernels(), Plan(p, BACKWARD)
        tile = plan.consts["NO"] * plan.consts["NI"] * plan.consts["D"]
        scratch = plan.A.new_empty(math.prod(plan.grid) * SPAN // CHUNK * tile)
        parts_B, parts_C = plan.A.new_empty(2, plan.blocks, *plan.packed_shape).unbind()
        parts_A, start = plan.float_states(plan.segments), plan.float_states()
        parts_D, parts_bias = plan.A.new_empty(2, *parts_A.shape[:-1]).unbind()
        gated = p.z is not None
        kernels.backward[plan.grid](
            plan.u, plan.delta, plan.z, plan.residual, *map(_sequence, (grad_y, gu, gdelta)),
            _sequence(gz) if gated else None,
            _sequence(gresidual) if gated and p.residual is not None else None,
            plan.A, plan.B, plan.C, plan.skip, plan.bias, plan.order, kept, scratch,
            plan.arriving(kernels, grad_y, None if grad_last is None else grad_last.contiguous()),
            parts_A, parts_B, parts_C, parts_D, parts_bias, start,
            *plan.sizes, SPAN=SPAN, **plan.consts,
        )  # fmt: skip
    gA.copy_(parts_A.sum((0, 1)))
    gB.copy_(plan.unpacked(parts_B))
    gC.copy_(plan.unpacked(parts_C))
    if p.D is not None:
        gD.copy_(parts_D.sum((0, 1)))
    if p.delta_bias is not None:
        gbias.copy_(parts_bias.sum((0, 1)))
    if p.initial_state is not None:
        gstart.copy_(start)
    if p.residual is not None and not gated:
        gresidual.copy_(grad_y)
    return grads


@_scan_grad.register_fake
def _grads(*args: Any) -> list[Tensor]:
    """The outputs of `_scan_grad`, not yet filled."""
    operands = args[3:][:DIFFERENTIABLE]
    return [operands[0].new_empty(0) if x is None else torch.empty_like(x) for x in operands]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs[:-4])
    *_, ctx.in_float32, ctx.keep = inputs
    ctx.options = inputs[-4:-2]


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    refuse_create_graph()
    kept, *operands = ctx.saved_tensors
    if not ctx.keep:  # recorded where no gradients were wanted, as exported programs may be
        kept = _scan(*operands, *ctx.options, ctx.in_float32, True)[2]
    if grad_y is None:
        grad_y = operands[0].new_zeros(()).expand_as(operands[0])
    grads = _scan_grad(grad_y, grad_last, kept, *operands, *ctx.options)
    known = [None if x is None else grad for x, grad in zip(operands, grads, strict=False)]
    return (*known, *[None] * 5)  # order and the four flags


_scan.register_autograd(_backward, setup_context=_save)


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
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `reference.selective_scan`. Gradients can be taken once, not of gradients.

    Args:
        order: A permutation of tokens, int32 (l,): the i-th token scanned is `order[i]`, or with
            `reverse` the i-th from its end. Outputs stay at their tokens.

    The others are those of `reference.selective_scan`.
    """
    p = Problem(
        u, delta, A, B, C, D, z, delta_bias, initial_state, None, order, delta_softplus, reverse
    )
    return _run(p, in_float32=False)


def selective_scan_multi(
    directions: Sequence[Any], z: Tensor | None, delta_softplus: bool
) -> tuple[Tensor, list[Tensor]]:
    """See `multi.one_by_one`. Directions add to one sum, which the last one gates."""
    total: Tensor | None = None
    states = []
    for i, x in enumerate(directions):
        gate = z if i == len(directions) - 1 else None
        p = Problem(
            x.u, x.delta, x.A, x.B, x.C, x.D, gate, x.delta_bias, x.initial_state,
            total, x.order, delta_softplus, x.reverse,
        )  # fmt: skip
        total, state = _run(p, in_float32=True)
        states.append(state)
    assert total is not None
    return total, states


def _run(p: Problem, in_float32: bool) -> tuple[Tensor, Tensor]:
    operands = (x for x in p[:DIFFERENTIABLE] if isinstance(x, Tensor))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    y, last, _ = _scan(*p, in_float32, keep)
    return y, last
