import itertools

import pytest
import torch

from mamba_kernels.scan_order import SCAN_ORDERS, inverse, scan_order

GRIDS = [
    *itertools.product(range(1, 10), repeat=2),
    *itertools.product(range(1, 6), repeat=3),
    (32, 20),
    (13, 40),
    (8, 12, 16),
    (7, 14, 14),
    (3, 17, 2),
]


def steps(order, grid):
    """How far each step goes along each axis."""
    return torch.stack(torch.unravel_index(order, grid), dim=1).diff(dim=0).abs()


@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_visits_each_cell_once(name):
    for grid in GRIDS:
        order = scan_order(name, grid)
        cells = torch.arange(torch.Size(grid).numel())
        assert order.dtype == torch.int64
        assert torch.equal(order.sort().values, cells), grid
        assert torch.equal(order[inverse(order)], cells)
        assert torch.equal(inverse(order)[order], cells)


def test_zigzag_only_steps_to_neighbours():
    for grid in GRIDS:
        assert (steps(scan_order("zigzag", grid), grid).sum(1) == 1).all(), grid


def test_hilbert_steps_to_neighbours_but_for_few_diagonals():
    for grid in GRIDS:
        taken = steps(scan_order("hilbert", grid), grid)
        diagonal = int((taken.sum(1) > 1).sum())
        assert (taken <= 1).all(), grid
        if all(size % 2 == 0 for size in grid):
            assert diagonal == 0, grid
        else:
            assert diagonal <= (1 if len(grid) == 2 else 1 + len(taken) // 20), grid


def test_hilbert_stays_in_one_neighbourhood():
    order = scan_order("hilbert", (32, 32))
    rows, columns = torch.unravel_index(order, (32, 32))
    for start in range(0, 1024, 64):
        part = slice(start, start + 64)
        assert rows[part].max() - rows[part].min() < 16
        assert columns[part].max() - columns[part].min() < 16


def test_small_orders_by_hand():
    assert scan_order("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert scan_order("zigzag", (2, 3)).tolist() == [0, 1, 2, 5, 4, 3]
    assert scan_order("zigzag", (2, 2, 2)).tolist() == [0, 1, 3, 2, 6, 7, 5, 4]
    assert scan_order("hilbert", (2, 2)).tolist() == [0, 1, 3, 2]


def test_shuffle_is_the_same_for_ever_and_depends_on_the_seed():
    assert scan_order("shuffle", (2, 5)).tolist() == [0, 3, 5, 7, 9, 6, 2, 8, 1, 4]
    orders = [tuple(scan_order("shuffle", (3, 4), seed=seed).tolist()) for seed in range(-5, 20)]
    assert len(set(orders)) == len(orders)


def test_shuffle_places_each_cell_everywhere():
    places = torch.stack([inverse(scan_order("shuffle", (4, 4), seed=s)) for s in range(800)])
    assert (places.double().mean(0) - 7.5).abs().max() < 0.7


@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_a_caller_cannot_spoil_the_next_one(name):
    want = scan_order(name, (3, 4)).clone()
    scan_order(name, [3, 4]).zero_()
    assert torch.equal(scan_order(name, (3, 4)), want)


@pytest.mark.parametrize("grid", [(), (4,), (2, 0), (2, 2, -1), (1, 2, 3, 4)])
def test_refuses_grids(grid):
    with pytest.raises(ValueError, match="expected two or three sizes of at least 1"):
        scan_order("raster", grid)


def test_refuses_unknown_orders():
    with pytest.raises(ValueError, match="'spiral'; known are: raster, zigzag, hilbert, shuffle"):
        scan_order("spiral", (2, 2))


def test_an_order_first_asked_for_on_another_device_is_not_remembered_there():
    with torch.device("meta"):
        scan_order("hilbert", (3, 5, 7))
    assert scan_order("hilbert", (3, 5, 7)).sort().values.tolist() == list(range(105))
