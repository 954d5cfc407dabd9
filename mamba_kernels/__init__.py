"""The operators of Mamba as functions of tensors, each in several implementations.

`selective_scan` and `causal_conv1d` run whole sequences, `selective_scan_multi` several
directions over one, `selective_state_update` and `causal_conv1d_update` one token at a time.
`MambaBlock` is a whole block behind its norm and beside its shortcut, for inference, and
`mamba_blocks` runs several of them in turn.
`available_backends` tells which implementations work on this machine and `use_backend` forces one.
`mamba_kernels.scan_order` turns grids of tokens into sequences. Nothing is imported but torch.

Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752.
"""

from mamba_kernels.backends import available_backends, use_backend
from mamba_kernels.causal_conv1d import causal_conv1d, causal_conv1d_update
from mamba_kernels.mamba_block import BlockWeights, DirectionWeights, MambaBlock, mamba_blocks
from mamba_kernels.selective_scan import (
    selective_scan,
    selective_scan_multi,
    selective_state_update,
)

__all__ = [
    "BlockWeights",
    "DirectionWeights",
    "MambaBlock",
    "available_backends",
    "causal_conv1d",
    "causal_conv1d_update",
    "mamba_blocks",
    "selective_scan",
    "selective_scan_multi",
    "selective_state_update",
    "use_backend",
]
