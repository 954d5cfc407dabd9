"""Selective scan by mamba-ssm's compiled extension, where the user has it and it works.

mamba-ssm is never needed. Of its package only the extension `selective_scan_cuda` is imported, for
the rest fails on many machines, and it is used only after a scan of a few tokens came out right.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
Source: github.com/state-spaces/mamba, whose `selective_scan_cuda.fwd` and `.bwd` are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mamba_kernels.dispatch import refuse_create_graph
from mamba_kernels.selective_scan import torch_backend

DTYPES = (torch.float32, torch.bfloat16)  # of float16 it gives float16, which gated outputs exceed
MOST_STATES = 256


def missing() -> str | None:
    """Why the extension cannot be used, or None."""
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    return _missing_in_eager_mode()


@cache
def _missing_in_eager_mode() -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        extension = importlib.import_module("selective_scan_cuda")
        return smoke(extension, torch.device("cuda"))
    except Exception as error:  # whatever a broken build raises
        return f"selective_scan_cuda: {error}"


def smoke(extension: Any, device: torch.device) -> str | None:
    """What is wrong with a small scan by the extension, or None.

    Decays of one half and inputs of one: states are 1, 1.5 and 1.75.
    """
    ones = torch.ones(1, 1, 3, device=device)
    A = torch.full((1, 1), 0.5, device=device).log()
    weights = ones[:, None]
    out = extension.fwd(ones, ones, A, weights, weights, None, None, None, False)[0]
    right = torch.allclose(out.cpu(), torch.tensor([[[1.0, 1.5, 1.75]]]))
    return None if right else f"selective_scan_cuda gives wrong outputs: {out.flatten().tolist()}"


def refuses(
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
) -> str | None:
    """What of the arguments the extension cannot take, or None."""
    if initial_state is not None:
        return "an initial state"
    if reverse:
        return "a scan in reverse"
    if A.shape[1] > MOST_STATES:
        return f"{A.shape[1]} states per channel, for {MOST_STATES} are its most"
    for x in (u, delta, B, C, z):
        if x is not None and (x.dtype not in DTYPES or x.dtype != u.dtype):
            return f"sequences of dtypes {u.dtype} and {x.dtype}, for it has float32 or bfloat16"
    return None


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
    apply: Callable[..., tuple[Tensor, Tensor]] = _SelectiveScan.apply
    return apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *operands, softplus = args
        prepared = _prepared(operands)
        extension = importlib.import_module("selective_scan_cuda")
        out, states, *gated = extension.fwd(*prepared, softplus)
        ctx.set_materialize_grads(False)
        ctx.softplus = softplus
        ctx.save_for_backward(*operands, out, states)
        last = states[:, :, -1, 1::2].contiguous()
        return gated[0] if gated else out, last

    @staticmethod
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        *operands, out, states = ctx.saved_tensors
        if grad_last is not None or grad_y is None:
            return (*_through_torch(operands, ctx.softplus, grad_y, grad_last), None)
        u, delta, A, B, C, D, z, bias = _prepared(operands)
        extension = importlib.import_module("selective_scan_cuda")
        du, ddelta, dA, dB, dC, dD, dbias, *dz = extension.bwd(
            u, delta, A, B, C, D, z, bias, grad_y.to(out.dtype).contiguous(),
            states, out, None, ctx.softplus, False,
        )  # fmt: skip
        grads = (du, ddelta, dA, dB, dC, dD, dz[0] if dz else None, dbias)
        return (*(_like(grad, x) for grad, x in zip(grads, operands, strict=True)), None)


def _prepared(operands: list[Tensor | None]) -> list[Tensor | None]:
    """As the extension wants them: sequences without gaps, parameters in float32."""
    u, delta, A, B, C, D, z, bias = operands
    sequences = [None if x is None else x.contiguous() for x in (u, delta, B, C, z)]
    parameters = [None if x is None else x.float().contiguous() for x in (A, D, bias)]
    u, delta, B, C, z = sequences
    A, D, bias = parameters
    return [u, delta, A, B, C, D, z, bias]


def _through_torch(
    operands: list[Tensor | None],
    softplus: bool,
    grad_y: Tensor | None,
    grad_last: Tensor | None,
) -> list[Tensor | None]:
    """Gradients that the extension does not have: those of the last state."""
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in operands]
        outputs = torch_backend.selective_scan(*leaves, None, softplus, False)  # type: ignore[arg-type,call-arg]
        pairs = [(y, g) for y, g in zip(outputs, (grad_y, grad_last), strict=True) if g is not None]
        present = [x for x in leaves if x is not None]
        ends, grads_of_ends = zip(*pairs, strict=True)
        grads = iter(torch.autograd.grad(ends, present, grads_of_ends, allow_unused=True))
    return [None if x is None else next(grads) for x in leaves]


def _like(grad: Tensor | None, x: Tensor | None) -> Tensor | None:
    """A gradient in the dtype of its operand; None for an operand that is not there."""
    return None if grad is None or x is None else grad.to(x.dtype)
