"""The affine regressor that is shipped, what it makes of blank patches, and the command for it."""

import math
import zlib
from dataclasses import asdict

import matplotlib.image
import pytest
import torch

from nnunet_plugins.cli import main
from nnunet_plugins.losses import (
    AffineConstraint,
    AffineTraining,
    VivimLoss,
    default_regressor,
    load_notes,
    load_regressor,
    sobel_edges,
)
from nnunet_plugins.losses.affine import SHIPPED
from nnunet_plugins.losses.affine_picture import warped_back
from nnunet_plugins.losses.affine_training import FULL_CONTRAST, accuracy, edge_pairs

BLANK = math.sqrt(2)


@pytest.fixture(scope="module")
def shipped():
    return default_regressor()


@pytest.fixture(scope="module")
def pairs():
    return edge_pairs(256, AffineTraining(seed=7), torch.Generator().manual_seed(7))


def lesion(frames: int = 2, size: int = 96) -> torch.Tensor:
    """Labels (1, 1, t, h, w) of a disk that moves along."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    clip = [((row - 45) ** 2 + (column - 40 - 4 * t) ** 2 < 26**2).long() for t in range(frames)]
    return torch.stack(clip)[None, None]


def test_the_shipped_regressor_is_small_and_as_accurate_as_its_file_says(shipped):
    assert len(zlib.compress(SHIPPED.read_bytes())) < 115_000  # as in a wheel
    notes = load_notes(SHIPPED)
    options = AffineTraining()
    assert notes.items() >= asdict(options).items()
    found = accuracy(shipped, options)
    for name, value in asdict(found).items():
        assert value == pytest.approx(notes[name], abs=2e-3), name
    assert found.error < 0.75 * found.identity_error
    assert found.order > 0.95


def test_faint_edges_ask_for_a_matrix_nearer_to_zero():
    options = AffineTraining(patch=16, strength=0)
    second, matrix = edge_pairs(400, options, torch.Generator().manual_seed(0), faint=1)[1:]
    share = matrix[:, 0, 0]
    torch.testing.assert_close(matrix, share[:, None, None] * torch.eye(2, 3))
    assert 0.4 < float((share == 0).float().mean()) < 0.6
    assert share.max() <= 1
    quiet = second.flatten(1).std(1) < 0.03  # blank without noise, or nearly
    assert (share[quiet] < 0.5).all()
    assert float((second[share == 0].mean((1, 2)) > 0.5).float().mean()) > 0.2  # of any grey
    assert (second.amax((1, 2)) - second.amin((1, 2)))[share == 0].min() < 0.01 < FULL_CONTRAST


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 0.9])
def test_a_blank_patch_is_far_and_a_right_one_near(shipped, pairs, level):
    first = pairs[0]
    blank = shipped.distance(first, torch.full_like(first, level))
    right, faded = shipped.distance(first, first), shipped.distance(first, 0.1 + 0.5 * first)
    assert float(blank.mean()) == pytest.approx(BLANK, abs=0.15)
    assert float(right.mean()) < 0.15
    assert float(faded.mean()) < 0.15
    assert float(blank.min()) > 3 * float(right.max())


@pytest.mark.parametrize("logit", [-4.0, -2.0, 0.0])
def test_from_a_blank_boundary_the_constraint_raises_the_pixels_of_the_edge(shipped, logit):
    edges = sobel_edges(lesion())
    logits = torch.full_like(edges, logit, requires_grad=True)
    AffineConstraint(shipped)(logits.sigmoid(), edges).backward()
    on, off = -logits.grad[edges == 1], -logits.grad[edges == 0]
    assert on.mean() > 0
    assert on.mean() > 3 * off.mean().abs()
    assert float((on > 0).float().mean()) > 0.75


def test_stepping_down_the_constraint_draws_the_edge(shipped):
    """From a blank map, by the affine term alone."""
    edges = sobel_edges(lesion(frames=1))
    logits = torch.full_like(edges, -2.0, requires_grad=True)
    constraint, optimizer = AffineConstraint(shipped), torch.optim.SGD([logits], lr=50)
    costs = []
    for _ in range(60):
        cost = constraint(logits.sigmoid(), edges)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(float(cost.detach()))
    assert costs[0] > 1
    assert costs[-1] < 0.5 * costs[0]
    on, off = logits.detach()[edges == 1], logits.detach()[edges == 0]
    assert float((on[:, None] > off).float().mean()) > 0.75


def test_every_term_has_a_gradient_with_the_shipped_regressor(shipped):
    labels = lesion()
    logits = torch.randn(1, 2, *labels.shape[2:], requires_grad=True)
    boundary = torch.randn(labels.shape, requires_grad=True)
    terms = VivimLoss(shipped).terms((logits, boundary), labels)
    assert set(terms) == {"segmentation", "boundary", "affine"}
    for name, term in terms.items():
        source = logits if name == "segmentation" else boundary
        (grad,) = torch.autograd.grad(term, source, retain_graph=True)
        assert grad.isfinite().all(), name
        assert grad.any(), name


def test_warping_back_undoes_a_matrix(pairs):
    first, second, matrix = pairs
    clean = ((second == 0) | (second == 1)).flatten(1).all(1)
    first, second, matrix = first[clean], second[clean], matrix[clean]
    back = warped_back(second, matrix)

    def shared(x: torch.Tensor) -> float:
        return float(torch.minimum(x, first).sum() / torch.maximum(x, first).sum())

    assert shared(back) > 0.55
    assert shared(second) < 0.45


def test_the_command_writes_a_regressor_and_a_picture_and_keeps_what_is_there(tmp_path, capsys):
    out, picture = tmp_path / "new/affine.safetensors", tmp_path / "pairs.png"
    command = ["affine-regressor", "--out", str(out), "--patch", "16", "--batch", "8"]
    command += ["--picture", str(picture)]
    assert main([*command, "--steps", "3"]) == 0
    shown = capsys.readouterr().out
    assert "mean absolute error of a matrix" in shown
    assert load_regressor(out).patch == 16
    notes = load_notes(out)
    assert (notes["steps"], notes["batch"], notes["seed"]) == (3, 8, 0)
    assert f"{notes['error']:.4f}" in shown
    assert matplotlib.image.imread(picture).shape[2] == 4
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [out.name, picture.name]

    before = out.read_bytes()
    assert main([*command, "--steps", "4"]) == 1
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*command, "--steps", "4", "--overwrite"]) == 0
    assert load_notes(out)["steps"] == 4


@pytest.mark.parametrize(
    ("option", "message"),
    [(["--patch", "15"], "even number"), (["--patch", "4"], "at least 8"), (["--steps", "0"], "1")],
)
def test_what_trains_nothing_is_refused_before_it_starts(option, message, tmp_path, capsys):
    out = tmp_path / "affine.safetensors"
    assert main(["affine-regressor", "--out", str(out), *option]) == 1
    assert message in capsys.readouterr().err.replace("one at least", "1")
    assert not out.exists()
