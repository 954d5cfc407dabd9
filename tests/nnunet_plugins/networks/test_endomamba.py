"""What is particular to EndoMamba: time's direction, frames of any size, heads, visible patches."""

import argparse

import pytest
import torch

from nnunet_plugins.networks import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.endomamba import SIZES
from nnunet_plugins.networks.layers.decoder_cup import FRAMES_AT_ONCE, DecoderCup
from nnunet_plugins.networks.layers.frame_tokens import frame_sinusoid, resized_position
from nnunet_plugins.networks.layers.mamba import DT_RANGE, MambaMixer
from nnunet_plugins.networks.released import endomamba_from_released, read_released

SMALL = {
    "d_model": 16,
    "depth": 4,
    "image_size": (32, 24),
    "patch_size": 8,
    "drop_path": 0.0,
}
WIDTHS = {"decoder_widths": (12, 10, 8)}
HEADS = ("segmentation", "classification", "phase", "localization")


def small(head: str = "segmentation", **options) -> EndoMamba:
    widths = WIDTHS if head == "segmentation" else {}
    return EndoMamba(3, 5, head=head, **SMALL | widths | options).eval()


def tensors(outputs) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ("segmentation", [(2, 5, 3, 37, 22)]),
        ("classification", [(2, 3, 5)]),
        ("phase", [(2, 3, 5)]),
        ("localization", [(2, 3, 5, 2), (2, 3, 5, 2)]),
    ],
)
def test_every_head_answers_for_every_frame(head, shapes):
    outputs = tensors(small(head)(torch.randn(2, 3, 3, 37, 22)))
    assert [tuple(x.shape) for x in outputs] == shapes


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 7), (32, 24), (40, 17)])
def test_frames_of_any_size(head, size):
    outputs = tensors(small(head)(torch.randn(1, 3, 2, *size)))
    assert all(x.isfinite().all() for x in outputs)
    if head == "segmentation":
        assert outputs[0].shape[3:] == size


@pytest.mark.parametrize("head", HEADS)
def test_a_frame_depends_on_all_before_and_on_none_to_come(head):
    network = small(head).double()
    x = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    for frame in range(4):
        for outputs in tensors(network(x)):
            answer = outputs[0, :, frame] if head == "segmentation" else outputs[0, frame]
            (grad,) = torch.autograd.grad(answer.square().sum(), x, retain_graph=True)
            assert [bool(grad[0, :, t].any()) for t in range(4)] == [t <= frame for t in range(4)]
            assert not grad[1].any()


def test_the_first_half_of_the_layers_sees_one_frame_only():
    backbone = EndoMambaBackbone(3, **SMALL).double()
    x = torch.randn(1, 3, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    seen = []
    backbone.layers[1].register_forward_hook(lambda _, __, out: seen.append(out))
    backbone(x)
    (grad,) = torch.autograd.grad(seen[0][1].square().sum(), x)
    assert [bool(grad[0, :, t].any()) for t in range(3)] == [False, True, False]


@pytest.mark.parametrize("skips", [False, True])
def test_what_a_place_shows_is_decided_there(skips):
    """Tokens and skips reach the decoder in the order of places and frames."""
    decoder = DecoderCup(16, (12, 10, 8), 2, 3 if skips else 0).eval()
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d):  # the mean over channels of one pixel
            torch.nn.init.zeros_(module.weight)
            middle = module.kernel_size[0] // 2
            torch.nn.init.constant_(module.weight[..., middle, middle], 1 / module.in_channels)
    features, frames = torch.rand(1, 16, 3, 5, 6), torch.rand(1, 3, 3, 40, 48)
    base = decoder(features, frames, (40, 48))
    features[:, :, 1, 3, 4] += 5
    frames[:, :, 1, 24:32, 32:40] += 5
    moved = (decoder(features, frames, (40, 48)) - base).abs().sum((0, 1))
    assert not moved[[0, 2]].any()
    h, w = divmod(int(moved[1].argmax()), 48)
    assert 24 <= h < 32
    assert 32 <= w < 40


def test_tokens_become_maps_row_by_row():
    network, seen = small(), []
    network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 2, 24, 40)
    tokens = network.encoder(x)
    network(x)
    torch.testing.assert_close(seen[0][0, :, 1, 2, 3], tokens[0, 1, 1 + 2 * 5 + 3])


def test_a_long_clip_is_decoded_in_parts_to_the_same_logits():
    network, x = small(skips=True), torch.randn(1, 3, FRAMES_AT_ONCE + 3, 16, 16)
    with torch.no_grad():
        in_parts = network(x)
    torch.testing.assert_close(in_parts, network(x), rtol=1e-4, atol=1e-5)


def test_logits_of_a_clip_are_the_linear_layer_on_its_mean_token():
    network, x = small("classification"), torch.randn(2, 3, 4, 16, 16)
    mean = network.encoder(x)[:, :, 0].mean(1)
    torch.testing.assert_close(network.clip_logits(x), network.head.classify(mean))
    with pytest.raises(ValueError, match='only heads "classification" and "phase"'):
        small("segmentation").clip_logits(x)


@pytest.mark.parametrize("size", SIZES)
def test_half_of_the_layers_is_spatial(size):
    with torch.device("meta"):
        backbone = EndoMambaBackbone(size=size)
    directions = [len(layer.mamba.directions) for layer in backbone.layers]
    half = SIZES[size].depth // 2
    assert directions == [2] * half + [1] * half


def test_drop_path_rises_from_the_first_layer_to_the_last():
    backbone = EndoMambaBackbone(3, **SMALL | {"drop_path": 0.3})
    rates = [layer.drop_path.drop_prob for layer in backbone.layers]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_step_sizes_start_in_mambas_range():
    for name, p in small().named_parameters():
        if name.endswith(("dt_proj.bias", "dt_proj_b.bias")):
            dt = torch.nn.functional.softplus(p)
            assert dt.min() >= DT_RANGE[0] * 0.99
            assert dt.max() <= DT_RANGE[1] * 1.01


def test_the_sinusoid_is_the_same_wave_at_any_index():
    """Against angle addition from an index that float64 holds a thousand times finer."""
    index, channels = 10**9, 64
    far = frame_sinusoid(torch.tensor([[index]]), channels)[0, 0]
    for i in range(channels // 2):
        angle = index * 10_000 ** (-2 * i / channels)
        turns = torch.tensor(angle, dtype=torch.float64) % (2 * torch.pi)
        assert abs(far[2 * i] - turns.sin()) < 1e-6
        assert abs(far[2 * i + 1] - turns.cos()) < 1e-6
    near, after = frame_sinusoid(torch.tensor([[index, index + 1]]), channels)[0]
    assert (near - after).abs().max() > 0.5
    assert frame_sinusoid(torch.tensor([[3]]), 7).shape == (1, 1, 7)


def test_positions_keep_their_places_on_another_grid():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    table = torch.cat([torch.tensor([[7.0, 9.0]]), table])[None]
    wider = resized_position(table, (4, 6), (8, 12))
    assert wider[0, 0].tolist() == [7, 9]
    places = wider[0, 1:].view(8, 12, 2)
    assert (places[..., 0].diff(dim=0) > 0).all()
    assert (places[..., 1].diff(dim=1) > 0).all()
    assert resized_position(table, (4, 6), (4, 6)) is table


def test_visible_patches_alone_are_computed():
    backbone = EndoMambaBackbone(3, **SMALL).eval()
    x = torch.randn(2, 3, 3, 32, 24, requires_grad=True)
    visible = torch.zeros(2, 3, 12, dtype=torch.bool)
    visible[..., [1, 6]] = True
    features = backbone.visible_features(x, visible)
    assert features.shape == (2, 6, 16)
    (grad,) = torch.autograd.grad(features.square().sum(), x)
    touched = grad.unfold(3, 8, 8).unfold(4, 8, 8).abs().sum((1, 5, 6)).flatten(2) > 0
    assert torch.equal(touched, visible)


def test_visible_patches_must_be_equally_many_in_all_frames():
    backbone, x = EndoMambaBackbone(3, **SMALL), torch.randn(1, 3, 2, 32, 24)
    visible = torch.zeros(1, 2, 12, dtype=torch.bool)
    visible[0, 0, 0] = True
    with pytest.raises(ValueError, match="0 to 1 visible patches"):
        backbone.visible_features(x, visible)
    with pytest.raises(ValueError, match=r"\(1, 2, 12\) patches"):
        backbone.visible_features(x, visible[..., :9])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"head": "depth"}, "unknown head 'depth'"),
        ({"depth": 1}, "a spatial and a temporal layer"),
        ({"patch_size": 12}, "halved 3.58"),
        ({"head": "phase", "skips": True}, "of the segmentation head"),
        ({"head": "phase", "deep_supervision": True}, "of the segmentation head"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EndoMamba(3, 2, **SMALL | WIDTHS | options)


def test_a_mixer_that_looks_ahead_has_no_step():
    with pytest.raises(ValueError, match="sees tokens to come"):
        MambaMixer(8).step(torch.randn(1, 3, 8))


def test_shapes_are_known_without_numbers():
    with torch.device("meta"):
        logits = small(skips=True)(torch.empty(1, 3, 4, 40, 33))
    assert logits.shape == (1, 5, 4, 40, 33)


def test_a_step_is_exported_with_its_state():
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = EndoMambaBackbone(3, **SMALL | {"depth": 2}).eval()

        def forward(self, x, *state):
            return self.backbone.step(x, state)

    step, frames = Step(), torch.randn(2, 1, 3, 1, 16, 16)
    exported = torch.export.export(step, (frames[0], *step.backbone.initial_state(1))).module()
    with torch.no_grad():
        _, state = step(frames[0], *step.backbone.initial_state(1))
        for ours, wanted in zip(
            exported(frames[1], *state)[1], step(frames[1], *state)[1], strict=True
        ):
            torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_states_of_other_layers_are_refused(layers):
    network = small("phase")
    index, *parts = network.initial_state(1)
    with pytest.raises(ValueError, match=f"states of {layers} layers came for 2 temporal layers"):
        network.step(torch.randn(1, 3, 1, 32, 24), (index, *(2 * parts)[: 2 * layers]))


def released(network: EndoMamba) -> dict[str, torch.Tensor]:
    """Its weights under the authors' names."""
    names = {"encoder.": "", ".mamba.": ".mixer.", "patch_embed.": "patch_embed.proj."}
    names["head.classify."] = "head."
    weights = {}
    for name, x in network.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = x
    return weights


@pytest.fixture
def phase() -> EndoMamba:
    return small("phase", patch_size=8, image_size=(32, 32))


@pytest.mark.parametrize("wrap", [lambda sd: sd, lambda sd: {"model": sd, "epoch": 3}])
def test_a_released_network_loads_plain_or_wrapped(phase, wrap):
    x = torch.randn(1, 3, 2, 32, 32)
    loaded = endomamba_from_released(wrap(released(phase)), (32, 32))
    torch.testing.assert_close(loaded(x), phase(x), rtol=0, atol=0)


def test_a_classifier_beside_a_released_backbone_is_its_head(phase):
    probe = {"module.linear.weight": torch.randn(4, 16), "module.linear.bias": torch.randn(4)}
    backbone = {f"module.{n}": x for n, x in released(phase).items() if "head." not in n}
    loaded = endomamba_from_released(
        {"backbone_state_dict": backbone, "state_dict": probe}, (32, 32)
    )
    assert loaded.head.pool == "cls"
    torch.testing.assert_close(loaded.head.classify.weight, probe["module.linear.weight"])


def test_a_backbone_without_head_is_a_backbone(phase):
    weights = {n: x for n, x in released(phase).items() if "head." not in n}
    x = torch.randn(1, 3, 2, 32, 32)
    loaded = endomamba_from_released(weights, (32, 32))
    torch.testing.assert_close(loaded(x), phase.encoder(x), rtol=0, atol=0)


def test_a_position_embedding_goes_to_other_frames_and_says_so(phase):
    with pytest.warns(UserWarning, match="interpolated from 4 x 4 to 6 x 8"):
        loaded = endomamba_from_released(released(phase), (48, 64))
    x = torch.randn(1, 3, 2, 48, 64)
    torch.testing.assert_close(loaded(x), phase(x), rtol=1e-4, atol=1e-5)
    oblong = released(small("phase"))
    with pytest.raises(ValueError, match="give the image_size"):
        endomamba_from_released(oblong, (64, 64))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sd: sd.pop("layers.1.norm.weight"), "1 missing"),
        (lambda sd: sd.update({"teacher.weight": torch.zeros(3)}), r"not known: teacher\.weight"),
        (lambda sd: sd.update({"head.weight": torch.zeros(5, 3)}), "1 misshapen"),
        (lambda sd: sd.pop("layers.0.mixer.A_log"), r"lacks layers\.0\.mixer\.A_log"),
        (lambda sd: sd.clear(), "no released EndoMamba"),
        (lambda sd: sd.update({"epoch": 3}), "must map names to tensors"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(phase, spoil, message):
    spoiled = released(phase)
    spoil(spoiled)
    with pytest.raises(ValueError, match=message) as error:
        endomamba_from_released(spoiled, (32, 32))
    assert "\n" not in str(error.value)


def test_released_files_are_read_without_running_them(phase, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": released(phase), "args": argparse.Namespace(lr=1e-4)}, path)
    found = read_released(path)
    assert found["args"].lr == 1e-4
    assert endomamba_from_released(found, (32, 32)).head.pool == "mean"
    torch.save({"model": released(phase), "args": EndoMamba}, path)
    with pytest.raises(ValueError, match="cannot be read safely") as error:
        read_released(path)
    assert "\n" not in str(error.value)
