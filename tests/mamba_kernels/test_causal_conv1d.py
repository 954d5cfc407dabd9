import pytest
import torch
from torch.nn import functional as F

from mamba_kernels import causal_conv1d, causal_conv1d_update
from mamba_kernels.causal_conv1d import BACKENDS

FAST = sorted(set(BACKENDS) - {"reference"})


def inputs(b=2, d=5, l=20, k=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (b, d, l), "weight": (d, k), "bias": (d,), "initial_state": (b, d, k - 1)}
    return {
        n: torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for n, s in shapes.items()
    }


def outputs_and_grads(operands, **options):
    leaves = {k: v.detach().requires_grad_() for k, v in operands.items()}
    y, state = causal_conv1d(**leaves, return_last_state=True, **options)
    (y.sin().sum() + state.cos().sum()).backward()
    return {"y": y.detach(), "state": state.detach()} | {k: v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("l", [1, 2, 3, 17, 65])
@pytest.mark.parametrize("backend", FAST)
def test_matches_the_definition(backend, l, k, activation, reverse):
    x, options = inputs(l=l, k=k), {"activation": activation, "reverse": reverse}
    want = outputs_and_grads(x, backend="reference", **options)
    torch.testing.assert_close(outputs_and_grads(x, backend=backend, **options), want)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_is_the_convolution_of_torch(backend):
    x, weight, bias, _ = inputs().values()
    want = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=5))
    torch.testing.assert_close(
        causal_conv1d(x, weight, bias, activation="silu", backend=backend), want
    )
    bare = causal_conv1d(x, weight, backend=backend)
    torch.testing.assert_close(bare, F.conv1d(F.pad(x, (3, 0)), weight[:, None], groups=5))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_reverse_is_flip_convolve_flip(backend):
    x = inputs()
    options = {"activation": "silu", "return_last_state": True, "backend": backend}
    y, state = causal_conv1d(**x, reverse=True, **options)
    want, last = causal_conv1d(**(x | {"x": x["x"].flip(-1)}), **options)
    torch.testing.assert_close((y, state), (want.flip(-1), last))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 10])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_carried_state_joins_two_parts(backend, cut, reverse):
    x = inputs()
    options = {"reverse": reverse, "return_last_state": True, "backend": backend}
    whole, last = causal_conv1d(**x, **options)
    parts = [x["x"][..., :cut], x["x"][..., cut:]]
    state, outputs = x["initial_state"], []
    for part in reversed(parts) if reverse else parts:
        y, state = causal_conv1d(**(x | {"x": part, "initial_state": state}), **options)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs[::-1] if reverse else outputs, -1), whole)
    assert torch.equal(state, last)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_token_by_token_equals_the_convolution(activation, k):
    x = inputs(k=k)
    want, last = causal_conv1d(**x, activation=activation, return_last_state=True)
    state = x.pop("initial_state").clone()
    tokens = x.pop("x").unbind(-1)
    got = [causal_conv1d_update(t, state, **x, activation=activation) for t in tokens]
    torch.testing.assert_close((torch.stack(got, -1), state), (want, last))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_half_precision_is_only_storage(backend, dtype):
    x = inputs(dtype=dtype)
    y, state = causal_conv1d(**x, return_last_state=True, backend=backend)
    want = causal_conv1d(**{k: v.float() for k, v in x.items()}, backend="reference")
    assert y.dtype == state.dtype == dtype
    torch.testing.assert_close(y, want.to(dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_gradients_are_those_of_finite_differences(backend, reverse):
    x = inputs(b=1, d=2, l=5, dtype=torch.float64)

    def run(*values):
        options = {"activation": "silu", "reverse": reverse, "return_last_state": True}
        return causal_conv1d(**dict(zip(x, values, strict=True)), **options, backend=backend)

    assert torch.autograd.gradcheck(run, [v.requires_grad_() for v in x.values()])


def test_strides_and_gradients_of_stride_zero():
    x = inputs()
    want = x["x"].clone().requires_grad_()
    causal_conv1d(**(x | {"x": want}), backend="reference").sum().backward()
    got = x["x"].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    causal_conv1d(**(x | {"x": got}), backend="torch").sum().backward()
    torch.testing.assert_close(got.grad, want.grad)


def test_inputs_are_left_alone():
    x = inputs()
    before = {k: v.clone() for k, v in x.items()}
    _, state = causal_conv1d(**x, activation="silu", return_last_state=True)
    state.zero_()
    assert all(torch.equal(x[k], before[k]) for k in x)


def test_compiled_code_gives_the_same():
    x = inputs()
    compiled = torch.compile(lambda **k: causal_conv1d(**k, activation="silu"), backend="eager")
    leaf = x["x"].clone().requires_grad_()
    y = compiled(**(x | {"x": leaf}))
    torch.testing.assert_close(y, causal_conv1d(**x, activation="silu"))
    y.sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 5)}, ValueError, r"x has shape \(2, 5\); expected \(b, d, l\)"),
        ({"x": torch.ones(2, 5, 0)}, ValueError, "at least 1"),
        ({"weight": torch.ones(5, 1, 4)}, ValueError, r"weight has shape \(5, 1, 4\)"),
        ({"weight": torch.ones(4, 4)}, ValueError, r"weight has shape \(4, 4\); expected \(5, 4\)"),
        ({"bias": torch.ones(5, dtype=torch.int32)}, TypeError, "bias .*int32"),
        ({"initial_state": torch.ones(2, 5, 4)}, ValueError, r"expected \(2, 5, 3\)"),
        ({"activation": "relu"}, ValueError, "activation is 'relu'; expected None or 'silu'"),
        ({"backend": "abacus"}, ValueError, "'abacus' is not available.*torch, reference"),
    ],
)
def test_refusals_say_what_to_do(change, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(**(inputs() | change))


def test_gradients_of_gradients_are_refused():
    x = torch.randn(1, 2, 5, requires_grad=True)
    y = causal_conv1d(x, torch.randn(2, 3), backend="torch")
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
