"""Optimiser and precision settings shared by trainers and pretraining."""

import torch
from torch import nn


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups for an optimiser: weights decay; norms, biases, A_log and D do not."""
    decays, stays = [], []
    for name, parameter in network.named_parameters():
        fixed = parameter.ndim < 2 or name.rsplit(".", 1)[-1].startswith("A_")
        (stays if fixed else decays).append(parameter)
    return [
        {"params": decays, "weight_decay": weight_decay},
        {"params": stays, "weight_decay": 0.0},
    ]


def cpu_trains_in_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, where it halves the time of a step."""
    return _cpu_has("avx512_bf16") and not bfloat16_may_crash()


def bfloat16_may_crash() -> bool:
    """Whether training in bfloat16 on this CPU may end the process.

    With AMX the backward pass of torch 2.13's 3D convolutions to 16 channels writes beyond its
    memory (Conv3d(1, 16, 3) on 2 x 1 x 8 x 256 x 224).
    """
    return _cpu_has("amx_bf16")


def _cpu_has(feature: str) -> bool:
    query = getattr(torch.cpu, "get_capabilities", dict)  # since torch 2.10
    return bool(query().get(feature, False))


class WarmupPolyLR(torch.optim.lr_scheduler.LRScheduler):
    """Learning rate as a function of the epoch alone: linear warm-up, then polynomial decay.

    Args:
        optimizer: Whose rate is set.
        peak: Rate after the warm-up.
        epochs: Epochs of the whole training.
        warmup: Epochs of the warm-up.
        exponent: Of the decay; 0.9 as nnU-Net's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        peak: float,
        epochs: int,
        warmup: int,
        exponent: float = 0.9,
    ) -> None:
        self.peak, self.epochs, self.warmup, self.exponent = peak, epochs, warmup, exponent
        super().__init__(optimizer)

    def rate(self, epoch: int) -> float:
        """The rate at an epoch, counted from 0."""
        if epoch < self.warmup:
            return self.peak * (epoch + 1) / (self.warmup + 1)
        done = (epoch - self.warmup) / max(1, self.epochs - self.warmup)
        return self.peak * max(0.0, 1 - done) ** self.exponent

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of an epoch; nnU-Net always names it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch or 0)
