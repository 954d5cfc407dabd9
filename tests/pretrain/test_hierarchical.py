"""Hierarchical pretraining: the authors' numbers, no leak, nothing mixed, what is handed on."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.networks import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.layers.frame_tokens import frame_sinusoid
from nnunet_plugins.networks.released_endomamba import ENDOMAMBA_NAMES
from nnunet_plugins.networks.renaming import renamed
from pretrain.hierarchical import HierarchicalPretraining, absorb_normalization
from pretrain.released_hierarchical import DECODER_NAMES, released_pretraining
from pretrain.tubes import tube_visible
from tests.golden import Golden

TOLERANCE = {"rtol": 1e-5, "atol": 5e-6}
SIZES = {"d_model": 16, "depth": 4, "image_size": (32, 48), "patch_size": 8, "drop_path": 0.0}


class Given:
    """A teacher that says what it was told to say."""

    name, fingerprint = "given", "0"

    def __init__(self, tokens: Tensor) -> None:
        self.given, self.channels = tokens, tokens.shape[-1]

    def tokens(self, clip: Tensor, **place: Tensor) -> Tensor:
        return self.given


def small(teacher=None, **options) -> HierarchicalPretraining:
    torch.manual_seed(1)
    sizes = {"decoder_width": 24, "decoder_depth": 1} | options
    return HierarchicalPretraining(EndoMambaBackbone(3, **SIZES), teacher=teacher, **sizes)


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(2, 3, 3, 32, 48)


@pytest.fixture
def visible() -> Tensor:
    return tube_visible(2, 3, 24, 0.75, torch.tensor([1, 2]))


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    return Golden(shared / "golden/endomamba_pretrain.safetensors")


@pytest.fixture(scope="module")
def recorded(golden) -> tuple[HierarchicalPretraining, Tensor, Tensor]:
    """The released objective, its clips in [0, 1] and what is visible."""
    teacher = Given(golden["in.teacher_features"].view(2, 8, 14, 14, 32))
    objective = released_pretraining({"model": golden.below("sd."), "epoch": 1}, teacher=teacher)
    return objective, golden["in.videos_u8"].float() / 255, ~golden["in.mask"].view(2, 8, 196)


def our_name(released: str) -> str:
    name = renamed(released, DECODER_NAMES)
    return name or "backbone." + renamed(released, ENDOMAMBA_NAMES).removeprefix("encoder.")


def test_as_released(golden, recorded):
    objective, clip, visible = recorded
    features = objective.encode(clip, visible)
    torch.testing.assert_close(features, golden["out.encoder_visible_features"], **TOLERANCE)
    output = objective(clip, visible)
    wanted = golden["out.pred_every8"]
    torch.testing.assert_close(output.predicted.flatten(2)[:, ::8], wanted, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(output.parts["reconstruction"], golden["out.loss_mse_only"])
    torch.testing.assert_close(output.loss, golden["out.loss_total_with_teacher_w0.25"])
    objective.zero_grad()
    output.loss.backward()
    ours = dict(objective.named_parameters())
    gradients = golden.below("grad.")
    assert len(gradients) == 7
    for name, wanted in gradients.items():
        grad = ours[our_name(name)].grad
        grad = grad[:, 1:] if name == "encoder.pos_embed" else grad
        assert (grad - wanted.view(grad.shape)).norm() <= 1e-4 * wanted.norm(), name


def test_targets_and_places_as_released(golden, recorded):
    objective, clip, visible = recorded
    labels = golden["out.labels_every64"]
    hidden = torch.zeros(2, 1176, 256, 3)
    hidden[:, ::64] = labels.view(2, 19, 256, 3)
    error, _ = objective.losses(clip, hidden, visible)
    rest = objective.losses(clip, torch.zeros_like(hidden), visible)[0] - error
    torch.testing.assert_close(rest, labels.square().sum() / hidden.numel(), rtol=1e-4, atol=1e-6)
    places = frame_sinusoid(torch.arange(1568)[None, ::64], 24).float()
    torch.testing.assert_close(places, golden["meta.decoder_pos_embed_every64"], **TOLERANCE)


def test_checkpoints_that_do_not_fit_are_refused(golden):
    weights = golden.below("sd.")
    with pytest.raises(ValueError, match=r"not known: decoder\.else"):
        released_pretraining(weights | {"decoder.else": torch.zeros(24)})
    del weights["decoder.head.bias"]
    with pytest.raises(ValueError, match=r"does not fit the pretraining: .*1 missing"):
        released_pretraining(weights)


def test_hidden_pixels_change_nothing_but_the_target(clip, visible):
    objective = small(Given(torch.randn(2, 3, 4, 6, 16))).eval()
    shown = visible.view(2, 1, 3, 4, 6).repeat_interleave(8, 3).repeat_interleave(8, 4)
    other = torch.where(shown, clip, torch.rand_like(clip))
    assert not torch.equal(other, clip)
    first, second = objective(clip, visible), objective(other, visible)
    assert torch.equal(first.predicted, second.predicted)
    assert torch.equal(first.parts["alignment"], second.parts["alignment"])
    assert first.parts["reconstruction"] != second.parts["reconstruction"]
    seen = torch.where(shown, torch.rand_like(clip), clip)
    assert not torch.allclose(objective(seen, visible).predicted, first.predicted)


def test_gradients_come_from_visible_pixels_alone(clip, visible):
    objective = small()
    clip.requires_grad_()
    objective.decoder(objective.encode(clip, visible), visible).square().sum().backward()
    touched = objective.patches(clip.grad).abs().sum((2, 3)) > 0
    assert torch.equal(touched, visible.flatten(1))


def test_clips_of_a_batch_do_not_mix(clip, visible):
    objective = small().eval()
    other = clip.clone()
    other[1] = torch.rand_like(clip[1])
    together, changed = objective(clip, visible), objective(other, visible)
    assert torch.equal(together.predicted[0], changed.predicted[0])
    alone = objective(clip[:1], visible[:1])
    torch.testing.assert_close(together.predicted[:1], alone.predicted, **TOLERANCE)
    losses = [objective(clip[i : i + 1], visible[i : i + 1]).loss for i in (0, 1)]
    torch.testing.assert_close(together.loss, torch.stack(losses).mean(), **TOLERANCE)


def test_features_know_no_later_frame_and_stand_in_causal_order(clip, visible):
    objective = small().eval()
    other = clip.clone()
    other[:, :, 2] = torch.rand_like(clip[:, :, 2])
    first, second = (objective.encode(x, visible).view(2, 3, 6, 16) for x in (clip, other))
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


def test_predictions_belong_to_their_patches(clip, visible):
    """A perfect prediction has no loss and restores the clip; one in another order does not."""
    objective = small()
    patches = objective.patches(clip)
    assert torch.equal(patches[0, 7, :, 1], clip[0, 1, 0, 8:16, 8:16].flatten())
    normalized = (patches - patches.mean(2, keepdim=True)) / (patches.std(2, keepdim=True) + 1e-6)
    perfect = normalized[~visible.flatten(1)].view(2, -1, 64, 3)
    assert objective.losses(clip, perfect, visible)[0] < 1e-12
    assert objective.losses(clip, perfect.flip(1), visible)[0] > 0.5
    output = objective(clip, visible)
    perfect = type(output)(output.loss, perfect, visible, {})
    torch.testing.assert_close(objective.restored(clip, perfect), clip, **TOLERANCE)
    restored = objective.restored(clip, output)
    shown = visible.flatten(1)
    torch.testing.assert_close(objective.patches(restored)[shown], patches[shown])
    assert not torch.allclose(restored, clip, atol=0.05)


def test_the_patch_mean_predicts_nothing(clip, visible):
    output = small()(clip, visible)
    nothing, mean = small().losses(clip, torch.zeros_like(output.predicted), visible)
    torch.testing.assert_close(nothing, mean)
    assert output.parts["patch_mean"] == pytest.approx(63 / 64, abs=1e-3)


def test_alignment_is_at_the_same_places_and_weighted(clip, visible):
    plain = small().eval()
    features = plain.encode(clip, visible).detach()
    tokens = torch.randn(2, 72, 16)
    tokens[visible.flatten(1)] = features.flatten(0, 1)
    same = small(Given(tokens.view(2, 3, 4, 6, 16))).eval()(clip, visible)
    assert same.parts["alignment"] < 1e-6
    torch.testing.assert_close(same.loss, plain(clip, visible).loss)
    order = tokens.view(2, 3, 4, 6, 16).transpose(2, 3).reshape(2, 3, 4, 6, 16)
    other = small(Given(order), alignment_weight=2.0).eval()(clip, visible)
    assert other.parts["alignment"] > 0.3
    torch.testing.assert_close(
        other.loss, other.parts["reconstruction"] + 2 * other.parts["alignment"]
    )


def test_a_teacher_of_another_width_is_met_by_a_projection(clip, visible):
    objective = small(Given(torch.randn(2, 3, 2, 3, 40)))
    output = objective(clip, visible)
    output.loss.backward()
    assert objective.projection.weight.shape == (40, 16)
    assert objective.projection.weight.grad.abs().sum() > 0
    assert not any("projection" in name for name in objective.network.state_dict())
    assert not any("teacher" in name for name in objective.state_dict())


def test_everything_that_learns_gets_a_gradient(clip):
    objective = small(Given(torch.randn(2, 3, 4, 6, 16)))
    before = objective.backbone.cls_token.clone()
    objective(clip, seed=torch.tensor([3, 4])).loss.backward()
    frozen = [name for name, p in objective.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.cls_token"]
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(objective.backbone.cls_token, before)
    assert (objective.backbone.pos_embed[:, 0] == 0).all()


def test_what_is_handed_on_sees_clips_in_0_1_as_they_are(clip):
    objective = small().eval()
    backbone, handed_on = objective.backbone, objective.network["encoder"]
    normalized = (clip - objective.mean) / objective.std
    torch.testing.assert_close(handed_on(clip), backbone(normalized), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(handed_on(clip), backbone(clip), atol=1e-2)
    names = set(EndoMamba(3, 2, **SIZES, decoder_widths=(8, 8, 8)).state_dict())
    assert set(objective.network.state_dict()) == {n for n in names if n.startswith("encoder.")}


def test_folding_is_exact():
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(3, 4, (1, 4, 4), stride=(1, 4, 4)).double()
    mean, std = torch.rand(3).double(), torch.rand(3).double() + 0.1
    clip = torch.rand(1, 3, 2, 8, 8).double()
    shape = (3, 1, 1, 1)
    wanted = convolution((clip - mean.view(shape)) / std.view(shape))
    absorb_normalization(convolution, mean, std)
    torch.testing.assert_close(convolution(clip), wanted, rtol=1e-12, atol=1e-12)


def test_seeds_decide_what_is_hidden(clip):
    objective = small().eval()
    first, again = (objective(clip, seed=torch.tensor([5, 6])) for _ in range(2))
    assert torch.equal(first.visible, again.visible)
    assert torch.equal(first.loss, again.loss)
    assert (first.visible == first.visible[:, :1]).all()
    assert not torch.equal(objective(clip, seed=torch.tensor([7, 8])).visible, first.visible)


def test_it_learns_to_fill_in():
    """A texture that repeats within a frame is found again in its hidden patches."""
    torch.manual_seed(0)
    objective = small()
    clip = F.interpolate(torch.rand(2, 3, 1, 4, 4), (3, 8, 8)).repeat(1, 1, 1, 4, 6)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        output = objective(clip, seed=torch.tensor([step, -step]).abs())
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.3 * output.parts["patch_mean"]


def test_refusals(clip, visible):
    backbone = EndoMambaBackbone(3, **SIZES)
    with pytest.raises(ValueError, match="mask_ratio is 1"):
        HierarchicalPretraining(backbone, mask_ratio=1.0)
    with pytest.raises(ValueError, match="takes 3 channels, mean has 1 entries"):
        HierarchicalPretraining(backbone, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="a multiple of the heads"):
        HierarchicalPretraining(backbone, decoder_width=16)
    objective = small()
    for size in ((3, 2, 30, 48), (1, 2, 32, 48), (3, 32, 48)):
        with pytest.raises(ValueError, match="cannot be pretrained on"):
            objective(torch.rand(1, *size))
    with pytest.raises(ValueError, match="make it for this clip"):
        objective(clip, visible[:, :2])
    with pytest.raises(ValueError, match="hide at least one"):
        objective(clip, torch.ones_like(visible))
