"""Scans by the Triton backend, for its tests."""

from mamba_kernels.selective_scan import triton_backend
from mamba_kernels.selective_scan.directions import Direction
from tests.mamba_kernels import scans

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def inputs(b=1, d=3, l=11, n=3, groups=1, **options):
    return scans.inputs(b, d, l, n, groups, **options)


def scan(x, softplus=True, reverse=False):
    return triton_backend.selective_scan(*(x.get(name) for name in NAMES), softplus, reverse)


def direction(x, order=None, reverse=False):
    return Direction(*(x.get(name) for name in NAMES if name != "z"), order, reverse)
