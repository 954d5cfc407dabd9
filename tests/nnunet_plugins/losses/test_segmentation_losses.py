"""Cross-entropy, IoU and the boundary loss: what they reward, and which pixels they read."""

import pytest
import torch
from torch.nn import functional as F

from nnunet_plugins.losses import CrossEntropyIoU, boundary_loss, iou_loss, structure_loss

CLASSES, IGNORED = 3, 3


def clip_labels(classes: int = CLASSES) -> torch.Tensor:
    return torch.randint(0, classes, (2, 1, 3, 8, 8))


def logits_of(labels: torch.Tensor, classes: int = CLASSES) -> torch.Tensor:
    """Very sure and right."""
    return 50 * F.one_hot(labels[:, 0], classes).movedim(-1, 1).float()


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_truth_costs_nothing_and_anything_else_something(classes):
    labels = clip_labels(classes)
    loss = CrossEntropyIoU()
    assert loss(logits_of(labels, classes), labels) < 1e-3
    assert loss(logits_of(labels.flip(2), classes), labels) > 0.5


def test_one_logit_map_is_two_with_the_background_at_zero():
    labels, lesion = clip_labels(2), torch.randn(2, 1, 3, 8, 8)
    both = torch.cat([torch.zeros_like(lesion), lesion], dim=1)
    torch.testing.assert_close(CrossEntropyIoU()(lesion, labels), CrossEntropyIoU()(both, labels))


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_ignored_pixels_change_nothing_and_learn_nothing(classes):
    labels = clip_labels(max(classes, 2))
    labels[:, :, 1:] = IGNORED
    logits = torch.randn(2, classes, 3, 8, 8, requires_grad=True)
    loss = CrossEntropyIoU(IGNORED)(logits, labels)
    first = CrossEntropyIoU()(logits[:, :, :1], labels[:, :, :1])
    torch.testing.assert_close(loss, first)
    loss.backward()
    assert logits.grad[:, :, 0].any()
    assert not logits.grad[:, :, 1:].any()


def test_a_batch_without_a_known_pixel_costs_nothing():
    logits = torch.randn(1, 2, 1, 4, 4, requires_grad=True)
    loss = CrossEntropyIoU(IGNORED)(logits, torch.full((1, 1, 1, 4, 4), IGNORED))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_iou_of_known_masks():
    target = torch.zeros(1, 1, 10, 10)
    target[..., :5] = 1
    half = target.clone()
    half[..., 5:, :] = 0
    assert float(iou_loss(target, target)) == 0
    assert float(iou_loss(half, target)) == pytest.approx(1 - 26 / 51)
    assert float(iou_loss(torch.zeros_like(target), torch.zeros_like(target))) == 0


def test_the_structure_loss_minds_boundaries_more_than_interiors():
    target = torch.zeros(1, 1, 64, 128)
    target[..., :64] = 1
    logits = 20 * (2 * target - 1)
    near, far = logits.clone(), logits.clone()
    near[..., 62:64] *= -1
    far[..., 30:32] *= -1
    assert structure_loss(near, target) > structure_loss(far, target)


def test_balance_gives_edges_and_the_rest_the_same_say():
    edges = torch.zeros(1, 1, 1, 10, 10)
    edges[..., 0] = 1
    logits = torch.zeros_like(edges, requires_grad=True)
    boundary_loss(logits, edges, balanced=True).backward()
    on, off = logits.grad[edges == 1].sum(), logits.grad[edges == 0].sum()
    torch.testing.assert_close(on, -off)
