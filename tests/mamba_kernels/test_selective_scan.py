import math

import pytest
import torch

from mamba_kernels import selective_scan, selective_state_update
from mamba_kernels.dispatch import usable_names
from mamba_kernels.selective_scan import BACKENDS, torch_backend
from tests.mamba_kernels.scans import SEQUENCES, assert_same, inputs, loss, outputs_and_grads

HERE = sorted(usable_names(BACKENDS))
FAST = [name for name in HERE if name != "reference"]
IN_DOUBLE = [name for name in HERE if name in ("torch", "reference")]
OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def small_chunks(monkeypatch):
    """Many chunks and blocks in few tokens, with an odd rest."""
    monkeypatch.setattr(torch_backend, "CHUNK_TOKENS", (3, 3))
    monkeypatch.setattr(torch_backend, "CHUNKS_PER_BLOCK", 2)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("groups", [None, 1, 2, 6])
@pytest.mark.parametrize("l", [1, 2, 17, 64, 65, 200])
@pytest.mark.parametrize("backend", FAST)
def test_matches_the_definition(backend, l, groups, reverse):
    x = inputs(l=l, groups=groups)
    want = outputs_and_grads(x, reverse=reverse, backend="reference")
    assert_same(outputs_and_grads(x, reverse=reverse, backend=backend), want)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("l", [1, 3, 4, 6, 7, 12, 20])
def test_any_partition_into_chunks_gives_the_same(monkeypatch, l, reverse, softplus):
    small_chunks(monkeypatch)
    x = inputs(l=l, groups=2)
    if not softplus:
        x["delta"], x["delta_bias"] = x["delta"].abs(), x["delta_bias"].abs()
    options = {"reverse": reverse, "delta_softplus": softplus}
    want = outputs_and_grads(x, backend="reference", **options)
    assert_same(outputs_and_grads(x, backend="torch", **options), want)


@pytest.mark.parametrize("present", range(16))
@pytest.mark.parametrize("backend", FAST)
def test_optional_arguments_may_be_absent(backend, present):
    absent = [name for bit, name in enumerate(OPTIONAL) if not present >> bit & 1]
    x = {k: v for k, v in inputs().items() if k not in absent}
    assert_same(outputs_and_grads(x, backend=backend), outputs_and_grads(x, backend="reference"))


@pytest.mark.parametrize("name", list(inputs()))
@pytest.mark.parametrize("backend", FAST)
def test_one_gradient_alone_is_that_of_all(backend, name):
    x = inputs()
    want = outputs_and_grads(x, backend=backend)
    leaf = x[name].clone().requires_grad_()
    y, state = selective_scan(**(x | {name: leaf}), return_last_state=True, backend=backend)
    loss(y, state).backward()
    assert torch.equal(leaf.grad, want[f"d{name}"])
    assert torch.equal(selective_scan(**x, backend=backend), want["y"])


@pytest.mark.parametrize("backend", FAST)
def test_strides_do_not_matter(backend):
    x = inputs(b=3, d=6, l=19)
    want = outputs_and_grads(x, backend=backend)
    last = {
        k: v.transpose(-1, -2).contiguous().transpose(-1, -2)
        for k, v in x.items()
        if k in SEQUENCES
    }
    gapped = {k: torch.stack([v, v.neg()], dim=-1)[..., 0] for k, v in x.items()}
    for views in (x | last, gapped):
        assert_same(outputs_and_grads(views, backend=backend), want)
    assert selective_scan(**(x | last), backend=backend).stride() == last["u"].stride()


@pytest.mark.parametrize("backend", HERE)
def test_expanded_inputs_and_gradients(backend):
    x = inputs(b=1)
    wide = {k: v.expand(4, *v.shape[1:]) if v.dim() == 3 else v for k, v in x.items()}
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}
    copies = {k: v.expand(4, *v.shape[1:]) if v.dim() == 3 else v for k, v in leaves.items()}
    selective_scan(**copies, backend=backend).sum().backward()  # a gradient of strides 0
    single = {k: v.clone().requires_grad_() for k, v in x.items()}
    selective_scan(**single, backend="reference").sum().mul(4).backward()
    assert_same({k: v.grad for k, v in leaves.items()}, {k: v.grad for k, v in single.items()})
    y = selective_scan(**wide, backend=backend)
    assert torch.allclose(y, y[:1].expand_as(y))


@pytest.mark.parametrize("backend", HERE)
def test_reverse_is_flip_scan_flip(backend):
    x = inputs()
    flipped = {k: v.flip(-1) if k in SEQUENCES else v for k, v in x.items()}
    y, state = selective_scan(**x, reverse=True, return_last_state=True, backend=backend)
    want, last = selective_scan(**flipped, return_last_state=True, backend=backend)
    assert_same({"y": y, "state": state}, {"y": want.flip(-1), "state": last})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 16, 33])
@pytest.mark.parametrize("backend", HERE)
def test_a_carried_state_joins_two_parts(backend, cut, reverse):
    leaves = {k: v.requires_grad_() for k, v in inputs(l=40).items()}
    options = {"reverse": reverse, "return_last_state": True, "backend": backend}
    spans = [slice(cut), slice(cut, None)]
    state, parts = leaves["initial_state"], []
    for span in reversed(spans) if reverse else spans:
        part = {k: v[..., span] if k in SEQUENCES else v for k, v in leaves.items()}
        y, state = selective_scan(**(part | {"initial_state": state}), **options)
        parts.append(y)
    joined = torch.cat(parts[::-1] if reverse else parts, dim=-1)
    whole, last = selective_scan(**leaves, **options)
    assert_same({"y": joined, "state": state}, {"y": whole, "state": last})

    grads = [
        torch.autograd.grad(loss(y, h), list(leaves.values()))
        for y, h in ((joined, state), (whole, last))
    ]
    assert_same(*(dict(zip(leaves, of_all, strict=True)) for of_all in grads))


@pytest.mark.parametrize("groups", [None, 2])
def test_token_by_token_equals_the_scan(groups):
    x = inputs(groups=groups)
    state = x.pop("initial_state")
    want, last = selective_scan(**x, initial_state=state, return_last_state=True)
    step = state.clone()
    outputs = []
    for t in range(want.shape[-1]):
        token = {k: v[..., t] if k in SEQUENCES else v for k, v in x.items()}
        outputs.append(selective_state_update(step, **token))
    assert_same({"y": torch.stack(outputs, -1), "state": step}, {"y": want, "state": last})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", HERE)
def test_half_precision_is_only_storage(backend, dtype):
    x = inputs(dtype=dtype)
    got = outputs_and_grads(x, backend=backend)
    assert got["y"].dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert got["state"].dtype == torch.float32
    want = outputs_and_grads({k: v.float() for k, v in x.items()}, backend="reference")
    want = {k: v.to(got[k].dtype) for k, v in want.items()}
    assert_same(got, want, tolerance=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", HERE)
def test_float32_is_close_to_float64(backend):
    x = inputs(d=16, l=200, n=16)
    want = selective_scan(**{k: v.double() for k, v in x.items()}, backend="reference")
    got = selective_scan(**x, backend=backend)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", IN_DOUBLE)
def test_gradients_are_those_of_finite_differences(monkeypatch, backend, reverse):
    small_chunks(monkeypatch)
    x = inputs(b=1, d=2, l=8, n=2, groups=2, dtype=torch.float64)
    names = list(x)

    def scan(*values):
        options = {"reverse": reverse, "return_last_state": True, "backend": backend}
        return selective_scan(**dict(zip(names, values, strict=True)), **options)

    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in x.values()])


@pytest.mark.parametrize("backend", HERE)
def test_large_steps_stay_finite(backend):
    x = inputs(l=100) | {"delta": torch.full((2, 6, 100), 65.0)}
    x["A"] = -torch.arange(1.0, 4.0).expand(6, 3)
    assert all(v.isfinite().all() for v in outputs_and_grads(x, backend=backend).values())


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences_stay_finite(backend):
    x = inputs(b=1, d=2, l=200_000, n=2)
    x["delta"][..., ::1000] = 65.0
    assert all(v.isfinite().all() for v in outputs_and_grads(x, backend=backend).values())


@pytest.mark.parametrize("backend", HERE)
def test_a_step_of_zero_keeps_the_state_exactly(backend):
    x = inputs() | {"delta": torch.zeros(2, 6, 20), "delta_bias": torch.zeros(6)}
    options = {"delta_softplus": False, "return_last_state": True, "backend": backend}
    assert torch.equal(selective_scan(**x, **options)[1], x["initial_state"])


@pytest.mark.parametrize("backend", HERE)
def test_gated_outputs_beyond_float16_survive(backend):
    x = inputs(dtype=torch.float16)
    x["u"], x["z"] = x["u"] * 1000, x["z"].abs() * 1000
    y = selective_scan(**x, backend=backend)
    assert y.abs().max() > torch.finfo(torch.float16).max
    assert y.isfinite().all()


@pytest.mark.parametrize("backend", HERE)
def test_autocast_changes_nothing_inside(backend):
    x = inputs(d=32, l=40, n=16)
    want = outputs_and_grads(x, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs_and_grads(x, backend=backend)
    assert_same(got, want, tolerance=1e-7)


def test_backends_run_with_autocast_off(monkeypatch):
    seen = []

    def spied(run):
        def spy(*args):
            seen.append(torch.is_autocast_enabled("cpu"))
            return run(*args)

        return spy

    for name in ("_forward", "_backward"):
        monkeypatch.setattr(torch_backend, name, spied(getattr(torch_backend, name)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs_and_grads(inputs(), backend="torch")
    assert seen == [False, False]


@pytest.mark.parametrize("backend", FAST)
def test_runs_are_bit_equal(backend):
    x = inputs(d=64, l=200, n=16)
    first, second = (outputs_and_grads(x, backend=backend) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_gradients_of_gradients_are_refused():
    u = inputs()["u"].requires_grad_()
    y = selective_scan(**(inputs() | {"u": u}), backend="torch")
    with pytest.raises(RuntimeError, match=r"no gradients of gradients.*backend='reference'"):
        torch.autograd.grad(y.square().sum(), u, create_graph=True)


def test_compiled_code_gives_the_same():
    x = inputs()
    compiled = torch.compile(lambda **k: selective_scan(**k) * 2, backend="eager")
    assert torch.equal(compiled(**x), selective_scan(**x) * 2)
    want = outputs_and_grads(x)["du"]
    u = x["u"].clone().requires_grad_()
    scan = torch.compile(
        lambda u: selective_scan(u, **rest, return_last_state=True), backend="eager"
    )
    rest = {k: v for k, v in x.items() if k != "u"}
    y, state = scan(u)
    loss(y, state).backward()
    assert_same({"du": u.grad}, {"du": want})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.ones(2, 6)}, ValueError, r"u has shape \(2, 6\); expected \(b, d, l\)"),
        ({"u": torch.ones(2, 6, 0)}, ValueError, r"u has shape \(2, 6, 0\).*at least 1"),
        ({"u": [1.0]}, TypeError, "u is a list"),
        ({"u": torch.ones(2, 6, 20, dtype=torch.int64)}, TypeError, "u .*torch.int64.*float32"),
        ({"A": torch.ones(6)}, ValueError, r"A has shape \(6,\); expected \(d, n\)"),
        ({"A": torch.ones(5, 3)}, ValueError, r"A has shape \(5, 3\); expected \(6, 3\)"),
        ({"A": torch.ones(6, 3) * 1j}, TypeError, "A .*complex64"),
        ({"delta": torch.ones(2, 6, 19)}, ValueError, r"delta has shape \(2, 6, 19\)"),
        ({"B": torch.ones(2, 20, 3)}, ValueError, r"B has shape .*expected \(2, 3, 20\)"),
        ({"B": None}, TypeError, "B is a NoneType"),
        ({"C": torch.ones(2, 1, 3, 20)}, ValueError, "C has shape"),
        ({"B": torch.ones(2, 4, 3, 20), "C": torch.ones(2, 4, 3, 20)}, ValueError, "divides"),
        ({"z": torch.ones(2, 6, 1)}, ValueError, "z has shape"),
        ({"D": torch.ones(6, device="meta")}, ValueError, "D .* is on meta; expected cpu"),
        ({"initial_state": torch.ones(2, 6, 3).bfloat16()}, TypeError, "expected torch.float32"),
        ({"backend": "abacus"}, ValueError, "'abacus' is not available.*torch, reference"),
    ],
)
def test_refusals_say_what_to_do(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**(inputs() | change))


def test_update_refuses_a_state_it_would_round():
    x = {k: v[..., 0] if k in SEQUENCES else v for k, v in inputs().items()}
    state = x.pop("initial_state")
    with pytest.raises(TypeError, match=r"state .*bfloat16.*keep it"):
        selective_state_update(state.bfloat16(), **x)
    with pytest.raises(ValueError, match=r"state has shape \(2, 6, 2\)"):
        selective_state_update(state[..., :2], **x)


def test_closed_form_of_one_channel():
    half = torch.full((1, 1, 3), 1.0)
    A = torch.tensor([[-math.log(2.0)]])
    y = selective_scan(half, half, A, half, half, delta_softplus=False)
    assert torch.allclose(y, torch.tensor([[[1.0, 1.5, 1.75]]]))
