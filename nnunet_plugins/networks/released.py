"""Checkpoints in the authors' formats into our networks.

HyMamba: segmentation nets and encoders of the MambaMIM repository (2024-08-20). Their layout is
prefixes `embeddings.` (CNN), `mae.` (Mamba) and `decoder.`; every size is read off the shapes.
Vivim: `released_vivim`. EndoMamba: `released_endomamba`.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunet_plugins.networks.hymamba import HyMamba
from nnunet_plugins.networks.layers.position import sincos_position
from nnunet_plugins.networks.released_endomamba import endomamba_from_released, read_released
from nnunet_plugins.networks.released_vivim import vivim_from_released
from nnunet_plugins.networks.renaming import all_renamed, count, renamed, sizes
from nnunet_plugins.networks.weights import fit

__all__ = [
    "endomamba_from_released",
    "hymamba_from_released",
    "our_name",
    "read_released",
    "vivim_from_released",
]

HYMAMBA_NAMES = (
    (r"embeddings\.stem\.", "encoder.stem.0."),
    (r"embeddings\.expend1\.", "encoder.stem.1."),
    (r"embeddings\.layer(\d+)\.(\d+)\.conv1\.", "encoder.stages.{0-2}.blocks.{1}.depthwise."),
    (r"embeddings\.layer(\d+)\.(\d+)\.norm\.", "encoder.stages.{0-2}.blocks.{1}.norm."),
    (r"embeddings\.layer(\d+)\.(\d+)\.conv2\.", "encoder.stages.{0-2}.blocks.{1}.expand."),
    (r"embeddings\.layer(\d+)\.(\d+)\.conv3\.", "encoder.stages.{0-2}.blocks.{1}.reduce."),
    (r"embeddings\.expend(\d+)\.", "encoder.stages.{0-2}.widen."),
    (r"embeddings\.encoder(\d+)\.", "encoder.skips.{0-1}."),
    (r"mae\.blocks\.(\d+)\.mlp\.fc1\.", "encoder.mamba.layers.{0}.mlp.1."),
    (r"mae\.blocks\.(\d+)\.mlp\.fc2\.", "encoder.mamba.layers.{0}.mlp.3."),
    (r"mae\.blocks\.(\d+)\.norm2\.", "encoder.mamba.layers.{0}.mlp.0."),
    (r"mae\.blocks\.(\d+)\.", "encoder.mamba.layers.{0}."),
    (r"decoder\.decoder1\.conv3\.", "decoder.refine.shortcut.0."),
    (r"decoder\.decoder1\.norm3\.", "decoder.refine.shortcut.1."),
    (r"decoder\.decoder1\.", "decoder.refine."),
    (r"decoder\.decoder(\d+)\.", "decoder.ups.{0-2}."),
    (r"decoder\.out\.conv\.", "decoder.seg_layers.0."),
)
"""As in `renaming`."""

HYMAMBA_UNREAD = (
    r"mae\.blocks\.\d+\.mamba\.(A_b_log|D_b|conv1d_b\..*|x_proj_b\..*|dt_proj_b\..*)",
    r"mae\.mask_token",
    r"mae\.pos_embed",
)
"""Released tensors without a place: a backward scan that the authors' forward never reads, the
token of pretraining, and the position embedding, which is computed (and compared)."""


def hymamba_from_released(state_dict: Mapping[str, Tensor], *, num_classes: int = 2) -> HyMamba:
    """HyMamba with the weights of a released checkpoint, giving the authors' outputs.

    Takes the state dict of a segmentation net, or of the encoder alone (`embeddings.` and `mae.`
    as in `mambamim_mask75.pth`): then the decoder is new, and a warning says so. Heads for deep
    supervision, which the authors have not, are always new.

    Args:
        state_dict: Released names to tensors; a leading `module.` is dropped.
        num_classes: Logit maps of a new decoder; a segmentation net brings its own number.

    Returns:
        The network in evaluation mode, unidirectional as released, (b, c, d, h, w) to
        (b, k, d, h, w) for any grid that divides by 16.

    Raises:
        ValueError: If a tensor is missing, unknown or of another size, or if the checkpoint's
            position embedding is not the fixed one.
    """
    released = {str(name).removeprefix("module."): x for name, x in state_dict.items()}
    tensors = all(isinstance(x, Tensor) for x in released.values())
    if not tensors or "embeddings.stem.weight" not in released:
        raise ValueError(
            "this is no released HyMamba checkpoint: it must map names to tensors, "
            "embeddings.stem.weight among them; give the state dict itself, not what wraps it"
        )
    has_decoder = any(name.startswith("decoder.") for name in released)
    if has_decoder:
        num_classes = sizes(released, "decoder.out.conv.weight")[0]
    network = HyMamba(num_classes=num_classes, **_hymamba_sizes(released))
    weights, unknown = all_renamed(released, HYMAMBA_NAMES, HYMAMBA_UNREAD)
    _check_position(released)
    new = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if re.match(r"decoder\.seg_layers\.[1-9]" if has_decoder else r"decoder\.", name)
    }
    report = fit(network, new | weights)
    if unknown or not report.complete:
        extra = f"; not known: {', '.join(unknown)}" if unknown else ""
        raise ValueError(f"the released checkpoint does not fit HyMamba: {report}{extra}")
    network.load_state_dict(new | weights)
    if not has_decoder:
        warnings.warn(
            f"the checkpoint holds an encoder: {len(weights)} tensors loaded, the decoder's "
            f"{len(new)} are new and want training",
            stacklevel=2,
        )
    return network.eval()


def _hymamba_sizes(released: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `HyMamba`, read off the shapes of a released checkpoint."""
    stages = [2]
    while f"embeddings.layer{stages[-1] + 1}.0.conv1.weight" in released:
        stages.append(stages[-1] + 1)
    widths = [sizes(released, f"embeddings.layer{s}.0.conv1.weight")[0] for s in stages]
    stem = sizes(released, "embeddings.stem.weight")
    expansions = [
        sizes(released, f"embeddings.layer{s}.0.conv2.weight")[0] // width
        for s, width in zip(stages, widths, strict=True)
    ]
    mamba = "mae.blocks.0.mamba."
    d_model, d_inner = sizes(released, mamba + "out_proj.weight")
    return {
        "input_channels": stem[1],
        "features_per_stage": [stem[0], *widths],
        "blocks_per_stage": [
            count(released, rf"embeddings\.layer{s}\.(\d+)\.conv1\.weight") for s in stages
        ],
        "expansions": expansions,
        "mamba_depth": count(released, r"mae\.blocks\.(\d+)\.norm1\.weight"),
        "d_state": sizes(released, mamba + "A_log")[1],
        "d_conv": sizes(released, mamba + "conv1d.weight")[2],
        "expand": d_inner // d_model,
        "dt_rank": sizes(released, mamba + "dt_proj.weight")[1],
        "mlp_ratio": sizes(released, "mae.blocks.0.mlp.fc1.weight")[0] / d_model,
        "bidirectional": False,
    }


def our_name(name: str) -> str | None:
    """The name that a released tensor of HyMamba has in our network, None if it has none."""
    return renamed(name, HYMAMBA_NAMES)


def _check_position(released: Mapping[str, Tensor]) -> None:
    """Refuse a position embedding that is not the fixed one of a cubic grid.

    Encoder checkpoints may come without it.
    """
    table = released.get("mae.pos_embed")
    if table is None:
        return
    tokens, channels = table.shape[-2:]
    side = round(tokens ** (1 / 3))
    computed = sincos_position((side,) * 3, channels)
    if side**3 != tokens or not torch.allclose(table.float().cpu(), computed, atol=1e-4):
        raise ValueError(
            f"mae.pos_embed of shape {tuple(table.shape)} is not the sine-cosine embedding of a "
            "cubic grid, which HyMamba computes; the outputs would not be the authors'"
        )
