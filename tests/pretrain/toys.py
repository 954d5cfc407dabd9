"""A tiny objective and dataset, and a command that pretrains with them in a process of its own.

`python -m tests.pretrain.toys FOLDER '{"settings": {"epochs": 2}, "resume": true}'`
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from pretrain.engine import pretrain
from pretrain.settings import Settings


@dataclass
class ToyOutput:
    loss: Tensor
    parts: dict[str, Tensor]


class Toy(nn.Module):
    """Fills in hidden numbers. Without `hides` it copies, and nothing is random."""

    def __init__(self, hides: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16))
        self.head = nn.Linear(16, 6)
        self.hides = hides

    def forward(self, image: Tensor) -> ToyOutput:
        hidden = torch.rand_like(image) < 0.5 if self.hides else torch.zeros_like(image).bool()
        error = self.head(self.network(image.masked_fill(hidden, 0.0))) - image
        parts = {"squared": error.square().mean(), "absolute": error.abs().mean()}
        return ToyOutput(parts["squared"] + 0.1 * parts["absolute"], parts)


class ToySamples:
    """Numbers drawn from (epoch, index); NaN in the epochs of `poison`."""

    def __init__(self, length: int = 26, pause: float = 0.0, poison: tuple[int, ...] = ()) -> None:
        self.length, self.pause, self.poison, self.epoch = length, pause, poison, 0

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        time.sleep(self.pause)
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        image = torch.randn(6, generator=generator)
        return {"image": image * float("nan") if self.epoch in self.poison else image}


def draw(output: ToyOutput, batch: dict[str, Tensor], path: Path) -> None:
    """The batch's numbers as a picture; draws random numbers to be a nuisance."""
    torch.rand(7)
    pixels = (batch["image"] * 40 + 128).clamp(0, 255).byte().numpy()
    Image.fromarray(pixels).save(path)


def small(**changes: object) -> Settings:
    values = {"epochs": 4, "batch_size": 4, "lr": 1e-2, "device": "cpu", "seed": 3, "warmup": 0.25}
    return Settings.from_dict(values | changes)


def main(folder: str, options: str, **environment: str) -> None:
    os.environ.update(environment)
    chosen = {"settings": {}, "pause": 0.0, "hides": True, "resume": False} | json.loads(options)
    seed = int(chosen["resume"])  # of initial weights, which a resumed run must not keep
    rows = pretrain(
        Toy(chosen["hides"], seed),
        ToySamples(pause=chosen["pause"]),
        folder,
        small(**chosen["settings"]),
        resume=chosen["resume"],
        draw=draw,
    )
    state = torch.load(Path(folder) / "checkpoint_last.pt", weights_only=True)
    assert len(state["progress"]["rows"]) == len(rows), "a process returned before all was written"


if __name__ == "__main__":
    main(*sys.argv[1:])
