"""Launches of the Triton kernels of the selective scan, for one scan or several side by side.

Where several programs add to one gradient, each writes its part and the parts are summed in a
fixed order; how a scan is cut depends on shapes alone. So runs are bit-equal.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 4  # tokens whose steps are unrolled
SPAN = 64  # tokens between states kept for the backward pass
FORWARD = (512, 4)  # elements of a program's state, and its states at most that are inner
BACKWARD = (256, 16)  # fewer, for it holds the states of a whole chunk in registers
MOST_CHANNELS = 32  # of a program: with more, its threads have more than one each
FEW_PROGRAMS = 512  # with fewer, a GPU idles: time is cut, at almost twice the work
MANY_PROGRAMS = 2048  # what cutting aims at
LEAST_SEGMENT = 128  # tokens; shorter ones give more states to carry than tokens to scan


class Problem(NamedTuple):
    """The arguments of a scan.

    Args:
        order: Tokens in the order of the scan, int64 (l,); `reverse` walks it backwards. Their
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
    order: Tensor | None
    delta_softplus: bool
    reverse: bool


class Plan:
    """How one kernel sees a scan: grid, sizes, and operands as `triton_kernels` wants them.

    Args:
        p: The scan.
        shape: Of the kernel's programs, `FORWARD` or `BACKWARD`.
        count: Scans side by side, all of these sizes.
    """

    def __init__(self, p: Problem, shape: tuple[int, int], count: int) -> None:
        (b, d, self.length), self.groups = p.u.shape, p.B.shape[1]
        n = p.A.shape[1]
        elements, inner = shape
        padded, in_group = _power_of_two(n), d // self.groups
        channels = min(max(elements // padded, 1), MOST_CHANNELS, _power_of_two(in_group))
        self.blocks = _blocks(in_group, channels)
        self.segment = _segment(count * b * self.groups * self.blocks, self.length)
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
            "SOFTPLUS": p.delta_softplus,
            "num_warps": 1,
            "enable_fp_fusion": True,
        }
        self.reverse = p.reverse
        self.u, self.delta, self.z = map(sequence, (p.u, p.delta, p.z))
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


def launch(kernel: Any, plans: Sequence[Plan], own: Sequence[Any], **options: Any) -> None:
    """Launch a kernel once for some scans side by side, with the arguments that each has."""
    first = plans[0]
    x, y, segments = first.grid
    reverses = tuple(plan.reverse for plan in plans)
    kernel[x, y, segments * len(plans)](
        tuple(own), *first.sizes, K=len(plans), REVERSES=reverses, **first.consts, **options
    )


def arriving(
    kernels: ModuleType,
    plans: Sequence[Plan],
    starts: Sequence[Tensor | None],
    grads_y: Sequence[Tensor] | None = None,
) -> Sequence[Tensor | None]:
    """What arrives at each segment: `starts` if there is one segment, else carried from them.

    Args:
        kernels: The module of the kernels.
        plans: Of each scan.
        starts: The initial state of each or, for the backward pass, the gradient of the last one.
        grads_y: For the backward pass, the gradients of the outputs.

    Returns:
        For each scan (segments, b, d, n), or None for zeros.
    """
    first = plans[0]
    if first.segments == 1:
        return starts
    ends = [plan.float_states(plan.segments) for plan in plans]
    elapsed = [plan.A.new_empty(end.shape[:-1]) for plan, end in zip(plans, ends, strict=True)]
    results = list(zip(plans, ends, elapsed, strict=True))
    if grads_y is None:
        own: list[Any] = [(p.u, p.delta, p.A, p.B, p.bias, p.order, *x) for p, *x in results]
        launch(kernels.segment_forward, plans, own)
    else:
        own = [
            (sequence(grad), p.z, p.delta, p.A, p.C, p.bias, p.order, *x)
            for grad, (p, *x) in zip(grads_y, results, strict=True)
        ]
        launch(kernels.segment_backward, plans, own)
    size, block = first.A.numel(), 256
    kernels.carry[_blocks(size, block), first.grid[1], len(plans)](
        tuple((p.A, *x, start) for (p, *x), start in zip(results, starts, strict=True)),
        first.state[2], size, first.segments,
        K=len(plans), BLOCK=block, BACKWARD=grads_y is not None, enable_fp_fusion=True,
    )  # fmt: skip
    return ends


def forward(
    problems: Sequence[Problem], outputs: Sequence[tuple[Tensor, Tensor, Tensor | None]]
) -> None:
    """Scan some sequences of one size side by side.

    Args:
        problems: Of each.
        outputs: Of each what is filled: outputs (b, d, l), the last state (b, d, n), and, to keep
            them, the states before each `SPAN` tokens (spans, b, d, n).
    """
    with _on(problems[0].u.device):
        kernels, plans = _kernels(), [Plan(p, FORWARD, len(problems)) for p in problems]
        starts = arriving(kernels, plans, [plan.start for plan in plans])
        own = [
            (
                *(p.u, p.delta, p.z, sequence(y)),
                *(p.A, p.B, p.C, p.skip, p.bias, p.order, start, kept, last),
            )
            for p, start, (y, last, kept) in zip(plans, starts, outputs, strict=True)
        ]
        launch(kernels.forward, plans, own, SPAN=SPAN)


def backward(
    problems: Sequence[Problem],
    grads_y: Sequence[Tensor],
    grads_last: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
) -> None:
    """Go back through `forward`.

    Args:
        problems: Of each scan.
        grads_y: Gradients of their outputs.
        grads_last: Gradients of their last states. Zeros if None.
        kept: What `forward` kept.
        gradients: Of each scan those of u to initial_state, filled where they are not empty.
    """
    with _on(problems[0].u.device):
        kernels, plans = _kernels(), [Plan(p, BACKWARD, len(problems)) for p in problems]
        lasts = [None if x is None else x.contiguous() for x in grads_last]
        arrived = arriving(kernels, plans, lasts, grads_y)
        parts = [Parts.of(plan) for plan in plans]
        own = [
            (
                (
                    *(plan.u, plan.delta, plan.z, *map(sequence, (grad_y, grads[0], grads[1]))),
                    None if plan.z is None else sequence(grads[6]),
                    *(plan.A, plan.B, plan.C, plan.skip, plan.bias, plan.order),
                ),
                (states, part.scratch, start, *part[1:]),
            )
            for plan, grad_y, grads, states, start, part in zip(
                plans, grads_y, gradients, kept, arrived, parts, strict=True
            )
        ]
        launch(kernels.backward, plans, own, SPAN=SPAN)
    for plan, part, grads in zip(plans, parts, gradients, strict=True):
        part.sum_into(plan, grads)


class Parts(NamedTuple):
    """Memory of the backward pass of one scan: scratch, and gradients that programs share out."""

    scratch: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    start: Tensor

    @classmethod
    def of(cls, plan: Plan) -> Parts:
        """Not yet filled."""
        tile = plan.consts["NO"] * plan.consts["NI"] * plan.consts["D"]
        of_A = plan.float_states(plan.segments)
        of_B, of_C = plan.A.new_empty(2, plan.blocks, *plan.packed_shape).unbind()
        of_D, of_bias = plan.A.new_empty(2, *of_A.shape[:-1]).unbind()
        scratch = plan.A.new_empty(math.prod(plan.grid) * SPAN // CHUNK * tile)
        return cls(scratch, of_A, of_B, of_C, of_D, of_bias, plan.float_states())

    def sum_into(self, plan: Plan, gradients: Sequence[Tensor]) -> None:
        """Add the parts up, into gradients of u to initial_state, where these are not empty."""
        _, _, of_A, of_B, of_C, of_D, _, of_bias, of_start = gradients
        of_A.copy_(self.A.sum((0, 1)))
        of_B.copy_(plan.unpacked(self.B))
        of_C.copy_(plan.unpacked(self.C))
        if len(of_D):
            of_D.copy_(self.D.sum((0, 1)))
        if len(of_bias):
            of_bias.copy_(self.bias.sum((0, 1)))
        if len(of_start):
            of_start.copy_(self.start)


def kept_size(u: Tensor, A: Tensor) -> int:
    """Elements of the states that a scan keeps for its backward pass."""
    b, d, length = u.shape
    return _blocks(length, SPAN) * b * d * A.shape[1]


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


def sequence(x: Tensor | None) -> tuple[Any, ...] | None:
    return None if x is None else (x, *x.stride())


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device; this makes it that of the operands."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)


def _kernels() -> ModuleType:
    from mamba_kernels.selective_scan import triton_kernels

    return triton_kernels
