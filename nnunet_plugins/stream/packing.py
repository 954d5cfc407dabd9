"""EndoMamba with its layers in two calls of the compiled library, their weights laid out once.

Shapes: f frames, b streams, l tokens, c channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mamba_kernels import BlockWeights, MambaBlock, mamba_blocks
from mamba_kernels.native.library import missing, multiplies_bfloat16
from nnunet_plugins.networks.layers.mamba import State
from nnunet_plugins.networks.layers.rms_mamba import EPS, MambaLayers, SpatialLayer, TemporalLayer

MODES = ("float32", "mixed", "bfloat16")
"""Arithmetic that a network can be streamed with: all float32; float32 but for its large products,
whose factors are rounded to bfloat16 and summed in float32; weights and features in bfloat16."""
PACKED = {"float32": torch.float32, "mixed": torch.bfloat16, "bfloat16": torch.bfloat16}
"""Of each the dtype of a product's factors."""


def prepared(network: nn.Module, mode: str, device: torch.device) -> Any:
    """The network itself, on a device, changed for inference in one of `MODES`.

    Weights and outputs keep their names and shapes. Layers are packed on CPUs, where the compiled
    library is, and with bfloat16 where the CPU multiplies it; "mixed" needs both.

    Raises:
        ValueError: If the mode is unknown, "mixed" is not possible here, or the network has been
            compiled.
    """
    if mode not in MODES:
        raise ValueError(f"unknown arithmetic {mode!r}; use one of {', '.join(MODES)}")
    if "step" in vars(network):
        raise ValueError("the network is compiled already; prepare one as it was built")
    network = network.eval().to(device, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    here = device.type == "cpu" and missing() is None
    bfloat16 = here and multiplies_bfloat16()
    if mode == "mixed" and not bfloat16:
        raise ValueError(
            f"products in bfloat16 on {device.type} need a CPU with AVX512_BF16 and the compiled "
            "kernels; use float32, or bfloat16 on a GPU"
        )
    if bfloat16 or (here and mode == "float32"):
        _pack(network, PACKED[mode])
    return network


class PackedLayer(nn.Module):
    """A layer's weights as they are and laid out. It is computed together with others.

    Args:
        layer: The layer, with which parameters are shared.
        dtype: Of the factors of its products and of what lies between them.
    """

    def __init__(self, layer: SpatialLayer | TemporalLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.mamba = layer.norm, layer.mamba
        self.temporal = isinstance(layer, TemporalLayer)
        self.register_load_state_dict_post_hook(_laid_out_anew)
        self.pack(dtype)

    def pack(self, dtype: torch.dtype) -> None:
        """Lay the weights out as they are now, for factors of a dtype."""
        mixer = self.mamba
        directions = [mixer.direction_weights(name) for name in mixer.directions]
        weights = BlockWeights(
            self.norm.weight, mixer.in_proj.weight, directions, mixer.out_proj.weight
        )
        self.block = MambaBlock(weights, mixer.directions, EPS, dtype)


def _laid_out_anew(layer: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(layer, PackedLayer)
    layer.pack(layer.block.dtype)


class PackedLayers(nn.ModuleList):
    """See `MambaLayers`: those of a kind in one call."""

    def within_frames(self, x: Tensor) -> Tensor:
        """Tokens of frames through the spatial layers: (f, l, c) -> (f, l, c)."""
        return mamba_blocks(self._blocks(temporal=False), x.float())[0].to(x.dtype)

    def along_time(self, x: Tensor, states: Sequence[State] | None) -> tuple[Tensor, list[State]]:
        """The tokens that come next through the temporal layers, of which each has a state.

        (b, l, c) -> (b, l, c), and the states that they leave.
        """
        before = None if states is None else [[state] for state in states]
        blocks = self._blocks(temporal=True)
        y, after = mamba_blocks(blocks, x.float(), before, return_states=True)
        return y.to(x.dtype), [state for (state,) in after]

    def _blocks(self, temporal: bool) -> list[MambaBlock]:
        return [layer.block for layer in self if layer.temporal == temporal]


def _pack(network: nn.Module, dtype: torch.dtype) -> None:
    for module in list(network.modules()):
        if isinstance(module, PackedLayer):
            module.pack(dtype)
        for name, child in list(module.named_children()):
            if type(child) is MambaLayers:
                setattr(module, name, PackedLayers(PackedLayer(layer, dtype) for layer in child))
