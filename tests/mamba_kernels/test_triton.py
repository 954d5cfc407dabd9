"""The Triton backend without a GPU: run by Triton's interpreter."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from mamba_kernels import scan_order
from mamba_kernels.selective_scan import (
    reference,
    triton_backend,
    triton_launch,
    triton_multi,
)
from tests.mamba_kernels.scans import SEQUENCES, loss
from tests.mamba_kernels.triton_scans import NAMES, direction, inputs, scan

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
OWN_KERNELS = ("triton_kernels", "triton_tiles")


def is_triton(module):
    """Whether what this module does depends on TRITON_INTERPRET as it was imported."""
    parts = module.split(".")
    return parts[-1] in OWN_KERNELS or (parts[0] == "triton" and parts[1:2] != ["_C"])


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Triton imported anew as an interpreter, whatever another test imported, and put back."""
    for user in ("torch._inductor.compile_fx", "torch.utils.flop_counter"):
        importlib.import_module(user)  # they keep the triton they find: not this one
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_triton(name)}
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_INTERPRET", "1")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patched = set()

    def call(helper, *args, **kwargs):
        """What the interpreter does, but it patches the language at each call: 10 times slower."""
        if helper.fn.__module__ not in patched:
            interpreter._patch_lang(helper.fn)
            patched.add(helper.fn.__module__)
        return helper.rewrite()(*args, **kwargs)

    patch.setattr(interpreter.InterpretedFunction, "__call__", call)
    yield
    patch.undo()
    for name in [name for name in sys.modules if is_triton(name)]:
        vars(sys.modules.pop(name)).clear()  # or nanobind complains of leaks at exit
    sys.modules.update(before)
    package = sys.modules["mamba_kernels.selective_scan"]
    for name in OWN_KERNELS:
        vars(package).pop(name, None)


def scan_in_order(x, softplus=True, reverse=False, order=None):
    """One direction."""
    directions = [direction(x, order, reverse)]
    y, (last,) = triton_multi.selective_scan_multi(directions, x.get("z"), softplus)
    return y, last


def defined(x, softplus=True, reverse=False, order=None):
    """The definition in float64, of permuted tokens if there is an order."""
    x = {k: v.double() for k, v in x.items()}
    if order is not None:
        x = {k: v[..., order] if k in SEQUENCES else v for k, v in x.items()}
    y, last = reference.selective_scan(*(x.get(name) for name in NAMES), softplus, reverse)
    return (y if order is None else y[..., scan_order.inverse(order)]), last


def outputs_and_grads(run, x, **options):
    leaves = {k: v.detach().clone().requires_grad_() for k, v in x.items()}
    y, last = run(leaves, **options)
    loss(y, last).backward()
    grads = {f"d{k}": v.grad for k, v in leaves.items()}
    return {"y": y.detach(), "last": last.detach(), **grads}


def assert_same(got, want, tolerance=1e-6):
    """Equal in units of the largest element; of gradients, all of which can be sums that cancel,
    in units of at least 1."""
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape, name
        error = (got[name].double() - want[name].double()).abs().max()
        unit = want[name].double().abs().max().clamp(min=1.0 if name.startswith("d") else 0.0)
        assert error <= tolerance * unit, (name, error)


def assert_defined(x, **options):
    assert_same(outputs_and_grads(scan, x, **options), outputs_and_grads(defined, x, **options))


@pytest.fixture
def short_segments(monkeypatch):
    """Spans of 16 tokens and segments of as many."""
    monkeypatch.setattr(triton_launch, "SPAN", 16)
    monkeypatch.setattr(triton_launch, "LEAST_SEGMENT", 16)


@pytest.fixture
def short_spans(monkeypatch):
    """Spans of 16 tokens, and time not cut into segments."""
    monkeypatch.setattr(triton_launch, "SPAN", 16)
    monkeypatch.setattr(triton_launch, "FEW_PROGRAMS", 0)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "sizes",
    [{"l": 1}, {"l": 8, "b": 2}, {"l": 13, "d": 4, "groups": 2}, {"l": 3, "n": 16, "d": 40}],
    ids=str,
)
def test_matches_the_definition(sizes, reverse):
    assert_defined(inputs(**sizes), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("l", [16, 37])
def test_several_spans_give_the_same(short_spans, l, reverse):
    assert_defined(inputs(l=l), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", [{"l": 33, "b": 2}, {"l": 61, "d": 2, "groups": 2}], ids=str)
def test_segments_give_the_same(short_segments, sizes, reverse):
    x = inputs(**sizes)
    assert triton_launch._segment(1, sizes["l"]) < sizes["l"]
    assert_defined(x, reverse=reverse)


def test_segments_may_start_from_zeros(short_segments):
    x = {k: v for k, v in inputs(l=33).items() if k not in ("initial_state", "z")}
    u = x["u"].clone().requires_grad_()
    scan(x | {"u": u})[0].sum().backward()  # nothing arrives from the future either
    want = x["u"].double().requires_grad_()
    defined(x | {"u": want})[0].sum().backward()
    assert_same({"du": u.grad}, {"du": want.grad})


def test_time_is_cut_only_where_programs_are_few_and_tokens_many():
    few, many = triton_launch.FEW_PROGRAMS // 16, triton_launch.FEW_PROGRAMS
    assert triton_launch._segment(many, 10**6) >= 10**6
    assert triton_launch._segment(few, 200) >= 200
    assert triton_launch._segment(few, 20480) < 20480 // 16
    assert triton_launch._segment(few, 20480) % triton_launch.SPAN == 0


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("l", [8, 13, 35])
def test_any_order_of_tokens(short_segments, l, reverse):
    order = torch.randperm(l, generator=torch.Generator().manual_seed(1))
    x = inputs(l=l)
    got = outputs_and_grads(scan_in_order, x, order=order, reverse=reverse)
    assert_same(got, outputs_and_grads(defined, x, order=order, reverse=reverse))


@pytest.mark.parametrize("absent", [NAMES[5:], ("D", "initial_state"), ("z",), ("delta_bias",)])
def test_optional_arguments_may_be_absent(absent):
    assert_defined({k: v for k, v in inputs(l=5).items() if k not in absent})


def test_step_sizes_as_they_are():
    x = inputs(l=5)
    x["delta"], x["delta_bias"] = x["delta"].abs(), x["delta_bias"].abs()
    assert_defined(x, softplus=False)


@pytest.mark.parametrize("n", [1, 5, 16, 256])
def test_any_number_of_states(n):
    assert_defined(inputs(l=3, n=n))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(dtype):
    x = inputs(l=5, dtype=dtype)
    got = outputs_and_grads(scan, x)
    assert got["y"].dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert got["last"].dtype == torch.float32
    assert all(got[f"d{k}"].dtype == v.dtype for k, v in x.items())
    assert_same(got, outputs_and_grads(defined, x), tolerance=torch.finfo(dtype).eps)


def test_strides_do_not_matter():
    x = inputs(b=2, l=5)
    last = {k: v.mT.contiguous().mT if k in SEQUENCES else v for k, v in x.items()}
    gapped = {k: torch.stack([v, v.neg()], dim=-1)[..., 0] for k, v in x.items()}
    want = outputs_and_grads(defined, x)
    for views in (last, gapped):
        assert_same(outputs_and_grads(scan, views), want)


def test_expanded_inputs_and_gradients():
    leaves = {k: v.requires_grad_() for k, v in inputs(l=5).items()}
    wide = {k: v.expand(2, *v.shape[1:]) if v.dim() > 2 else v for k, v in leaves.items()}
    scan(wide)[0].sum().backward()  # a gradient of strides 0
    got = {k: v.grad for k, v in leaves.items()}
    want = {k: v.detach().double().requires_grad_() for k, v in leaves.items()}
    defined(want)[0].sum().mul(2).backward()
    assert_same(got, {k: v.grad for k, v in want.items()})


def test_a_gradient_of_the_last_state_alone():
    x = inputs(l=5)
    u, want = x["u"].clone().requires_grad_(), x["u"].double().requires_grad_()
    scan(x | {"u": u})[1].sum().backward()
    defined(x | {"u": want})[1].sum().backward()
    assert_same({"du": u.grad}, {"du": want.grad})


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_large_steps_stay_finite():
    x = inputs(l=9) | {"delta": torch.full((1, 3, 9), 65.0)}
    x["A"] = -torch.arange(1.0, 4.0).expand(3, 3) * 100
    x["z"] = x["z"] * 1000
    assert all(v.isfinite().all() for v in outputs_and_grads(scan, x).values())


def test_each_step_size_is_precise():
    delta = torch.linspace(-15, 25, 81).view(1, -1, 1)
    one, rates = torch.ones_like(delta), torch.zeros(81, 1)
    weights = torch.ones(1, 1, 1, 1)
    got = delta.clone().requires_grad_()
    y, _ = scan({"u": one, "delta": got, "A": rates, "B": weights, "C": weights})
    y.sum().backward()
    want = delta.double().requires_grad_()
    dt = torch.nn.functional.softplus(want, threshold=100)
    dt.sum().backward()
    assert torch.allclose(y.double(), dt, rtol=3.5e-7, atol=0)
    assert torch.allclose(got.grad.double(), want.grad, rtol=5e-7, atol=0)


def test_a_step_of_zero_keeps_the_state_exactly():
    x = inputs() | {"delta": torch.zeros(1, 3, 11), "delta_bias": torch.zeros(3)}
    assert torch.equal(scan(x, softplus=False)[1], x["initial_state"])


def test_runs_are_bit_equal(short_segments):
    x = inputs(l=33)
    first, second = (outputs_and_grads(scan, x) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("present", [NAMES, ("u", "delta", "A", "B", "C")], ids=len)
@pytest.mark.parametrize("length", [9, 33])
def test_directions_are_summed_and_gated_once(short_segments, length, present):
    each = [
        {k: v for k, v in inputs(l=length, b=2, groups=3, seed=seed).items() if k in present}
        for seed in (1, 2, 3)
    ]
    gates = [x.pop("z", None) for x in each]
    order = torch.randperm(length, generator=torch.Generator().manual_seed(1))
    paths = [(None, False), (None, True), (order, True)]

    def ours(z, parts):
        directions = [direction(part, *path) for part, path in zip(parts, paths, strict=True)]
        y, states = triton_multi.selective_scan_multi(directions, z, True)
        return y, torch.stack(states)

    def theirs(z, parts):
        runs = [
            defined(part, True, reverse, order)
            for part, (order, reverse) in zip(parts, paths, strict=True)
        ]
        gate = 1 if z is None else torch.nn.functional.silu(z.double())
        return sum(y for y, _ in runs) * gate, torch.stack([state for _, state in runs])

    results = []
    for run in (ours, theirs):
        parts = [{k: v.clone().requires_grad_() for k, v in part.items()} for part in each]
        z = None if gates[0] is None else gates[0].clone().requires_grad_()
        y, states = run(z, parts)
        loss(y, states).backward()
        grads = {f"d{k}{i}": v.grad for i, part in enumerate(parts) for k, v in part.items()}
        results.append({"y": y, "states": states, **grads} | ({} if z is None else {"dz": z.grad}))
    assert_same(*results)


def test_directions_take_one_launch(monkeypatch):
    launched = []
    launch = triton_launch.launch

    def spy(kernel, plans, *rest, **options):
        launched.append(len(plans))
        launch(kernel, plans, *rest, **options)

    monkeypatch.setattr(triton_launch, "launch", spy)
    x = {k: v.requires_grad_() for k, v in inputs(l=5).items()}
    directions = [direction(x), direction(x, reverse=True)]
    y, _ = triton_multi.selective_scan_multi(directions, x["z"], True)
    y.sum().backward()  # u is the same for both, and gets one gradient
    assert launched == [2, 2]
    want = {k: v.detach().double().requires_grad_() for k, v in x.items()}
    (defined(want)[0] + defined(want, reverse=True)[0]).sum().backward()
    assert_same({f"d{k}": v.grad for k, v in x.items()}, {f"d{k}": v.grad for k, v in want.items()})


def test_sums_of_half_precision_directions_are_float32():
    each = [inputs(l=5, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    y, _ = triton_multi.selective_scan_multi([direction(x) for x in each], None, True)
    want = sum(defined({k: v for k, v in x.items() if k != "z"})[0] for x in each)
    assert_same({"y": y}, {"y": want.float()})


@pytest.mark.parametrize("present", [NAMES, ("u", "delta", "A", "B", "C")], ids=len)
def test_operators_for_directions_obey_torch(present):
    each = [inputs(l=3, d=2, n=2, seed=seed) for seed in (1, 2)]
    lists = [
        [x[name].requires_grad_() for x in each] if name in present else []
        for name in NAMES
        if name != "z"
    ]
    arguments = (*lists, None, [torch.tensor([1, 0, 2])], [-1, 0], [True, False], True, True)
    torch.library.opcheck(triton_multi._scans, arguments)


@pytest.mark.parametrize("present", [NAMES, ("u", "delta", "A", "B", "C")], ids=len)
def test_operators_obey_torch(present):
    x = {k: v.requires_grad_() for k, v in inputs(l=3, d=2, n=2).items() if k in present}
    args = (*(x.get(name) for name in NAMES), True, False, True)
    torch.library.opcheck(triton_backend._scan, args)


def test_whole_graphs_compile():
    x = inputs(l=5)

    def step(u):
        return scan(x | {"u": u * 2})[0] * 3

    u, v = (x["u"].clone().requires_grad_() for _ in range(2))
    torch.compile(step, backend="aot_eager", fullgraph=True)(u).sum().backward()
    step(v).sum().backward()
    assert_same({"du": u.grad}, {"du": v.grad})


def test_gradients_of_gradients_are_refused():
    u = inputs()["u"].requires_grad_()
    y, _ = scan(inputs() | {"u": u})
    with pytest.raises(RuntimeError, match=r"no gradients of gradients.*backend='reference'"):
        torch.autograd.grad(y.square().sum(), u, create_graph=True)


def test_what_it_cannot_take():
    x = inputs(l=1)
    arguments = [x.get(name) for name in NAMES]
    assert triton_backend.refuses(*arguments, True, False) is None
    assert "float64" in triton_backend.refuses(*(v.double() for v in arguments), True, False)
    wide = inputs(l=1, n=257)
    assert "257 states" in triton_backend.refuses(*(wide[name] for name in NAMES), True, False)


def test_it_needs_a_gpu():
    here = torch.cuda.is_available() or torch.xpu.is_available()
    assert (triton_backend.missing() is None) == here


def test_importing_the_backend_leaves_triton_alone():
    code = (
        "import sys, mamba_kernels.selective_scan.triton_backend; "
        "sys.exit(any(name.split('.')[0] == 'triton' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
