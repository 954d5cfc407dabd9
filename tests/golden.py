"""Recorded outputs of the authors' code."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class Golden:
    """Tensors and notes of one recorded file."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.notes = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
