"""The released losses equal the authors' recorded values and gradients."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nnunet_plugins.losses import boundary_loss, iou_loss, released_edges, structure_loss

CENTRE = slice(2, None, 5)
"""The middle frame of each clip of five, the only one that the released loss reads."""


@pytest.fixture(scope="module")
def recorded(shared) -> dict[str, Tensor]:
    net = load_file(shared / "golden/vivim_net.safetensors")
    loss = load_file(shared / "golden/vivim_loss.safetensors")
    return loss | {name: net[name] for name in ("out.logits", "out.edge")}


@pytest.mark.parametrize(
    ("as_released", "name"),
    [(True, "structure_loss_as_coded"), (False, "structure_loss_intended_weighted_bce")],
)
def test_structure_loss(recorded, as_released, name):
    loss = structure_loss(
        recorded["out.logits"][CENTRE], recorded["in.target"][CENTRE], as_released=as_released
    )
    torch.testing.assert_close(loss, recorded[f"out.{name}"], rtol=1e-5, atol=1e-6)


def test_gradient_of_the_structure_loss(recorded):
    logits = recorded["out.logits"][CENTRE].clone().requires_grad_()
    structure_loss(logits, recorded["in.target"][CENTRE], as_released=True).backward()
    wanted = recorded["out.structure_loss_grad_logits"]
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-4, atol=1e-8)


def test_edges(recorded):
    torch.testing.assert_close(released_edges(recorded["in.target"]), recorded["out.edge_gt"])


def test_balanced_boundary_loss_and_its_gradient(recorded):
    logits = recorded["out.edge"][CENTRE].clone().requires_grad_()
    loss = boundary_loss(logits, recorded["out.edge_gt"][CENTRE], balanced=True)
    torch.testing.assert_close(loss, recorded["out.edge_bce2d"], rtol=1e-5, atol=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, recorded["out.edge_bce2d_grad"], rtol=1e-4, atol=1e-9)


def test_the_released_edge_attention_takes_all_but_predicted_edges_for_lesion(recorded):
    """Filler 1 where an ignored label was meant, so this is no loss to offer, only to explain."""
    logits, edge = recorded["out.logits"][CENTRE], recorded["out.edge"][CENTRE]
    target = torch.where(edge > 0.8, recorded["in.target"][CENTRE], 1.0)
    torch.testing.assert_close(
        structure_loss(logits, target, as_released=True), recorded["out.edge_attention_as_coded"],
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("frame", [0, 1])
def test_iou_of_hard_masks_is_the_jaccard_index_of_the_recorded_curves(recorded, frame):
    """On hard masks the smoothing of one pixel is all that differs."""
    curves = recorded[f"metric.frame{frame}.curves_dice_jac_prec_rec_spec_f"]
    p = recorded["out.logits"][CENTRE].sigmoid()[frame][None]
    target = (recorded["in.target"][CENTRE][frame][None] > 0.5).float()
    for i, threshold in enumerate(np.linspace(1, 0, 256)):
        jaccard = 1 - iou_loss((p > threshold).float(), target)
        assert float(jaccard) == pytest.approx(float(curves[i, 1]), abs=1e-3)
