"""Released Vivim checkpoints, and SegFormer's weights, into our Vivim.

Vivim: the authors' repository (commit 2bcd619), whose encoder and decoder carry the names of
Hugging Face's SegFormer. Every size but the attention heads is read off the shapes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_plugins.networks.layers.segformer import HEADS, PATCHES
from nnunet_plugins.networks.renaming import all_renamed, count, sizes
from nnunet_plugins.networks.vivim import Vivim
from nnunet_plugins.networks.weights import fit

ENCODER = r"(?:segformer\.)?encoder\.(?:downsample_layers\.)?"
BLOCK, OUR_BLOCK = ENCODER + r"block\.(\d+)\.(\d+)\.", "encoder.stages.{0}.blocks.{1}."
SEGFORMER_NAMES = (
    (ENCODER + r"patch_embeddings\.(\d+)\.proj\.", "encoder.stages.{0}.embed.proj."),
    (ENCODER + r"patch_embeddings\.(\d+)\.layer_norm\.", "encoder.stages.{0}.embed.norm."),
    (BLOCK + r"layer_norm_1\.", OUR_BLOCK + "norm1."),
    (BLOCK + r"attention\.self\.(?=query|key|value)", OUR_BLOCK + "attention."),
    (BLOCK + r"attention\.self\.sr\.", OUR_BLOCK + "attention.reduce."),
    (BLOCK + r"attention\.self\.layer_norm\.", OUR_BLOCK + "attention.reduce_norm."),
    (BLOCK + r"attention\.output\.dense\.", OUR_BLOCK + "attention.proj."),
    (BLOCK + r"layer_norm_2\.", OUR_BLOCK + "norm2."),
    (BLOCK + r"mlp\.dense1\.", OUR_BLOCK + "mlp.fc1."),
    (BLOCK + r"mlp\.dwconv\.dwconv\.", OUR_BLOCK + "mlp.dwconv."),
    (BLOCK + r"mlp\.dense2\.", OUR_BLOCK + "mlp.fc2."),
    (r"decode(?:r|_head)\.linear_c\.(\d+)\.proj\.", "decoder.project.{0}."),
    (r"decode(?:r|_head)\.linear_fuse\.", "decoder.fuse."),
    (r"decode(?:r|_head)\.batch_norm\.", "decoder.norm."),
)
"""As in `renaming`: names of Hugging Face's SegFormer, alone or inside a released Vivim."""

SEGFORMER_UNREAD = (
    ENCODER + r"layer_norm\.\d+\..*",
    r"decode(r|_head)\.classifier\..*",
    r"classifier\..*",
)
"""Tensors without a place: norms after a stage, which Vivim does not run, and classifiers of other
data sets."""

MAMBA, OUR_MAMBA = r"encoder\.stages\.(\d+)\.(\d+)\.0\.", "encoder.stages.{0}.mamba.{1}."
VIVIM_NAMES = (
    (MAMBA + r"mlp\.dwconv\.dwconv\.", OUR_MAMBA + "mlp.dwconv."),
    (MAMBA, OUR_MAMBA),
    (r"out\.", "decoder.seg_layers.0."),
    (r"edgeocr_cls_head\.", "boundary.layers.0."),
    *SEGFORMER_NAMES,
)


def vivim_from_released(state_dict: Mapping[str, Tensor], *, heads: Sequence[int] = HEADS) -> Vivim:
    """Vivim with the weights of a released checkpoint, giving the authors' outputs.

    Clips of any length: the authors' code was built for five frames, and is wrong for others.

    Args:
        state_dict: Released names to tensors; a leading `module.` is dropped.
        heads: Attention heads of each stage, which no shape tells.

    Returns:
        The network in evaluation mode, with the one-convolution boundary head if the checkpoint
        has one.

    Raises:
        ValueError: If a tensor is missing, unknown or of another size.
    """
    released = {str(name).removeprefix("module."): x for name, x in state_dict.items()}
    tensors = all(isinstance(x, Tensor) for x in released.values())
    if not tensors or "encoder.stages.0.0.0.mamba.in_proj.weight" not in released:
        raise ValueError(
            "this is no released Vivim checkpoint: it must map names to tensors, "
            "encoder.stages.0.0.0.mamba.in_proj.weight among them; give the state dict itself, not "
            "what wraps it"
        )
    network = Vivim(heads=heads, **_vivim_sizes(released))
    weights, unknown = all_renamed(released, VIVIM_NAMES, SEGFORMER_UNREAD)
    report = fit(network, weights)
    if unknown or not report.complete:
        extra = f"; not known: {', '.join(unknown)}" if unknown else ""
        raise ValueError(f"the released checkpoint does not fit Vivim: {report}{extra}")
    network.load_state_dict(weights)
    return network.eval()


def load_segformer(network: Vivim, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Start a Vivim from SegFormer's weights, as its authors did from those of ADE20K.

    The encoder must fit as a whole. The decoder is loaded if the weights bring one of the
    network's width; the network's norm, if it is no batch norm, and its classifier stay new. An
    encoder of RGB images in a network of other channels sees the mean of these channels as a grey
    image.

    Args:
        network: Changed in place, and not at all on an error.
        state_dict: Of a SegFormer by Hugging Face's transformers, which names its tensors
            `segformer.encoder.` and `decode_head.`, whatever it was trained for.

    Returns:
        Names of the network's tensors that stay as they were.

    Raises:
        ValueError: If a tensor of the encoder is missing, unknown or of another size.
    """
    weights, unknown = all_renamed(state_dict, SEGFORMER_NAMES, SEGFORMER_UNREAD)
    if unknown:
        raise ValueError(
            f"not known in a SegFormer of transformers: {', '.join(unknown[:3])}; give the state "
            "dict of a SegformerModel or of one of its heads"
        )
    own = network.state_dict()
    first = "encoder.stages.0.embed.proj.weight"
    if first in weights and weights[first].shape[1] != network.input_channels:
        grey = weights[first].sum(1, keepdim=True) / network.input_channels
        weights[first] = grey.expand(-1, network.input_channels, -1, -1)
    loaded = {
        name: x
        for name, x in weights.items()
        if name.startswith("encoder.") or (name in own and own[name].shape == x.shape)
    }
    if not isinstance(network.decoder.norm, torch.nn.BatchNorm2d):
        loaded = {name: x for name, x in loaded.items() if not name.startswith("decoder.norm.")}
    new = {
        name: x
        for name, x in own.items()
        if name not in loaded and (".mamba." in name or not name.startswith("encoder."))
    }
    report = fit(network, new | loaded)
    if not report.complete:
        raise ValueError(
            f"the encoder does not fit this Vivim: {report}; build it with the size of the "
            "checkpoint, one of b0 to b5"
        )
    network.load_state_dict(new | loaded)
    return list(new)


def _vivim_sizes(released: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `Vivim`, read off the shapes of a released checkpoint."""
    stages = range(len(PATCHES))
    encoder = "encoder.downsample_layers."
    embeddings = [sizes(released, f"{encoder}patch_embeddings.{s}.proj.weight") for s in stages]
    reductions = [f"{encoder}block.{s}.0.attention.self.sr.weight" for s in stages]
    mamba = "encoder.stages.0.0.0.mamba."
    d_model, d_inner = sizes(released, mamba + "out_proj.weight")
    return {
        "input_channels": embeddings[0][1],
        "num_classes": sizes(released, "out.weight")[0],
        "features_per_stage": [width for width, *_ in embeddings],
        "blocks_per_stage": [
            count(released, rf"{ENCODER}block\.{s}\.\d+\.layer_norm_1\.weight") for s in stages
        ],
        "reductions": [released[n].shape[2] if n in released else 1 for n in reductions],
        "mamba_depth": count(released, r"encoder\.stages\.0\.\d+\.0\.norm1\.weight"),
        "decoder_width": sizes(released, "decoder.linear_fuse.weight")[0],
        "d_state": sizes(released, mamba + "A_log")[1],
        "d_conv": sizes(released, mamba + "conv1d.weight")[2],
        "expand": d_inner // d_model,
        "dt_rank": None,
        "mlp_ratio": sizes(released, "encoder.stages.0.0.0.mlp.fc1.weight")[0] / d_model,
        "boundary_layers": int("edgeocr_cls_head.weight" in released),
    }
