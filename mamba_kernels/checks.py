"""Checks on operands, made once at the front doors so that backends stay bare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_rank(name: str, x: Tensor, axes: str) -> None:
    """Refuse `x` unless it has one axis for each of the comma-separated names in `axes`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; pass a tensor of shape ({axes})")
    if x.dim() != axes.count(",") + 1:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected ({axes}): reshape it to these axes"
        )
    if 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; "
            f"expected ({axes}) with every size at least 1: skip the call for empty input"
        )


def check_operands(
    leader: str,
    x: Tensor,
    required: Mapping[str, tuple[Tensor, Sequence[int]]],
    optional: Mapping[str, tuple[Tensor | None, Sequence[int]]],
) -> None:
    """Refuse operands that do not fit the leading one in kind, shape or device.

    Args:
        leader: Name of the leading operand.
        x: The leading operand, of a shape already checked.
        required: For each further argument the operand and the shape it must have.
        optional: The same for those that may be None.

    Raises:
        TypeError: An operand is no tensor, or not one of `FLOATING`.
        ValueError: An operand has another shape, or is on another device than `x`.
    """
    _check_dtype(leader, x)
    device = x.device
    for name, (operand, shape) in {**required, **optional}.items():
        if operand is None and name in optional:
            continue
        if not isinstance(operand, Tensor):
            raise TypeError(
                f"{name} is a {type(operand).__name__}; pass a tensor of shape {tuple(shape)}"
            )
        if operand.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(operand.shape)}; expected {tuple(shape)} "
                f"to go with {leader} {tuple(x.shape)}: reshape one of the two"
            )
        _check_dtype(name, operand)
        if operand.device != device:
            raise ValueError(
                f"{name} of shape {tuple(operand.shape)} is on {operand.device}; "
                f"expected {device}, where {leader} is: move it with .to({str(device)!r})"
            )


def check_state(name: str, state: Tensor | None, like: Tensor) -> None:
    """Refuse a recurrent state of another dtype than that in which `like` is scanned."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if state is not None and state.dtype != dtype:
        raise TypeError(
            f"{name} of shape {tuple(state.shape)} has dtype {state.dtype}; expected {dtype}, "
            "for rounded states drift: keep it in that dtype between calls"
        )


def check_groups(B: Tensor, channels: int) -> None:
    """Refuse input weights (b, g, ...) whose g groups cannot share so many channels evenly."""
    if B.shape[1] == 0 or channels % B.shape[1]:
        raise ValueError(
            f"B has shape {tuple(B.shape)}; expected a number of groups that divides "
            f"the {channels} channels of u: choose another number of groups"
        )


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Refuse operands of a selective scan that do not fit; `selective_scan` has their shapes."""
    check_rank("u", u, "b, d, l")
    check_rank("A", A, "d, n")
    (b, d, l), n = u.shape, A.shape[1]
    grouped = isinstance(B, Tensor) and B.dim() == 4
    weights = (b, B.shape[1], n, l) if grouped else (b, n, l)
    check_operands(
        "u",
        u,
        required={
            "delta": (delta, (b, d, l)),
            "A": (A, (d, n)),
            "B": (B, weights),
            "C": (C, weights),
        },
        optional={
            "D": (D, (d,)),
            "z": (z, (b, d, l)),
            "delta_bias": (delta_bias, (d,)),
            "initial_state": (initial_state, (b, d, n)),
        },
    )
    check_state("initial_state", initial_state, u)
    if grouped:
        check_groups(B, d)


def checked_order(order: Tensor, x: Tensor) -> Tensor:
    """An order of the tokens of `x` (b, d, l), refused unless its shape and dtype are right.

    Returns it as int64 without gaps on the device of `x`. Whether it is a permutation is not yet
    known: the compiled library checks that itself, others call `check_permutation`.
    """
    integers = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    length = x.shape[2]
    if order.shape != (length,) or order.dtype not in integers:
        raise ValueError(
            f"an order has shape {tuple(order.shape)} and dtype {order.dtype}; "
            f"expected ({length},) integers: the token at each position of the scan"
        )
    return order.to(x.device, torch.int64).contiguous()


def check_permutation(order: Tensor) -> None:
    """Refuse what is no permutation; compiled code and tensors without numbers cannot tell."""
    if torch.compiler.is_compiling() or order.is_meta:
        return
    if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
        raise ValueError(
            f"an order is no permutation of the tokens: each of 0 to {len(order) - 1} "
            "must occur once"
        )


def _check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in FLOATING:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(
            f"{name} of shape {tuple(x.shape)} has dtype {x.dtype}; "
            f"expected one of {known}: convert it, complex and integer scans do not exist here"
        )
