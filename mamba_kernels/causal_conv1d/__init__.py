"""The causal convolution before Mamba's scan: `causal_conv1d` for sequences and
`causal_conv1d_update` for one token at a time. Each sibling module is one implementation;
`reference` is the definition.

Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4.
"""

from __future__ import annotations

from typing import Literal, Protocol, overload

import torch
from torch import Tensor

from mamba_kernels.causal_conv1d import cpu_backend, reference, torch_backend
from mamba_kernels.checks import check_operands, check_rank, checked_order
from mamba_kernels.dispatch import Backend, choose, without_autocast
from mamba_kernels.native.library import missing

__all__ = ["BACKENDS", "causal_conv1d", "causal_conv1d_update"]


class Convolution(Protocol):
    """What a backend is: `reference.causal_conv1d` has the contract."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_state: Tensor | None,
        silu: bool,
        reverse: bool,
        order: Tensor | None,
    ) -> tuple[Tensor, Tensor]: ...


BACKENDS: dict[str, Backend[Convolution]] = {  # best first
    "cpu": Backend(cpu_backend.causal_conv1d, missing, frozenset({"cpu"}), cpu_backend.refuses),
    "torch": Backend(torch_backend.causal_conv1d),
    "reference": Backend(reference.causal_conv1d, forward_mode=True),
}


class Update(Protocol):
    """What a backend is: `causal_conv1d_update` has the contract."""

    def __call__(
        self, x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
    ) -> Tensor: ...


UPDATES: dict[str, Backend[Update]] = {  # best first
    "cpu": Backend(
        cpu_backend.causal_conv1d_update, missing, frozenset({"cpu"}), cpu_backend.refuses_update
    ),
    "torch": Backend(torch_backend.causal_conv1d_update, forward_mode=True),
}


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    order: Tensor | None = None,
    return_last_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    order: Tensor | None = None,
    return_last_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    order: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own taps, looking at earlier tokens only.

    In the order of the scan, y[t] = bias + sum over i < k of weight[i] * x[t - (k - 1) + i],
    then SiLU. Arithmetic is float32, or float64 if `x` is float64, under autocast too.
    Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4.

    Args:
        x: Input, (b, d, l), like all others float16, bfloat16, float32 or float64 of any strides.
        weight: Taps, (d, k), the last one for the token itself.
        bias: (d,). Zeros if None.
        activation: "silu" to apply SiLU to the result.
        initial_state: The k - 1 inputs before the first token in the order of the scan, (b, d,
            k - 1), the nearest one last; with `reverse` they follow in time. Zeros if None.
        reverse: Scan from the last token to the first: each token sees those after it.
        order: The token at each position of the scan, (l,), integers, a permutation such as
            `mamba_kernels.scan_order` makes: each token sees those at positions before its own
            (after it with `reverse`), and outputs stay at their tokens. Their own order if None.
        return_last_state: Also return the last k - 1 inputs in the order of the scan.
        backend: One of `available_backends()`, or "auto" for the best one here.

    Returns:
        Outputs (b, d, l) in the dtype of `x`; with `return_last_state` also the new state,
        (b, d, k - 1) in the dtype of `x`. Both are differentiable.

    Raises:
        ValueError: Shapes or devices do not fit, there is no token, `order` is no permutation, or
            the activation or backend is unknown.
        TypeError: An operand is no tensor or has an unsupported dtype.
    """
    check_rank("x", x, "b, d, l")
    b, d, _ = x.shape
    _check(x, weight, bias, "initial_state", initial_state, (b, d), activation)
    if order is not None:
        order = checked_order(order, x)
    arguments = (x, weight, bias, initial_state, activation == "silu", reverse, order)
    run = choose(BACKENDS, backend, x.device, *arguments)
    with without_autocast(x.device):
        y, state = run(*arguments)
    return (y, state) if return_last_state else y


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """Convolve one token with the inputs kept in a state, and move the state on, in place.

    Equals `causal_conv1d` over one token from that state. For inference: gives no gradients.

    Args:
        x: Input, (b, d).
        state: The k - 1 inputs before the token, (b, d, k - 1), the nearest one last; after the
            call the k - 1 inputs up to the token.
        weight: Taps, (d, k), the last one for the token itself.
        bias: (d,). Zeros if None.
        activation: "silu" to apply SiLU to the result.

    Returns:
        Output (b, d) in the dtype of `x`.

    Raises:
        ValueError: Shapes or devices do not fit, the activation is unknown, or the backend that
            `use_backend` forces cannot take the operands.
        TypeError: An operand is no tensor or has an unsupported dtype.
    """
    check_rank("x", x, "b, d")
    b, d = x.shape
    _check(x, weight, bias, "state", state, (b, d), activation)
    arguments = (x, state, weight, bias, activation == "silu")
    return choose(UPDATES, "auto", x.device, *arguments)(*arguments)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state_name: str,
    state: Tensor | None,
    sizes: tuple[int, int],
    activation: str | None,
) -> None:
    check_rank("weight", weight, "d, k")
    b, d = sizes
    k = weight.shape[1]
    check_operands(
        "x",
        x,
        required={"weight": (weight, (d, k))},
        optional={"bias": (bias, (d,)), state_name: (state, (b, d, k - 1))},
    )
    if activation not in (None, "silu"):
        raise ValueError(f"activation is {activation!r}; expected None or 'silu'")
