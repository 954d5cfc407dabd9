"""Mamba over the tokens of a grid, in a chosen scan order.

Shapes: b batch, c channels, d h w grid (or h w), l = d * h * w tokens.
"""

import torch
from torch import Tensor, nn

from mamba_kernels.scan_order import SCAN_ORDERS, inverse, scan_order
from nnunet_plugins.networks.layers.mamba import MambaLayer
from nnunet_plugins.networks.layers.position import sincos_position


class MambaStage(nn.Module):
    """Features of a grid after every position has seen every other, in linear time.

    Args:
        channels: Channels of the features.
        depth: Mamba layers.
        order: Order in which the tokens are scanned, one of `SCAN_ORDERS`.
        seed: Seed of the "shuffle" order; a buffer, so that it travels with the weights.
        layer: Options of `MambaLayer`.

    Raises:
        ValueError: If the scan order is unknown.
    """

    scan_seed: Tensor

    def __init__(
        self, channels: int, depth: int, order: str, seed: int, **layer: int | float | None
    ) -> None:
        super().__init__()
        if order not in SCAN_ORDERS:
            raise ValueError(f"unknown scan order {order!r}; use one of {', '.join(SCAN_ORDERS)}")
        self.order = order
        if order == "shuffle":
            self.register_buffer("scan_seed", torch.tensor(seed))
        self.layers = nn.ModuleList(
            MambaLayer(channels, **layer)  # type: ignore[arg-type]
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features after each layer: (b, c, d, h, w) -> depth times (b, c, d, h, w)."""
        grid = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + sincos_position(grid, x.shape[1], x.device)
        tokens = tokens.to(next(self.parameters()).dtype)  # float32 under autocast
        seed = int(self.scan_seed) if self.order == "shuffle" else 0
        visited = scan_order(self.order, grid, seed=seed).to(x.device)
        home = inverse(visited)
        tokens = tokens[:, visited]
        features = []
        for layer in self.layers:
            tokens = layer(tokens)
            features.append(tokens[:, home].transpose(1, 2).unflatten(2, grid).contiguous())
        return features
