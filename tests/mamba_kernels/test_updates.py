"""One token at a time: what the compiled library gives is what sequences and plain torch give."""

import pytest
import torch
from torch.library import opcheck

from mamba_kernels import causal_conv1d_update, selective_state_update, use_backend
from mamba_kernels.causal_conv1d import cpu_backend as conv
from mamba_kernels.native import library
from mamba_kernels.selective_scan import cpu_backend as scan
from tests.mamba_kernels.scans import SEQUENCES, inputs

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=list(library.instruction_sets()))
def instruction_set(request):
    with library.use_instruction_set(request.param):
        yield request.param


def conv_inputs(b=2, d=37, l=20, k=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (b, d, l), "state": (b, d, k - 1), "weight": (d, k), "bias": (d,)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def one_token(x, t):
    """The operands of a scan's token t, without the state."""
    x = {k: v for k, v in x.items() if k != "initial_state"}
    return {k: v[..., t] if k in SEQUENCES else v for k, v in x.items()}


def whole_scan(x, softplus=True):
    operands = [x.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    if operands[3].dim() == 3:
        operands[3:5] = [w.unsqueeze(1) for w in operands[3:5]]
    return scan.selective_scan(*operands, x["initial_state"], softplus, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("b", "d", "n", "groups"),
    [(1, 1, 1, 1), (2, 5, 3, 5), (1, 16, 16, None), (2, 70, 5, 2), (1, 130, 17, None)],
    ids=str,
)
def test_scanned_tokens_have_the_bits_of_the_sequence(instruction_set, b, d, n, groups, dtype):
    x = inputs(b, d, 20, n, groups, dtype)
    want, last = whole_scan(x)
    state = x["initial_state"].clone()
    got = [selective_state_update(state, **one_token(x, t)) for t in range(20)]
    assert torch.equal(torch.stack(got, -1), want)
    assert torch.equal(state, last)


def test_scanned_tokens_of_any_step_size(instruction_set):
    x = inputs(d=20)
    x["delta"] = x["delta"] * torch.logspace(-6, 6, 20)
    bare = {k: v for k, v in x.items() if k not in ("D", "z", "delta_bias")}
    want, last = whole_scan(bare, softplus=False)
    state = x["initial_state"].clone()
    tokens = [one_token(bare, t) for t in range(20)]
    got = [selective_state_update(state, **token, delta_softplus=False) for token in tokens]
    got, want = (
        torch.cat([y.flatten(), h.flatten()])
        for y, h in ((torch.stack(got, -1), state), (want, last))
    )
    assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_convolved_tokens_have_the_bits_of_the_sequence(instruction_set, silu, k, dtype):
    x, state, weight, bias = conv_inputs(k=k, dtype=dtype).values()
    want, last = conv.causal_conv1d(x, weight, bias, state, silu, False, None)
    activation = "silu" if silu else None
    got = [
        causal_conv1d_update(token, state, weight, bias, activation=activation)
        for token in x.unbind(-1)
    ]
    assert torch.equal(torch.stack(got, -1), want)
    assert torch.equal(state, last)


def test_both_agree_with_plain_torch():
    x = inputs(d=20, n=7)
    states = [x["initial_state"].clone(), x["initial_state"].clone()]
    y = selective_state_update(states[0], **one_token(x, 3))
    with use_backend("torch"):
        want = selective_state_update(states[1], **one_token(x, 3))
    torch.testing.assert_close((y, states[0]), (want, states[1]))

    x = conv_inputs()
    states = [x["state"].clone(), x["state"].clone()]
    token = x["x"][..., 0]
    y = causal_conv1d_update(token, states[0], x["weight"], x["bias"], activation="silu")
    with use_backend("torch"):
        want = causal_conv1d_update(token, states[1], x["weight"], x["bias"], activation="silu")
    torch.testing.assert_close((y, states[0]), (want, states[1]))


def test_states_of_any_strides_are_updated_in_place():
    x = inputs(d=20, n=7)
    states = [x["initial_state"].clone(), x["initial_state"].mT.contiguous().mT]
    ys = [selective_state_update(state, **one_token(x, 0)) for state in states]
    assert torch.equal(ys[0], ys[1])
    assert torch.equal(*states)

    x = conv_inputs()
    states = [x["state"].clone(), x["state"].mT.contiguous().mT]
    token = x["x"].mT.contiguous().mT[..., 0]
    ys = [causal_conv1d_update(token, state, x["weight"], x["bias"]) for state in states]
    assert torch.equal(ys[0], ys[1])
    assert torch.equal(*states)


def test_a_wide_state_of_narrow_inputs_keeps_its_bits():
    x = conv_inputs()
    state, token = x["state"], x["x"][..., 0].bfloat16()
    want = torch.cat([state[..., 1:], token.float().unsqueeze(-1)], dim=-1)
    y = causal_conv1d_update(token, state, x["weight"], x["bias"])
    assert y.dtype == torch.bfloat16
    assert torch.equal(state, want)


def test_cases_beyond_the_library_run_in_torch():
    x = inputs(dtype=torch.float64)
    assert selective_state_update(x["initial_state"], **one_token(x, 0)).dtype == torch.float64
    x = conv_inputs(k=5)
    want = (torch.cat([x["state"], x["x"][..., :1]], -1) * x["weight"]).sum(-1)
    y = causal_conv1d_update(x["x"][..., 0], x["state"], x["weight"])
    torch.testing.assert_close(y, want)


def test_a_forced_backend_refuses_what_it_cannot_take():
    x = inputs(dtype=torch.float64)
    with use_backend("cpu"), pytest.raises(ValueError, match=r"'cpu' cannot take .*float64"):
        selective_state_update(x["initial_state"], **one_token(x, 0))
    x = conv_inputs(k=5)
    with use_backend("cpu"), pytest.raises(ValueError, match=r"'cpu' cannot take 5 taps"):
        causal_conv1d_update(x["x"][..., 0], x["state"], x["weight"])


def test_they_give_no_gradients():
    x = inputs()
    token = {k: v.requires_grad_() for k, v in one_token(x, 0).items()}
    assert not selective_state_update(x["initial_state"], **token).requires_grad
    x = {k: v.requires_grad_(k != "state") for k, v in conv_inputs(l=1).items()}
    y = causal_conv1d_update(x["x"][..., 0], x["state"], x["weight"], x["bias"])
    assert not y.requires_grad


@pytest.mark.parametrize("groups", [None, 2])
def test_the_operators_are_well_registered(groups):
    x = inputs(groups=groups)
    token = one_token(x, 0)
    opcheck(torch.ops.mambamed.scan_update.default, (x["initial_state"], *token.values(), True))
    x, state, weight, bias = conv_inputs(l=1).values()
    opcheck(torch.ops.mambamed.conv_update.default, (x[..., 0], state, weight, bias, True))
    opcheck(torch.ops.mambamed.conv_update.default, (x[..., 0], state, weight, None, False))


def test_they_compile_into_one_graph():
    x, other = inputs(), conv_inputs()

    def both(state, taps_state):
        y = selective_state_update(state, **one_token(x, 0))
        taps = other["weight"], other["bias"]
        return y, causal_conv1d_update(other["x"][..., 0], taps_state, *taps, activation="silu")

    def run(function):
        states = x["initial_state"].clone(), other["state"].clone()
        return *function(*states), *states

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(run(compiled), run(both), strict=True))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("operator", ["scan", "convolution"])
def test_autograd_sees_that_a_state_has_changed(operator, backend):
    x = inputs() if operator == "scan" else conv_inputs()
    state = x["initial_state" if operator == "scan" else "state"].clone()
    loss = (state * torch.ones_like(state).requires_grad_()).sum()
    with use_backend(backend):
        if operator == "scan":
            selective_state_update(state, **one_token(x, 0))
        else:
            causal_conv1d_update(x["x"][..., 0], state, x["weight"], x["bias"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_state_whose_elements_share_memory_is_refused():
    x = conv_inputs()
    state = x["state"][:1].expand(2, -1, -1)
    with pytest.raises(RuntimeError, match="single memory location"):
        causal_conv1d_update(x["x"][..., 0], state, x["weight"], x["bias"])
