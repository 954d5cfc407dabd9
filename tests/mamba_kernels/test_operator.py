"""Operators of the compiled library: who is to see a call sees it, and nobody else is asked."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_kernels import causal_conv1d, selective_scan, selective_scan_multi
from mamba_kernels.native import library
from mamba_kernels.native.operator import goes_straight
from mamba_kernels.selective_scan.cpu_backend import SCAN_FORWARD
from tests.mamba_kernels.scans import inputs

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))


def operands():
    x = inputs(d=16, l=9, n=4)
    return [x[name] for name in ("u", "delta", "A", "B", "C")]


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Wrapped(Tensor):
    pass


def by_scan(u):
    return selective_scan(u, *operands()[1:], backend="cpu")


def by_directions(u):
    both = [[x] * 2 for x in operands()[1:]]
    return selective_scan_multi(u, *both, orders=["forward", "reverse"], backend="cpu")[0]


def by_convolution(u):
    return causal_conv1d(u, operands()[2], backend="cpu")


SCANS = (by_scan, by_directions, by_convolution)


def test_the_dispatcher_is_asked_only_where_it_has_work(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("dispatched")

    monkeypatch.setattr(SCAN_FORWARD, "dispatched", refuse)
    by_scan(operands()[0])
    with torch.inference_mode():
        by_scan(operands()[0])
    with torch.no_grad():
        by_scan(operands()[0].requires_grad_())
    with pytest.raises(AssertionError, match="dispatched"):
        by_scan(operands()[0].requires_grad_())


@pytest.mark.parametrize("scan", SCANS)
def test_modes_and_profilers_see_the_operator(scan):
    with Recorder() as recorder:
        scan(operands()[0])
    assert any(name.startswith("mamba") for name in recorder.names)
    with torch.profiler.profile() as profile:
        scan(operands()[0])
    assert any(event.key.startswith("mambamed::") for event in profile.key_averages())


@pytest.mark.parametrize("scan", SCANS)
def test_pending_negations_are_carried_out(scan):
    u = operands()[0]
    pending = torch._neg_view(u)
    assert pending.data_ptr() == u.data_ptr()
    torch.testing.assert_close(scan(pending), scan(-u), rtol=0, atol=0)


def test_only_plain_tensors_go_straight():
    x = torch.ones(2)
    parameter = torch.nn.Parameter(x)
    assert goes_straight([x, None, True, [x], (x, [x])])
    assert not goes_straight([parameter])
    with torch.no_grad():
        assert goes_straight([parameter])
    for other in (x.as_subclass(Wrapped), torch._efficientzerotensor(2), torch._neg_view(x)):
        assert not goes_straight([x, [other]])
    answers = []
    torch.func.vmap(lambda row: answers.append(goes_straight([row])) or row)(x)
    assert answers == [False]
