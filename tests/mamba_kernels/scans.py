"""Operands of scans, and how results are compared, for the tests of this folder."""

import torch

from mamba_kernels import selective_scan

SEQUENCES = ("u", "delta", "B", "C", "z")


def inputs(b=2, d=6, l=20, n=3, groups=None, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    weights = (b, n, l) if groups is None else (b, groups, n, l)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "u": randn(b, d, l),
        "delta": randn(b, d, l),
        "A": -randn(d, n).abs() - 0.1,
        "B": randn(*weights),
        "C": randn(*weights),
        "D": randn(d),
        "z": randn(b, d, l),
        "delta_bias": randn(d),
        "initial_state": randn(b, d, n).to(state),
    }


def loss(*outputs):
    """Weighs each element differently and, being linear, passes no rounding on to gradients."""
    return sum((x.double() * torch.arange(x.numel()).view_as(x).sin()).sum() for x in outputs)


def outputs_and_grads(x, **options):
    leaves = {k: v.detach().requires_grad_() for k, v in x.items()}
    y, state = selective_scan(**leaves, return_last_state=True, **options)
    loss(y, state).backward()
    grads = {f"d{k}": v.grad for k, v in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **grads}


def assert_same(got, want, tolerance=2e-6):
    """Equal in units of the largest element: single gradients can be sums that cancel."""
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype, name
        assert got[name].shape == want[name].shape, name
        error = (got[name].double() - want[name].double()).abs().max()
        assert error <= tolerance * (1 + want[name].double().abs().max()), (name, error)
