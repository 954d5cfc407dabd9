"""TOKI: the authors' values as released, the paper's equation in its slow form, and its bounds."""

import json
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pretrain.toki import contraction, interpolate
from tests.golden import Golden

CASES = (
    "L27_ends_visible", "L27_ends_masked", "L27_Azero", "L27_all_masked", "L27_all_visible",
    "L27_one_masked", "L216_ratio75", "L216_radius_1p2",
)  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared / "golden/hymamba_toki.safetensors")


def test_every_recorded_case_is_tested(golden):
    assert set(json.loads(golden.notes["cases"])) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_as_released(golden, case):
    recorded = golden.below(f"{case}/")
    y, A = recorded["y"].requires_grad_(), recorded["A"].requires_grad_()
    filled = interpolate(y[None], recorded["active"].bool()[None], A, mode="as_released")
    scale = recorded["token_major"].abs().max()
    assert (filled[0] - recorded["token_major"]).abs().max() <= 1e-5 * scale
    as_coded = filled.reshape(recorded["probe"].shape)
    (as_coded * recorded["probe"]).sum().backward()
    for ours, theirs in ((A.grad, recorded["grad_A"]), (y.grad, recorded["grad_y"])):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-12


@pytest.mark.parametrize("case", [case for case in CASES if case != "L27_all_masked"])
def test_the_paper_between_anchors(golden, case):
    """Equation 8 as recorded, between the first and the last visible token."""
    recorded = golden.below(f"{case}/")
    visible, A = recorded["active"].bool(), recorded["A"]
    bounded = contraction(A)
    if not torch.equal(bounded, A):
        return  # recorded for a transition that grows; the slow form below covers ours
    filled = interpolate(recorded["y"][None], visible[None], A)[0]
    first, *_, last = visible.nonzero().flatten().tolist()
    inner = slice(first, last + 1)
    torch.testing.assert_close(filled[inner], recorded["my_eq8"][inner], rtol=1e-5, atol=1e-5)


def equation_8(tokens: Tensor, visible: Tensor, transition: Tensor) -> Tensor:
    """One sample, one sum for each hidden token, with explicit powers of the transition."""
    shown = visible.nonzero().flatten().tolist()
    ends = [(-1, shown[0]), *((p, p) for p in shown), (len(tokens), shown[-1])]
    anchors = sorted(ends)
    rows = tokens.clone()
    for (left, y0), (right, y1) in pairwise(anchors):
        hidden = right - left - 1
        s = [torch.lerp(tokens[y0], tokens[y1], n / (hidden + 2)) for n in range(hidden + 1)]
        for j in range(1, hidden + 1):
            powers = [torch.linalg.matrix_power(transition, j - n) for n in range(j + 1)]
            rows[left + j] = sum(P @ x for P, x in zip(powers, s, strict=False))
    return rows


@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.95])
@pytest.mark.parametrize("size", [0.0, 0.5, 3.0])
def test_the_paper_equals_its_slow_form(ratio, size):
    tokens = torch.randn(3, 40, 6, dtype=torch.float64)
    visible = torch.rand(3, 40) > ratio
    visible[:, 17] = True
    transition = size * torch.randn(6, 6, dtype=torch.float64) / 6**0.5
    filled = interpolate(tokens, visible, transition)
    bounded = contraction(transition)
    for row, x, shown in zip(filled, tokens, visible, strict=True):
        torch.testing.assert_close(row, equation_8(x, shown, bounded), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["paper", "as_released"])
def test_gradients(mode):
    tokens = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    visible = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    transition = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda y, A: interpolate(y, visible, A, mode=mode), (tokens, transition)
    )


def test_from_zero_it_is_linear_interpolation_and_learns():
    tokens = torch.tensor([[[1.0], [9.0], [9.0], [4.0], [9.0]]])
    visible = torch.tensor([[True, False, False, True, False]])
    transition = torch.zeros(1, 1, requires_grad=True)
    filled = interpolate(tokens, visible, transition)
    torch.testing.assert_close(filled.flatten(), torch.tensor([1, 1.75, 2.5, 4, 4]))
    filled.sum().backward()
    assert transition.grad.item() != 0


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [2, 32, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_token_outgrows_its_neighbours(radius, gap, dtype):
    transition = torch.randn(16, 16)
    transition = radius * transition / torch.linalg.eigvals(transition).abs().max()
    transition.requires_grad_()
    tokens = torch.randn(1, gap + 1, 16).to(dtype)
    visible = torch.zeros(1, gap + 1, dtype=torch.bool)
    visible[:, [0, -1]] = True
    filled = interpolate(tokens, visible, transition)
    filled.square().sum().backward()
    largest = tokens[visible].float().norm(dim=-1).max()
    steps = torch.arange(1, gap + 2)
    assert (filled[0].norm(dim=-1) <= 1.001 * steps * largest).all()
    assert transition.grad.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-8, 0.3, 1.0, 50.0, 1e6])
def test_a_contraction_has_a_norm_of_at_most_one(size):
    matrix = (size * torch.randn(24, 24)).requires_grad_()
    bounded = contraction(matrix)
    bounded.square().sum().backward()
    norm = torch.linalg.matrix_norm(matrix, 2)
    assert torch.linalg.matrix_norm(bounded, 2) <= 1 + 1e-5
    assert matrix.grad.isfinite().all()
    if norm <= 24 ** (-1 / 16):
        assert torch.equal(bounded, matrix)
    else:
        assert torch.linalg.matrix_norm(bounded, 2) >= 24 ** (-1 / 16) - 1e-5 or norm < 1


def test_hidden_rows_are_never_read_and_samples_do_not_mix():
    tokens, transition = torch.randn(4, 30, 5), torch.randn(5, 5)
    visible = torch.rand(4, 30) > 0.7
    visible[:, 3] = True
    filled = interpolate(tokens, visible, transition)
    garbage = torch.where(visible[..., None], tokens, torch.nan)
    assert torch.equal(interpolate(garbage, visible, transition), filled)
    for i in range(4):
        alone = interpolate(tokens[i : i + 1], visible[i : i + 1], transition)
        torch.testing.assert_close(alone[0], filled[i], rtol=1e-5, atol=1e-6)


def test_refusals():
    tokens, transition = torch.randn(2, 4, 3), torch.eye(3)
    with pytest.raises(ValueError, match="shows no token"):
        interpolate(tokens, torch.tensor([[True] * 4, [False] * 4]), transition)
    with pytest.raises(ValueError, match="unknown mode 'Paper'"):
        interpolate(tokens, torch.ones(2, 4, dtype=torch.bool), transition, mode="Paper")
