"""How much memory a training step takes, counted without computing it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

USABLE_SHARE = 0.85
"""Of a GPU's memory: the rest is the driver's, the framework's and cuDNN's."""
AMP_SHARE = 0.6
"""Bytes of activations under float16 autocast over those in float32: halves, but for the norms."""
BYTES_PER_WEIGHT = 16
"""Weight, gradient and AdamW's two moments, float32 each."""


def training_bytes(build: Callable[[], nn.Module], image: Sequence[int], batch_size: int) -> int:
    """Bytes that a training step with autocast and AdamW needs on a GPU, about.

    Runs the network on torch's meta device, which has shapes and no numbers, and adds up what
    autograd keeps for the backward pass, twice the largest of these for gradients in flight, and
    weights with their optimiser state. An estimate: it does not know cuDNN's workspace.

    Args:
        build: Makes the network.
        image: Shape of one image, channels first.
        batch_size: Images a step.
    """
    with torch.device("meta"):
        network = build()
        x = torch.empty(1, *image)
    own = {_storage(p) for p in network.parameters()}
    kept: dict[int, int] = {}
    alive = []  # a storage that is freed may give its address to another

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    activations = sum(kept.values()) + 2 * max(kept.values())
    weights = sum(p.numel() for p in network.parameters())
    return int(activations * AMP_SHARE * batch_size) + weights * BYTES_PER_WEIGHT


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
