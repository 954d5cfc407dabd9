"""The Triton backend without a GPU: run by Triton's interpreter, and compiled for GPUs.

Run as a script, this prints what the compiler makes of the kernels.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mamba_kernels import scan_order
from mamba_kernels.selective_scan import reference, triton_backend
from mamba_kernels.selective_scan.multi import Direction
from tests.mamba_kernels import scans
from tests.mamba_kernels.scans import SEQUENCES, loss

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
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


def inputs(b=1, d=3, l=11, n=3, groups=1, **options):
    return scans.inputs(b, d, l, n, groups, **options)


def scan(x, softplus=True, reverse=False, **options):
    return triton_backend.selective_scan(
        *(x.get(name) for name in NAMES), softplus, reverse, **options
    )


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
    monkeypatch.setattr(triton_backend, "SPAN", 16)
    monkeypatch.setattr(triton_backend, "LEAST_SEGMENT", 16)


@pytest.fixture
def short_spans(monkeypatch):
    """Spans of 16 tokens, and time not cut into segments."""
    monkeypatch.setattr(triton_backend, "SPAN", 16)
    monkeypatch.setattr(triton_backend, "FEW_PROGRAMS", 0)


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
    assert triton_backend._segment(1, sizes["l"]) < sizes["l"]
    assert_defined(x, reverse=reverse)


def test_segments_may_start_from_zeros(short_segments):
    x = {k: v for k, v in inputs(l=33).items() if k not in ("initial_state", "z")}
    u = x["u"].clone().requires_grad_()
    scan(x | {"u": u})[0].sum().backward()  # nothing arrives from the future either
    want = x["u"].double().requires_grad_()
    defined(x | {"u": want})[0].sum().backward()
    assert_same({"du": u.grad}, {"du": want.grad})


def test_time_is_cut_only_where_programs_are_few_and_tokens_many():
    few, many = triton_backend.FEW_PROGRAMS // 16, triton_backend.FEW_PROGRAMS
    assert triton_backend._segment(many, 10**6) >= 10**6
    assert triton_backend._segment(few, 200) >= 200
    assert triton_backend._segment(few, 20480) < 20480 // 16
    assert triton_backend._segment(few, 20480) % triton_backend.SPAN == 0


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("l", [8, 13, 35])
def test_any_order_of_tokens(short_segments, l, reverse):
    order = torch.randperm(l, generator=torch.Generator().manual_seed(1))
    x = inputs(l=l)
    got = outputs_and_grads(scan, x, order=order.int(), reverse=reverse)
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


@pytest.mark.parametrize("gated", [False, True])
def test_directions_are_summed_and_gated_once(gated):
    shared = inputs(l=9)
    each = [inputs(l=9, seed=seed) for seed in (1, 2, 3)]
    each[1]["D"] = each[1]["delta_bias"] = each[1]["initial_state"] = None
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    orders, reverses = [None, None, order], [False, True, True]
    names = [name for name in NAMES if name != "z"]

    def ours(z, parts):
        directions = [
            Direction(*(part[name] for name in names), None if o is None else o.int(), r)
            for part, o, r in zip(parts, orders, reverses, strict=True)
        ]
        y, states = triton_backend.selective_scan_multi(directions, z, True)
        return y, torch.stack(states)

    def theirs(z, parts):
        runs = [
            defined({k: v for k, v in part.items() if k != "z" and v is not None}, True, r, o)
            for part, o, r in zip(parts, orders, reverses, strict=True)
        ]
        y = sum(y for y, _ in runs)
        gate = 1 if z is None else torch.nn.functional.silu(z.double())
        return y * gate, torch.stack([state for _, state in runs])

    results = []
    for run in (ours, theirs):
        parts = [
            {k: None if v is None else v.clone().requires_grad_() for k, v in part.items()}
            for part in each
        ]
        z = shared["z"].clone().requires_grad_() if gated else None
        y, states = run(z, parts)
        loss(y, states).backward()
        grads = {
            f"d{name}{i}": part[name].grad
            for i, part in enumerate(parts)
            for name in names
            if part[name] is not None
        }
        results.append({"y": y, "states": states, **grads, **({"dz": z.grad} if gated else {})})
    assert_same(*results)


def test_sums_of_half_precision_directions_are_float32():
    each = [inputs(l=5, seed=seed, dtype=torch.bfloat16) for seed in (1, 2, 3)]
    names = [name for name in NAMES if name != "z"]
    directions = [Direction(*(x[name] for name in names), None, False) for x in each]
    y, _ = triton_backend.selective_scan_multi(directions, None, True)
    want = sum(defined({k: v for k, v in x.items() if k != "z"})[0] for x in each)
    assert_same({"y": y}, {"y": want.float()})


@pytest.mark.parametrize("present", [NAMES, ("u", "delta", "A", "B", "C")], ids=len)
def test_operators_obey_torch(present):
    x = {k: v.requires_grad_() for k, v in inputs(l=3, d=2, n=2).items() if k in present}
    args = (*(x.get(name) for name in NAMES), None, None, True, False, False, True)
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


def test_kernels_compile_without_spills_to_few_instructions():
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")}
    run = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    print(*(f"{name}: {values}" for name, values in found.items()), sep="\n")
    assert len(found) == 2 * 5
    assert all(kernel["spills"] == 0 for kernel in found.values()), found
    assert found["sm_90 forward"]["instructions"] <= 14, found
    assert found["sm_90 backward"]["instructions"] <= 90, found


def test_importing_the_backend_leaves_triton_alone():
    code = (
        "import sys, mamba_kernels.selective_scan.triton_backend; "
        "sys.exit(any(name.split('.')[0] == 'triton' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Compiled:
    """In place of a module of kernels: compiles what would be launched and keeps it in `found`."""

    def __init__(self, kernels):
        self.kernels = kernels
        self.found = {}

    def __getattr__(self, name):
        return Launcher(name, getattr(self.kernels, name), self.found)


class Launcher:
    def __init__(self, name, kernel, found):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            compiled = self.kernel.warmup(*args, grid=grid, **kwargs)
            self.found[self.name] = compiled, {**kwargs, "args": args}

        return launch


class NoGpu:
    """A driver of Triton that compiles for a GPU which is not there."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # kernels are kept by device

    def get_current_stream(self, device):
        return 0


def compiled(capability, **options):
    """The kernels that one training step launches, as (compiled kernel, its constants)."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from mamba_kernels.selective_scan import triton_kernels

    driver.set_active(NoGpu(GPUTarget("cuda", capability, 32)))
    kernels = Compiled(triton_kernels)
    triton_backend._kernels = lambda: kernels
    sizes = {"b": 1, "d": 64, "l": 1024, "n": 16, "dtype": torch.bfloat16}
    x = {k: v.requires_grad_() for k, v in inputs(**(sizes | options)).items()}
    scan(x)[0].sum().backward()
    return kernels.found


def sass(kernel, tool, *options):
    binary = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        run = [binary, *options, file.name]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def instructions_of_longest_loop(listing):
    labels, count, longest = {}, 0, 0
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*);", line):
            count += 1
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                longest = max(longest, count - labels[target[1]])
    return longest


def figures(kernel, constants):
    """Registers, bytes of spills, and instructions per element in the loops over time."""
    listing = sass(kernel, "nvdisasm", "-c")
    usage = sass(kernel, "cuobjdump", "-res-usage")
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK"))
    result = {"registers": registers, "spills": stack + len(re.findall(r"\b(LDL|STL)\b", listing))}
    if "T" in constants:
        names = ("NO", "NI", "D", "T")
        elements = math.prod(constants[name] for name in names) / 32  # of a thread
        result["instructions"] = round(instructions_of_longest_loop(listing) / elements, 1)
    return result


if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"sm_{capability} {name}": figures(*kernel)
                for capability in (80, 90)
                for name, kernel in compiled(capability).items()
            }
        )
    )
