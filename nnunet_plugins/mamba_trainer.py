"""What training a Mamba network in nnU-Net asks for, whichever network it is."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunet_plugins.optimization import WarmupPolyLR, cpu_trains_in_bfloat16, decay_groups

SHORT_EPOCHS: dict[str, float] = {
    "num_epochs": 50,
    "num_iterations_per_epoch": 50,
    "num_val_iterations_per_epoch": 10,
    "save_every": 1,
}
"""Hyperparameters of a training that a CPU finishes."""
FOLDS = 5
"""nnU-Net's folds of a cross-validation."""


class MambaTrainer(nnUNetTrainer):
    """nnU-Net's training with AdamW, warm-up, a seed, refusals in one sentence and whole files.

    A subclass names its network and, where they differ, its hyperparameters. Options in a
    trainer's name (`nnunet_plugins.registry`) are entries of the two dictionaries below.
    """

    hyperparameters: ClassVar[dict[str, float]] = {
        "initial_lr": 3e-4,
        "weight_decay": 5e-2,
        "warmup": 0.05,
        "grad_clip": 1.0,
        "save_every": 10,
        "seed": 0,
    }
    """Attributes of the trainer. `warmup` is a share of the epochs, `grad_clip` a norm."""
    max_batch_size: ClassVar[int | None] = None
    """Patches a step, if 3-D plans have more; the results' plans then say so."""
    network_class: ClassVar[type[nn.Module]]
    network_options: ClassVar[dict[str, Any]] = {}
    """Keyword arguments of the network beside what the plans say."""
    sizes: ClassVar[Sequence[str]] = ()
    """Sizes of the network by name, each of which may follow the trainer's name."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008, nnU-Net's own signature
    ) -> None:
        planned = PlansManager(plans).get_configuration(configuration)
        if self.max_batch_size and len(planned.patch_size) == 3:
            batch_size = min(planned.batch_size, self.max_batch_size)
            plans["configurations"][configuration]["batch_size"] = batch_size
        super().__init__(plans, configuration, fold, dataset_json, device)
        for name, value in self.hyperparameters.items():
            setattr(self, name, value)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network on the stages of the plans, so that nnU-Net still chooses the strides."""
        network = cls.network_class(
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
            **cls.network_arguments(configuration_manager.network_arch_init_kwargs),
            **cls.network_options,
        )
        network.register_forward_pre_hook(refuse_non_finite)
        return network

    @classmethod
    def network_arguments(cls, architecture: dict[str, Any]) -> dict[str, Any]:
        """What the network takes from the architecture in the plans."""
        return {name: architecture[name] for name in ("strides", "kernel_sizes")}

    def initialize(self) -> None:
        """Build everything from the seed."""
        self._seed(epoch=-1)
        super().initialize()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLR]:
        """AdamW on all weights but norms, biases, A_log and D, which do not decay."""
        optimizer = torch.optim.AdamW(
            decay_groups(self.network, self.weight_decay), lr=self.initial_lr
        )
        warmup = round(self.warmup * self.num_epochs)
        return optimizer, WarmupPolyLR(optimizer, self.initial_lr, self.num_epochs, warmup)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split; datasets of fewer than five cases get one fold for each of them.

        Raises:
            ValueError: If there is a single case and the fold is not "all".
        """
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and not splits.exists():
            dataset = infer_dataset_class(self.preprocessed_dataset_folder)
            cases = sorted(dataset.get_identifiers(self.preprocessed_dataset_folder))
            if len(cases) == 1:
                raise ValueError(f"{cases[0]} is the only case; train the fold called all")
            if len(cases) < FOLDS:
                folds = [{"train": [c for c in cases if c != v], "val": [v]} for v in cases]
                save_json(folds, str(splits), sort_keys=False)
        return super().do_split()

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders; on a CPU in this process, which makes runs repeatable.

        There the network takes far longer than the augmentation, and workers would only take
        its cores away.
        """
        if self.device.type != "cpu":
            return super().get_dataloaders()
        with _environment("nnUNet_n_proc_DA", "0"):
            return super().get_dataloaders()

    @staticmethod
    def get_training_transforms(*args: Any, **kwargs: Any) -> Any:
        """nnU-Net's augmentation, with the blur's method fixed instead of chosen by stopwatch."""
        pipeline = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        for transform in pipeline.transforms:
            inner = getattr(transform, "transform", transform)
            if isinstance(inner, GaussianBlurTransform):
                inner.benchmark = False
        return pipeline

    def on_epoch_start(self) -> None:
        """Draw this epoch from its own seed, so that a resumed run continues the same curve."""
        super().on_epoch_start()
        self._seed(self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log and save; a progress picture that cannot be written does not end the training."""
        epoch = self.current_epoch
        try:
            super().on_epoch_end()
        except OSError as error:  # the final checkpoint is written elsewhere
            self.print_to_log_file(f"WARNING: could not write the progress picture: {error}")
            self.current_epoch = epoch + 1

    def train_step(self, batch: dict) -> dict:
        """One step of AdamW on a batch of patches; returns the loss.

        Raises:
            ValueError: If voxels of the batch are not finite; names the cases.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        target = _each(batch["target"], lambda part: part.to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with self._autocast():
                logits = self.network(data)
        except NonFiniteInput as error:
            raise NonFiniteInput(f"{error} Cases of this batch: {list(batch['keys'])}.") from None
        loss = self.loss(_each(logits, Tensor.float), target)
        if self.grad_scaler is None:
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.grad_clip)
            if torch.isfinite(norm):  # skip the step otherwise, as the scaler does
                self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.grad_clip)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint whole or not at all.

        A full disk leaves the file of the last save in place. Training goes on without this one,
        for there may be room at the next; only the final checkpoint must be written.

        Raises:
            OSError: If the final checkpoint cannot be written.
        """
        if self.local_rank != 0 or self.disable_checkpointing:  # nnU-Net writes nothing there
            return super().save_checkpoint(filename)
        partial = f"{filename}.partial"
        try:
            super().save_checkpoint(partial)
            os.replace(partial, filename)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            with contextlib.suppress(OSError):
                os.remove(partial)
            sentence = (
                f"could not write {filename}: {error}. The files saved before are whole; free "
                "some space"
            )
            if os.path.basename(filename) == "checkpoint_final.pth":
                raise OSError(f"{sentence} and run the same command with --c") from None
            self.print_to_log_file(f"WARNING: {sentence}, training goes on")

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision for training: float16 on CUDA as nnU-Net has it, bfloat16 on CPUs."""
        if self.device.type == "cuda":
            return torch.autocast("cuda")
        if self.device.type == "cpu" and cpu_trains_in_bfloat16():
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def _seed(self, epoch: int) -> None:
        """Seed every generator by the run's seed, the fold, the process and the epoch."""
        fold = self.fold if isinstance(self.fold, int) else 5
        entropy = [int(self.seed), fold, self.local_rank, epoch + 1]
        state = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)


class NonFiniteInput(ValueError):
    """An image with NaN or infinite voxels."""


def refuse_non_finite(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a patch with NaN or infinite voxels before it ruins the weights or the prediction.

    Raises:
        NonFiniteInput: If a voxel is not finite.
    """
    if not torch.isfinite(inputs[0]).all():
        raise NonFiniteInput(
            "The image holds NaN or infinite voxels. `mambamed check FOLDER` names the files; "
            "repair or leave out those."
        )


def _each(tensors: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A change to a tensor, or to every tensor of a list or a pair."""
    if isinstance(tensors, Tensor):
        return change(tensors)
    return type(tensors)(_each(x, change) for x in tensors)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
