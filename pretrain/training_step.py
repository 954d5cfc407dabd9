"""One step of AdamW on an objective, on any device and any number of processes."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, send_to_device
from torch import Tensor, nn

from nnunet_plugins.optimization import bfloat16_may_crash, decay_groups
from pretrain.sampling import Batch, seed_of
from pretrain.schedule import cosine, warmup_cosine
from pretrain.settings import Settings
from pretrain.stopping import StopRequest


class Output(Protocol):
    """What an objective gives for a batch."""

    @property
    def loss(self) -> Tensor:
        """Scalar to be lowered, a mean over the batch."""

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Scalars to be logged beside it, by name."""


class Objective(Protocol):
    """An `nn.Module` that pretrains a network."""

    @property
    def network(self) -> nn.Module:
        """Whose weights are handed on."""

    def __call__(self, **batch: Tensor) -> Output:
        """The loss of a batch; draws what is random from torch's default generators."""


@dataclass(frozen=True)
class Step:
    """What one optimiser step gave."""

    figures: dict[str, float]
    """Loss and its parts, means over all processes and parts of the batch."""
    taken: bool
    """False if the loss or the gradient was not finite; the weights are then as before."""
    stop: bool
    """Whether a process was asked to stop."""


class TrainingStep:
    """An objective with its optimiser, on the device and among the processes of this run.

    Args:
        objective: Moved to the device; its forward runs in the precision of the settings.
        settings: Of the run.

    Raises:
        ValueError: If the device is not there or cannot do the precision.
    """

    def __init__(self, objective: Objective, settings: Settings) -> None:
        self.settings = settings
        self.accelerator = Accelerator(
            cpu=_on_cpu(settings),
            mixed_precision=settings.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=settings.accumulate),
        )
        self.device: torch.device = self.accelerator.device
        if (self.device.type == "cpu") != _on_cpu(settings):
            raise ValueError(
                f"Accelerate already runs on {self.device} in this process; start a new one for "
                f"device {settings.device}"
            )
        self.rank: int = self.accelerator.process_index
        self.processes: int = self.accelerator.num_processes
        self.objective = cast(nn.Module, objective)
        groups = decay_groups(self.objective, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)

    def __call__(
        self,
        batches: Iterator[Batch],
        epoch: int,
        step: int,
        steps: int,
        request: StopRequest | None = None,
    ) -> Step:
        """Take one step.

        Args:
            batches: This process's; `accumulate` of them are drawn.
            epoch: Counted from 0, as is
            step: Of this epoch.
            steps: Of an epoch.
            request: To stop, of this process; every process learns of it.
        """
        self._set_rates(**self.rates(epoch * steps + step, self.settings.epochs * steps))
        self.objective.train()
        sums: Tensor | float = 0.0
        for part in range(self.settings.accumulate):
            batch = send_to_device(next(batches), self.device, non_blocking=True)
            torch.manual_seed(seed_of(self.settings.seed, epoch, step, part, self.rank))
            with self.accelerator.accumulate(self.model):
                output: Output = self.model(**batch)
                self.accelerator.backward(output.loss)
            named = {"loss": output.loss, **output.parts}
            sums = sums + torch.stack([value.detach().float() for value in named.values()])
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        means = cast(Tensor, sums) / self.settings.accumulate
        stop = means.new_tensor([request is not None and request.wanted])
        means = self.accelerator.reduce(torch.cat([means, stop]), "mean")
        *values, stopping, norm = torch.cat([means, norm.float().view(1)]).tolist()
        taken = math.isfinite(norm) and math.isfinite(values[0])
        self._update(taken)
        return Step(dict(zip(named, values, strict=True)), taken, stopping > 0)

    def rates(self, step: int, steps: int) -> dict[str, float]:
        """Learning rate and weight decay at a step of the whole run, counted from 0."""
        s = self.settings
        return {
            "lr": warmup_cosine(step, steps, round(s.warmup * steps), s.lr, s.lr * s.final_lr),
            "weight_decay": cosine(step, steps, s.weight_decay, s.final_weight_decay),
        }

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Output:
        """The objective in eval mode, each time from the same seed; changes nothing."""
        torch.manual_seed(self.settings.seed)
        self.objective.eval()
        return cast(Output, self.objective(**send_to_device(batch, self.device)))

    def state_dict(self) -> dict[str, Any]:
        """Weights, the optimiser's state and the scaler's."""
        scaler = self.accelerator.scaler
        return {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler and scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            RuntimeError: If the weights are those of another objective.
        """
        self.objective.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _set_rates(self, lr: float, weight_decay: float) -> None:
        """Set them in both groups; the second does not decay."""
        decaying, staying = self.optimizer.param_groups
        decaying["lr"] = staying["lr"] = lr
        decaying["weight_decay"] = weight_decay

    def _update(self, taken: bool) -> None:
        """Change the weights, or leave them and lower the scale of fp16."""
        if taken:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()


def main_process_first(settings: Settings) -> AbstractContextManager[None]:
    """What stands inside is done by the main process, and by the others when that is done.

    Raises:
        ValueError: As `TrainingStep`.
    """
    return PartialState(cpu=_on_cpu(settings)).main_process_first()


def _on_cpu(settings: Settings) -> bool:
    """Whether the run is on the CPU.

    Raises:
        ValueError: If the device is not there or cannot do the precision.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found = accelerator.type if accelerator else "cpu"
    if settings.device not in ("auto", "cpu", found):
        raise ValueError(f"device is {settings.device}, but this machine has {found}; take auto")
    on_cpu = settings.device == "cpu" or found == "cpu"
    if on_cpu and settings.precision == "fp16":
        raise ValueError("fp16 needs a GPU; on the CPU take precision bf16 or no")
    if on_cpu and settings.precision == "bf16" and bfloat16_may_crash():
        warnings.warn(
            "in bf16 on this CPU, which has AMX, torch's 3D convolutions can crash in training; "
            "take precision no",
            stacklevel=2,
        )
    return on_cpu
