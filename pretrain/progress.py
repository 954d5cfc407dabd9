"""Where a pretraining run stands."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pretrain.run_folder import Row


@dataclass
class Progress:
    """What a checkpoint holds beside the weights and the optimiser: position, sums and log."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    """Optimiser steps done in the epoch after them."""
    best: float = math.inf
    """Lowest mean loss of an epoch."""
    skipped: int = 0
    """Steps of this epoch left out, for their loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    """Time of this epoch's steps."""
    sums: dict[str, float] = field(default_factory=dict)
    """Loss and its parts, summed over the steps taken in this epoch."""
    rows: list[Row] = field(default_factory=list)
    """The log, a row for each complete epoch."""

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

    def add_step(self, figures: Mapping[str, float], taken: bool, seconds: float) -> None:
        """Count a step that was taken or skipped."""
        self.step += 1
        self.seconds += seconds
        if taken:
            self.skipped_in_a_row = 0
            for name, value in figures.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1

    def mean_loss(self) -> float:
        """Mean over the steps taken in this epoch; NaN if there are none."""
        return self.sums.get("loss", math.nan) / max(1, self.step - self.skipped)

    def close_epoch(self, batch_size: int, rates: Mapping[str, float]) -> bool:
        """End the epoch with a row in the log.

        Args:
            batch_size: Samples of a step.
            rates: Learning rate and weight decay at its last step.

        Returns:
            Whether its mean loss is the lowest so far.
        """
        taken = max(1, self.step - self.skipped)
        loss = self.mean_loss()
        row: Row = {"epoch": self.epoch + 1, "loss": loss}
        row |= {name: value / taken for name, value in self.sums.items() if name != "loss"}
        row |= rates
        row["seconds"] = round(self.seconds, 3)
        row["samples_per_second"] = round(self.step * batch_size / max(self.seconds, 1e-9), 3)
        row["skipped"] = self.skipped
        self.rows.append(row)
        improved = loss < self.best
        self.best = loss if improved else self.best
        self.epoch, self.step, self.skipped, self.seconds, self.sums = self.epoch + 1, 0, 0, 0.0, {}
        return improved
