"""The authors' EndoMamba pretraining checkpoints into our objective.

Layout of the released code (commit debd20a): `encoder.` (as `nnunet_plugins.networks.
released_endomamba` reads it), `decoder.`, `encoder_to_decoder.weight`, `mask_token`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_plugins.networks import EndoMambaBackbone
from nnunet_plugins.networks.released import endomamba_from_released
from nnunet_plugins.networks.renaming import all_renamed, count, sizes
from nnunet_plugins.networks.weights import fit
from pretrain.hierarchical import HierarchicalPretraining
from pretrain.teachers.interface import Teacher

DECODER_NAMES = (
    (r"decoder\.blocks\.(\d+)\.attn\.", "decoder.blocks.{0}.attention."),
    (r"decoder\.blocks\.(\d+)\.mlp\.fc1\.", "decoder.blocks.{0}.mlp.0."),
    (r"decoder\.blocks\.(\d+)\.mlp\.fc2\.", "decoder.blocks.{0}.mlp.2."),
    (r"decoder\.blocks\.(\d+)\.norm", "decoder.blocks.{0}.norm"),
    (r"decoder\.(?=norm|head)", "decoder."),
    (r"encoder_to_decoder\.", "decoder.project."),
    (r"mask_token$", "decoder.mask_token"),
)
"""As in `renaming`."""
ENCODER = r"encoder\..*"


def released_pretraining(
    state_dict: Mapping[str, Any],
    image_size: Sequence[int] = (224, 224),
    *,
    heads: int = 3,
    teacher: Teacher | None = None,
) -> HierarchicalPretraining:
    """Hierarchical pretraining with the weights of an authors' checkpoint, giving their losses.

    Args:
        state_dict: A training checkpoint (`model`, `optimizer`, ...) as `read_released` gives it,
            or its state dict.
        image_size: Height and width of the frames that it was trained on.
        heads: Of the decoder's attention, which no shape tells.
        teacher: As in `HierarchicalPretraining`.

    Returns:
        The objective in evaluation mode.

    Raises:
        ValueError: If a tensor is missing, unknown or of another size.
    """
    released = state_dict.get("model", state_dict)
    released = {str(name).removeprefix("module."): x for name, x in released.items()}
    weights, unknown = all_renamed(released, DECODER_NAMES, (ENCODER,))
    width = sizes(released, "encoder_to_decoder.weight")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pretraining needs no class token
        backbone = endomamba_from_released(released, image_size)
    assert isinstance(backbone, EndoMambaBackbone)
    objective = HierarchicalPretraining(
        backbone,
        decoder_width=width,
        decoder_depth=count(released, r"decoder\.blocks\.\d+\.norm1\.weight"),
        decoder_heads=heads,
        teacher=teacher,
    )
    weights["decoder.mask_token"] = weights["decoder.mask_token"].flatten()
    own = objective.state_dict()
    weights |= {name: x for name, x in own.items() if not name.startswith("decoder.")}
    report = fit(objective, weights)
    if unknown or not report.complete:
        extra = f"; not known: {', '.join(unknown[:3])}" if unknown else ""
        raise ValueError(f"the released checkpoint does not fit the pretraining: {report}{extra}")
    objective.load_state_dict(weights)
    return objective.eval()
