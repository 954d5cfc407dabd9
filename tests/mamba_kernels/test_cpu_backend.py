"""The compiled library: every instruction set, and what it promises beyond the definition."""

import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from mamba_kernels import selective_scan
from mamba_kernels.native import library
from tests.mamba_kernels.scans import SEQUENCES, assert_same, inputs, loss, outputs_and_grads

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))

INSTRUCTION_SETS = list(library.instruction_sets())
DOUBLE = torch.float64


def in_double(x):
    return {k: v.double() for k, v in x.items()}


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    with library.use_instruction_set(request.param):
        yield request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("b", "d", "l", "n", "groups"),
    [(1, 1, 1, 1, 1), (2, 5, 15, 3, 5), (1, 16, 16, 16, 1), (2, 70, 33, 5, 2), (1, 130, 50, 17, 1)],
    ids=str,
)
def test_every_instruction_set_matches_the_definition(instruction_set, b, d, l, n, groups, reverse):
    x = inputs(b, d, l, n, groups)
    got = outputs_and_grads(x, reverse=reverse, backend="cpu")
    want = outputs_and_grads(in_double(x), reverse=reverse, backend="reference")
    assert_same(got, {k: v.float() for k, v in want.items()})


@pytest.mark.parametrize(
    ("dtype", "outputs", "gradients"),
    [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 4e-3, 8e-3), (torch.float16, 5e-4, 1e-3)],
    ids=str,
)
def test_errors_stay_within_their_bars(instruction_set, dtype, outputs, gradients):
    """Against float64 on the same stored values; the output of float16 is float32."""
    x = inputs(b=1, d=48, l=300, n=16, dtype=dtype)
    got = outputs_and_grads(x, backend="cpu")
    want = outputs_and_grads(in_double(x), backend="reference")
    for name, value in got.items():
        exact = value.dtype == torch.float32 and name in ("y", "state")
        bar = 1e-6 if exact else outputs if name == "y" else gradients
        error = (value.double() - want[name]).abs().max() / want[name].abs().max()
        assert error <= bar, (name, float(error))


@pytest.mark.parametrize("layout", ["channels first", "channels last", "gapped", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layouts_give_the_same_bits(instruction_set, layout, dtype):
    x = inputs(b=2, d=35, l=37, n=5, dtype=dtype)
    if layout == "expanded":
        x = x | {"u": x["u"][:1, :1].expand(2, 35, 37), "B": x["B"][..., :1].expand(2, 5, 37)}
    views = {
        "channels first": lambda v: v.contiguous(),
        "channels last": lambda v: v.transpose(-1, -2).contiguous().transpose(-1, -2),
        "gapped": lambda v: torch.stack([v, v.neg()], dim=-1)[..., 0],
        "expanded": lambda v: v,
    }
    moved = {k: views[layout](v) if k in SEQUENCES else v for k, v in x.items()}
    got = outputs_and_grads(moved, backend="cpu")
    want = outputs_and_grads({k: v.contiguous() for k, v in x.items()}, backend="cpu")
    # Sums over channels go slab by slab, whatever the layout.
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_one_thread_and_many_give_the_same_bits(threads):
    x = inputs(b=2, d=200, l=300, n=16)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(outputs_and_grads(x, backend="cpu"))
    for other in results[1:]:
        assert all(torch.equal(results[0][k], other[k]) for k in other)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frame", [1, 7, 16, 50])
def test_frame_by_frame_gives_the_same_bits(instruction_set, frame, reverse):
    x = inputs(b=1, d=20, l=150, n=16)
    want, last = selective_scan(**x, reverse=reverse, return_last_state=True, backend="cpu")
    starts = range(0, 150, frame)
    state, outputs = x["initial_state"], {}
    for start in reversed(starts) if reverse else starts:
        part = {k: v[..., start : start + frame] if k in SEQUENCES else v for k, v in x.items()}
        part["initial_state"] = state
        outputs[start], state = selective_scan(
            **part, reverse=reverse, return_last_state=True, backend="cpu"
        )
    assert torch.equal(torch.cat([outputs[s] for s in starts], dim=-1), want)
    assert torch.equal(state, last)


@pytest.mark.parametrize(("steps", "bar"), [(0.001, 4e-6), (65.0, 1e-6)])
def test_long_sequences_keep_their_accuracy(instruction_set, steps, bar):
    """States that last thousands of tokens gather the rounding of as many, in any backend."""
    l = 200_000 if instruction_set == INSTRUCTION_SETS[0] else 20_000
    x = inputs(b=1, d=3, l=l, n=2)
    x["delta"] = torch.rand(1, 3, l) * steps
    options = {"delta_softplus": False, "backend": "cpu", "return_last_state": True}
    del x["delta_bias"]
    got = selective_scan(**x, **options)
    want = selective_scan(**in_double(x), **(options | {"backend": "torch"}))
    for value, exact in zip(got, want, strict=True):
        assert value.isfinite().all()
        assert (value - exact).abs().max() <= bar * exact.abs().max()


def test_nan_and_infinity_stay_where_they_are(instruction_set):
    for name in ("u", "delta", "B", "z"):
        x = inputs(b=1, d=4, l=40, n=3)
        x[name][0, 1, 20] = torch.nan
        got, want = (selective_scan(**x, backend=backend) for backend in ("cpu", "reference"))
        assert torch.equal(got.isnan(), want.isnan()), name
        assert got.isnan().any()


def operands(**changes):
    x = inputs(b=2, d=6, l=20, n=3, groups=2) | changes
    names = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
    return [x[name].clone().requires_grad_() for name in names]


def test_the_operator_is_well_registered():
    op = torch.ops.mambamed.scan_forward.default
    opcheck(op, (*operands(), True, False, True))
    detached = [x.detach() for x in operands()]
    opcheck(op, (*detached[:5], None, None, None, None, False, True, False))


def test_the_backward_operator_is_well_registered():
    x = [v.detach() for v in operands()]
    y, last, kept = torch.ops.mambamed.scan_forward(*x, True, False, True)
    arguments = (torch.randn_like(y), torch.randn_like(last), kept, *x, True, False)
    opcheck(torch.ops.mambamed.scan_backward.default, arguments)


def test_it_compiles_into_one_graph():
    x = inputs(d=8)
    want = outputs_and_grads(x)
    scan = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    leaves = {k: v.detach().requires_grad_() for k, v in x.items()}
    y, state = scan(**leaves, return_last_state=True)
    loss(y, state).backward()
    got = {"y": y.detach(), "state": state.detach()} | {f"d{k}": v.grad for k, v in leaves.items()}
    assert all(torch.equal(got[k], want[k]) for k in want)


class Module(torch.nn.Module):
    def forward(self, u, delta, A, B, C):
        return selective_scan(u, delta, A, B, C)


def test_it_exports_with_any_length():
    x = [v.detach() for v in operands()[:5]]
    l = torch.export.Dim("l", min=2, max=4096)
    free = [{2: l}, {2: l}, None, {3: l}, {3: l}]
    program = torch.export.export(Module(), tuple(x), dynamic_shapes=free)
    longer = [torch.cat([v, v.flip(-1)], dim=-1) if v.dim() > 2 else v for v in x]
    assert torch.equal(program.module()(*longer), Module()(*longer))


def test_a_program_captured_without_gradients_can_be_trained():
    x = operands()[:5]
    with torch.no_grad():
        program = torch.export.export(Module(), tuple(v.detach() for v in x)).module()
    got = torch.autograd.grad(program(*x).sin().sum(), x)
    want = torch.autograd.grad(Module()(*x).sin().sum(), x)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_step_of_minus_infinity_is_none(instruction_set):
    """Softplus makes it zero: a way to mask tokens."""
    x = inputs(b=1, d=4, l=20)
    x["delta"][..., 7] = -torch.inf
    got = selective_scan(**x, backend="cpu")
    assert_same({"y": got}, {"y": selective_scan(**x, backend="reference")})


def test_torchs_threads_and_own_ones_give_the_same_bits(threads):
    x, team = inputs(b=2, d=300, l=200), library.torch_team()
    threads(3)
    ours = selective_scan(**x)
    library.TEAM.use(None)
    try:
        own = selective_scan(**x)
    finally:
        library.TEAM.use(team)
    assert torch.equal(ours, own)
    assert library.TEAM.ready == (team is not None)


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GOMP_parallel on Linux")
def test_torchs_threads_are_found():
    assert library.torch_team()


def test_a_forked_process_can_scan(threads):
    """nnU-Net's workers are forks of a process that has scanned."""
    code = (
        "import os, torch; from mamba_kernels import selective_scan; torch.set_num_threads(2);"
        "x = [torch.ones(1, 256, 300), torch.ones(1, 256, 300), -torch.ones(256, 16),"
        "torch.ones(1, 16, 300), torch.ones(1, 16, 300)]; selective_scan(*x); child = os.fork();"
        "selective_scan(*x); child or os._exit(0); print(os.waitpid(child, 0)[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=True
    )
    assert done.stdout.strip() == "0"


def test_other_libraries_and_none_are_told_apart(tmp_path):
    assert "was not built" in library.load(tmp_path / "none.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF, but no more")
    assert "does not load" in library.load(broken)


def test_without_the_library_scans_still_compile(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "it is gone")
    x = inputs()
    with pytest.warns(UserWarning, match=r"more slowly, without: cpu \(it is gone\)"):
        want = selective_scan(**x)
    assert torch.equal(torch.compile(selective_scan, backend="eager")(**x), want)


def test_cases_beyond_the_library_are_refused():
    x = in_double(inputs())
    with pytest.raises(ValueError, match=r"'cpu' cannot take an operand of dtype torch.float64"):
        selective_scan(**x, backend="cpu")
    assert selective_scan(**x).dtype == DOUBLE
