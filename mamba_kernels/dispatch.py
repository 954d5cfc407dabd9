"""Which implementation of an operator runs: the caller's, the forced one, or the best one here.

Each operator keeps a dict of backends, best first. A backend joins by one entry in that dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])

FORCED: ContextVar[str | None] = ContextVar("mamba_kernels_forced_backend", default=None)


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Backend(Generic[Function]):
    """One implementation of an operator.

    Args:
        run: The implementation; it may rely on the checks of the operator's front door.
        usable: Whether it works on this machine. Asked at every choice, so a slow answer
            has to be cached by the backend itself.
        devices: Types of device it runs on. None for all.
    """

    run: Function
    usable: Callable[[], bool] = _always
    devices: frozenset[str] | None = None

    def takes(self, device: torch.device) -> bool:
        """Whether tensors on `device` can be handed to this backend."""
        return (self.devices is None or device.type in self.devices) and self.usable()


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast switched off on `device`, where it has any; torch's meta device has none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refuse_create_graph() -> None:
    """Called by a backward pass written by hand, through which no gradient of a gradient flows.

    Raises:
        RuntimeError: The backward pass is itself recorded.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this backend has no gradients of gradients, which create_graph=True asks for; "
            "use backend='reference'"
        )


def usable_names(backends: Mapping[str, Backend[Function]]) -> tuple[str, ...]:
    """Names of the backends that work on this machine, best first."""
    return tuple(name for name, backend in backends.items() if backend.usable())


def choose(backends: Mapping[str, Backend[Function]], name: str, device: torch.device) -> Function:
    """The implementation that `name` asks for on `device`.

    Args:
        backends: Backends of one operator, best first.
        name: A key of `backends`, or "auto": the backend forced by `use_backend` if this
            operator has it, else the first that takes `device`.
        device: Where the operands are.

    Raises:
        ValueError: The name is unknown, or that backend cannot work here or on `device`.
    """
    if name == "auto":
        forced = FORCED.get()
        if forced is None or forced not in backends:
            return next(backend.run for backend in backends.values() if backend.takes(device))
        name = forced
    if name not in backends or not backends[name].usable():
        names = ", ".join(usable_names(backends))
        raise ValueError(f"backend {name!r} is not available; this machine has: auto, {names}")
    if not backends[name].takes(device):
        raise ValueError(
            f"backend {name!r} does not run on device {device}; "
            f"move the tensors to one of {sorted(backends[name].devices or ())} or choose 'auto'"
        )
    return backends[name].run
