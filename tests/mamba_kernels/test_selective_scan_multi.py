import pytest
import torch

from mamba_kernels import selective_scan, selective_scan_multi
from mamba_kernels.dispatch import usable_names
from mamba_kernels.native import library
from mamba_kernels.selective_scan.multi import BACKENDS
from tests.mamba_kernels.scans import assert_same, inputs, loss

HERE = sorted(usable_names(BACKENDS))
FAST = [name for name in HERE if name != "reference"]
LENGTH = 37
SHUFFLED = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(1))
ORDERS = {
    "one": ["forward"],
    "both ends": ["forward", "reverse"],
    "three": ["forward", "reverse", SHUFFLED],
}
LISTED = ("u", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")


def operands(k, dtype=torch.float32, **sizes):
    """Of k directions; the gate is that of the first."""
    each = [
        inputs(b=2, d=20, l=LENGTH, n=5, groups=2, dtype=dtype, seed=i, **sizes) for i in range(k)
    ]
    return {name: [x[name] for x in each] for name in LISTED} | {"z": each[0]["z"]}


def outputs_and_grads(x, **options):
    leaves = {
        k: [i.detach().requires_grad_() for i in v]
        if isinstance(v, list)
        else v.detach().requires_grad_()
        for k, v in x.items()
    }
    y, states = selective_scan_multi(**leaves, **options)
    loss(y, *states).backward()
    flat = {f"{k}{i}": v for k in LISTED for i, v in enumerate(leaves[k])} | {"z": leaves["z"]}
    states = {f"state{i}": s.detach() for i, s in enumerate(states)}
    return {"y": y.detach(), **states, **{f"d{k}": v.grad for k, v in flat.items()}}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("backend", FAST)
def test_matches_the_definition(backend, name):
    x = operands(len(ORDERS[name]))
    want = outputs_and_grads(x, orders=ORDERS[name], backend="reference")
    assert_same(outputs_and_grads(x, orders=ORDERS[name], backend=backend), want)


@pytest.mark.parametrize("backend", HERE)
def test_is_the_sum_of_single_scans(backend):
    x = operands(3)
    y, states = selective_scan_multi(**x, orders=ORDERS["three"], backend=backend)
    want, lasts = 0, []
    for i, order in enumerate([torch.arange(LENGTH), torch.arange(LENGTH).flip(0), SHUFFLED]):
        own = {name: x[name][i] for name in LISTED} | {"z": x["z"]}
        reordered = {
            k: v[..., order] if k in ("u", "delta", "B", "C", "z") else v for k, v in own.items()
        }
        part, last = selective_scan(**reordered, return_last_state=True, backend="reference")
        want = want + part[..., torch.argsort(order)]
        lasts.append(last)
    assert_same({"y": y, **dict(enumerate(states))}, {"y": want, **dict(enumerate(lasts))})


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("isa", list(library.instruction_sets()))
def test_orders_in_every_layout(isa, layout):
    x = operands(3)
    if layout == "channels last":
        for name in ("u", "delta", "B", "C"):
            x[name] = [v.transpose(-1, -2).contiguous().transpose(-1, -2) for v in x[name]]
    want = outputs_and_grads(x, orders=ORDERS["three"], backend="reference")
    with library.use_instruction_set(isa):
        assert_same(outputs_and_grads(x, orders=ORDERS["three"], backend="cpu"), want)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(backend, dtype):
    if dtype == torch.float64 and backend not in ("torch", "reference"):
        pytest.skip(f"{backend} has no float64")
    x = operands(2, dtype=dtype)
    got = outputs_and_grads(x, orders=ORDERS["both ends"], backend=backend)
    assert got["y"].dtype == (torch.float32 if dtype == torch.float16 else dtype)
    double = {
        k: [i.double() for i in v] if isinstance(v, list) else v.double() for k, v in x.items()
    }
    want = outputs_and_grads(double, orders=ORDERS["both ends"], backend="reference")
    tolerance = 2e-6 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    assert_same(got, {k: v.to(got[k].dtype) for k, v in want.items()}, tolerance)


def test_mean_and_a_shared_input():
    x = operands(2) | {"orders": ORDERS["both ends"]}
    x["u"] = x["u"][0]
    total, _ = selective_scan_multi(**x)
    mean, _ = selective_scan_multi(**x, combine="mean")
    assert torch.equal(mean, total / 2)


def test_it_compiles_into_one_graph():
    x = operands(3) | {"orders": ORDERS["three"]}
    compiled = torch.compile(selective_scan_multi, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(**x)[0], selective_scan_multi(**x)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orders": []}, r"u has 2 entries; expected one for each of the 0 orders"),
        ({"orders": ["forward"]}, r"u has 2 entries; expected one for each of the 1 orders"),
        (
            {"orders": ["forward", "sideways"]},
            r"'sideways'; expected 'forward', 'reverse' or a perm",
        ),
        ({"orders": ["forward", SHUFFLED[1:]]}, r"shape \(36,\).*expected \(37,\) integers"),
        ({"orders": ["forward", SHUFFLED.float()]}, r"dtype torch.float32; expected \(37,\)"),
        ({"A": torch.ones(20, 5)}, r"A has one tensor; expected one for each of the 2"),
        ({"orders": ["forward", torch.zeros(37).long()]}, r"an order is no permutation"),
        ({"orders": ["forward", SHUFFLED + 2**32]}, r"an order is no permutation"),
        ({"orders": ["forward", SHUFFLED > 3]}, r"dtype torch.bool; expected \(37,\) integers"),
        ({"combine": "max"}, r"'max'; expected 'sum' or 'mean'"),
        ({"z": torch.ones(1)}, r"z has shape \(1,\)"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan_multi(**(operands(2) | {"orders": ORDERS["both ends"]} | change))


@pytest.mark.parametrize("backend", HERE)
def test_directions_of_different_lengths_are_refused(backend):
    x = [inputs(l=l) for l in (20, 40)]
    columns = {name: [v[name] for v in x] for name in ("u", "delta", "A", "B", "C")}
    with pytest.raises(ValueError, match=r"\(2, 6, 20\).*\(2, 6, 40\).*same for all directions"):
        selective_scan_multi(**columns, orders=["forward", "reverse"], backend=backend)
