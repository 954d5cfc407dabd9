"""Released Vivim checkpoints and SegFormer's weights: all of them, or one clear sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnunet_plugins.cli import main
from nnunet_plugins.imagenet import IMAGENET_MEAN, IMAGENET_STD
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.released import vivim_from_released
from nnunet_plugins.networks.released_vivim import load_segformer
from nnunet_plugins.segformer_weights import vivim_weights
from nnunet_plugins.trainers.VivimTrainer import VivimTrainer

SEGFORMER = "encoder.downsample_layers."


@pytest.fixture(scope="module")
def released(shared) -> dict[str, Tensor]:
    golden = load_file(shared / "golden/vivim_net.safetensors")
    return {name[3:]: x for name, x in golden.items() if name.startswith("sd.")}


@pytest.fixture(scope="module")
def segformer(released) -> dict[str, Tensor]:
    """As Hugging Face's SegformerForSemanticSegmentation names them."""
    encoder = {
        name.replace(SEGFORMER, "segformer.encoder."): x
        for name, x in released.items()
        if name.startswith(SEGFORMER)
    }
    decoder = {
        name.replace("decoder.", "decode_head."): x
        for name, x in released.items()
        if name.startswith("decoder.")
    }
    return encoder | decoder


SIZES = {
    "features_per_stage": (16, 32, 40, 64),
    "blocks_per_stage": (2, 1, 1, 1),
    "decoder_width": 48,
}


def new_network(channels: int = 3, **options) -> Vivim:
    return Vivim(channels, 2, **SIZES | options).eval()


def test_sizes_come_from_the_shapes(released):
    network = vivim_from_released(released)
    assert not network.training
    assert network(torch.zeros(1, 3, 2, 40, 50)).shape == (1, 1, 2, 40, 50)


def test_a_wrapped_checkpoint_loads_as_well(released):
    x = torch.randn(1, 3, 3, 32, 32)
    wrapped = vivim_from_released({f"module.{name}": t for name, t in released.items()})
    torch.testing.assert_close(wrapped(x), vivim_from_released(released)(x), rtol=0, atol=0)


def test_a_checkpoint_without_a_boundary_head_makes_a_network_without(released):
    bare = {name: x for name, x in released.items() if not name.startswith("edgeocr")}
    assert vivim_from_released(bare).boundary is None


def test_full_size_checkpoints_fit_the_papers_network(shared):
    keys = json.loads((shared / "golden/vivim_fullsize_keys.json").read_text())
    with torch.device("meta"):
        paper = Vivim(3, 1, boundary_layers=1)
        network = vivim_from_released({n: torch.zeros(shape) for n, shape in keys.items()})
    ours = {name: x.shape for name, x in network.state_dict().items()}
    assert ours == {name: x.shape for name, x in paper.state_dict().items()}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sd: sd.pop("encoder.stages.2.1.0.norm2.weight"), r"1 missing \(.*mamba\.1\.norm2"),
        (lambda sd: sd.update({"encoder.stages.0.0.0.gate": torch.zeros(3)}), r"mamba\.0\.gate"),
        (lambda sd: sd.update({"teacher.weight": torch.zeros(3)}), r"not known: teacher\.weight"),
        (lambda sd: sd.update({"decoder.batch_norm.bias": torch.zeros(9)}), "1 misshapen"),
        (lambda sd: sd.pop("out.weight"), r"lacks out\.weight, from which a size"),
        (lambda sd: sd.clear(), r"in_proj\.weight among them"),
        (lambda sd: sd.update({"epoch": 3}), "must map names to tensors"),
    ],
    ids=["missing", "unexpected", "unknown", "misshapen", "no-size", "foreign", "wrapped"],
)
def test_what_does_not_fit_is_said_in_one_sentence(released, spoil, message):
    spoiled = dict(released)
    spoil(spoiled)
    with pytest.raises(ValueError, match=message) as error:
        vivim_from_released(spoiled)
    assert "\n" not in str(error.value)


def test_other_heads_are_told_not_guessed(released):
    x = torch.randn(1, 3, 2, 64, 64)
    told = vivim_from_released(released, heads=(1, 1, 1, 1))
    assert not torch.allclose(told(x), vivim_from_released(released)(x))


def test_segformer_gives_its_blocks_and_its_decoder(segformer, released):
    network = new_network()
    new = load_segformer(network, segformer)
    whole = vivim_from_released(released)
    own, theirs = network.state_dict(), whole.state_dict()
    assert all(".mamba." in name or name.startswith("decoder.seg_layers") for name in new)
    assert set(own) == set(new) | {name for name in own if torch.equal(own[name], theirs[name])}


@pytest.mark.parametrize("prefix", ["segformer.encoder.", "encoder."])
def test_an_encoder_alone_leaves_the_decoder_as_it_is(segformer, prefix):
    """SegformerForImageClassification, and SegformerModel, which has no prefix."""
    network = new_network(norm="layer")
    before = {name: x.clone() for name, x in network.decoder.state_dict().items()}
    encoder = {
        name.replace("segformer.encoder.", prefix): x
        for name, x in segformer.items()
        if name.startswith("segformer.")
    }
    new = load_segformer(network, encoder | {"classifier.weight": torch.zeros(1000, 64)})
    assert {f"decoder.{name}" for name in before} <= set(new)
    assert all(torch.equal(before[name], x) for name, x in network.decoder.state_dict().items())


def test_a_decoder_of_another_width_or_norm_stays_new(segformer):
    assert "decoder.fuse.weight" in load_segformer(new_network(decoder_width=24), segformer)
    new = load_segformer(new_network(norm="layer"), segformer)
    assert "decoder.norm.weight" in new
    assert "decoder.fuse.weight" not in new


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_are_read_as_a_grey_image(segformer, channels):
    colour, other = new_network(mamba_depth=0), new_network(channels, mamba_depth=0)
    load_segformer(colour, segformer)
    load_segformer(other, segformer)
    x = torch.randn(1, channels, 2, 40, 40)
    grey = x.mean(1, keepdim=True).expand(-1, 3, -1, -1, -1)
    for ours, theirs in zip(other.encoder(x), colour.encoder(grey), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda sd: sd.pop("segformer.encoder.block.1.0.mlp.dense1.bias"), "1 missing"),
        (lambda sd: sd.update({"vit.cls_token": torch.zeros(3)}), r"not known .*vit\.cls_token"),
        (lambda sd: sd.clear(), "size of the checkpoint, one of b0 to b5"),
    ],
    ids=["missing", "unknown", "empty"],
)
def test_a_segformer_that_does_not_fit_changes_nothing(segformer, spoil, message):
    network = new_network()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    spoiled = dict(segformer)
    spoil(spoiled)
    with pytest.raises(ValueError, match=message):
        load_segformer(network, spoiled)
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())


def test_nnunet_starts_from_a_segformer_and_sees_what_it_saw(segformer, tmp_path, monkeypatch):
    monkeypatch.setattr(VivimTrainer, "network_options", SIZES)
    folder, out = tmp_path / "segformer", tmp_path / "weights.pth"
    folder.mkdir()
    save_file(segformer, folder / "model.safetensors")
    assert main(["segformer-weights", str(folder), "--out", str(out)]) == 0
    network = Vivim(3, 5, **SIZES)  # nnU-Net leaves out what is called seg_layers
    heads = {name: x for name, x in network.state_dict().items() if ".seg_layers." in name}
    network.load_state_dict(torch.load(out, weights_only=True)["network_weights"] | heads)
    taught = new_network()
    load_segformer(taught, segformer)
    image, shape = torch.rand(1, 3, 64, 64), (1, 3, 1, 1)
    mean, std = (torch.tensor(x).view(shape) for x in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (image - mean) / std
    ours, theirs = (
        n.encoder.stages[0].embed.proj(x)[..., 2:-2, 2:-2]
        for n, x in ((network, image), (taught, normalised))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    grey, _ = vivim_weights(folder, channels=1)
    assert grey["encoder.stages.0.embed.proj.weight"].shape[1] == 1


def test_what_is_no_segformer_or_no_vivim_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trains no Vivim"):
        vivim_weights(tmp_path, "HyMambaTrainer")
    with pytest.raises(FileNotFoundError):
        vivim_weights(tmp_path / "none.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not known in a SegFormer"):
        vivim_weights(tmp_path / "a.pt", "VivimTrainer_b0")
