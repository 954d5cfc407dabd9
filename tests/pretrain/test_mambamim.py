"""MambaMIM: the authors' numbers as released, no leak from hidden voxels, and what must learn."""

import json

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from nnunet_plugins.networks import HyMamba, VanillaMamba
from pretrain.mambamim import MambaMIM
from pretrain.masking import random_visible
from pretrain.released import mambamim_from_released
from pretrain.toki import interpolate
from tests.golden import Golden

SMALL = {"features_per_stage": (4, 6, 8), "mamba_depth": 2}
NETWORKS = {
    "hymamba": (lambda: HyMamba(1, 3, **SMALL), (1, 16, 16, 8)),
    "hymamba-unidirectional": (lambda: HyMamba(1, 3, bidirectional=False, **SMALL), (1, 16, 8, 16)),
    "hymamba-hilbert": (lambda: HyMamba(1, 3, scan_order="hilbert", **SMALL), (1, 16, 16, 16)),
    "hymamba-anisotropic": (
        lambda: HyMamba(2, 3, strides=[(1, 1, 1), (1, 2, 2), (2, 2, 2)], **SMALL), (2, 6, 16, 12)
    ),
    "hymamba-2d": (
        lambda: HyMamba(3, 3, strides=[(1, 1), (2, 2), (2, 2)], **SMALL), (3, 16, 24)
    ),
    "vanilla": (lambda: VanillaMamba(1, 3, feature_size=2, d_model=12, depth=4), (1, 32, 48, 32)),
}  # fmt: skip
TOKI = ("paper", "as_released", "learned")


@pytest.fixture(params=NETWORKS)
def case(request) -> tuple:
    build, image = NETWORKS[request.param]
    return build(), image


def recorded(shared, name: str) -> Golden:
    return Golden(shared / f"golden/hymamba_mim_{name}.safetensors")


@pytest.fixture
def released(shared) -> MambaMIM:
    return mambamim_from_released(recorded(shared, "maskA").below("sd/"))


@pytest.mark.parametrize("name", ["maskA", "maskA_eval", "maskB_firstlast_masked"])
def test_as_released(shared, released, name):
    golden = recorded(shared, name)
    assert released.toki == "as_released"
    released.train(json.loads(golden.notes["config"])["train_mode"])
    visible = golden["active"].bool()
    features = released.encode(golden["x"], visible)
    wanted = golden.below("feat/")
    for stage, key in enumerate(("x1_sub", "x2", "x3", "x4"), start=1):
        if key in wanted and features[stage - 1] is not None:
            torch.testing.assert_close(features[stage - 1], wanted[key], rtol=0, atol=1e-4)
    coarsest = torch.where(visible, features[-1], released.token)
    torch.testing.assert_close(coarsest, wanted["x5_mamba"], rtol=0, atol=1e-4)
    dense = released.decoder.projections[0](released.fill(features[-1], visible))
    torch.testing.assert_close(dense, wanted["to_dec0"], rtol=0, atol=1e-4)
    output = released(golden["x"], visible)
    torch.testing.assert_close(output.loss, golden["loss"][0], rtol=0, atol=1e-5)
    step = 1 if "rec" in wanted else 2
    rec = output.reconstruction[..., ::step, ::step, ::step]
    torch.testing.assert_close(rec, wanted.get("rec", wanted.get("rec_sub")), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["batch2_AB", "batch4_ABCD"])
def test_as_released_from_the_features_on(shared, released, name):
    """The authors let hidden tokens into Mamba from batch 2 on; what follows is the same."""
    golden = recorded(shared, name)
    released.train()
    visible = golden["active"].bool()
    features = released.encode(golden["x"], visible)
    kept = torch.where(visible, golden["feat/x5_mamba"], golden["feat/toki_as_coded"])
    released.fill = lambda features, visible: kept
    tokens = golden["feat/x5_mamba"].flatten(2).transpose(1, 2)
    toki = interpolate(tokens, visible.flatten(1), released.transition, mode="as_released")
    torch.testing.assert_close(toki, golden["feat/toki_token_major"], rtol=0, atol=1e-4)
    rec = released.decode(features, visible)
    torch.testing.assert_close(rec[..., ::2, ::2, ::2], golden["feat/rec_sub"], rtol=0, atol=1e-4)
    loss, _ = released.losses(golden["x"], rec, visible)
    torch.testing.assert_close(loss, golden["loss"][0], rtol=0, atol=1e-5)


def test_gradients_as_released(shared, released):
    golden = recorded(shared, "maskA")
    released.train()
    released(golden["x"], golden["active"].bool()).loss.backward()
    ours = {
        "A_interpolation": released.transition.grad[None],
        "sparse_encoder.embeddings.stem.weight": released.encoder.stem[0].weight.grad,
        "sparse_encoder.mae.blocks.0.mamba.A_log": released.encoder.mamba.layers[
            0
        ].mamba.A_log.grad,
        "sparse_encoder.mae.mask_token": released.token.grad.reshape(1, 1, -1),
    }
    wanted = golden.below("grad/")
    assert set(ours) == set(wanted)
    for name, grad in ours.items():
        scale = wanted[name].abs().max() + 1e-7
        assert (grad - wanted[name]).abs().max() <= 1e-3 * scale, name


def encoder_features(objective: MambaMIM, volume: Tensor, visible: Tensor) -> list[Tensor]:
    return [f for f in objective.encode(volume, visible) if f is not None]


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("bottom_up", [True, False])
def test_nothing_leaks_from_hidden_voxels(case, batch, bottom_up):
    network, image = case
    objective = MambaMIM(network, bottom_up=bottom_up)
    volume = torch.randn(batch, *image)
    visible = random_visible(batch, objective.token_grid(image[1:]), 0.75)
    shown = torch.nn.functional.interpolate(visible.float(), size=image[1:]).bool()
    changed = torch.where(shown, volume, 100 * torch.randn_like(volume))
    assert not torch.equal(volume, changed)
    before = encoder_features(objective, volume, visible)
    after = encoder_features(objective, changed, visible)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(
        objective(volume, visible).reconstruction, objective(changed, visible).reconstruction
    )


def test_visible_features_are_zero_elsewhere(case):
    network, image = case
    objective = MambaMIM(network)
    volume = torch.randn(2, *image)
    visible = random_visible(2, objective.token_grid(image[1:]), 0.5)
    for features in encoder_features(objective, volume, visible):
        shown = torch.nn.functional.interpolate(visible.float(), size=features.shape[2:]).bool()
        hidden = features.masked_select(~shown)
        assert hidden.numel()
        assert not hidden.any()


def test_a_visible_change_changes_the_prediction(case):
    network, image = case
    objective = MambaMIM(network)
    volume = torch.randn(1, *image)
    output = objective(volume)
    shown = torch.nn.functional.interpolate(output.visible.float(), size=image[1:]).bool()
    changed = torch.where(shown, volume + 1, volume)
    again = objective(changed, output.visible)
    assert (again.reconstruction - output.reconstruction).abs().max() > 1e-5


@pytest.mark.parametrize("toki", TOKI)
@pytest.mark.parametrize("normalize", [True, False])
def test_every_parameter_learns(case, toki, normalize):
    network, image = case
    objective = MambaMIM(network, toki=toki, normalize=normalize)
    volume = torch.randn(2, *image)
    visible = torch.zeros(2, 1, *objective.token_grid(image[1:]), dtype=torch.bool)
    visible.flatten(1)[:, 1:-1:3] = True  # "as_released" reads its token at hidden ends
    objective(volume, visible).loss.backward()
    idle = [
        name
        for name, p in objective.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert idle == []


def test_samples_do_not_mix(case):
    network, image = case
    objective = MambaMIM(network)
    volume = torch.randn(3, *image)
    output = objective(volume)
    for i in range(3):
        alone = objective(volume[i : i + 1], output.visible[i : i + 1])
        torch.testing.assert_close(
            alone.reconstruction[0], output.reconstruction[i], rtol=1e-4, atol=1e-4
        )


def test_the_loss_is_over_hidden_patches_alone():
    objective = MambaMIM(HyMamba(1, 2, **SMALL), normalize=False)
    volume = torch.zeros(1, 1, 16, 16, 16)
    visible = random_visible(1, (4, 4, 4), 0.5)
    shown = torch.nn.functional.interpolate(visible.float(), size=(16, 16, 16))
    wrong_where_shown = 5 * shown
    loss, _ = objective.losses(volume, wrong_where_shown, visible)
    assert loss == 0
    loss, _ = objective.losses(volume, 2 * (1 - shown), visible)
    assert loss == 4


@pytest.mark.parametrize("normalize", [True, False])
def test_the_patch_mean_is_what_a_flat_guess_costs(normalize):
    objective = MambaMIM(HyMamba(2, 2, **SMALL), normalize=normalize)
    volume = 3 + torch.randn(2, 2, 16, 8, 8)
    visible = random_visible(2, (4, 2, 2), 0.5)
    means = torch.nn.functional.avg_pool3d(volume, 4).repeat_interleave(4, 2)
    means = means.repeat_interleave(4, 3).repeat_interleave(4, 4)
    guess = torch.zeros_like(volume) if normalize else means
    loss, patch_mean = objective.losses(volume, guess, visible)
    torch.testing.assert_close(loss, patch_mean)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_reconstruction_restores_the_volume(normalize):
    objective = MambaMIM(HyMamba(1, 2, **SMALL), normalize=normalize)
    volume = 5 + 2 * torch.randn(1, 1, 8, 8, 8)
    output = objective(volume)
    target = volume
    if normalize:
        patches = volume.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).flatten(5)
        spread = (patches.var(-1) + 1e-6).sqrt()
        mean, spread = (
            x.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
            for x in (patches.mean(-1), spread)
        )
        target = (volume - mean) / spread
    perfect = type(output)(output.loss, target, output.visible, {})
    torch.testing.assert_close(objective.restored(volume, perfect), volume)


def test_seeds_decide_the_mask():
    objective = MambaMIM(HyMamba(1, 2, **SMALL))
    volume, seed = torch.randn(2, 1, 16, 16, 16), torch.tensor([4, 5])
    first, second = objective(volume, seed=seed), objective(volume, seed=seed)
    assert torch.equal(first.visible, second.visible)
    assert torch.equal(first.loss, second.loss)


@pytest.mark.parametrize("toki", TOKI)
def test_bfloat16_autocast(toki):
    objective = MambaMIM(HyMamba(1, 2, **SMALL), toki=toki)
    volume, seed = torch.randn(2, 1, 16, 16, 16), torch.tensor([4, 5])
    exact = objective(volume, seed=seed).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(volume, seed=seed).loss
    rough.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_the_encoder_alone_of_a_released_checkpoint(shared):
    full = recorded(shared, "maskA").below("sd/")
    prefix = "sparse_encoder."
    encoder = {n.removeprefix(prefix): x for n, x in full.items() if n.startswith(prefix)}
    with pytest.warns(UserWarning, match="the decoder is new"):
        objective = mambamim_from_released(encoder)
    for name, x in mambamim_from_released(full).encoder.state_dict().items():
        assert torch.equal(objective.encoder.state_dict()[name], x)


def test_released_checkpoints_that_do_not_fit(shared):
    full = recorded(shared, "maskA").below("sd/")
    wrapped = {"module": {f"module.{n}": x for n, x in full.items()}, "optimizer": {}}
    assert isinstance(mambamim_from_released(wrapped), MambaMIM)
    with pytest.raises(ValueError, match=r"1 unexpected \(surprise"):
        mambamim_from_released(full | {"surprise": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 missing"):
        mambamim_from_released({n: x for n, x in full.items() if n != "A_interpolation"})


@pytest.mark.parametrize(
    ("volume", "visible", "message"),
    [
        ((1, 1, 15, 16, 16), None, "does not divide into tokens of \\(4, 4, 4\\)"),
        ((1, 2, 16, 16, 16), None, "has 2 channels and the encoder was built for 1"),
        ((1, 1, 16, 16), None, "does not divide into tokens"),
        ((2, 1, 16, 16, 16), torch.ones(2, 1, 4, 4, 2, dtype=torch.bool), "needs torch.bool"),
        ((2, 1, 16, 16, 16), torch.ones(2, 1, 4, 4, 4), "is torch.float32"),
    ],
)
def test_refusals(volume, visible, message):
    with pytest.raises(ValueError, match=message):
        MambaMIM(HyMamba(1, 2, **SMALL))(torch.zeros(volume), visible)


def test_uneven_masks_are_refused():
    visible = random_visible(2, (4, 4, 4), 0.5)
    visible[0, 0, 0, 0] = True
    visible[1, 0, 0, 0] = False
    with pytest.raises(ValueError, match="show equally many"):
        MambaMIM(HyMamba(1, 2, **SMALL))(torch.zeros(2, 1, 16, 16, 16), visible)


@pytest.mark.parametrize("shown", [True, False])
def test_masks_that_hide_or_show_nothing_are_refused(shown):
    visible = torch.full((2, 1, 4, 4, 4), shown)
    with pytest.raises(ValueError, match="hide at least one"):
        MambaMIM(HyMamba(1, 2, **SMALL))(torch.zeros(2, 1, 16, 16, 16), visible)


@pytest.mark.parametrize("options", [{"skips": False}, {"finest_skip": False}])
def test_what_is_not_decoded_does_not_ask_for_gradients(options):
    objective = MambaMIM(HyMamba(1, 3, **SMALL), **options)
    objective(torch.randn(2, 1, 16, 16, 16)).loss.backward()
    asked = {name for name, p in objective.named_parameters() if p.requires_grad}
    learned = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert asked == learned
    assert len(asked) < len(list(objective.parameters()))


@pytest.mark.parametrize("build", [lambda: HyMamba(1, 2, **SMALL), NETWORKS["vanilla"][0]])
def test_monais_tensors_are_taken(build):
    volume = torch.randn(1, 1, 32, 32, 32)
    network = build().eval()
    torch.testing.assert_close(network(MetaTensor(volume)), network(volume))
    seed = torch.tensor([1])
    objective = MambaMIM(network)
    loss = objective(MetaTensor(volume), seed=seed).loss
    torch.testing.assert_close(loss, objective(volume, seed=seed).loss)


@pytest.mark.parametrize(
    "options", [{"mask_ratio": 1.5}, {"mask_ratio": 0.0}, {"decoder_width": 0}, {"norm": "group"}]
)
def test_options_that_cannot_work(options):
    with pytest.raises(ValueError, match=r"mask_ratio is|unknown toki"):
        MambaMIM(HyMamba(1, 2, **SMALL), **options)


def test_networks_without_an_encoder_are_refused():
    with pytest.raises(ValueError, match="Linear cannot be pretrained"):
        MambaMIM(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="unknown toki 'mean'"):
        MambaMIM(HyMamba(1, 2, **SMALL), toki="mean")
