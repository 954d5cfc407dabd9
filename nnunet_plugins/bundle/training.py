"""Handlers that MONAI lacks: start from other weights, keep the best, stop and go on."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from safetensors.torch import load_file
from torch import Tensor, nn

from nnunet_plugins.networks.weights import fit

logger = logging.getLogger(__name__)

HEADS = ("decoder.seg_layers.", "head.")
"""Where the parameters begin that depend on the classes: in decoders, and in heads of frames."""


class Pretrained:
    """Before the first epoch, take over the weights of another training and report what fitted.

    Args:
        network: Receives the weights.
        path: State dict as .safetensors or .pt, or nnU-Net's `{"network_weights": ...}`; None for
            none.

    Raises:
        ValueError: If nothing but heads fits.
    """

    def __init__(self, network: nn.Module, path: str | Path | None) -> None:
        self.network, self.path = unwrapped(network), Path(path) if path else None

    def attach(self, engine: Engine) -> None:
        """Load when the engine starts from its first epoch."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if self.path is None or engine.state.epoch:
            return
        weights = read_weights(self.path)
        report = fit(self.network, weights)
        taken = [name for name in report.fitting if not name.startswith(HEADS)]
        if not taken:
            raise ValueError(
                f"nothing of {self.path} fits this {type(self.network).__name__}: {report}; give "
                "weights of the same network and widths"
            )
        self.network.load_state_dict({name: weights[name] for name in taken}, strict=False)
        logger.info("%s: %d tensors taken over, heads start anew", self.path, len(taken))
        for word in ("missing", "unexpected", "misshapen"):
            names = [n for n in getattr(report, word) if not n.startswith(HEADS)]
            if names:
                logger.warning("%s: %d %s: %s", self.path, len(names), word, ", ".join(names))


class TrainingState:
    """What a training needs to go on: weights, optimiser, epoch and the best score so far.

    Args:
        folder: Of `model.pt`, the best weights, and `checkpoint_last.pt`, everything.
        network: In training.
        optimizer: Of its weights.
        lr_scheduler: Whose `step(epoch)` sets the rate of an epoch.
        resume: Go on from `checkpoint_last.pt`.
    """

    def __init__(
        self,
        folder: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        resume: bool = False,
    ) -> None:
        self.folder, self.network = Path(folder), unwrapped(network)
        self.optimizer, self.lr_scheduler, self.resume = optimizer, lr_scheduler, resume
        self.best = -math.inf

    @property
    def last(self) -> Path:
        """File of everything."""
        return self.folder / "checkpoint_last.pt"

    @property
    def model(self) -> Path:
        """File of the best weights."""
        return self.folder / "model.pt"

    def restore(self, engine: Engine) -> None:
        """Go on where `checkpoint_last.pt` was written.

        Raises:
            FileNotFoundError: If there is nothing to go on from.
            ValueError: If that training is finished.
        """
        if not self.last.is_file():
            raise FileNotFoundError(
                f"there is no {self.last} to resume from; name its folder with --ckpt_dir, or "
                "start without --resume"
            )
        saved = torch.load(self.last, map_location="cpu", weights_only=True)
        if saved["epoch"] >= engine.state.max_epochs:
            raise ValueError(
                f"{self.last} has all {saved['epoch']} epochs; ask for more with --epochs, or "
                "start without --resume in another --ckpt_dir"
            )
        self.network.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.lr_scheduler.step(saved["epoch"])
        self.best = saved["best"]
        engine.state.epoch = saved["epoch"]
        engine.state.iteration = saved["epoch"] * engine.state.epoch_length
        logger.info("resumed %s after epoch %d", self.last, saved["epoch"])

    def check_folder(self) -> None:
        """Refuse to write over weights that are not being resumed.

        Raises:
            FileExistsError: If the folder holds weights.
        """
        for file in (self.last, self.model):
            if file.exists():
                raise FileExistsError(
                    f"{file} exists and training would replace it; go on from it with --resume "
                    "True, or write elsewhere with --ckpt_dir FOLDER"
                )

    def save(self, epoch: int) -> None:
        """Write everything after an epoch."""
        content = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "best": self.best,
        }
        write_weights(content, self.last)

    def keep_if_best(self, score: float) -> None:
        """Write the weights if they scored better than all before."""
        if score > self.best:
            self.best = score
            if is_first_process():
                write_weights(self.network.state_dict(), self.model)


class KeepTraining:
    """Trainer handler: resume or refuse at the start, save after every epoch."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    def attach(self, engine: Engine) -> None:
        """Put this last of the handlers, so that it saves what they changed."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _start(self, engine: Engine) -> None:
        if self.state.resume:
            self.state.restore(engine)
        else:
            self.state.check_folder()
        if dist.is_initialized():
            dist.barrier()  # nobody looks at the folder after the first process has written to it

    def _save(self, engine: Engine) -> None:
        if is_first_process():
            self.state.save(engine.state.epoch)


class KeepBest:
    """Evaluator handler: keep the weights with the best key metric as `model.pt`."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state

    def attach(self, engine: Engine) -> None:
        """After metrics are computed."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        score = engine.state.metrics[engine.state.key_metric_name]
        self.state.keep_if_best(0.0 if math.isnan(score) else float(score))


def epochs_done(engine: Engine) -> int:
    """Epochs an engine has completed, which is the number of the next one, counted from 0."""
    return engine.state.epoch


def loss_of_step(output: dict[str, Any]) -> float:
    """Loss in what a trainer that does not decollate puts out, for MONAI's logs."""
    return float(output["loss"])


def image_meta(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metadata of the images of a decollated batch, by which MONAI names rows of reports."""
    return [item["image"].meta for item in batch]


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a .safetensors or .pt file, nnU-Net's wrapper taken off.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; name weights as .safetensors or .pt")
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    weights = content.get("network_weights", content) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no state dict; save network.state_dict()")
    return weights


def write_weights(content: Any, path: Path) -> None:
    """`torch.save`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside `DistributedDataParallel`, or the network."""
    return getattr(network, "module", network)


def is_first_process() -> bool:
    """Whether this process writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0
