"""Several directions by the compiled library: what it promises beyond the definition."""

import pytest
import torch
from torch.library import opcheck

from mamba_kernels import selective_scan, selective_scan_multi
from mamba_kernels.native import library
from mamba_kernels.selective_scan import cpu_multi
from mamba_kernels.selective_scan.directions import LISTED
from tests.mamba_kernels.scans import SEQUENCES, inputs, loss

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))


def order_of(length):
    return torch.randperm(length, generator=torch.Generator().manual_seed(1))


def directions(k=3, **sizes):
    """Operands of k directions by name; the gate is that of the first."""
    each = [inputs(**sizes, seed=i) for i in range(k)]
    return {name: [x[name] for x in each] for name in LISTED} | {"z": each[0]["z"]}


def orders(length):
    return ["forward", "reverse", order_of(length)]


def results(x, run=selective_scan_multi, **options):
    leaves = {
        k: [i.detach().requires_grad_() for i in v]
        if isinstance(v, list)
        else v.detach().requires_grad_()
        for k, v in x.items()
    }
    y, states = run(**leaves, **options)
    loss(y, *states).backward()
    flat = [i for v in leaves.values() for i in (v if isinstance(v, list) else [v])]
    return [y.detach(), *(s.detach() for s in states), *(i.grad for i in flat)]


def assert_equal(got, want):
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_one_direction_has_the_bits_of_a_single_scan(reverse):
    x = directions(1, b=2, d=35, l=50, n=5)
    y, (state,) = selective_scan_multi(**x, orders=["reverse" if reverse else "forward"])
    single = {name: x[name][0] for name in LISTED} | {"z": x["z"]}
    want, last = selective_scan(**single, reverse=reverse, return_last_state=True)
    assert_equal((y, state), (want, last))


@pytest.mark.parametrize("isa", list(library.instruction_sets()))
def test_an_order_has_the_bits_of_sorted_tokens(isa):
    x, order = directions(1, b=2, d=35, l=50, n=5), order_of(50)
    with library.use_instruction_set(isa):
        y, (state,) = selective_scan_multi(**x, orders=[order])
        single = {name: x[name][0] for name in LISTED} | {"z": x["z"]}
        moved = {k: v[..., order] if k in SEQUENCES else v for k, v in single.items()}
        want, last = selective_scan(**moved, return_last_state=True)
    assert_equal((y[..., order], state), (want, last))


def test_one_thread_and_many_give_the_same_bits():
    x, before, every = directions(b=2, d=200, l=300, n=16), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            every.append(results(x, orders=orders(300)))
    finally:
        torch.set_num_threads(before)
    for other in every[1:]:
        assert_equal(other, every[0])


@pytest.mark.parametrize("length", [max(cpu_multi.LONGEST.values()) + 3, 40])
def test_slabs_of_any_length_give_the_same(length):
    x = directions(b=1, d=130, l=length, n=3)
    want = results(x, orders=orders(length), backend="torch")
    for a, b in zip(results(x, orders=orders(length)), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_a_shared_input_gets_the_sum_of_its_gradients(layout, gated):
    x = directions(b=2, d=20, l=37, n=5)
    if layout == "channels last":
        x["u"][0] = x["u"][0].transpose(1, 2).contiguous().transpose(1, 2)
    if not gated:
        x["z"] = None

    def gradient(copies):
        leaf = x["u"][0].detach().requires_grad_()
        u = [leaf.clone() for _ in range(3)] if copies else leaf
        y, _ = selective_scan_multi(**(x | {"u": u}), orders=orders(37))
        return torch.autograd.grad(loss(y), leaf)[0]

    torch.testing.assert_close(gradient(copies=False), gradient(copies=True))


def arguments(x, keep=True):
    lists = [x[name] for name in LISTED]
    return [*lists, x["z"], [order_of(20)], [-1, -1, 0], [False, True, False], True, keep]


def test_the_operators_are_well_registered():
    op = torch.ops.mambamed.multi_forward.default
    x = directions(b=2, d=6, l=20, n=3, groups=2)
    leaves = {k: [i.requires_grad_() for i in v] for k, v in x.items() if k != "z"}
    opcheck(op, arguments(leaves | {"z": x["z"].requires_grad_()}))
    x = directions(b=2, d=6, l=20, n=3, groups=2)
    bare = x | {"u": x["u"][:1], "D": [], "delta_bias": [], "initial_state": [], "z": None}
    opcheck(op, arguments(bare, keep=False))
    y, last, kept = op(*arguments(x))
    gradients = torch.randn_like(y), torch.randn_like(last), kept
    opcheck(torch.ops.mambamed.multi_backward.default, (*gradients, *arguments(x)[:-1]))


def test_it_compiles_into_one_graph():
    x, options = directions(b=2, d=20, l=37, n=5), {"orders": orders(37)}
    run = torch.compile(selective_scan_multi, backend="aot_eager", fullgraph=True)
    assert_equal(results(x, run, **options), results(x, **options))


class Module(torch.nn.Module):
    """Two directions, of any length."""

    def forward(self, u, delta, A, B, C):
        columns = ([x] * 2 for x in (delta, A, B, C))
        return selective_scan_multi(u, *columns, orders=["forward", "reverse"])[0]


def test_it_exports_with_any_length_and_can_then_be_trained():
    u, delta, A, B, C = (v for k, v in inputs().items() if k in ("u", "delta", "A", "B", "C"))
    l = torch.export.Dim("l", min=2, max=4096)
    with torch.no_grad():
        program = torch.export.export(
            Module(), (u, delta, A, B, C), dynamic_shapes=[{2: l}, {2: l}, None, {2: l}, {2: l}]
        )
    longer = [torch.cat([v, v.flip(-1)], dim=-1) if v.dim() > 2 else v for v in (u, delta, A, B, C)]
    leaves = [v.requires_grad_() for v in longer]
    got, want = program.module()(*leaves), Module()(*leaves)
    assert torch.equal(got, want)
    assert_equal(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (got, want)))


def test_directions_of_different_sizes_are_for_others():
    x = directions(2, b=2, d=6, l=20, n=3)
    other = inputs(b=2, d=6, l=20, n=4)
    for name in LISTED:
        x[name][1] = other[name]
    options = {"orders": ["forward", "reverse"]}
    with pytest.raises(ValueError, match=r"'cpu' cannot take directions that differ in their"):
        selective_scan_multi(**x, **options, backend="cpu")
    y, _ = selective_scan_multi(**x, **options)
    want, _ = selective_scan_multi(**x, **options, backend="reference")
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
