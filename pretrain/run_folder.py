"""The folder of a pretraining run: every file whole, nothing of another run overwritten."""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import nn

from pretrain.settings import CHANGEABLE

FORMAT = 1
"""Of checkpoints and of the weights' metadata."""
FILES = ("config.json", "checkpoint_last.pt", "last.safetensors", "best.safetensors", "log.csv")
Row = dict[str, float]


class RunFolder:
    """Paths and files of one run.

    Args:
        folder: Made when the run starts. On a cluster it lies where all processes see it.
        config: Plain JSON values: `settings`, and under `run` what else defines the run.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = json.loads(json.dumps(config))
        self.checkpoint = folder / "checkpoint_last.pt"
        self.tensorboard = folder / "tensorboard"

    def check_new(self) -> None:
        """See that the folder holds no run yet.

        Raises:
            FileExistsError: If it does.
        """
        held = [name for name in FILES if (self.folder / name).exists()]
        if held:
            raise FileExistsError(
                f"{self.folder} already holds a run ({', '.join(held)}); resume it, or name "
                "another folder"
            )

    def check_exists(self) -> None:
        """See that the folder holds a run.

        Raises:
            FileNotFoundError: If it holds none.
        """
        if not (self.folder / "config.json").exists():
            raise FileNotFoundError(
                f"{self.folder} holds no run to resume; start one without resume"
            )

    def check_objective(self, objective: str) -> None:
        """See that the folder holds a run, and not one of another objective.

        Raises:
            FileNotFoundError: If it holds none.
            ValueError: If its run pretrains by another objective.
        """
        self.check_exists()
        try:
            config = json.loads((self.folder / "config.json").read_text())
            before = config["run"].get("objective", objective)
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # damaged; `check_resume` says how
        if before != objective:
            raise ValueError(
                f"{self.folder} holds a run of {before} and cannot be resumed as {objective}; go "
                f"on with python -m pretrain {before}, or name another folder"
            )

    def check_resume(self) -> None:
        """See that the folder holds a run of this very configuration.

        Raises:
            FileNotFoundError: If it holds no run.
            ValueError: If its run was configured otherwise, or its configuration is damaged.
        """
        self.check_exists()
        path = self.folder / "config.json"
        try:
            before = json.loads(path.read_text())
            changes = list(_differences(before["settings"], self.config["settings"], "settings"))
            changes += _differences(before["run"], self.config["run"], "run")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); it must be as written") from None
        if changes:
            raise ValueError(
                f"{self.folder} was started with another configuration: {'; '.join(changes)}. "
                f"Give the values it was started with; only {', '.join(CHANGEABLE)} may change"
            )

    def start(self, records: Mapping[str, Any]) -> None:
        """Make the folder and record all that is needed to repeat the run.

        Args:
            records: Further plain JSON values, each for a file of its name.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        packages = ("mambamed", "torch", "accelerate")
        record = self.config | {
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "command": list(sys.argv),
        }
        for name, values in {**records, "config": record}.items():
            with whole_file(self.folder / f"{name}.json") as file:
                file.write(json.dumps(values, indent=2).encode())

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint, whole or not at all.

        Raises:
            OSError: If it cannot be written; the one before is then still in place.
        """
        try:
            with whole_file(self.checkpoint) as file:
                torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch reports a failed write as this or as OSError
            raise OSError(str(error)) from error

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint's state on the CPU; None if the run ended before its first one.

        Raises:
            ValueError: If the file is damaged or of another format.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            written = state.pop("format")
        except Exception as error:  # torch has no one type for damage: zip, pickle and key errors
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{self.checkpoint} is damaged and cannot be read ({cause}); put a copy of it "
                "back, or start again in another folder"
            ) from None
        if written != FORMAT:
            raise ValueError(f"{self.checkpoint} has format {written}; this version reads {FORMAT}")
        return state

    def save_weights(self, name: str, network: nn.Module, metadata: Mapping[str, Any]) -> None:
        """Write the network's weights, to hand on, with plain JSON in the header.

        Args:
            name: last or best.
            network: Whose state dict is written.
            metadata: Its class and arguments, epoch and loss; under `mambamed` in the header.
        """
        # Copies, for safetensors refuses tensors that share memory.
        weights = {
            key: value.detach().cpu().contiguous().clone()
            for key, value in network.state_dict().items()
        }
        header = {"mambamed": json.dumps({"format": FORMAT, **metadata})}
        with whole_file(self.folder / f"{name}.safetensors") as file:
            file.write(safetensors.torch.save(weights, header))

    def save_log(self, rows: Sequence[Row]) -> None:
        """Write the log, one row an epoch."""
        text = io.StringIO(newline="")
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, list(names))
        writer.writeheader()
        writer.writerows(rows)
        with whole_file(self.folder / "log.csv") as file:
            file.write(text.getvalue().encode())

    def save_curve(self, rows: Sequence[Row]) -> None:
        """Draw the mean loss over the epochs, counted from 1."""
        figure = Figure(figsize=(6, 4))
        axes = figure.add_subplot()
        axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], marker=".")
        axes.set(xlabel="epoch", ylabel="loss")
        axes.grid(alpha=0.3)
        with whole_file(self.folder / "loss.png") as file:
            figure.savefig(file, format="png", dpi=100)

    def picture(self, epoch: int) -> Path:
        """Where the picture after so many epochs goes; makes its folder."""
        folder = self.folder / "pictures"
        folder.mkdir(exist_ok=True)
        return folder / f"epoch_{epoch:04d}.png"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only when it is whole and on the disk.

    Raises:
        OSError: If it cannot be written; what stood under the name is then untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    """What differs between two JSON values, in words, but for what may change."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if path == "settings" and key in CHANGEABLE:
                continue
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}")
    elif before != now:
        yield f"{path} was {json.dumps(before)}, now {json.dumps(now)}"
