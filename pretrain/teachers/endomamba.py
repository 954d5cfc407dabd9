"""An EndoMamba of ours as a teacher."""

from pathlib import Path

import torch
from torch import Tensor

from nnunet_plugins.networks import EndoMambaBackbone
from pretrain.export import read_pretrained
from pretrain.teachers.interface import FrozenTeacher


class EndoMambaTeacher(FrozenTeacher):
    """A backbone that sees all patches, in causal order and without a class token, as pretrained.

    Args:
        backbone: For clips in [0, 1], as pretraining hands it on.
        name: To be recorded.
    """

    def __init__(self, backbone: EndoMambaBackbone, name: str) -> None:
        super().__init__(backbone, name, backbone.d_model)
        self.backbone = backbone

    def run(self, clip: Tensor) -> Tensor:
        """As `FrozenTeacher`."""
        grid = (clip.shape[2], *self.backbone.grid_of(clip))
        every = torch.ones(
            len(clip), grid[0], grid[1] * grid[2], dtype=torch.bool, device=clip.device
        )
        return self.backbone.visible_features(clip, every).view(len(clip), *grid, -1)


def endomamba_teacher(path: Path) -> EndoMambaTeacher:
    """The teacher in a run's folder (its best epoch) or in one of its safetensors files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no EndoMamba of ours.
    """
    pretrained = read_pretrained(path)
    network = pretrained.blueprint.build()
    backbone = getattr(network, "encoder", None)
    if not isinstance(backbone, EndoMambaBackbone):
        raise ValueError(
            f"{path} holds a {pretrained.blueprint.network}, which takes no clips; give a run of "
            "python -m pretrain endomamba"
        )
    weights = {n.removeprefix("encoder."): x for n, x in pretrained.weights.items()}
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights of its own network: {str(error).splitlines()[-1]}"
        ) from None
    return EndoMambaTeacher(backbone, f"endomamba:{path.name}")
