"""EndoMamba equals the authors' network: recorded outputs, features, states and gradients."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.networks import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.layers.frame_tokens import frame_sinusoid
from nnunet_plugins.networks.released import endomamba_from_released
from nnunet_plugins.networks.released_endomamba import ENDOMAMBA_NAMES
from nnunet_plugins.networks.renaming import renamed

TOLERANCE = {"rtol": 1e-5, "atol": 5e-6}
SIZE = (32, 48)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def clips(tensors: dict[str, Tensor]) -> Tensor:
    return (tensors["in.x_u8"].float() - 128) / 64


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, Tensor]:
    return load_file(shared / "golden/endomamba_backbone.safetensors")


@pytest.fixture(scope="module")
def segmentation(shared) -> dict[str, Tensor]:
    return load_file(shared / "golden/endomamba_seg.safetensors")


@pytest.fixture(scope="module")
def pretraining(shared) -> dict[str, Tensor]:
    return load_file(shared / "golden/endomamba_pretrain.safetensors")


@pytest.fixture
def network(golden) -> EndoMamba:
    return endomamba_from_released(below(golden, "sd."), SIZE)


def assert_gradients(network: torch.nn.Module, recorded: dict[str, Tensor]) -> None:
    ours = dict(network.named_parameters())
    for name, wanted in recorded.items():
        grad = ours[renamed(name, ENDOMAMBA_NAMES)].grad
        assert (grad - wanted).norm() <= 1e-4 * wanted.norm(), name


@pytest.mark.parametrize(
    ("pool", "recorded"),
    [("mean", "logits_meanpool"), ("cls", "logits_only_cls"), ("mean", "logits_f64")],
)
def test_logits_of_all_frames(golden, pool, recorded):
    network = endomamba_from_released(below(golden, "sd."), SIZE, pool=pool)
    torch.testing.assert_close(network(clips(golden)), golden[f"out.{recorded}"], **TOLERANCE)


def test_logits_of_whole_clips(golden):
    """As the classification task wraps its checkpoint."""
    wrapped = {f"module.{name}": x for name, x in below(golden, "sd.").items()}
    network = endomamba_from_released({"backbone_state_dict": wrapped, "epoch": 3}, SIZE)
    torch.testing.assert_close(
        network.clip_logits(clips(golden)), golden["out.logits_polypdiag_cls_time_mean"],
        **TOLERANCE,
    )  # fmt: skip


def test_time_is_a_sinusoid(golden):
    ours = frame_sinusoid(torch.arange(8)[None], 32)[0].float()
    torch.testing.assert_close(ours, golden["meta.temporal_pos_encoding_first8"], **TOLERANCE)


def test_features_of_every_layer(golden, network):
    seen: dict[str, Tensor] = {}
    encoder = network.encoder

    def record(i, inputs, outputs):
        seen[f"layer{i}.residual"] = inputs[0]
        seen[f"layer{i}.mixer_out"] = (outputs if i < 3 else outputs[0]) - inputs[0]

    for i, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda _, a, b, i=i: record(i, a, b))
    seen["norm_f_out"] = encoder(clips(golden))
    seen["tokens_in"] = seen["layer0.residual"].view(2, 4, 25, 32)
    recorded = below(golden, "feat.")
    assert seen.keys() == recorded.keys()
    for name, wanted in recorded.items():
        torch.testing.assert_close(seen[name], wanted, msg=name, **TOLERANCE)


def test_frame_by_frame_logits_and_states(golden, network):
    """The released convolution keeps one input more, which the next token does not see."""
    state, logits = None, []
    for t in range(4):
        y, state = network.step(clips(golden)[:, :, t : t + 1], state)
        logits.append(y)
        assert state[0].tolist() == [t + 1] * 2
        for i in range(3):
            recorded = below(golden, f"state.after_frame{t}.layer{3 + i}.")
            conv, scan = state[1 + 2 * i : 3 + 2 * i]
            torch.testing.assert_close(conv, recorded["conv_state"][..., 1:], **TOLERANCE)
            torch.testing.assert_close(scan, recorded["ssm_state"], **TOLERANCE)
    torch.testing.assert_close(torch.cat(logits, 1), golden["out.logits_recurrent"], **TOLERANCE)


def test_a_frame_index_that_never_advances_is_the_released_fault(golden, network):
    state, logits = network.initial_state(2), []
    for t in range(4):
        y, state = network.step(
            clips(golden)[:, :, t : t + 1], (torch.zeros_like(state[0]), *state[1:])
        )
        logits.append(y)
    faulty = golden["out.logits_recurrent_offset_never_advanced"]
    torch.testing.assert_close(torch.cat(logits, 1), faulty, **TOLERANCE)
    assert (faulty - golden["out.logits_recurrent"]).norm() > 0.3 * faulty.norm()


def test_one_step_of_gradients(golden, network):
    loss = F.cross_entropy(network(clips(golden)).flatten(0, 1), golden["in.ce_target"])
    torch.testing.assert_close(loss, golden["out.ce_loss"], **TOLERANCE)
    loss.backward()
    assert_gradients(network, below(golden, "grad."))


def test_landmarks(shared):
    golden = load_file(shared / "golden/endomamba_two_heads.safetensors")
    network = endomamba_from_released(below(golden, "sd."), SIZE)
    visibility, position = network(clips(golden))
    torch.testing.assert_close(visibility.sigmoid(), golden["out.vis_sigmoid"], **TOLERANCE)
    torch.testing.assert_close(position, golden["out.pos"], **TOLERANCE)


def test_segmentation(segmentation):
    network, seen = endomamba_from_released(below(segmentation, "sd.")), {}
    decoder = network.decoder
    for name, module in (("conv_more", decoder.widen), *decoder.blocks.named_children()):
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
    with torch.no_grad():
        logits = network(clips(segmentation)).transpose(1, 2).flatten(0, 1)
        tokens = network.encoder(clips(segmentation))
    for ours, recorded in (
        (logits, "out.logits"),
        (tokens, "feat.encoder_tokens"),
        (seen["conv_more"][:, :64], "feat.conv_more_first64ch"),
        (seen["0"], "feat.block0"),
        (seen["3"][0, :, ::4, ::4], "feat.block3_frame0_every4px"),
    ):
        torch.testing.assert_close(ours, segmentation[recorded], **TOLERANCE)


def test_a_streamed_segmentation_is_the_recorded_one(segmentation):
    network, state, logits = endomamba_from_released(below(segmentation, "sd.")), None, []
    with torch.no_grad():
        for frame in clips(segmentation).split(1, dim=2):
            y, state = network.step(frame, state)
            logits.append(y[:, :, 0])
    torch.testing.assert_close(torch.cat(logits), segmentation["out.logits"], **TOLERANCE)


def test_visible_features_of_pretraining(pretraining):
    weights = below(pretraining, "sd.")
    with pytest.warns(UserWarning, match="no class token: it is new"):
        backbone = endomamba_from_released({"model": weights, "epoch": 1})
    assert isinstance(backbone, EndoMambaBackbone)
    videos = (pretraining["in.videos_u8"].float() / 255 - MEAN) / STD
    visible = ~pretraining["in.mask"].view(2, 8, 196)
    torch.testing.assert_close(
        backbone.visible_features(videos, visible),
        pretraining["out.encoder_visible_features"],
        **TOLERANCE,
    )


@pytest.mark.parametrize(
    ("model", "options", "parameters"),
    [
        ("endomamba_tiny(1000cls)", {"size": "tiny", "num_classes": 1000}, 6_783_976),
        ("endomamba_small(7cls)", {"size": "small", "num_classes": 7}, 24_465_031),
        ("endomamba_middle(1000cls)", {"size": "middle", "num_classes": 1000}, 71_876_584),
    ],
)
def test_the_papers_networks_have_the_released_size(shared, model, options, parameters):
    released = json.loads((shared / "golden/endomamba_fullsize_keys.json").read_text())[model]
    with torch.device("meta"):
        network = EndoMamba(3, head="phase", **options)
        loaded = endomamba_from_released({n: torch.empty(s) for n, s in released.items()})
    shapes = {name: list(x.shape) for name, x in network.state_dict().items()}
    ours = {renamed(name, ENDOMAMBA_NAMES): shape for name, shape in released.items()}
    assert shapes == ours
    assert shapes == {name: list(x.shape) for name, x in loaded.state_dict().items()}
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_segmentation_network_has_the_released_size(shared):
    """Less the heads for deep supervision, which are ours."""
    keys = json.loads((shared / "golden/endomamba_fullsize_keys.json").read_text())
    released = keys["endomambaseg_small(n_skip=0,2cls)"]
    with torch.device("meta"):
        network = EndoMamba(3, 2)
        loaded = endomamba_from_released({n: torch.empty(s) for n, s in released.items()})
    extra = sum(p.numel() for p in network.decoder.seg_layers[1:].parameters())
    assert sum(p.numel() for p in network.parameters()) - extra == 28_568_930
    shapes = {name: x.shape for name, x in network.state_dict().items()}
    assert shapes == {name: x.shape for name, x in loaded.state_dict().items()}


@pytest.mark.parametrize("size", ["small", "middle"])
def test_pretraining_checkpoints_fit_the_papers_backbones(shared, size):
    keys = json.loads((shared / "golden/endomamba_fullsize_keys.json").read_text())
    released = keys[f"pretrain_endomamba_{size}(T16,dec4)"]
    with torch.device("meta"):
        backbone = EndoMambaBackbone(size=size)
        with pytest.warns(UserWarning, match="no class token"):
            loaded = endomamba_from_released({n: torch.empty(s) for n, s in released.items()})
    shapes = {name: x.shape for name, x in backbone.state_dict().items()}
    assert shapes == {name: x.shape for name, x in loaded.state_dict().items()}
