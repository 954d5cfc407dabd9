"""The loop of every pretraining: epochs, checkpoints, log and pictures; exact when resumed."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from nnunet_plugins.process_group import leave_group
from pretrain.progress import Progress
from pretrain.run_folder import Row, RunFolder
from pretrain.sampling import Batch, Samples, epoch_batches, load, steps_per_epoch
from pretrain.settings import Settings
from pretrain.stopping import StopRequest, stop_requests
from pretrain.training_step import Objective, Output, TrainingStep

MOST_SKIPPED = 20
"""Steps in a row whose loss or gradient is not finite, after which a run gives up. Scaling for
fp16 may need up to 16 of them at the start."""

Draw = Callable[[Output, Batch, Path], None]
"""Draws an objective's output for a batch into a PNG file."""


def pretrain(
    objective: Objective,
    dataset: Samples,
    folder: str | Path,
    settings: Settings,
    *,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    records: Mapping[str, Any] | None = None,
    draw: Draw | None = None,
    resume: bool = False,
) -> list[Row]:
    """Train an objective and keep all of it in a folder.

    Under `torchrun` every process calls this once, with the same arguments; a step's batch is
    shared out among them, and they return when all is written. A run that was killed goes on from
    its last checkpoint with `resume` and ends with the same numbers, on a CPU to the last bit.

    Args:
        objective: Trained in place, on the device of the settings.
        dataset: A sample must be a function of its seed, the epoch and the index alone.
        folder: Of this run. Gets `config.json`, `checkpoint_last.pt`, the network's weights
            `last.safetensors` and `best.safetensors`, `log.csv`, `loss.png`, `tensorboard/` and
            `pictures/`.
        settings: How to train.
        config: Plain JSON values that define the run beside the settings. Compared on resume.
        metadata: Plain JSON values for the header of the weights: the network's class and its
            arguments.
        records: Plain JSON values to keep with the run, a file for each name.
        draw: Called every `picture_every` epochs and after the last, on the main process, with the
            objective's output in eval mode for the same samples each time.
        resume: Go on with the run in the folder.

    Returns:
        The log, a row for each epoch: epoch from 1, mean loss and parts, lr, weight_decay,
        seconds, samples_per_second, skipped steps.

    Raises:
        FileExistsError: If the folder holds a run and `resume` is False.
        FileNotFoundError: If there is no run to resume.
        ValueError: If the configuration differs from that of the run to resume, if a file is
            damaged, or if batch and device do not suit.
        FloatingPointError: If no step gives finite numbers any more; the checkpoint is kept.
        OSError: If the last checkpoint cannot be written. One that fails earlier is left out.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is written.
    """
    run = RunFolder(Path(folder), {"settings": settings.to_dict(), "run": dict(config or {})})
    engine = Engine(objective, dataset, run, settings, metadata or {}, draw)
    try:
        engine.open(resume, records or {})
        with engine.reports(), stop_requests() as request:
            engine.train(request)
        engine.step.accelerator.wait_for_everyone()  # none returns before all is written
    finally:
        leave_group(engine.step.model)
    return engine.progress.rows


class Engine:
    """One pretraining run; see `pretrain`."""

    def __init__(
        self,
        objective: Objective,
        dataset: Samples,
        run: RunFolder,
        settings: Settings,
        metadata: Mapping[str, Any],
        draw: Draw | None,
    ) -> None:
        self.step = TrainingStep(objective, settings)
        self.steps = steps_per_epoch(len(dataset), settings, self.step.processes)
        self.objective, self.dataset, self.run, self.settings = objective, dataset, run, settings
        self.metadata, self.draw = metadata, draw
        self.progress = Progress()
        self.is_main = self.step.rank == 0
        self.tensorboard: SummaryWriter | None = None

    def open(self, resume: bool, records: Mapping[str, Any]) -> None:
        """Start the folder, or take up the run in it."""
        if resume:
            self.run.check_resume()
        else:
            self.run.check_new()
        self.step.accelerator.wait_for_everyone()  # all have looked before one writes
        state = self.run.load_checkpoint() if resume else None
        if state:
            self.progress = Progress(**state.pop("progress"))
            self.step.load_state_dict(state)
        elif self.is_main:
            self.run.start(records)
            self.run.save_checkpoint(self.state_dict())
        self.step.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def reports(self) -> Iterator[None]:
        """TensorBoard's file meanwhile, and a log without what happened after the checkpoint."""
        if not self.is_main or self.finished:
            yield
            return
        with self._unless_disk_is_full("log"):
            self.run.save_log(self.progress.rows)
        first = self.progress.epoch + 1
        self.tensorboard = SummaryWriter(str(self.run.tensorboard), purge_step=first)
        try:
            yield
        finally:
            with self._unless_disk_is_full("tensorboard"):
                self.tensorboard.close()

    @property
    def finished(self) -> bool:
        """Whether every epoch is complete."""
        return self.progress.epoch == self.settings.epochs

    def train(self, request: StopRequest) -> None:
        """Run the epochs that are left."""
        if self.finished:
            self._say(f"{self.run.folder} is finished: {self.settings.epochs} epochs are done")
        done = self.progress.epoch
        with self._bar(self.settings.epochs, done, "epochs", "epoch") as epochs:
            while not self.finished:
                self.run_epoch(request)
                self.close_epoch()
                epochs.update()

    def run_epoch(self, request: StopRequest) -> None:
        """Take the steps that are left of this epoch."""
        progress, last_saved = self.progress, time.monotonic()
        with self._bar(self.steps, progress.step, f"epoch {progress.epoch + 1}", "step") as bar:
            batches = self._batches()
            while progress.step < self.steps:
                started = time.monotonic()
                step = self.step(batches, progress.epoch, progress.step, self.steps, request)
                progress.add_step(step.figures, step.taken, time.monotonic() - started)
                bar.set_postfix(loss=f"{step.figures['loss']:.4f}", refresh=False)
                bar.update()
                self._stop_if_hopeless()
                if step.stop:
                    self._stop()
                if 0 < self.settings.checkpoint_minutes * 60 <= time.monotonic() - last_saved:
                    self._save_checkpoint()
                    last_saved = time.monotonic()

    def close_epoch(self) -> None:
        """Log and save an epoch. The checkpoint comes last: what is lost before it is redone."""
        progress, settings = self.progress, self.settings
        last_step = (progress.epoch + 1) * self.steps - 1
        rates = self.step.rates(last_step, settings.epochs * self.steps)
        improved = progress.close_epoch(settings.batch_size, rates)
        if not self.is_main:
            return
        row = progress.rows[-1]
        left = (settings.epochs - progress.epoch) * row["seconds"]
        self._say(
            f"epoch {progress.epoch}/{settings.epochs}: loss {row['loss']:.4f}, "
            f"lr {row['lr']:.2e}, {row['seconds']:.1f} s, about {tqdm.format_interval(left)} left"
            + (f", {row['skipped']} steps skipped" if row["skipped"] else "")
        )
        with self._unless_disk_is_full("log"):
            self._log(row)
        if improved:
            self._save_weights("best")
        pictured = self.finished or progress.epoch % max(1, settings.picture_every) == 0
        if self.draw and settings.picture_every and pictured:
            batch = self._pictured_batch()
            with self._unless_disk_is_full("picture"):
                self.draw(self.step.evaluate(batch), batch, self.run.picture(progress.epoch))
        if progress.epoch % settings.save_every == 0 or self.finished:
            with self._unless_disk_is_full("curve"):
                self.run.save_curve(progress.rows)
            self._save_weights("last")
            self._save_checkpoint(required=self.finished)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"progress": self.progress.state_dict(), **self.step.state_dict()}

    def _batches(self) -> Iterator[Batch]:
        """What this process loads in the rest of the epoch."""
        progress, step = self.progress, self.step
        self.dataset.set_epoch(progress.epoch)
        batches = epoch_batches(
            len(self.dataset), self.settings, progress.epoch, step.rank, step.processes
        )
        left = batches[progress.step * self.settings.accumulate :]
        return load(self.dataset, left, self.settings.workers, step.device)

    def _pictured_batch(self) -> Batch:
        """The first samples of epoch 0, as many as one process takes at a time."""
        self.dataset.set_epoch(0)
        size = self.settings.batch_size // (self.step.processes * self.settings.accumulate)
        batch: dict[str, torch.Tensor] = default_collate([self.dataset[i] for i in range(size)])
        return batch

    def _log(self, row: Row) -> None:
        self.run.save_log(self.progress.rows)
        if self.tensorboard:
            for name, value in row.items():
                if name != "epoch":
                    self.tensorboard.add_scalar(name, value, self.progress.epoch)
            self.tensorboard.flush()

    def _save_weights(self, name: str) -> None:
        about = {"epoch": self.progress.epoch, "loss": self.progress.rows[-1]["loss"]}
        with self._unless_disk_is_full(f"{name}.safetensors"):
            self.run.save_weights(name, self.objective.network, {**self.metadata, **about})

    def _save_checkpoint(self, required: bool = False) -> None:
        """Write the checkpoint; training goes on without one that is not required."""
        if not self.is_main:
            return
        survive = contextlib.nullcontext() if required else self._unless_disk_is_full("checkpoint")
        with survive:
            self.run.save_checkpoint(self.state_dict())

    def _stop_if_hopeless(self) -> None:
        """Give up when no step was taken for long."""
        if self.progress.skipped_in_a_row == MOST_SKIPPED:
            raise FloatingPointError(
                f"{MOST_SKIPPED} steps in a row, up to step {self.progress.step} of epoch "
                f"{self.progress.epoch + 1}, gave a loss or a gradient that is not finite. "
                f"None of them changed the weights; the last checkpoint is {self.run.checkpoint}. "
                "Check the data, lower lr or take another precision"
            )

    def _stop(self) -> None:
        """Write a checkpoint and end as Ctrl-C does."""
        self._save_checkpoint(required=True)
        self._say(
            f"Stopped after step {self.progress.step} of epoch {self.progress.epoch + 1}; the "
            f"checkpoint is in {self.run.folder}. Run the same command with resume to go on"
        )
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def _unless_disk_is_full(self, what: str) -> Iterator[None]:
        """Go on when something could not be written; there may be room at the next time."""
        try:
            yield
        except OSError as error:
            self._say(
                f"WARNING: could not write the {what}: {error}. The files saved before are whole; "
                "free some space, training goes on"
            )

    def _say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text)
            sys.stdout.flush()

    def _bar(self, total: int, done: int, name: str, unit: str) -> "tqdm[None]":
        """A bar on a terminal, nothing elsewhere."""
        disable = None if self.is_main else True
        return tqdm(
            total=total, initial=done, desc=name, unit=unit, leave=unit == "epoch", disable=disable
        )
