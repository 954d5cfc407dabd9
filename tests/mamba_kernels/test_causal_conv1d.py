import itertools

import pytest
import torch
from torch.library import opcheck
from torch.nn import functional as F

from mamba_kernels import causal_conv1d, causal_conv1d_update
from mamba_kernels.causal_conv1d import BACKENDS, cpu_backend, reference
from mamba_kernels.dispatch import usable_names
from mamba_kernels.native import library

HERE = sorted(usable_names(BACKENDS))
FAST = [name for name in HERE if name != "reference"]
IN_DOUBLE = [name for name in HERE if name != "cpu"]
compiled_library = pytest.mark.skipif(library.missing() is not None, reason="no compiled library")


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


@pytest.mark.parametrize("backend", HERE)
def test_is_the_convolution_of_torch(backend):
    x, weight, bias, _ = inputs().values()
    want = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=5))
    torch.testing.assert_close(
        causal_conv1d(x, weight, bias, activation="silu", backend=backend), want
    )
    bare = causal_conv1d(x, weight, backend=backend)
    torch.testing.assert_close(bare, F.conv1d(F.pad(x, (3, 0)), weight[:, None], groups=5))


@pytest.mark.parametrize("backend", HERE)
def test_reverse_is_flip_convolve_flip(backend):
    x = inputs()
    options = {"activation": "silu", "return_last_state": True, "backend": backend}
    y, state = causal_conv1d(**x, reverse=True, **options)
    want, last = causal_conv1d(**(x | {"x": x["x"].flip(-1)}), **options)
    torch.testing.assert_close((y, state), (want.flip(-1), last))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("backend", HERE)
def test_an_order_is_sort_convolve_unsort(backend, reverse):
    x, order = inputs(), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    options = {"activation": "silu", "reverse": reverse}
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}
    moved = leaves | {"x": leaves["x"][..., order]}
    y, state = causal_conv1d(**moved, **options, return_last_state=True, backend="reference")
    y = y[..., order.argsort()]
    (y.sin().sum() + state.cos().sum()).backward()
    want = {"y": y.detach(), "state": state.detach()} | {k: v.grad for k, v in leaves.items()}
    for kind in (torch.int64, torch.int32, torch.uint8):
        got = outputs_and_grads(x, order=order.to(kind), backend=backend, **options)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [-1, 0, 1], [0, 1, 2 + 2**32]], ids=str)
@pytest.mark.parametrize("backend", HERE)
def test_an_order_that_is_no_permutation_is_refused(backend, order):
    with pytest.raises(ValueError, match=r"an order is no permutation of the tokens: each of 0 to"):
        causal_conv1d(**inputs(l=3), order=torch.tensor(order), backend=backend)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 10])
@pytest.mark.parametrize("backend", HERE)
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
@pytest.mark.parametrize("backend", HERE)
def test_half_precision_is_only_storage(backend, dtype):
    x = inputs(dtype=dtype)
    y, state = causal_conv1d(**x, return_last_state=True, backend=backend)
    want = causal_conv1d(**{k: v.float() for k, v in x.items()}, backend="reference")
    assert y.dtype == state.dtype == dtype
    torch.testing.assert_close(y, want.to(dtype))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", IN_DOUBLE)
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
        ({"order": torch.arange(19)}, ValueError, r"shape \(19,\) .*expected \(20,\) integers"),
        ({"order": torch.ones(20)}, ValueError, r"dtype torch.float32; expected \(20,\) integers"),
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


@pytest.fixture(params=list(library.instruction_sets()))
def instruction_set(request):
    with library.use_instruction_set(request.param):
        yield request.param


LAYOUTS = {
    "channels first": lambda x: x.contiguous(),
    "channels last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "gapped": lambda x: torch.stack([x, x.neg()], dim=-1)[..., 0],
}


def results(run, operands, *options):
    """Outputs, last state and gradients, each weighing its elements differently."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in operands]
    y, state = run(*leaves, *options)
    sum(
        (v.double() * torch.arange(v.numel()).view_as(v).sin()).sum() for v in (y, state)
    ).backward()
    return [y.detach(), state.detach(), *(x.grad for x in leaves if x is not None)]


compiled = cpu_backend.causal_conv1d


@compiled_library
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_instruction_set_matches_the_definition(instruction_set, k, layout):
    for l, d in itertools.product([1, 2, 3, 15, 16, 17, 33], [1, 5, 16, 70]):
        x = list(inputs(d=d, l=l, k=k).values())
        orders = torch.arange(l), torch.randperm(l, generator=torch.Generator().manual_seed(l))
        for operands, order, options in (
            (x, orders[0], (True, False)),
            ([*x[:3], None], orders[0], (True, True)),
            (x, orders[1], (True, True)),
            ([*x[:2], None, None], orders[1], (False, False)),
        ):
            want = results(reference.causal_conv1d, operands, *options, order)
            moved = [LAYOUTS[layout](operands[0]), *operands[1:]]
            unsorted = None if order is orders[0] else order
            got = results(compiled, moved, *options, unsorted)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)


@compiled_library
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_rounded_once(instruction_set, layout, dtype):
    halves = list(inputs(d=35, l=37, dtype=dtype).values())
    moved = [LAYOUTS[layout](halves[0]), *halves[1:]]
    got = results(compiled, moved, True, False, None)
    want = results(compiled, [x.float() for x in halves], True, False, None)
    for rounded, exact in zip(got[:2], want[:2], strict=True):
        assert torch.equal(rounded, exact.to(dtype))
    torch.testing.assert_close(got, [x.to(dtype) for x in want], rtol=2e-2, atol=2e-2)


@compiled_library
def test_expanded_inputs_and_outputs_laid_out_like_them(instruction_set):
    x, weight, bias, state = inputs(b=2, d=20, l=33).values()
    expanded = x[:, :1].expand(2, 20, 33)
    got = results(compiled, [expanded, weight, bias, state], True, False, None)
    want = results(compiled, [expanded.contiguous(), weight, bias, state], True, False, None)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    last = LAYOUTS["channels last"](x)
    y, _ = compiled(last, weight, bias, state, True, False, None)
    assert y.stride() == last.stride()


@compiled_library
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frame", [1, 2, 7, 16, 50])
def test_frame_by_frame_gives_the_same_bits(instruction_set, frame, reverse):
    x, weight, bias, state = inputs(b=1, d=20, l=110).values()
    want, last = compiled(x, weight, bias, state, True, reverse, None)
    frames = x.split(frame, dim=-1)
    outputs = []
    for part in reversed(frames) if reverse else frames:
        y, state = compiled(part, weight, bias, state, True, reverse, None)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs[::-1] if reverse else outputs, -1), want)
    assert torch.equal(state, last)


@compiled_library
def test_one_thread_and_many_give_the_same_bits():
    x = list(inputs(b=2, d=200, l=2000).values())
    before, every = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            every.append(results(compiled, x, True, False, None))
    finally:
        torch.set_num_threads(before)
    for other in every[1:]:
        assert all(torch.equal(a, b) for a, b in zip(every[0], other, strict=True))


@compiled_library
def test_nan_stays_where_it_is(instruction_set):
    for name in ("x", "weight", "bias", "initial_state"):
        x = inputs(b=1, d=20, l=40)
        x[name].view(-1)[7] = torch.nan
        got, _ = compiled(*x.values(), True, False, None)
        want, _ = reference.causal_conv1d(*x.values(), True, False, None)
        assert torch.equal(got.isnan(), want.isnan())
        assert got.isnan().any()


@compiled_library
@pytest.mark.parametrize("order", [None, torch.randperm(20)], ids=["in order", "any order"])
def test_the_operators_are_well_registered(order):
    x = [v.requires_grad_() for v in inputs().values()]
    forward = torch.ops.mambamed.conv_forward.default
    opcheck(forward, (*x, order, True, False))
    opcheck(forward, (LAYOUTS["channels last"](x[0]), x[1], None, None, order, False, True))
    detached = [v.detach() for v in x]
    outputs = forward(*detached, order, True, False)
    arguments = (*(torch.randn_like(v) for v in outputs), *detached, order, True, False)
    opcheck(torch.ops.mambamed.conv_backward.default, arguments)


@compiled_library
def test_it_compiles_into_one_graph():
    x = list(inputs().values())
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    order = torch.randperm(20)
    got = results(run, x, True, False, order)
    want = results(compiled, x, True, False, order)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@compiled_library
def test_cases_beyond_the_library_are_refused():
    assert cpu_backend.refuses(*inputs().values(), True, False, None) is None
    double = inputs(dtype=torch.float64).values()
    assert "float64" in cpu_backend.refuses(*double, True, False, None)
    assert "5 taps" in cpu_backend.refuses(*inputs(k=5).values(), True, False, None)


@pytest.mark.parametrize("name", library.instruction_sets())
def test_silu_of_the_farthest_numbers(name):
    x = torch.tensor([-3e38, -1e20, -100, -88.5, 0, 100, 3e38, float("nan")])
    x = x.view(1, 1, -1).expand(1, 16, -1).clone().requires_grad_()
    with library.use_instruction_set(name):
        y = causal_conv1d(x, torch.ones(16, 1), activation="silu", backend="cpu")
        (grad,) = torch.autograd.grad(y.sum(), x)
    wanted = torch.nn.functional.silu(x)
    torch.testing.assert_close(y, wanted, rtol=1e-6, atol=1e-36, equal_nan=True)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), x)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-6, atol=1e-36, equal_nan=True)
