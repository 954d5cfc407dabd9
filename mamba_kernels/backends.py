"""The backends of this machine, and a context that forces one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mamba_kernels.causal_conv1d import BACKENDS as CONVS
from mamba_kernels.dispatch import FORCED, usable_names
from mamba_kernels.selective_scan import BACKENDS as SCANS


def available_backends() -> tuple[str, ...]:
    """Names of the backends that work on this machine, best first."""
    return tuple(dict.fromkeys(usable_names(SCANS) + usable_names(CONVS)))


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend wherever an operator is called with `backend="auto"`.

    Holds in the current thread only, nests, and ends with the `with` block, by exception too. An
    operator that lacks this backend keeps its best one. The backward pass belongs to the backend
    that ran forward, and code from torch.compile to the backend that it was compiled with.

    Args:
        name: One of `available_backends()`, or "auto" to lift an outer choice.

    Raises:
        ValueError: No such backend works on this machine.

    Example:
        >>> with use_backend("reference"):
        ...     y = selective_scan(u, delta, A, B, C)  # doctest: +SKIP
    """
    names = available_backends()
    if name != "auto" and name not in names:
        raise ValueError(
            f"backend {name!r} is not available; this machine has: auto, {', '.join(names)}"
        )
    before = FORCED.name
    FORCED.name = None if name == "auto" else name
    try:
        yield
    finally:
        FORCED.name = before
