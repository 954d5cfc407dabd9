"""Trains a tiny MambaMIM in float64; a program, so that `torchrun` can start two of it."""

import sys

import torch
from torch import Tensor

from nnunet_plugins.networks import HyMamba
from pretrain.engine import pretrain
from pretrain.mambamim import MambaMIM
from pretrain.settings import Settings


class Volumes:
    """Eight random volumes in float64."""

    def __len__(self) -> int:
        return 8

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100 * self.epoch + index)
        volume = torch.randn(1, 8, 16, 8, generator=generator, dtype=torch.float64)
        return {"volume": volume, "seed": torch.tensor(index)}


if __name__ == "__main__":
    torch.manual_seed(0)
    network = HyMamba(1, 2, features_per_stage=(4, 6, 8), mamba_depth=1)
    options = {"skips": False} if sys.argv[2:] == ["no-skips"] else {}
    objective = MambaMIM(network, **options).double()
    settings = Settings(epochs=2, batch_size=4, lr=2e-3, device="cpu", save_every=2)
    pretrain(objective, Volumes(), sys.argv[1], settings)
