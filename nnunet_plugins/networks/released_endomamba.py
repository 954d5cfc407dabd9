"""Released EndoMamba checkpoints into our EndoMamba.

Source: the authors' repository (commit debd20a). Sizes are read off the shapes; what no shape tells
is the frame size of the position embedding.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_plugins.networks.endomamba import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.layers.frame_tokens import resized_position
from nnunet_plugins.networks.layers.token_heads import Pool
from nnunet_plugins.networks.renaming import all_renamed, count, sizes
from nnunet_plugins.networks.weights import fit

ENDOMAMBA_NAMES = (
    (r"(?:encoder\.)?layers\.(\d+)\.mixer\.", "encoder.layers.{0}.mamba."),
    (r"(?:encoder\.)?patch_embed\.proj\.", "encoder.patch_embed."),
    (r"(?:encoder\.)?(?=(?:layers|norm_f|pos_embed|cls_token)\b)", "encoder."),
    (r"decoder\.conv_more\.", "decoder.widen."),
    (r"decoder\.blocks\.(\d+)\.conv", "decoder.blocks.{0}.conv"),
    (r"segmentation_head\.0\.", "decoder.seg_layers.0."),
    (r"vis_head\.head\.", "head.visibility."),
    (r"pos_head\.head\.", "head.position."),
    (r"head\.(?=weight|bias)", "head.classify."),
)
"""As in `renaming`."""

PRETRAINING_ONLY = (r"decoder\..*", r"encoder_to_decoder\..*", r"mask_token")
"""Tensors of pretraining that no network has a place for."""
WRAPPERS = ("backbone_state_dict", "model")
"""Keys under which classification and phase (or pretraining) checkpoints hold their weights."""


def endomamba_from_released(
    state_dict: Mapping[str, Any],
    image_size: Sequence[int] = (224, 224),
    *,
    pool: Pool | None = None,
) -> EndoMamba | EndoMambaBackbone:
    """The network that a released checkpoint is of, giving the authors' outputs.

    Takes state dicts, plain or wrapped as saved: of segmentation, classification, phase
    recognition and landmarks, which give an `EndoMamba` with that head; of a backbone without a
    head and of pretraining, which give an `EndoMambaBackbone`. The pretrained position embedding is
    always kept. Pretraining has no class token: its place is zeros and the token fresh, and a
    warning says so. (The released fine-tuning drops the whole embedding here, silently.) To go on
    from a backbone, load its state dict into the `encoder` of an `EndoMamba` of its `image_size`.
    The decoder's heads for deep supervision, which the authors have not, are always new.

    Args:
        state_dict: Released names to tensors, or what wraps them; a leading `module.` is dropped.
        image_size: Height and width of the frames that the embedding was learned on. An embedding
            of another, square grid is interpolated to it, and a warning says so.
        pool: What a head for classes reads; if None the class token for `backbone_state_dict`, the
            mean of the tokens for others, as released.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: If a tensor is missing, unknown or of another size.
    """
    released, kind = _unwrapped(state_dict)
    pool = pool or ("cls" if "backbone_state_dict" in state_dict else "mean")
    options = _backbone_sizes(released)
    weights, unknown = all_renamed(
        released, ENDOMAMBA_NAMES, PRETRAINING_ONLY if kind == "pretraining" else ()
    )
    news = _fit_position(weights, image_size, options["patch_size"])
    network: EndoMamba | EndoMambaBackbone
    if kind in ("backbone", "pretraining"):
        network = EndoMambaBackbone(image_size=image_size, **options)
        weights = {name.removeprefix("encoder."): x for name, x in weights.items()}
    else:
        network = EndoMamba(image_size=image_size, **options, **_head_options(released, kind, pool))
    new = _fresh(network, weights)
    report = fit(network, new | weights)
    if unknown or not report.complete:
        extra = f"; not known: {', '.join(unknown[:3])}" if unknown else ""
        raise ValueError(f"the released checkpoint does not fit EndoMamba: {report}{extra}")
    network.load_state_dict(new | weights)
    if news:
        warnings.warn(f"{len(weights)} tensors loaded; {'; '.join(news)}", stacklevel=2)
    return network.eval()


def read_released(path: str | Path) -> dict[str, Any]:
    """What a released checkpoint file holds, read without running anything that it brings.

    Pretraining checkpoints hold an argparse.Namespace, which the safe reader of torch refuses; it
    is allowed here, being a plain bag of values.

    Raises:
        ValueError: If the file is no checkpoint, or holds other objects.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read safely ({why}); give a checkpoint of tensors and plain values"
        ) from error
    return found


def _unwrapped(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Names without wrappers to tensors, and what they are of."""
    wrapper = next((key for key in WRAPPERS if key in state_dict), None)
    inside = state_dict[wrapper] if wrapper else state_dict
    released = {str(name).removeprefix("module."): x for name, x in inside.items()}
    tensors = all(isinstance(x, Tensor) for x in released.values())
    if not tensors or not any(name.endswith("layers.0.mixer.in_proj.weight") for name in released):
        raise ValueError(
            "this is no released EndoMamba checkpoint: it must map names to tensors, "
            "layers.0.mixer.in_proj.weight among them, by itself or under one of "
            f"{', '.join(WRAPPERS)}"
        )
    if wrapper == "backbone_state_dict":
        released |= _linear_probe(state_dict)
    signs = {
        "pretraining": "encoder_to_decoder.weight",
        "segmentation": "segmentation_head.0.weight",
        "localization": "vis_head.head.0.weight",
        "phase" if wrapper == "model" else "classification": "head.weight",
    }
    kinds = (kind for kind, name in signs.items() if name in released)
    return released, next(kinds, "backbone")


def _linear_probe(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The classifier that is saved beside a backbone, in place of the backbone's own head."""
    beside = {
        str(name).removeprefix("module."): x
        for name, x in (checkpoint.get("state_dict") or {}).items()
    }
    if "linear.weight" not in beside:
        return {}
    return {f"head.{part}": beside[f"linear.{part}"] for part in ("weight", "bias")}


def _fit_position(weights: dict[str, Tensor], image_size: Sequence[int], patch: int) -> list[str]:
    """Bring the position embedding to the frame size, in place; says what was changed."""
    name, news = "encoder.pos_embed", []
    if name not in weights:
        return []
    if "encoder.cls_token" not in weights:
        weights[name] = torch.cat([torch.zeros_like(weights[name][:, :1]), weights[name]], dim=1)
        news.append(
            "the checkpoint has no class token: it is new, its place is zeros, and a head that "
            "reads it wants training"
        )
    grid = [-(-side // patch) for side in image_size]
    places = weights[name].shape[1] - 1
    side = round(places**0.5)
    if places == grid[0] * grid[1]:
        return news
    if side**2 != places:
        raise ValueError(
            f"the position embedding has {places} places and frames of {tuple(image_size)} have "
            f"{grid[0]} x {grid[1]} patches; give the image_size that the network was trained on"
        )
    weights[name] = resized_position(weights[name], (side, side), grid)
    news.append(
        f"the position embedding was interpolated from {side} x {side} to {grid[0]} x {grid[1]}"
    )
    return news


def _fresh(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the network that released checkpoints need not bring."""
    return {
        name: x
        for name, x in network.state_dict().items()
        if name not in weights and re.match(r"decoder\.seg_layers\.[1-9]|cls_token$", name)
    }


def _backbone_sizes(released: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `EndoMambaBackbone`, read off the shapes of a released checkpoint."""
    encoder = "" if "norm_f.weight" in released else "encoder."
    mixer = f"{encoder}layers.0.mixer."
    d_model, d_inner = sizes(released, mixer + "out_proj.weight")
    channels, _, patch = sizes(released, f"{encoder}patch_embed.proj.weight")[1:4]
    return {
        "input_channels": channels,
        "d_model": d_model,
        "depth": count(released, rf"{encoder}layers\.\d+\.norm\.weight"),
        "patch_size": patch,
        "d_state": sizes(released, mixer + "A_log")[1],
        "d_conv": sizes(released, mixer + "conv1d.weight")[2],
        "expand": d_inner // d_model,
        "dt_rank": sizes(released, mixer + "dt_proj.weight")[1],
    }


def _head_options(released: Mapping[str, Tensor], kind: str, pool: Pool) -> dict[str, Any]:
    """Arguments of `EndoMamba` that its head is built with."""
    if kind == "segmentation":
        blocks = range(count(released, r"decoder\.blocks\.\d+\.conv1\.0\.weight"))
        widths = [sizes(released, f"decoder.blocks.{i}.conv1.0.weight")[0] for i in blocks]
        classes = sizes(released, "segmentation_head.0.weight")[0]
        return {"head": kind, "num_classes": classes, "decoder_widths": widths}
    last = "vis_head.head.4.weight" if kind == "localization" else "head.weight"
    outputs = sizes(released, last)[0]
    classes = outputs // 2 if kind == "localization" else outputs
    return {"head": kind, "num_classes": classes, "pool": pool}
