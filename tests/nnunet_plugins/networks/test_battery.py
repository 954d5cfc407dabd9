"""What every segmentation network must do. A network is done when it has a row in CASES."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nnunet_plugins.networks import EndoMamba, HyMamba, VanillaMamba, Vivim

CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A small network: how to build it, an image it takes, and where Mamba's features come out."""

    build: Callable[..., nn.Module]
    image: tuple[int, ...]
    mamba: str
    any_size: bool = False


def hymamba(**options) -> Case:
    image = options.pop("image", (1, 16, 8, 8))
    options = {"features_per_stage": (4, 6, 8), "mamba_depth": 2} | options
    return Case(lambda **kw: HyMamba(image[0], CLASSES, **options, **kw), image, "encoder.mamba")


def vanilla(**options) -> Case:
    image = options.pop("image", (1, 32, 16, 16))
    options = {"feature_size": 2, "d_model": 12, "depth": 4} | options
    build = lambda **kw: VanillaMamba(image[0], CLASSES, **options, **kw)  # noqa: E731
    return Case(build, image, "encoder.mamba")


def vivim(**options) -> Case:
    image = options.pop("image", (3, 2, 70, 37))
    options = {
        "features_per_stage": (8, 8, 10, 16), "blocks_per_stage": (1, 1, 1, 1), "mamba_depth": 1,
        "decoder_width": 12, "dropout": 0.0,
    } | options  # fmt: skip
    return Case(
        lambda **kw: Vivim(image[0], CLASSES, **options, **kw), image, "encoder.stages.3", True
    )


def endomamba(**options) -> Case:
    image = options.pop("image", (3, 2, 37, 22))
    options = {
        "d_model": 16, "depth": 4, "image_size": (32, 24), "patch_size": 8,
        "decoder_widths": (16, 12, 8), "drop_path": 0.0,
    } | options  # fmt: skip
    return Case(
        lambda **kw: EndoMamba(image[0], CLASSES, **options, **kw), image, "encoder.layers.3", True
    )


ANISOTROPIC = {
    "strides": [(1, 1, 1), (1, 2, 2), (2, 2, 2)],
    "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3)],
    "image": (2, 6, 16, 12),
}
PLANAR = {"strides": [(1, 1), (2, 2), (2, 2)], "image": (3, 16, 24)}
CASES = {
    "hymamba": hymamba(),
    "hymamba-anisotropic": hymamba(**ANISOTROPIC),
    "hymamba-2d": hymamba(**PLANAR),
    "hymamba-unidirectional": hymamba(bidirectional=False),
    "hymamba-zigzag": hymamba(scan_order="zigzag"),
    "hymamba-hilbert": hymamba(scan_order="hilbert"),
    "hymamba-shuffle": hymamba(scan_order="shuffle", scan_seed=3),
    "vanilla": vanilla(),
    "vanilla-2d": vanilla(strides=[(1, 1), *[(2, 2)] * 4], image=(1, 32, 32)),
    "vanilla-shuffle": vanilla(scan_order="shuffle"),
    "vivim": vivim(),
    "vivim-grey": vivim(image=(1, 3, 64, 64)),
    "vivim-layer-norm": vivim(norm="layer"),
    "vivim-sum": vivim(combine="sum"),
    "endomamba": endomamba(),
    "endomamba-grey": endomamba(image=(1, 3, 32, 24)),
    "endomamba-skips": endomamba(skips=True),
    "endomamba-layer-norm": endomamba(norm="layer"),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request) -> Case:
    return request.param


def image(case: Case, batch: int = 2, scale: int = 1) -> Tensor:
    channels, *grid = case.image
    return torch.randn(batch, channels, grid[0] * scale, *grid[1:])


def test_one_logit_map_per_class_on_the_grid_of_the_image(case):
    x = image(case)
    assert case.build()(x).shape == (2, CLASSES, *x.shape[2:])


def test_the_same_weights_take_a_larger_grid(case):
    x = image(case, batch=1, scale=3)
    assert case.build()(x).shape == (1, CLASSES, *x.shape[2:])


def test_every_parameter_learns(case):
    network = case.build(deep_supervision=True)
    sum(logits.square().mean() for logits in network(image(case))).backward()
    idle = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert idle == []


def test_samples_of_a_batch_do_not_mix(case):
    network = case.build().eval()
    x = image(case)
    separate = torch.cat([network(sample[None]) for sample in x])
    torch.testing.assert_close(network(x), separate, rtol=1e-3, atol=1e-4)


def test_every_voxel_sees_every_voxel(case):
    """A change in one corner reaches the opposite one: the scan spans the grid."""
    network = case.build().eval()
    x = image(case, batch=1)
    changed = x.clone()
    changed[(0, slice(None), *[0] * (x.ndim - 2))] += 10
    last = (0, slice(None), *[-1] * (x.ndim - 2))
    assert not torch.equal(network(x)[last], network(changed)[last])


def test_deep_supervision_goes_from_fine_to_coarse_and_changes_no_name(case):
    network = case.build(deep_supervision=True)
    logits = network(image(case))
    sizes = [x[0, 0].numel() for x in logits]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert {x.shape[1] for x in logits} == {CLASSES}
    assert list(case.build().state_dict()) == list(network.state_dict())


def test_switching_deep_supervision_off_leaves_the_finest_logits(case):
    network = case.build(deep_supervision=True).eval()
    x = image(case)
    finest = network(x)[0]
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(x), finest)


def test_a_checkpoint_restores_the_network(case, tmp_path):
    network, other = case.build().eval(), case.build().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = image(case)
    torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)


def test_weights_of_another_network_are_refused_in_one_sentence_and_change_nothing(case):
    network = case.build()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    foreign = {f"backbone.{name}": x + 1 for name, x in before.items()}
    with pytest.raises(RuntimeError, match=r"not of this \w+: 0 tensors fit, \d+ missing") as error:
        network.load_state_dict(foreign)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())


def test_wrong_images_are_refused_with_what_is_needed(case):
    network, x = case.build(), image(case)
    with pytest.raises(ValueError, match=rf"image has {x.shape[1] + 1} channels"):
        network(torch.cat([x, x[:, :1]], dim=1))
    if case.any_size:
        assert network(x[..., :-1]).shape[2:] == x[..., :-1].shape[2:]
    else:
        with pytest.raises(ValueError, match="pad each axis to a multiple"):
            network(x[..., :-1])
    with pytest.raises(ValueError, match="grid axes"):
        network(x[0])


def test_float16_autocast_ranges_survive(case):
    """Activations beyond float16's largest number stay finite: no NaN under mixed precision."""
    network = case.build().eval()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("mamba.in_proj.weight"):
                p.mul_(3e3)
        stage, peaks = network.get_submodule(case.mamba), []
        stage.register_forward_hook(lambda _, __, out: peaks.append(float(out[0].abs().max())))
        with torch.autocast("cpu", torch.float16):
            logits = network(image(case, batch=1))
    assert peaks[0] > 65504
    assert logits.isfinite().all()


def test_bfloat16_autocast_stays_close(case):
    network = case.build().eval()
    x = image(case, batch=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = network(x).float()
    high = network(x).detach()
    assert (low - high).square().mean().sqrt() <= 0.05 * high.std()


def test_other_dtypes_work_throughout(case):
    network = case.build().eval().double()
    assert network(image(case, batch=1).double()).dtype is torch.float64
    assert network.bfloat16()(image(case, batch=1).bfloat16()).dtype is torch.bfloat16
