"""Trains a tiny HierarchicalPretraining in float64; a program, so that `torchrun` can start two."""

import sys

import torch
from torch import Tensor

from nnunet_plugins.networks import EndoMambaBackbone
from pretrain.engine import pretrain
from pretrain.hierarchical import HierarchicalPretraining
from pretrain.settings import Settings
from pretrain.teachers.endomamba import EndoMambaTeacher

SIZES = {"depth": 2, "image_size": (16, 24), "patch_size": 8, "drop_path": 0.0}


class Clips:
    """Eight random clips in float64."""

    def __len__(self) -> int:
        return 8

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100 * self.epoch + index)
        clip = torch.rand(3, 2, 16, 24, generator=generator, dtype=torch.float64)
        return {"clip": clip, "number": torch.tensor(index), "seed": torch.tensor(index + 7)}


if __name__ == "__main__":
    torch.manual_seed(0)
    teacher = EndoMambaTeacher(EndoMambaBackbone(3, d_model=12, **SIZES).double(), "x")
    objective = HierarchicalPretraining(
        EndoMambaBackbone(3, d_model=8, **SIZES), decoder_width=12, decoder_depth=1, teacher=teacher
    ).double()
    settings = Settings(epochs=2, batch_size=4, lr=2e-3, device="cpu", save_every=2)
    pretrain(objective, Clips(), sys.argv[1], settings)
