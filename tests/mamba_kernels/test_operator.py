"""Operators of the compiled library: who is to see a call sees it, and nobody else is asked."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_kernels import causal_conv1d, selective_scan, selective_scan_multi
from mamba_kernels.native import library
from mamba_kernels.native.operator import goes_straight
from mamba_kernels.selective_scan.cpu_backend import SCAN_FORWARD
from tests.mamba_kernels.scans import inputs

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))


OTHERS = [inputs(d=16, l=9, n=4)[name] for name in ("delta", "A", "B", "C")]


def operands():
    return [inputs(d=16, l=9, n=4)["u"], *OTHERS]


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Wrapped(Tensor):
    pass


def by_scan(u):
    return selective_scan(u, *OTHERS, backend="cpu")


def by_directions(u):
    both = [[x] * 2 for x in OTHERS]
    return selective_scan_multi(u, *both, orders=["forward", "reverse"], backend="cpu")[0]


def by_convolution(u):
    return causal_conv1d(u, OTHERS[1], backend="cpu")


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


@pytest.mark.parametrize("scan", SCANS)
def test_graphs_recorded_before_dispatch_hold_the_operator(scan):
    u = operands()[0]
    graph = make_fx(scan, pre_dispatch=True)(u)
    torch.testing.assert_close(graph(-u), scan(-u), rtol=0, atol=0)


def test_gradients_are_taken_for_many_at_once():
    u, many = operands()[0].requires_grad_(), torch.randn(3, 2, 16, 9)
    y = by_convolution(u)
    one_by_one = [torch.autograd.grad(y, u, g, retain_graph=True)[0] for g in many]
    together = torch.autograd.grad(y, u, many, is_grads_batched=True)[0]
    torch.testing.assert_close(together, torch.stack(one_by_one), rtol=1e-5, atol=1e-5)


def test_flags_may_be_what_torch_takes_for_them():
    x = operands()
    torch.testing.assert_close(
        selective_scan(*x, reverse=np.bool_(True)), selective_scan(*x, reverse=True)
    )
    with pytest.raises(RuntimeError, match="bool"):
        selective_scan(*x, reverse="backwards")


def test_only_plain_tensors_go_straight():
    x = torch.ones(2)
    parameter = torch.nn.Parameter(x)
    assert goes_straight([x, None, True, [x], (x, [x])])
    with torch.inference_mode():
        assert goes_straight([x, torch.ones(2)])
    assert not goes_straight([parameter])
    with torch.no_grad():
        assert goes_straight([parameter])
    others = (
        x.as_subclass(Wrapped),
        torch._efficientzerotensor(2),
        torch._neg_view(x),
        torch._to_functional_tensor(x),
        x.to_sparse(),
    )
    for other in others:
        assert not goes_straight([x, [other]])


def test_nothing_goes_straight_where_operators_are_watched():
    x, answers = torch.ones(2), []

    def ask(row):
        answers.append(goes_straight([x]))
        return row

    torch.func.vmap(ask)(x)
    torch.func.grad(lambda row: ask(row).sum())(x)
    torch.jit.trace(ask, x, check_trace=False)
    make_fx(ask)(x)
    with Recorder():
        ask(x)
    with Functions():
        ask(x)
    assert len(answers) >= 6
    assert not any(answers)
