"""The authors' pretraining checkpoints into our objective.

Layout of the MambaMIM repository (2024-08-20): `sparse_encoder.` (as `nnunet_plugins.networks.
released` reads it), `dense_decoder.`, `densify_projs.`, `mask_tokens.`, `A_interpolation`, the
stages counted from the coarsest.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_plugins.networks.released import hymamba_from_released
from nnunet_plugins.networks.weights import fit
from pretrain.mambamim import MambaMIM

ENCODER = "sparse_encoder."
DECODER_NAMES = (
    (r"dense_decoder\.dec\.(\d+)\.up_sample\.", r"decoder.ups.\1.0."),
    (r"dense_decoder\.dec\.(\d+)\.conv\.", r"decoder.ups.\1.1."),
    (r"dense_decoder\.proj\.", r"decoder.head."),
    (r"densify_projs\.(\d+)\.", r"decoder.projections.\1."),
)
"""Patterns of released names and ours."""


def mambamim_from_released(state_dict: Mapping[str, Any]) -> MambaMIM:
    """MambaMIM as released, with the weights of an authors' checkpoint.

    Takes a training checkpoint (`module`, `optimizer`, `config`), its state dict, or an encoder
    alone (`embeddings.` and `mae.`, as in `mambamim_mask75.pth`): then the decoder is new, and a
    warning says so. What the authors never use is left out: the finest stage's projection and
    token, the coarsest stage's fusion and token, and a scan that is never read. Biases before
    batch norms are folded into the running means, which gives the same outputs.

    Returns:
        The objective in evaluation mode. Its `encoder` is that of a unidirectional `HyMamba`.

    Raises:
        ValueError: If a tensor is missing, unknown or of another size.
    """
    released = state_dict.get("module", state_dict)
    released = {str(name).removeprefix("module."): x for name, x in released.items()}
    full = any(name.startswith(ENCODER) for name in released)
    encoder = {
        name.removeprefix(ENCODER): x
        for name, x in released.items()
        if not full or name.startswith(ENCODER)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new segmentation decoder is what we want
        network = hymamba_from_released(encoder)
    width = len(released["densify_projs.0.bias"]) if "densify_projs.0.bias" in released else None
    objective = MambaMIM(
        network, toki="as_released", finest_skip=False, norm="batch", decoder_width=width
    )
    if not full:
        warnings.warn(
            f"the checkpoint holds an encoder: {len(encoder)} tensors read, the decoder is new",
            stacklevel=2,
        )
        return objective.eval()
    weights = _renamed(released, stages=len(objective.used))
    weights |= {name: x for name, x in objective.state_dict().items() if "encoder." in name}
    report = fit(objective, weights)
    if not report.complete:
        raise ValueError(f"the released checkpoint does not fit MambaMIM: {report}")
    objective.load_state_dict(weights)
    return objective.eval()


def _renamed(released: Mapping[str, Tensor], stages: int) -> dict[str, Tensor]:
    """Our names to the released tensors, the encoder's left out; unknown names stay."""
    weights: dict[str, Tensor] = {}
    for name, tensor in released.items():
        token = re.fullmatch(r"mask_tokens\.(\d+)", name)
        fusion = re.match(r"dense_decoder\.fuse\.(\d+)\.conv\.", name)
        unused = rf"(densify_projs|mask_tokens)\.{stages - 1}(\..*)?"
        if re.fullmatch(unused, name) or name == "mask_tokens.0" or ".fuse.0." in name:
            continue
        if token:
            weights[f"holes.{stages - 1 - int(token[1])}"] = tensor[0]
        elif fusion:
            weights[f"decoder.fusions.{int(fusion[1]) - 1}.{name[fusion.end() :]}"] = tensor
        elif name == "A_interpolation":
            weights["transition"] = tensor[0]
        elif name == ENCODER + "mae.mask_token":
            weights["token"] = tensor.reshape(-1, 1, 1, 1)
        elif not name.startswith(ENCODER):
            weights[_decoder_name(name)] = tensor
    for name in [n for n in weights if re.search(r"\.[03]\.bias$", n) and "decoder." in n]:
        norm = re.sub(r"(\d)\.bias$", lambda m: f"{int(m[1]) + 1}.running_mean", name)
        if norm in weights:
            weights[norm] = weights[norm] - weights.pop(name)
    return weights


def _decoder_name(name: str) -> str:
    for pattern, ours in DECODER_NAMES:
        name = re.sub("^" + pattern, ours, name)
    return name
