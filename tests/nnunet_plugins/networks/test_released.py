"""Released checkpoints: every size is read off the shapes, and what does not fit is said."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from nnunet_plugins.networks import HyMamba
from nnunet_plugins.networks.layers.position import sincos_position
from nnunet_plugins.networks.released import hymamba_from_released


@pytest.fixture(scope="module")
def released(shared) -> dict[str, Tensor]:
    with safe_open(shared / "golden/hymamba_seg_img32_in2_b2.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("sd/")]  # noqa: SIM118
        return {name.removeprefix("sd/"): file.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def encoder(released) -> dict[str, Tensor]:
    return {name: x for name, x in released.items() if not name.startswith("decoder.")}


def test_sizes_come_from_the_shapes(released):
    network = hymamba_from_released(released)
    assert not network.training
    assert network(torch.zeros(1, 2, 16, 32, 48)).shape == (1, 4, 16, 32, 48)


def test_a_wrapped_checkpoint_loads_as_well(released):
    wrapped = {f"module.{name}": x for name, x in released.items()}
    x = torch.randn(1, 2, 32, 32, 32)
    torch.testing.assert_close(
        hymamba_from_released(wrapped)(x), hymamba_from_released(released)(x), rtol=0, atol=0
    )


def test_an_encoder_alone_gets_a_new_decoder_and_says_so(released, encoder):
    with pytest.warns(UserWarning, match=r"\d+ tensors loaded, the decoder's \d+ are new"):
        network = hymamba_from_released(encoder, num_classes=5)
    x = torch.randn(1, 2, 32, 32, 32)
    assert network(x).shape == (1, 5, 32, 32, 32)
    for ours, whole in zip(
        network.encoder(x), hymamba_from_released(released).encoder(x), strict=True
    ):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sd: sd.pop("mae.blocks.1.norm2.weight"), r"1 missing \(.*layers\.1"),
        (lambda sd: sd.update({"mae.blocks.0.attn.qkv": torch.zeros(3)}), r"attn\.qkv"),
        (lambda sd: sd.update({"teacher.weight": torch.zeros(3)}), r"not known: teacher\.weight"),
        (lambda sd: sd.update({"decoder.decoder1.conv2.bias": torch.zeros(9)}), "1 misshapen"),
        (lambda sd: sd.pop("mae.blocks.0.mamba.A_log"), r"lacks mae\.blocks\.0\.mamba\.A_log"),
        (lambda sd: sd.update({"mae.pos_embed": torch.zeros(1, 8, 24)}), "not the sine-cosine"),
        (lambda sd: sd.clear(), r"embeddings\.stem\.weight among them"),
        (lambda sd: sd.update({"epoch": 3}), "must map names to tensors"),
    ],
    ids=[
        "missing",
        "unexpected",
        "unknown",
        "misshapen",
        "no-size",
        "position",
        "foreign",
        "wrapped",
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(released, spoil, message):
    spoiled = dict(released)
    spoil(spoiled)
    with pytest.raises(ValueError, match=message) as error:
        hymamba_from_released(spoiled)
    assert "\n" not in str(error.value)


def test_full_size_checkpoints_fit_the_paper_network(shared):
    keys = json.loads((shared / "golden/hymamba_fullsize_keys.json").read_text())
    paper = HyMamba(1, 14, bidirectional=False)
    for layout in ("hybird_seg_in1_out14_img96", "timm_style_encoder_checkpoint"):
        checkpoint = {name: torch.zeros(shape) for name, shape in keys[layout].items()}
        checkpoint["mae.pos_embed"] = sincos_position((6, 6, 6), 384)[None]
        if "encoder" in layout:
            with pytest.warns(UserWarning, match="decoder"):
                network = hymamba_from_released(checkpoint, num_classes=14)
        else:
            network = hymamba_from_released(checkpoint)
        shapes = {name: x.shape for name, x in network.state_dict().items()}
        assert shapes == {name: x.shape for name, x in paper.state_dict().items()}
