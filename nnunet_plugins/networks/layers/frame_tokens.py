"""From the frames of a clip to tokens that know their place and their time.

Shapes: b batch, c channels, t h w clip, n patches of a frame.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_plugins.networks.layers.position import WAVELENGTH


def padded_to(x: Tensor, patch: int) -> Tensor:
    """Frames whose sides divide by `patch`: (b, c, t, h, w) -> (b, c, t, h', w').

    The last row and column are repeated below and to the right, so that no edge appears.
    """
    h, w = x.shape[3:]
    if h % patch == 0 and w % patch == 0:
        return x
    return F.pad(x, (0, -w % patch, 0, -h % patch, 0, 0), mode="replicate")


def resized_position(table: Tensor, grid: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """A learned position embedding on another grid of patches, by bicubic interpolation.

    Args:
        table: (1, 1 + n, c): of the class token, then of the patches of `grid`, row by row.
        grid: Rows and columns it was learned on.
        wanted: Rows and columns it is wanted on.

    Returns:
        (1, 1 + n', c); the class token's entry as it is.
    """
    if tuple(grid) == tuple(wanted):
        return table
    places = table[:, 1:].mT.reshape(1, -1, *grid)
    places = F.interpolate(places.float(), tuple(wanted), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], places.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def frame_sinusoid(index: Tensor, channels: int) -> Tensor:
    """Sine and cosine of frames' indices, in turn: (b, t) integers -> (b, t, channels) float64.

    There is no table and so no last frame. The phase is taken in float64: at frame 10**9 (463 days
    at 25 frames a second) it is off by about 1e-7.
    Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.5.
    """
    device = index.device
    index = index.to("cpu" if device.type == "mps" else device, torch.float64)
    even = torch.arange(0, channels, 2, device=index.device, dtype=torch.float64)
    phase = index.unsqueeze(-1) * torch.pow(WAVELENGTH, -even / channels)
    embedding = torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)[..., :channels]
    return embedding.to(device, torch.float32 if device.type == "mps" else torch.float64)
