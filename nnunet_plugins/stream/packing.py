"""EndoMamba with its matrix products laid out for this CPU once, before it is streamed.

torch lays weights out anew in every call, and multiplies float32 with a library that uses a second
core badly for matrices as small as those of a frame. oneDNN, which torch brings, does neither.
What depends on weights alone is computed once too, and what lies between two products stays in
the dtype of their factors.

Shapes: f frames, l tokens, c channels, e inner channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mamba_kernels import causal_conv1d, selective_scan, selective_scan_multi
from nnunet_plugins.networks.layers.mamba import SUFFIXES, MambaMixer, State
from nnunet_plugins.networks.layers.rms_mamba import EPS, SpatialLayer, TemporalLayer

MODES = ("float32", "mixed", "bfloat16")
"""Arithmetic that a network can be streamed with: all float32; float32 but for its large products,
whose factors are rounded to bfloat16 and summed in float32; weights and features in bfloat16."""
PACKED = {"float32": torch.float32, "mixed": torch.bfloat16, "bfloat16": torch.bfloat16}
"""Of each the dtype of a product's factors."""


def prepared(network: nn.Module, mode: str, device: torch.device) -> Any:
    """The network itself, on a device, changed for inference in one of `MODES`.

    Weights and outputs keep their names and shapes. On GPUs and on CPUs without oneDNN nothing is
    packed, nor are products in bfloat16 on CPUs too old for them; "mixed" needs both.

    Raises:
        ValueError: If the mode is unknown or "mixed" is not possible here.
    """
    if mode not in MODES:
        raise ValueError(f"unknown arithmetic {mode!r}; use one of {', '.join(MODES)}")
    network = network.eval().to(device, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    bfloat16 = here and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if mode == "mixed" and not bfloat16:
        raise ValueError(
            f"products in bfloat16 on {device.type} need a CPU with AVX-512 and oneDNN; "
            "use float32, or bfloat16 on a GPU"
        )
    if bfloat16 or (here and mode == "float32"):
        _pack(network, PACKED[mode])
    return network


class PackedProduct:
    """x @ weight.T with the weight as oneDNN wants it.

    Args:
        weight: (c', c).
        dtype: Of the factors and the result.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        weight = weight.detach().to(dtype).clone()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)  # as torch.compile does

    def __call__(self, x: Tensor) -> Tensor:
        """(..., c) -> (..., c')."""
        product: Any = torch.ops.mkldnn._linear_pointwise
        return product(x, self.packed, None, "none", [], "")


class PackedDirection:
    """What one direction of a mixer computes from its convolution on.

    Args:
        mixer: The mixer.
        name: Of the direction.
        dtype: Of the factors of its products.
    """

    def __init__(self, mixer: MambaMixer, name: str, dtype: torch.dtype) -> None:
        suffix = SUFFIXES[name]
        parts = ("conv1d{}", "x_proj{}", "dt_proj{}", "A{}_log", "D{}")
        conv, x_proj, dt_proj, A_log, D = (getattr(mixer, part.format(suffix)) for part in parts)
        self.split, self.reverse = mixer.split, name == "reverse"
        self.taps, self.conv_bias = conv.weight.detach().squeeze(1).contiguous(), conv.bias.detach()
        self.x_proj, self.dt_proj = (PackedProduct(p.weight, dtype) for p in (x_proj, dt_proj))
        self.A, self.D = -A_log.detach().float().exp(), D.detach().float()
        self.delta_bias = dt_proj.bias.detach().float()

    def convolved(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(f, e, l) -> the same, and the state of the convolution."""
        return causal_conv1d(
            u, self.taps, self.conv_bias, activation="silu", initial_state=state,
            return_last_state=True, reverse=self.reverse,
        )  # fmt: skip

    def selected(self, u: Tensor) -> tuple[Tensor, ...]:
        """Of convolved tokens (f, e, l): u, delta, A, B, C, D and delta_bias of their scan."""
        delta, B, C = self.x_proj(u.transpose(1, 2)).split(self.split, dim=-1)
        delta = self.dt_proj(delta.contiguous()).transpose(1, 2)
        return u, delta, self.A, B.transpose(1, 2), C.transpose(1, 2), self.D, self.delta_bias


class PackedLayer(nn.Module):
    """A layer with a mixer behind RMSNorm and beside a shortcut. Its parameters are shared.

    Args:
        layer: The layer.
        dtype: Of the factors of its products and of what lies between them.
    """

    def __init__(self, layer: SpatialLayer | TemporalLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.mamba, self.dtype = layer.norm, layer.mamba, dtype
        self.in_proj = PackedProduct(self.mamba.in_proj.weight * self.norm.weight, dtype)
        self.out_proj = PackedProduct(self.mamba.out_proj.weight, dtype)
        names = self.mamba.directions
        self.directions = [PackedDirection(self.mamba, name, dtype) for name in names]

    def entered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (f, l, c) -> what is convolved and its gate, (f, e, l) each."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
        u, z = self.in_proj((x * scale).to(self.dtype)).transpose(1, 2).chunk(2, dim=1)
        return u, z

    def left(self, y: Tensor, x: Tensor) -> Tensor:
        """Gated outputs (f, e, l) of tokens (f, l, c) -> (f, l, c)."""
        return self.out_proj(y.transpose(1, 2).to(self.dtype)).to(x.dtype).add_(x)


class PackedSpatialLayer(PackedLayer):
    """See `SpatialLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of frames: (f, l, c) -> (f, l, c)."""
        u, z = self.entered(x)
        scans = [own.selected(own.convolved(u)[0]) for own in self.directions]
        u, delta, A, B, C, D, bias = zip(*scans, strict=True)
        y, _ = selective_scan_multi(u, delta, A, B, C, D, z, bias, orders=self.mamba.directions)
        return self.left(y, x)


class PackedTemporalLayer(PackedLayer):
    """See `TemporalLayer`."""

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The tokens that come next: (b, l, c) -> (b, l, c), and the state that they leave."""
        conv, scan = (None, None) if state is None else state
        (own,) = self.directions
        u, z = self.entered(x)
        u, conv = own.convolved(u, conv)
        u, delta, A, B, C, D, bias = own.selected(u)
        y, scan = selective_scan(
            u, delta, A, B, C, D, z, bias, initial_state=scan, return_last_state=True
        )
        return self.left(y, x), (conv.to(scan.dtype), scan)


KINDS = {SpatialLayer: PackedSpatialLayer, TemporalLayer: PackedTemporalLayer}


def _pack(network: nn.Module, dtype: torch.dtype) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) in KINDS:
                setattr(module, name, KINDS[type(child)](child, dtype))
