"""HyMamba equals the authors' network: recorded outputs, features, gradients and modules."""

import json
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_plugins.networks.layers.convolution import ChannelNorm, MedNeXtBlock, ResidualBlock
from nnunet_plugins.networks.layers.mamba import MambaLayer
from nnunet_plugins.networks.layers.position import sincos_position
from nnunet_plugins.networks.released import hymamba_from_released, our_name
from tests.golden import Golden

CUBE = [3, 3, 3]


@pytest.fixture(params=["hymamba_seg_img48", "hymamba_seg_img32_in2_b2"])
def golden(request, shared) -> Golden:
    return Golden(shared / "golden" / f"{request.param}.safetensors")


@pytest.fixture
def modules(shared) -> Golden:
    return Golden(shared / "golden" / "hymamba_modules.safetensors")


def like(recorded: Tensor, x: Tensor) -> Tensor:
    """Large tensors are recorded at every other voxel."""
    return x if x.shape == recorded.shape else x[..., ::2, ::2, ::2]


def test_logits_and_loss(golden):
    logits = hymamba_from_released(golden.below("sd/"))(golden["x"])
    torch.testing.assert_close(like(golden["out"], logits), golden["out"], rtol=0, atol=5e-4)
    loss = F.cross_entropy(logits, golden["label"].long())
    torch.testing.assert_close(loss, golden["loss"][0], rtol=0, atol=1e-5)


def test_features(golden):
    wanted = golden.below("feat/")
    if not wanted:
        pytest.skip("this recording holds no features")
    network = hymamba_from_released(golden.below("sd/"))
    seen: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, __, out: seen.__setitem__(name, out))

    for i, skip in enumerate(network.encoder.skips, start=1):
        record(f"x{i}", skip)
    record("x5", network.encoder.stages[-1])
    for i, layer in enumerate(network.encoder.mamba.layers):
        record(f"block{i}", layer)
    record("dec5", network.decoder.ups[-1])
    record("dec2", network.decoder.ups[0])
    seen["x5_mamba"] = network.encoder(golden["x"])[-1]
    network(golden["x"])
    assert set(wanted) <= set(seen) | {"x1_mean_std"}
    for name, x in seen.items():
        torch.testing.assert_close(like(wanted[name], x), wanted[name], rtol=0, atol=1e-4, msg=name)


def test_gradients(golden):
    network = hymamba_from_released(golden.below("sd/"))
    F.cross_entropy(network(golden["x"]), golden["label"].long()).backward()
    ours = {name: p.grad for name, p in network.named_parameters()}
    names = json.loads(golden.notes["grad_names"])
    for name, norm, head in zip(names, golden["grad_norms"], golden["grad_head4"], strict=True):
        grad = ours[our_name(name)]
        assert abs(grad.double().norm() - norm) <= 1e-2 * norm + 1e-7, name
        first = grad.flatten()[:4]
        torch.testing.assert_close(
            first, head[: len(first)], rtol=2e-2, atol=2e-2 * float(head.abs().max()) + 1e-6
        )
    for name, grad in golden.below("grad/").items():
        assert (ours[our_name(name)] - grad).norm() <= 1e-2 * grad.norm(), name


def renamed(state_dict: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    """State dict of a single recorded module under our names, unread tensors left out."""
    result = {}
    for name, tensor in state_dict.items():
        if re.search(r"_b(_log)?(\.|$)", name):
            continue
        for old, new in pairs:
            name = re.sub(rf"^{re.escape(old)}", new, name)
        result[name] = tensor
    return result


MEDNEXT = (("conv1.", "depthwise."), ("conv2.", "expand."), ("conv3.", "reduce."))
RESIDUAL = (("conv3.", "shortcut.0."), ("norm3.", "shortcut.1."))
MAMBA = (("mlp.fc1.", "mlp.1."), ("mlp.fc2.", "mlp.3."), ("norm2.", "mlp.0."))


@pytest.mark.parametrize(
    ("name", "build", "pairs"),
    [
        ("mednext", lambda: MedNeXtBlock(6, 3, CUBE), MEDNEXT),
        ("resblock", lambda: ResidualBlock(6, 6, CUBE), RESIDUAL),
        ("resblock_proj", lambda: ResidualBlock(6, 9, CUBE), RESIDUAL),
    ],
)
def test_convolutional_modules(modules, name, build, pairs):
    block = build()
    block.load_state_dict(renamed(modules.below(f"{name}/sd/"), *pairs))
    torch.testing.assert_close(block(modules["x8"]), modules[f"{name}/dense"], rtol=0, atol=1e-5)


def test_channel_norm(modules):
    norm = ChannelNorm(6)
    norm.load_state_dict({"weight": modules["ln/weight"], "bias": modules["ln/bias"]})
    torch.testing.assert_close(norm(modules["x8"]), modules["ln/dense"], rtol=0, atol=1e-5)


def test_mamba_layer(modules):
    layer = MambaLayer(24, bidirectional=False)
    layer.load_state_dict(renamed(modules.below("layer/sd/"), *MAMBA))
    x = modules["layer/x"]
    torch.testing.assert_close(layer(x), modules["layer/out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.mamba(x), modules["layer/mamba_out"], rtol=0, atol=1e-5)


def test_position_embedding(modules):
    for name, recorded in modules.below("pos/").items():
        side, channels = map(int, re.fullmatch(r"g(\d+)_c(\d+)", name).groups())
        computed = sincos_position((side,) * 3, channels)
        torch.testing.assert_close(computed, recorded[0], rtol=0, atol=1e-6)
