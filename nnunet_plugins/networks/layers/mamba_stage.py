"""Mamba over the tokens of a grid, in a chosen scan order.

Shapes: b batch, c channels, d h w grid (or h w), l = d * h * w tokens.
"""

from collections.abc import Sequence

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

    def forward(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Features after each layer: (b, c, d, h, w) -> depth times (b, c, d, h, w).

        Given `visible`, (b, 1, d, h, w) bool, only those tokens are scanned, one after the other
        in scan order; the features of the others are zero.

        Raises:
            ValueError: If the samples do not show equally many tokens.
        """
        grid = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + sincos_position(grid, x.shape[1], x.device)
        tokens = tokens.to(next(self.parameters()).dtype)  # float32 under autocast
        visited = self.scan_order(grid, x.device)
        tokens = tokens[:, visited]
        seen = None if visible is None else visible.flatten(1)[:, visited]
        if seen is not None:
            tokens = _kept(tokens, seen)
        home = inverse(visited)
        features = []
        for layer in self.layers:
            tokens = layer(tokens)
            full = tokens if seen is None else _put_back(tokens, seen)
            features.append(full[:, home].transpose(1, 2).unflatten(2, grid).contiguous())
        return features

    def scan_order(self, grid: Sequence[int], device: torch.device) -> Tensor:
        """The raster indices of a grid's tokens in the order in which they are scanned, (l,)."""
        seed = int(self.scan_seed) if self.order == "shuffle" else 0
        return scan_order(self.order, grid, seed=seed).to(device)


def _kept(tokens: Tensor, seen: Tensor) -> Tensor:
    """The seen tokens of every sample, in their order: (b, l, c), (b, l) bool -> (b, kept, c)."""
    counts = seen.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(
            f"the samples show {counts.tolist()} tokens; show equally many in every sample"
        )
    return tokens[seen].view(len(tokens), -1, tokens.shape[2])


def _put_back(tokens: Tensor, seen: Tensor) -> Tensor:
    """Kept tokens at their places, zeros elsewhere: (b, kept, c), (b, l) bool -> (b, l, c)."""
    full = tokens.new_zeros((*seen.shape, tokens.shape[2]))
    full[seen] = tokens.flatten(0, 1)
    return full
