"""What is particular to HyMamba and its layers; the rest is in the battery."""

import math

import pytest
import torch

from nnunet_plugins.networks import HyMamba, VanillaMamba
from nnunet_plugins.networks.hymamba import PAPER_WIDTHS, stage_widths
from nnunet_plugins.networks.layers.mamba import DT_RANGE, MambaMixer
from nnunet_plugins.networks.layers.position import sincos_position

SMALL = {"features_per_stage": (4, 6, 8), "mamba_depth": 1}


def parameters(network) -> float:
    """In millions."""
    return sum(p.numel() for p in network.parameters()) / 1e6


def test_sizes_are_the_papers():
    """41.84 M and 55.8 M were measured with a position table of 6^3 tokens, computed here."""
    with torch.device("meta"):
        hymamba, vanilla = HyMamba(1, 14), VanillaMamba(1, 14)
    assert parameters(hymamba) + 216 * 384 / 1e6 == pytest.approx(41.84, abs=0.02)
    assert parameters(vanilla) + 216 * 768 / 1e6 == pytest.approx(55.8, abs=0.05)


def test_widths_fit_any_number_of_stages():
    assert stage_widths(PAPER_WIDTHS, 3) == (32, 64, 128)
    assert stage_widths(PAPER_WIDTHS, 7) == (32, 64, 128, 192, 384, 384, 384)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [(1, 1, 1)]}, "at least two stages.*can be halved"),
        ({"strides": [(2, 2, 2), (2, 2, 2), (2, 2, 2)]}, "the first keeping the grid"),
        ({"scan_order": "spiral"}, "unknown scan order 'spiral'; use one of raster"),
        ({"features_per_stage": (4, 6)}, None),
        ({"strides": [(1, 1, 1)] * 4}, "features_per_stage has 3 entries; 4 strides ask for 4"),
        ({"blocks_per_stage": [1]}, "blocks_per_stage has 1 entries"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    if message is None:
        HyMamba(1, 2, **SMALL | options)
        return
    with pytest.raises(ValueError, match=message):
        HyMamba(1, 2, **SMALL | options)


@pytest.mark.parametrize(
    "options", [{"strides": [(1, 1, 1), (1, 2, 2)]}, {"depth": 6}], ids=["strides", "depth"]
)
def test_vanilla_mamba_says_what_it_takes(options):
    with pytest.raises(ValueError, match=r"multiple"):
        VanillaMamba(1, 2, **options)


def test_the_shuffle_of_a_checkpoint_is_the_one_it_was_trained_with():
    trained = HyMamba(1, 2, scan_order="shuffle", scan_seed=11, **SMALL).eval()
    other = HyMamba(1, 2, scan_order="shuffle", scan_seed=0, **SMALL).eval()
    other.load_state_dict(trained.state_dict())
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(other(x), trained(x), rtol=0, atol=0)


def test_scan_orders_differ_and_share_their_weights():
    x = torch.randn(1, 1, 16, 16, 16)
    raster = HyMamba(1, 2, **SMALL).eval()
    for order in ("zigzag", "hilbert"):
        other = HyMamba(1, 2, scan_order=order, **SMALL).eval()
        other.load_state_dict(raster.state_dict())
        assert not torch.allclose(other(x), raster(x))


def test_a_bidirectional_mixer_is_the_sum_of_two_directions():
    both = MambaMixer(12)
    x = torch.randn(2, 9, 12)
    halves = []
    for suffix in ("", "_b"):
        one = MambaMixer(12, bidirectional=False)
        state = both.state_dict()
        own = {"A_log": f"A{suffix}_log", "D": f"D{suffix}"}
        for name in one.state_dict():
            module, _, leaf = name.partition(".")
            shared = module in ("in_proj", "out_proj")
            source = name if shared else own.get(name, f"{module}{suffix}.{leaf}")
            one.state_dict()[name].copy_(state[source])
        halves.append(one(x) if not suffix else one(x.flip(1)).flip(1))
    torch.testing.assert_close(both(x), sum(halves), rtol=1e-4, atol=1e-6)


def test_a_unidirectional_mixer_sees_no_later_token():
    mixer = MambaMixer(12, bidirectional=False)
    x = torch.randn(1, 9, 12)
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(mixer(changed)[:, :6], mixer(x)[:, :6])


def test_step_sizes_start_in_mambas_range():
    """The released code zeroes this bias, which makes every step softplus(0) = 0.69."""
    network = HyMamba(1, 2, **SMALL)
    for layer in network.encoder.mamba.layers:
        for projection in (layer.mamba.dt_proj, layer.mamba.dt_proj_b):
            steps = torch.nn.functional.softplus(projection.bias)
            assert DT_RANGE[0] * 0.99 <= steps.min()
            assert steps.max() <= DT_RANGE[1] * 1.01


def test_gated_outputs_beyond_float16_survive_the_output_projection():
    """Under float16 autocast a gated output of 2e6 was seen (mamba #72); 65504 is the end."""
    mixer = MambaMixer(16)
    with torch.no_grad():
        mixer.in_proj.weight.mul_(2e2)
    x = torch.randn(1, 8, 16) * 10
    exact = mixer(x)
    assert exact.abs().max() > 65504
    with torch.autocast("cpu", torch.float16):
        half = mixer(x)
    assert half.dtype is torch.float32
    assert half.isfinite().all()
    assert (half - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("grid", [(2, 3, 5), (4, 6)])
@pytest.mark.parametrize("channels", [12, 13, 24])
def test_position_embedding_tells_every_place_apart_on_any_grid(grid, channels):
    table = sincos_position(grid, channels)
    assert table.shape == (math.prod(grid), channels)
    assert table.unique(dim=0).shape[0] == len(table)


def test_position_embedding_of_a_place_does_not_depend_on_the_grid():
    small = sincos_position((2, 3, 4), 24).view(2, 3, 4, 24)
    large = sincos_position((5, 5, 5), 24).view(5, 5, 5, 24)
    torch.testing.assert_close(small, large[:2, :3, :4])


def test_too_few_channels_for_a_position_are_refused():
    with pytest.raises(ValueError, match="use at least 6"):
        sincos_position((2, 2, 2), 5)
