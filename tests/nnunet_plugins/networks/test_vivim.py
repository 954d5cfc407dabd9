"""What is particular to Vivim: any clip, and on whom the logits of a frame depend."""

import json

import pytest
import torch
from torch.nn import functional as F

from nnunet_plugins.losses import AffineRegressor, VivimLoss
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.layers.frame_heads import FRAMES_AT_ONCE
from nnunet_plugins.networks.layers.mamba import DT_RANGE, SUFFIXES, MambaMixer
from nnunet_plugins.networks.layers.segformer import MIT, EfficientAttention

SMALL = {
    "features_per_stage": (8, 8, 10, 16),
    "blocks_per_stage": (1, 1, 1, 1),
    "mamba_depth": 1,
    "decoder_width": 12,
    "dropout": 0.0,
}


@pytest.fixture
def network() -> Vivim:
    return Vivim(3, 2, **SMALL).eval()


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 7, 10, 33])
def test_clips_of_any_length(network, frames):
    assert network(torch.randn(1, 3, frames, 40, 33)).shape == (1, 2, frames, 40, 33)


@pytest.mark.parametrize("size", [(1, 1), (5, 31), (32, 32), (33, 47), (64, 96)])
def test_frames_of_any_size(network, size):
    x = torch.randn(1, 3, 2, *size)
    logits = network(x)
    assert logits.shape == (1, 2, 2, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", list(MIT))
def test_parameters_of_every_size(size):
    """Encoders of SegFormer's table 6 (its numbers count the ImageNet encoder, in millions)."""
    published = {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}
    with torch.device("meta"):
        network = Vivim(3, 1, size=size, mamba_depth=0)
    parameters = sum(p.numel() for p in network.encoder.parameters()) / 1e6
    assert parameters == pytest.approx(published[size], abs=0.4)


def test_the_papers_network_has_the_released_size(shared):
    """Less what the released one holds and never runs: norms after stages and a classifier."""
    keys = json.loads((shared / "golden/vivim_fullsize_keys.json").read_text())
    with torch.device("meta"):
        network = Vivim(3, 1, boundary_layers=1)
    assert sum(p.numel() for p in network.parameters()) == 59_503_106
    assert len(network.state_dict()) == len(keys) - 8 - 2


def test_a_frame_depends_on_every_frame_of_its_clip_and_on_no_other_clip(network):
    x = torch.randn(2, 3, 4, 32, 32, requires_grad=True)
    for frame in range(4):
        (grad,) = torch.autograd.grad(network(x)[0, :, frame].sum(), x)
        assert all(grad[0, :, t].any() for t in range(4))
        assert not grad[1].any()


def test_the_order_of_frames_matters_and_that_of_clips_does_not(network):
    x = torch.randn(3, 3, 5, 32, 32)
    clips, frames = torch.tensor([2, 0, 1]), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(network(x[clips]), network(x)[clips], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(x[:, :, frames]), network(x)[:, :, frames], atol=1e-3)


def test_without_mamba_frames_are_images(network):
    segformer = Vivim(3, 2, **SMALL | {"mamba_depth": 0}).eval()
    x = torch.randn(1, 3, 4, 32, 32)
    alone = torch.cat([segformer(x[:, :, t : t + 1]) for t in range(4)], dim=2)
    torch.testing.assert_close(segformer(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_only_batch_norm_mixes_clips_in_training(norm):
    network = Vivim(3, 2, **SMALL, norm=norm, drop_path=0.0).train()
    x = torch.randn(2, 3, 2, 32, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(network(x)[0].square().sum(), x)
    assert bool(grad[1].any()) == (norm == "batch")


def test_drop_path_rises_from_the_first_block_to_the_last():
    network = Vivim(3, 2, **SMALL | {"blocks_per_stage": (1, 2, 1, 1)}, drop_path=0.2)
    rates = [b.drop_path.drop_prob for stage in network.encoder.stages for b in stage.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_the_boundary_head_speaks_in_training_only():
    network = Vivim(3, 2, **SMALL, boundary_layers=3)
    x = torch.randn(1, 3, 2, 33, 40)
    logits, boundary = network(x)
    assert logits.shape == (1, 2, 2, 33, 40)
    assert boundary.shape == (1, 1, 2, 33, 40)
    assert isinstance(network.eval()(x), torch.Tensor)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network.boundary.layers) == 3
    (logits.sum() + boundary.sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_long_clip_is_decoded_in_parts_to_the_same_logits(network):
    x = torch.randn(1, 3, 2 * FRAMES_AT_ONCE + 1, 32, 32)
    with torch.no_grad():
        in_parts = network(x)
    torch.testing.assert_close(in_parts, network(x), rtol=1e-4, atol=1e-5)


def test_shapes_are_known_without_numbers():
    """On torch's meta device, where memory and work are counted."""
    with torch.device("meta"):
        logits = Vivim(3, 2, **SMALL)(torch.empty(1, 3, 4, 40, 33))
    assert logits.shape == (1, 2, 4, 40, 33)


def test_network_and_objective_learn_a_moving_disk_together():
    network = Vivim(1, 2, **SMALL, boundary_layers=3, drop_path=0.0)
    objective = VivimLoss(AffineRegressor(patch=16))
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.stack([(row - 16) ** 2 + (column - 12 - 3 * t) ** 2 < 64 for t in range(3)])
    labels = labels.long()[None, None]
    x = labels + 0.1 * torch.randn(labels.shape)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        loss = objective(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert objective(network.eval()(x), labels) < losses[0]


def test_step_sizes_start_in_mambas_range(network):
    """The released code zeroes these biases, which makes every step softplus(0) = 0.69."""
    for stage in network.encoder.stages:
        for suffix in SUFFIXES.values():
            steps = F.softplus(getattr(stage.mamba[0].mamba, f"dt_proj{suffix}").bias)
            assert DT_RANGE[0] * 0.99 <= steps.min()
            assert steps.max() <= DT_RANGE[1] * 1.01


def test_an_interleaved_mixer_of_one_frame_scans_forward_twice():
    mixer = MambaMixer(12, interleaved=True)
    with torch.no_grad():
        for name, x in mixer.state_dict().items():
            if "_s" in name:
                x.copy_(mixer.state_dict()[name.replace("_s", "")])
    once = MambaMixer(12)
    once.load_state_dict({n: x for n, x in mixer.state_dict().items() if "_s" not in n})
    with torch.no_grad():
        for x in (once.D, once.x_proj.weight[once.split[0] + once.split[1] :]):  # D and C
            x.mul_(2)
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(mixer(x, 1), once(x), rtol=1e-4, atol=1e-6)


def test_a_mean_of_directions_is_a_third_of_their_sum():
    total, mean = MambaMixer(12, interleaved=True), MambaMixer(12, interleaved=True, combine="mean")
    mean.load_state_dict(total.state_dict())
    x = torch.randn(2, 12, 12)
    torch.testing.assert_close(3 * mean(x, 4), total(x, 4), rtol=1e-4, atol=1e-6)


def test_keys_are_read_right_in_bfloat16_whatever_the_grid():
    """oneDNN's convolution is wrong where the grid is one key and channels come last."""
    for channels, reduction in ((8, 8), (16, 8), (16, 4)):
        attention = EfficientAttention(channels, 1, reduction)
        x = torch.randn(3, reduction**2, channels)
        exact = attention(x, (reduction, reduction))
        with torch.autocast("cpu", torch.bfloat16):
            low = attention(x, (reduction, reduction)).float()
        assert (low - exact).square().mean().sqrt() <= 0.05 * exact.std()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "b6"}, "unknown size 'b6' of SegFormer; use one of b0, b1"),
        ({"heads": (1, 2)}, "heads has 2 entries; Vivim has 4 stages"),
        ({"blocks_per_stage": (1,)}, "blocks_per_stage has 1 entries"),
        ({"features_per_stage": (8, 8, 12, 16)}, "do not divide by heads"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Vivim(3, 2, **SMALL | options)
