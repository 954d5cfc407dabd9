"""How mamba-ssm's extension is called, with a stand-in that has its interface and checks its rules.

The extension itself runs on NVIDIA GPUs only; `test_the_extension_itself` is for those.
"""

import sys
from types import SimpleNamespace

import pytest
import torch

from mamba_kernels import selective_scan
from mamba_kernels.dispatch import Backend
from mamba_kernels.selective_scan import BACKENDS, cuda_backend, reference
from tests.mamba_kernels.scans import assert_same, inputs, outputs_and_grads

OPERANDS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def definition(u, delta, A, B, C, D, z, delta_bias, softplus):
    for x in (u, delta, B, C, z):
        assert x is None or (x.is_contiguous() and x.dtype == u.dtype)
    for x in (A, D, delta_bias):
        assert x is None or x.dtype == torch.float32
    return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, None, softplus, False)


def fwd(u, delta, A, B, C, D, z, delta_bias, softplus):
    out, last = definition(u, delta, A, B, C, D, None, delta_bias, softplus)
    states = torch.stack([torch.zeros_like(last), last], dim=-1).flatten(-2).unsqueeze(2)
    gated = [] if z is None else [definition(u, delta, A, B, C, D, z, delta_bias, softplus)[0]]
    return [out, states, *gated]


def bwd(u, delta, A, B, C, D, z, delta_bias, grad, states, out, dz, softplus, recompute):
    operands = (u, delta, A, B, C, D, z, delta_bias)
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in operands]
        y, _ = definition(*leaves, softplus)
        present = [x for x in leaves if x is not None]
        grads = iter(torch.autograd.grad(y, present, grad))
    du, ddelta, dA, dB, dC, dD, dz, dbias = (None if x is None else next(grads) for x in leaves)
    return [du, ddelta, dA, dB, dC, dD, dbias, *([] if z is None else [dz])]


@pytest.fixture
def extension(monkeypatch):
    stand_in = SimpleNamespace(fwd=fwd, bwd=bwd)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", stand_in)
    backend = Backend(cuda_backend.selective_scan, refuses=cuda_backend.refuses)
    monkeypatch.setitem(BACKENDS, "cuda", backend)
    return stand_in


def operands(**options):
    x = inputs(groups=2, **options)
    del x["initial_state"]
    return x


@pytest.mark.parametrize("absent", [(), ("z",), ("D", "delta_bias")], ids=str)
def test_outputs_and_gradients(extension, absent):
    x = {k: v for k, v in operands().items() if k not in absent}
    want = outputs_and_grads(x, backend="reference")
    assert_same(outputs_and_grads(x, backend="cuda"), want)


def test_gradients_without_the_last_state_are_its_own(extension):
    grads = []
    for backend in ("cuda", "reference"):
        leaves = {k: v.clone().requires_grad_() for k, v in operands().items()}
        selective_scan(**leaves, backend=backend).square().sum().backward()
        grads.append({k: v.grad for k, v in leaves.items()})
    assert_same(*grads)


def test_it_must_come_out_right_before_it_is_used(extension):
    assert cuda_backend.smoke(extension, torch.device("cpu")) is None
    extension.fwd = lambda *x: [2 * y for y in fwd(*x)]
    assert "wrong outputs" in cuda_backend.smoke(extension, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reverse": True}, "a scan in reverse"),
        ({"initial_state": torch.zeros(2, 6, 3)}, "an initial state"),
        ({"u": torch.ones(2, 6, 20).half()}, "float16"),
        ({"delta": torch.ones(2, 6, 20).bfloat16()}, "torch.float32 and torch.bfloat16"),
    ],
)
def test_what_it_cannot_do_goes_elsewhere(extension, change, reason):
    with pytest.raises(ValueError, match=f"'cuda' cannot take .*{reason}"):
        selective_scan(**(operands() | change), backend="cuda")


@pytest.mark.skipif(cuda_backend.missing() is not None, reason=str(cuda_backend.missing()))
def test_the_extension_itself():
    x = {k: v.cuda() for k, v in operands(d=32, l=100, n=16).items()}
    want = outputs_and_grads({k: v.double() for k, v in x.items()}, backend="reference")
    got = outputs_and_grads(x, backend="cuda")
    assert_same(got, {k: v.float() for k, v in want.items()}, tolerance=2e-5)
