"""The affine regressor, how it is trained, and Vivim's constraint (Eq. 8) and objective (Eq. 9)."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from nnunet_plugins.losses import (
    AffineConstraint,
    AffineTraining,
    VivimLoss,
    load_notes,
    load_regressor,
    save_regressor,
    sobel_edges,
    train_regressor,
)
from nnunet_plugins.losses.affine import patches
from nnunet_plugins.losses.affine_training import edge_pairs

SMALL = AffineTraining(patch=12, steps=400, batch=160, learning_rate=5e-3)


@pytest.fixture(scope="module")
def trained():
    return train_regressor(SMALL)


def disks(frames: int = 3, size: int = 24, batch: int = 2) -> torch.Tensor:
    """A disk that moves along: labels (b, 1, t, h, w)."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    clip = [((row - 10) ** 2 + (column - 9 - t) ** 2 < 36).long() for t in range(frames)]
    return torch.stack(clip).expand(batch, 1, -1, -1, -1)


def test_matrices_take_the_first_patch_to_the_second():
    """The first patch, resampled through its matrix, lies on the second; unmoved it does not."""
    first, second, matrix = edge_pairs(
        200, AffineTraining(patch=32), torch.Generator().manual_seed(0)
    )
    clean = ((second == 0) | (second == 1)).flatten(1).all(1)
    first, second, matrix = first[clean, None], second[clean, None], matrix[clean]
    grid = F.affine_grid(matrix, first.shape, align_corners=False)
    moved = F.grid_sample(first, grid, align_corners=False)

    def shared_by(x: torch.Tensor) -> float:
        return float(torch.minimum(x, second).sum() / torch.maximum(x, second).sum())

    assert shared_by(moved) > 0.6
    assert shared_by(first) < 0.4


def test_the_synthetic_pairs_are_what_the_constraint_meets():
    first, second, matrix = edge_pairs(64, SMALL, torch.Generator().manual_seed(0))
    assert first.unique().tolist() == [0, 1]
    assert second.min() >= 0
    assert second.max() <= 1
    assert first.sum((1, 2)).min() >= SMALL.patch
    assert ((matrix - torch.eye(2, 3)).abs().amax((1, 2)) <= SMALL.strength + 1e-6).all()


def test_training_beats_knowing_nothing(trained):
    _, accuracy = trained
    assert accuracy.error < 0.97 * accuracy.identity_error
    assert accuracy.still_distance < accuracy.moved_distance
    assert accuracy.order > 0.7


def test_the_same_seed_gives_the_same_regressor_and_leaves_the_global_one_alone():
    options = AffineTraining(patch=8, steps=3, batch=8)
    torch.manual_seed(5)
    first, _ = train_regressor(options)
    after = torch.rand(1)
    torch.manual_seed(6)
    second, _ = train_regressor(options)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    for ours, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_a_regressor_comes_back_from_its_file(trained, tmp_path):
    regressor, accuracy = trained
    save_regressor(regressor, tmp_path / "new/affine.safetensors", {"error": accuracy.error})
    loaded = load_regressor(tmp_path / "new/affine.safetensors")
    first, second, _ = edge_pairs(4, SMALL, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(first, second), regressor(first, second), rtol=0, atol=1e-3)
    assert load_notes(tmp_path / "new/affine.safetensors") == {"error": accuracy.error}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["affine.safetensors"]
    assert not any(p.requires_grad for p in loaded.parameters())


def test_other_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match="holds no affine regressor; train one"):
            load_regressor(tmp_path / f"{name}.safetensors")


def test_patches_cover_a_frame_of_any_size():
    maps = torch.arange(2 * 3 * 10 * 7.0).view(2, 1, 3, 10, 7)
    cut = patches(maps, 4, outside=-1)
    assert cut.shape == (2, 3, 3, 2, 4, 4)
    assert torch.equal(cut[1, 2, 1, 0], maps[1, 0, 2, 4:8, :4])
    assert (cut[:, :, :, 1, :, 3] == -1).all()


def test_the_constraint_is_equation_8(trained):
    """Written out for one patch a frame."""
    regressor, _ = trained
    constraint = AffineConstraint(regressor, identity_weight=0.7, neighbour_weight=0.2)
    edges = sobel_edges(disks(frames=3, batch=1)[..., :12, :12])
    predicted = torch.rand_like(edges)
    one, total = torch.eye(2, 3), 0.0
    for t, neighbour in ((0, 1), (1, 2), (2, 1)):
        own = regressor(edges[0, :, t], predicted[0, :, t])[0] - one
        other = regressor(edges[0, :, t], predicted[0, :, neighbour])[0] - one
        total += 0.7 * own.square().sum().sqrt() - 0.2 * other.square().sum().sqrt()
    assert float(constraint(predicted, edges)) == pytest.approx(float(total) / 3, rel=1e-4)


def test_a_right_boundary_costs_less_than_a_shifted_one(trained):
    constraint = AffineConstraint(trained[0], neighbour_weight=0)
    edges = sobel_edges(disks(frames=1))
    right, shifted = constraint(edges, edges), constraint(edges.roll(2, dims=-1), edges)
    assert right < shifted


def test_a_clip_of_one_frame_has_no_neighbour_and_an_empty_one_no_cost(trained):
    edges = sobel_edges(disks(frames=1))
    predicted = torch.rand_like(edges).requires_grad_()
    alone = AffineConstraint(trained[0], neighbour_weight=5)(predicted, edges)
    plain = AffineConstraint(trained[0], neighbour_weight=0)(predicted, edges)
    torch.testing.assert_close(alone, plain)
    empty = AffineConstraint(trained[0])(predicted, torch.zeros_like(edges))
    empty.backward()
    assert float(empty.detach()) == 0
    assert predicted.grad is not None


@pytest.mark.parametrize("balanced", [False, True])
def test_every_term_of_the_objective_has_a_gradient_and_the_regressor_learns_nothing(
    trained, balanced
):
    regressor, labels = trained[0], disks()
    before = [p.clone() for p in regressor.parameters()]
    loss = VivimLoss(regressor, balanced=balanced)
    logits = torch.randn(2, 2, 3, 24, 24, requires_grad=True)
    boundary = torch.randn(2, 1, 3, 24, 24, requires_grad=True)
    terms = loss.terms((logits, boundary), labels)
    assert set(terms) == {"segmentation", "boundary", "affine"}
    for name, term in terms.items():
        source = logits if name == "segmentation" else boundary
        (grad,) = torch.autograd.grad(term, source, retain_graph=True)
        assert grad.isfinite().all()
        assert grad.any(), name
    loss((logits, boundary), labels).backward()
    assert list(loss.parameters()) == list(regressor.parameters())
    for p, old in zip(regressor.parameters(), before, strict=True):
        assert p.grad is None
        assert torch.equal(p, old)


def test_both_terms_of_the_constraint_have_a_gradient_of_their_own(trained):
    """The first frame's target is edged, the second's is empty: it is read as a neighbour only."""
    labels = disks(frames=2).clone()
    labels[:, :, 1] = 0
    edges = sobel_edges(labels)
    for own, other, reached in ((1.0, 0.0, 0), (0.0, 1.0, 1)):
        predicted = torch.rand_like(edges).requires_grad_()
        AffineConstraint(trained[0], own, other)(predicted, edges).backward()
        assert predicted.grad[:, :, reached].any()
        assert not predicted.grad[:, :, 1 - reached].any()


def test_the_objective_is_the_weighted_sum_of_its_terms(trained):
    loss = VivimLoss(trained[0])
    prediction = torch.randn(2, 2, 3, 24, 24), torch.randn(2, 1, 3, 24, 24)
    terms = loss.terms(prediction, disks())
    wanted = terms["segmentation"] + 0.3 * terms["affine"] + 0.3 * terms["boundary"]
    torch.testing.assert_close(loss(prediction, disks()), wanted)


def test_without_boundary_logits_or_regressor_there_are_fewer_terms(trained):
    prediction = torch.randn(2, 2, 3, 24, 24), torch.randn(2, 1, 3, 24, 24)
    assert set(VivimLoss(trained[0]).terms(prediction[0], disks())) == {"segmentation"}
    assert set(VivimLoss(None).terms(prediction, disks())) == {"segmentation", "boundary"}


def test_unknown_pixels_are_neither_boundary_nor_lesion(trained):
    """Frames without labels are read by nothing, as neighbours neither: nothing would pull them."""
    labels = disks().clone()
    labels[:, :, 1:] = 2
    loss = VivimLoss(trained[0], ignore_label=2)
    logits = torch.randn(2, 2, 3, 24, 24, requires_grad=True)
    boundary = torch.randn(2, 1, 3, 24, 24, requires_grad=True)
    terms = loss.terms((logits, boundary), labels)
    (terms["segmentation"] + terms["boundary"]).backward(retain_graph=True)
    assert not logits.grad[:, :, 1:].any()
    assert boundary.grad[:, :, 0].any()
    assert not boundary.grad[:, :, 1:].any()
    terms["affine"].backward()
    assert not boundary.grad[:, :, 1:].any()


def test_the_objective_survives_float16_logits_beyond_its_range(trained):
    prediction = (
        torch.full((1, 2, 1, 24, 24), 6e4).half(),
        torch.full((1, 1, 1, 24, 24), 6e4).half(),
    )
    with torch.autocast("cpu", torch.float16):
        assert VivimLoss(trained[0])(prediction, disks(1, batch=1)).isfinite()
