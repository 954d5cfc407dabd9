"""The table of an evaluation: Dice of every case and class as CSV."""

import csv
import logging
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from nnunet_plugins.bundle.cases import case_name
from nnunet_plugins.bundle.plan import Plan

logger = logging.getLogger(__name__)


class DiceReport:
    """Evaluator handler: write `dice.csv`, a row for each case and their mean.

    Dice is empty, and left out of the mean, where neither label nor prediction has the class, as
    in nnU-Net's summary.

    Args:
        plan: Names the classes.
        output_dir: Folder of the table.
    """

    def __init__(self, plan: Plan, output_dir: str | Path) -> None:
        self.plan, self.file = plan, Path(output_dir) / "dice.csv"
        self.rows: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        """Collect after every case, write at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            name = case_name(item["image"].meta["filename_or_obj"], self.plan)
            self.rows[name] = [dice(p, y) for p, y in zip(item["pred"], item["label"], strict=True)]

    def _write(self, engine: Engine) -> None:
        means = torch.tensor(list(self.rows.values())).nanmean(0).tolist()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f".{self.file.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(["case", *self.plan.foreground])
            for name, scores in (self.rows | {"mean": means}).items():
                table.writerow([name, *("" if s != s else f"{s:.6f}" for s in scores)])
        partial.replace(self.file)
        logger.info("Dice of %d cases: %s", len(self.rows), self.file)


def dice(prediction: torch.Tensor, label: torch.Tensor) -> float:
    """Dice of two masks; NaN if both are empty."""
    prediction, label = prediction.bool(), label.bool()
    sizes = prediction.sum() + label.sum()
    return float(2 * (prediction & label).sum() / sizes)
