"""The selective scan of Mamba: `selective_scan` for sequences, `selective_scan_multi` for several
directions over one sequence, `selective_state_update` for one token at a time. The sibling modules
named after a backend are its implementations; `reference` is the definition.

Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.
"""

from __future__ import annotations

from typing import Literal, Protocol, overload

from torch import Tensor

from mamba_kernels.checks import check_scan
from mamba_kernels.dispatch import Backend, choose, without_autocast
from mamba_kernels.native.library import missing
from mamba_kernels.selective_scan import (
    cpu_backend,
    cuda_backend,
    reference,
    torch_backend,
    triton_backend,
)
from mamba_kernels.selective_scan.multi import selective_scan_multi
from mamba_kernels.selective_scan.update import selective_state_update

__all__ = ["BACKENDS", "selective_scan", "selective_scan_multi", "selective_state_update"]


class Scan(Protocol):
    """What a backend is: `reference.selective_scan` has the contract."""

    def __call__(
        self,
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
    ) -> tuple[Tensor, Tensor]: ...


BACKENDS: dict[str, Backend[Scan]] = {  # best first
    "cuda": Backend(
        cuda_backend.selective_scan,
        cuda_backend.missing,
        frozenset({"cuda"}),
        cuda_backend.refuses,
    ),
    "triton": Backend(
        triton_backend.selective_scan,
        triton_backend.missing,
        frozenset({"cuda", "xpu"}),
        triton_backend.refuses,
    ),
    "cpu": Backend(cpu_backend.selective_scan, missing, frozenset({"cpu"}), cpu_backend.refuses),
    "torch": Backend(torch_backend.selective_scan),
    "reference": Backend(reference.selective_scan, forward_mode=True),
}


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan a sequence with input-dependent decay, skip and gate.

    For each token t, with dt = softplus(delta + delta_bias),

        h[t] = exp(dt[t] * A) * h[t - 1] + dt[t] * u[t] * B[t]
        y[t] = (sum over n of C[t] * h[t] + D * u[t]) * silu(z[t])

    Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.

    States and arithmetic are float32, or float64 if `u` is float64, under autocast too. float16
    inputs give float32 outputs, because gated outputs exceed 65504, the largest float16; under
    autocast the next linear layer casts to float16 again, so keep that layer out of float16.

    Args:
        u: Input, (b, d, l), like all others float16, bfloat16, float32 or float64 of any strides.
        delta: Step size before bias and softplus, (b, d, l).
        A: Decay rate, (d, n), negative.
        B: Input weights, (b, n, l), or (b, g, n, l) for g groups of d / g channels.
        C: Output weights, of the shape of `B`.
        D: Weight of the skip, (d,). No skip if None.
        z: Gate before SiLU, (b, d, l). No gate if None.
        delta_bias: Added to `delta`, (d,). Zeros if None.
        delta_softplus: Whether dt is softplus(delta + delta_bias) or that sum itself.
        initial_state: State before the first token scanned, (b, d, n), float32 (float64 if `u`
            is), differentiable. Zeros if None.
        reverse: Scan from the last token to the first; outputs stay at their tokens.
        return_last_state: Also return the state after the last token scanned, which for
            `reverse` is token 0.
        backend: One of `available_backends()`, or "auto" for the best one here.

    Returns:
        Outputs (b, d, l) in the dtype of `u`, float32 for float16; with `return_last_state` also
        the last state, (b, d, n), differentiable.

    Raises:
        ValueError: Shapes or devices do not fit, there is no token, or the backend is unknown.
        TypeError: An operand is no tensor or has an unsupported dtype.
    """
    check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if B.dim() == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    arguments = (u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse)
    scan = choose(BACKENDS, backend, u.device, *arguments)
    with without_autocast(u.device):
        y, last_state = scan(*arguments)
    return (y, last_state) if return_last_state else y
