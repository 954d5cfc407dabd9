"""Which implementation of an operator runs: the caller's, the forced one, or the best one here.

Each operator keeps a dict of backends, best first. A backend joins by one entry in that dict.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., object])


class Forced(threading.local):
    """The backend that `use_backend` forces in this thread. (torch.compile reads it where it
    compiles; it cannot read context variables.)"""

    name: str | None = None


FORCED = Forced()


def _nothing(*operands: Any) -> None:
    return None


@dataclass(frozen=True)
class Backend(Generic[Function]):
    """One implementation of an operator.

    Args:
        run: The implementation; it may rely on the checks of the operator's front door.
        missing: Why it does not work on this machine, or None if it does. Asked at every choice,
            so a slow answer has to be cached by the backend itself.
        devices: Types of device it runs on. None for all.
        refuses: Given the arguments of `run`, what of them it cannot take, or None.
        forward_mode: Whether tangents of forward-mode differentiation pass through it.
    """

    run: Function
    missing: Callable[[], str | None] = _nothing
    devices: frozenset[str] | None = None
    refuses: Callable[..., str | None] = _nothing
    forward_mode: bool = False

    def runs_on(self, device: torch.device) -> bool:
        """Whether this backend is for tensors on `device`."""
        return self.devices is None or device.type in self.devices

    def refusal(self, *arguments: Any) -> str | None:
        """What of the arguments of `run` this backend cannot take, or None."""
        if not self.forward_mode and have_tangents(arguments):
            return "operands with tangents, for it has no forward-mode differentiation"
        return self.refuses(*arguments)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast switched off on `device`, where it is on; torch's meta device has none."""
    available = torch.amp.is_autocast_available(device.type)
    if available and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def have_tangents(arguments: Iterable[Any]) -> bool:
    """Whether any tensor among these, or in lists and tuples of them, is a dual number."""
    if forward_ad._current_level < 0:
        return False
    return any(
        forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        if isinstance(x, torch.Tensor)
        else isinstance(x, list | tuple) and have_tangents(x)
        for x in arguments
    )


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
    return tuple(name for name, backend in backends.items() if backend.missing() is None)


def choose(
    backends: Mapping[str, Backend[Function]], name: str, device: torch.device, *arguments: Any
) -> Function:
    """The implementation that `name` asks for on `device`.

    Args:
        backends: Backends of one operator, best first.
        name: A key of `backends`, or "auto": the backend forced by `use_backend` if this
            operator has it, else the first that takes the arguments.
        device: Where the operands are.
        arguments: What the implementation will be called with.

    Raises:
        ValueError: The name is unknown, or that backend cannot work here, on `device` or with
            these arguments.
    """
    if name == "auto":
        forced = FORCED.name
        if forced is None or forced not in backends:
            return _best(backends, device, arguments)
        name = forced
    if name not in backends or backends[name].missing() is not None:
        names = ", ".join(usable_names(backends))
        why = f" ({backends[name].missing()})" if name in backends else ""
        raise ValueError(f"backend {name!r} is not available{why}; this machine has: auto, {names}")
    backend = backends[name]
    if not backend.runs_on(device):
        raise ValueError(
            f"backend {name!r} does not run on device {device}; "
            f"move the tensors to one of {sorted(backend.devices or ())} or choose 'auto'"
        )
    refusal = backend.refusal(*arguments)
    if refusal is not None:
        raise ValueError(f"backend {name!r} cannot take {refusal}: choose 'auto' or change that")
    return backend.run


def _best(
    backends: Mapping[str, Backend[Function]], device: torch.device, arguments: tuple[Any, ...]
) -> Function:
    """The first backend for this device that works and takes the arguments."""
    missing: list[str] = []
    for name, backend in backends.items():
        if not backend.runs_on(device):
            continue
        why = backend.missing()
        if why is not None:
            missing.append(f"{name} ({why})")
        elif backend.refusal(*arguments) is None:
            if missing and backend.devices is None and not torch.compiler.is_compiling():
                warnings.warn(  # which Python shows once
                    f"mamba_kernels runs more slowly, without: {', '.join(missing)}", stacklevel=4
                )
            return backend.run
    raise ValueError(f"no backend of {list(backends)} takes these operands on device {device}")
