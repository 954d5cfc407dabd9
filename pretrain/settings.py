"""What a pretraining run is told: one frozen record that goes through JSON unchanged."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES = {
    "precision": ("no", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda", "mps"),
}
POSITIVE = ("epochs", "batch_size", "accumulate", "lr", "clip", "save_every")
NOT_NEGATIVE = (
    "seed",
    "workers",
    "picture_every",
    "checkpoint_minutes",
    "weight_decay",
    "final_weight_decay",
)
SHARES = ("warmup", "final_lr")

CHANGEABLE = ("workers", "picture_every", "save_every", "checkpoint_minutes", "device")
"""Settings that may differ when a run is resumed, for they do not change its numbers."""


@dataclass(frozen=True)
class Settings:
    """How long, how fast and on what to pretrain.

    Raises:
        ValueError: If a value cannot work; names the setting and what it may be.
    """

    epochs: int = 100
    batch_size: int = 8
    """Samples of one optimiser step, all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts a process takes its samples of a step in, one after the other, to save memory."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    warmup: float = 0.05
    """Share of the epochs in which the rate grows linearly."""
    final_lr: float = 0.0
    """Rate at the end of the cosine, as a share of `lr`."""
    weight_decay: float = 0.05
    final_weight_decay: float = 0.05
    """Weight decay at the end of its cosine; equal to `weight_decay`, it is constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "no"
    """Mixed precision: no, bf16 or fp16."""
    seed: int = 0
    workers: int = 0
    """Processes that load samples, for each process that trains; 0 loads in the latter."""
    picture_every: int = 0
    """Epochs between pictures; 0 draws none."""
    save_every: int = 1
    """Epochs between checkpoints."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; 0 writes none there."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _typed(field.name, getattr(self, field.name), field.type)
            object.__setattr__(self, field.name, value)
        for name in POSITIVE:
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in NOT_NEGATIVE:
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in SHARES:
            self._require(name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        for name, choices in CHOICES.items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from what `json.load` gives; what is not named keeps its default.

        Raises:
            ValueError: If a name is not a setting; says which one may be meant.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"{name} is not a setting of pretraining; {hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `json.dump` takes and `json.load` gives back."""
        return asdict(self) | {"betas": list(self.betas)}

    def _require(self, name: str, holds: bool, needed: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {needed}")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A value as its setting's type: whole numbers pass as floats, lists of two as tuples."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str):
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
        raise ValueError(f"{name} is {value!r}; it must be of type {kind.__name__}")
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(_typed(name, number, float) for number in value)
    raise ValueError(f"{name} is {value!r}; it must be two numbers")
