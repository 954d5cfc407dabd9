"""Vivim equals the authors' network: recorded outputs, features, gradients and mixers."""

import pytest
import torch
from monai.networks.layers import DropPath
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.losses import structure_loss
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.layers.mamba import SUFFIXES, MambaMixer
from nnunet_plugins.networks.released import vivim_from_released
from nnunet_plugins.networks.released_vivim import VIVIM_NAMES
from nnunet_plugins.networks.renaming import renamed

TOLERANCE = {"rtol": 1e-4, "atol": 5e-5}


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def by_frame(clips: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b * t, c, h, w), as recorded."""
    return clips.transpose(1, 2).flatten(0, 1)


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, Tensor]:
    return load_file(shared / "golden/vivim_net.safetensors")


@pytest.fixture
def network(golden) -> Vivim:
    return vivim_from_released(below(golden, "sd."))


@pytest.fixture(scope="module")
def clips(golden) -> Tensor:
    return ((golden["in.x_u8"].float() - 128) / 64).transpose(1, 2)


@pytest.fixture(scope="module")
def mixers(shared) -> dict[str, Tensor]:
    return load_file(shared / "golden/vivim_mixer.safetensors")


def test_logits_of_all_frames(golden, network, clips):
    logits = by_frame(network(clips))
    torch.testing.assert_close(logits, golden["out.logits"], **TOLERANCE)
    torch.testing.assert_close(logits, golden["out.logits_f64"], **TOLERANCE)


def test_boundary_logits(golden, network, clips):
    features = network.encoder(clips)
    boundary = by_frame(network.boundary(features[0], clips.shape[3:]))
    torch.testing.assert_close(boundary, golden["out.edge"], **TOLERANCE)


def test_features_of_every_stage(golden, network, clips):
    for i, x in enumerate(network.encoder(clips)):
        torch.testing.assert_close(by_frame(x), golden[f"feat.encoder_out{i}"], **TOLERANCE)


def test_features_inside_the_stages(golden, network, clips):
    seen: dict[str, Tensor] = {}

    def record(name, module):
        module.register_forward_hook(lambda _, __, out: seen.__setitem__(name, out))

    for i, stage in enumerate(network.encoder.stages):
        record(f"stage{i}.patch_embed", stage.embed)
        record(f"stage{i}.segformer_blocks", stage.blocks[-1])
        for j, layer in enumerate(stage.mamba):
            record(f"stage{i}.mamba{j}.mixer_out", layer.mamba)
            record(f"stage{i}.mamba{j}.out", layer)
    network.encoder(clips)
    recorded = {n: x for n, x in below(golden, "feat.").items() if n.startswith("stage")}
    for name, wanted in recorded.items():
        ours = seen[name]
        if name.endswith("patch_embed"):
            ours = ours.flatten(1, 2)
        if name.endswith("out") and wanted.ndim == 5:
            wanted = wanted.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours[: len(wanted)], wanted, msg=name, **TOLERANCE)
    assert len(recorded) >= 8


def test_a_training_step_uses_and_moves_batch_statistics(golden, network, clips):
    """Recorded without dropout."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout | DropPath):
            module.eval()
    torch.testing.assert_close(
        by_frame(network(clips)[0]), golden["out.logits_train_mode"], **TOLERANCE
    )
    for name in ("mean", "var"):
        torch.testing.assert_close(
            getattr(network.decoder.norm, f"running_{name}"),
            golden[f"out.bn_running_{name}_after_train_fwd"],
            **TOLERANCE,
        )


def test_one_step_of_gradients(shared, network, clips):
    recorded = load_file(shared / "golden/vivim_grad.safetensors")
    target = load_file(shared / "golden/vivim_loss.safetensors")["in.target"][2:5:5]
    features = network.encoder(clips[:1])
    size = clips.shape[3:]
    logits = by_frame(network.decoder(features, size))
    torch.testing.assert_close(logits, recorded["out.logits"], **TOLERANCE)
    loss = structure_loss(logits[2::5], target, as_released=True)
    boundary = by_frame(network.boundary(features[0], size))
    loss = loss + 0.3 * boundary[2::5].sigmoid().mean()
    torch.testing.assert_close(loss, recorded["out.loss"], **TOLERANCE)
    loss.backward()
    ours = dict(network.named_parameters())
    for name, wanted in below(recorded, "grad.").items():
        grad = ours[renamed(name, VIVIM_NAMES)].grad
        assert (grad - wanted).norm() <= 1e-3 * wanted.norm(), name


def mixer_of(state_dict: dict[str, Tensor]) -> MambaMixer:
    d_model, d_inner = state_dict["out_proj.weight"].shape
    mixer = MambaMixer(
        d_model,
        d_state=state_dict["A_log"].shape[1],
        d_conv=state_dict["conv1d.weight"].shape[2],
        expand=d_inner // d_model,
        interleaved=True,
        combine="mean",
    )
    mixer.load_state_dict(state_dict)
    return mixer


@pytest.mark.parametrize("case", ["nf5", "nf3"])
def test_a_mixer_of_three_directions(mixers, case):
    mixer = mixer_of(below(mixers, f"{case}.sd."))
    frames = int(mixers[f"{case}.meta"][1])
    ours = mixer(mixers[f"{case}.in"], frames)
    torch.testing.assert_close(ours, mixers[f"{case}.out"], **TOLERANCE)


@pytest.mark.parametrize("case", ["nf5", "nf3"])
@pytest.mark.parametrize(
    ("direction", "recorded"),
    [
        ("forward", "dir_forward"),
        ("reverse", "dir_backward_flipped_time"),
        ("interleaved", "dir_spatial_interleaved"),
    ],
)
def test_each_direction_of_a_mixer(mixers, case, direction, recorded):
    """The others are silenced: their scans get no input and no skip."""
    mixer = mixer_of(below(mixers, f"{case}.sd."))
    with torch.no_grad():
        for name in set(SUFFIXES) - {direction}:
            getattr(mixer, f"conv1d{SUFFIXES[name]}").weight.zero_()
            getattr(mixer, f"conv1d{SUFFIXES[name]}").bias.zero_()
    mixer.out_proj = torch.nn.Linear(1, 1)  # its dtype is read
    mixer.out_proj.forward = lambda y: y
    b, frames, places, *_ = mixers[f"{case}.meta"].tolist()
    stream = 3 * mixer(mixers[f"{case}.in"], frames).transpose(1, 2)
    if direction == "reverse":
        stream = stream.flip(2)
    if direction == "interleaved":
        stream = stream.unflatten(2, (frames, places)).transpose(2, 3).flatten(2)
    assert len(stream) == b
    torch.testing.assert_close(stream, mixers[f"{case}.{recorded}"], **TOLERANCE)


@pytest.mark.parametrize(
    ("frames", "recorded"), [(10, "out_nframes10_correct"), (5, "out_nframes5_as_released")]
)
def test_ten_frames_are_told_from_five(mixers, frames, recorded):
    """The released network takes a clip of ten frames for one of five."""
    mixer = mixer_of(below(mixers, "quirk10.sd."))
    ours = mixer(mixers["quirk10.in"], frames)
    torch.testing.assert_close(ours, mixers[f"quirk10.{recorded}"], **TOLERANCE)


def test_the_decoder_composes_projections_to_the_same_numbers(golden, network, clips):
    """Against SegFormer's own order: project, interpolate, concatenate, fuse."""
    features, decoder = network.encoder(clips), network.decoder
    grid = features[0].shape[3:]
    maps = [
        F.interpolate(
            project(by_frame(x).movedim(1, -1)).movedim(-1, 1), grid, mode="bilinear",
            align_corners=False,
        )
        for x, project in zip(features, decoder.project, strict=True)
    ]  # fmt: skip
    plain = decoder.fuse(torch.cat(maps[::-1], dim=1))
    torch.testing.assert_close(decoder.fused(features), plain, rtol=1e-5, atol=1e-5)
