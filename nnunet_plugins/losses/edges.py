"""Edges of label maps, frame by frame.

Shapes: any leading axes, then h w of a frame.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
RELEASED_RADIUS = 2


def sobel_edges(labels: Tensor, num_classes: int = 2) -> Tensor:
    """Where the Sobel operator on the mask of any foreground class is not zero.

    The border of a frame is no edge: beyond it labels are taken to go on.

    Args:
        labels: Class of every pixel, (..., h, w), of any dtype.
        num_classes: Classes, background included.

    Returns:
        Ones on edges, which are two pixels wide, and zeros elsewhere, (..., h, w) float32.
    """
    across = torch.tensor(SOBEL, device=labels.device)
    kernels = torch.stack([across, across.T])[:, None]
    frames = labels.reshape(-1, 1, *labels.shape[-2:])
    edges = torch.zeros(frames.shape, device=labels.device)
    for label in range(1, num_classes):
        mask = F.pad((frames == label).float(), (1, 1, 1, 1), mode="replicate")
        slope = F.conv2d(mask, kernels).abs().amax(1, keepdim=True)
        edges = torch.maximum(edges, (slope > 0).float())
    return edges.view(labels.shape)


def near(pixels: Tensor) -> Tensor:
    """Pixels and their eight neighbours: (..., h, w) bool -> (..., h, w) bool."""
    frames = pixels.reshape(-1, 1, *pixels.shape[-2:]).float()
    return F.max_pool2d(frames, 3, stride=1, padding=1).bool().view(pixels.shape)


def released_edges(target: Tensor) -> Tensor:
    """Edges as in Vivim's released code: pixels within a radius of 2 of the other side.

    Beyond the border of a frame neither background nor lesion goes on, so the border itself is an
    edge. Pixels of soft masks, between 0 and 1, are on neither side.

    Args:
        target: Masks in [0, 1], (..., h, w).

    Returns:
        Ones on edges and zeros elsewhere, (..., h, w) float32.
    """
    r = RELEASED_RADIUS
    axis = torch.arange(-r, r + 1, device=target.device)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    disk = (rows**2 + columns**2 <= r**2).float()[None, None]
    frames = target.reshape(-1, 1, *target.shape[-2:])
    edges = torch.zeros(frames.shape, dtype=torch.bool, device=target.device)
    for value in (0, 1):
        inside = F.pad((frames == value).float(), (1, 1, 1, 1))
        near_inside = F.conv2d(inside, disk, padding=r) > 0
        near_outside = F.conv2d(1 - inside, disk, padding=r) > 0
        edges |= (near_inside & near_outside)[..., 1:-1, 1:-1]
    return edges.float().view(target.shape)
