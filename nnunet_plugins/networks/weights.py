"""Weights into a network: all of them, or one clear sentence on what did not fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a network, by parameter name."""

    fitting: tuple[str, ...]
    missing: tuple[str, ...]
    """In the network, not in the state dict."""
    unexpected: tuple[str, ...]
    """In the state dict, not in the network."""
    misshapen: tuple[str, ...]
    """In both, with different shapes."""

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        parts = [f"{len(self.fitting)} tensors fit"]
        for word in ("missing", "unexpected", "misshapen"):
            names = getattr(self, word)
            if names:
                parts.append(f"{len(names)} {word} ({_abridged(names)})")
        return ", ".join(parts)


def fit(network: nn.Module, state_dict: Mapping[str, Tensor]) -> Fit:
    """Compare a state dict with what the network needs; loads nothing."""
    own = network.state_dict()
    shared = [name for name in own if name in state_dict]
    return Fit(
        fitting=tuple(n for n in shared if own[n].shape == state_dict[n].shape),
        missing=tuple(n for n in own if n not in state_dict),
        unexpected=tuple(n for n in state_dict if n not in own),
        misshapen=tuple(n for n in shared if own[n].shape != state_dict[n].shape),
    )


def _abridged(names: Iterable[str], shown: int = 3) -> str:
    names = list(names)
    more = [f"... {len(names) - shown} more"] if len(names) > shown else []
    return ", ".join(names[:shown] + more)
