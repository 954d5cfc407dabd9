"""A network whose large matrix products are laid out for this CPU once, before it is streamed.

torch lays weights out anew in every call, and multiplies float32 with a library that uses a second
core badly for matrices as small as those of a frame. oneDNN, which torch brings, does neither.
"""

from typing import Any

import torch
from torch import Tensor, nn

MODES = ("float32", "mixed", "bfloat16")
"""Arithmetic that a network can be streamed with: all float32; float32 but for its large products,
whose factors are rounded to bfloat16 and summed in float32; weights and features in bfloat16."""
LARGE = 2**16
"""Weights from which on a product is worth it."""


def prepared(network: nn.Module, mode: str, device: torch.device) -> Any:
    """The network itself, on a device, changed for inference in one of `MODES`.

    Weights and outputs keep their names and shapes. On GPUs and on CPUs without oneDNN nothing is
    packed; "mixed" needs it.

    Raises:
        ValueError: If the mode is unknown or "mixed" is not possible here.
    """
    if mode not in MODES:
        raise ValueError(f"unknown arithmetic {mode!r}; use one of {', '.join(MODES)}")
    network = network.eval().to(device, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if mode == "mixed" and not (here and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        raise ValueError(
            f"products in bfloat16 on {device.type} need a CPU with AVX-512 and oneDNN; "
            "use float32, or bfloat16 on a GPU"
        )
    if here and mode != "bfloat16":
        _pack(network, torch.bfloat16 if mode == "mixed" else torch.float32)
    return network


class PackedLinear(nn.Module):
    """A linear layer without bias whose weight is also kept as oneDNN wants it.

    Args:
        linear: The layer; its parameter is shared.
        dtype: Of the factors.
    """

    packed: Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.dtype = linear.weight, dtype
        weight = linear.weight.detach().to(dtype).clone()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # as torch.compile does

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> (..., c')."""
        product: Any = torch.ops.mkldnn._linear_pointwise
        return product(x.to(self.dtype), self.packed, None, "none", [], "").to(x.dtype)


def _pack(network: nn.Module, dtype: torch.dtype) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.bias is None and child.weight.numel() >= LARGE:
                setattr(module, name, PackedLinear(child, dtype))
