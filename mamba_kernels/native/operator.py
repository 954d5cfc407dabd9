"""Torch operators that the compiled library computes, for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def _key_set(*names: str) -> int:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, names[0]))
    for name in names[1:]:
        keys = keys.add(getattr(torch._C.DispatchKey, name))
    return int(keys.raw_repr())


PLAIN_TENSORS = frozenset({
    _key_set("CPU", "AutocastCPU", "ADInplaceOrView", "AutogradCPU"),
    _key_set("CPU", "AutocastCPU"),  # made in inference mode
})  # fmt: skip
"""What torch's dispatcher knows of tensors that are what lies in their memory: no subclass that
wants to see its operators, nothing pending such as a negation, not one of many under vmap."""

PLAIN_CALLS = frozenset({
    _key_set("BackendSelect", "ADInplaceOrView"),
    _key_set("BackendSelect"),  # in inference mode
})  # fmt: skip
"""What it does for all operators where no mode, transform or tracer has it do more."""


class Operator:
    """An operator `mambamed::name`, opaque to torch.compile and torch.export, which see shapes.

    The dispatcher takes 10 us to come to Python and back. Where it would do nothing on its way, for
    no one records, transforms or differentiates, a call goes straight to the function. (Of torch's
    profilers an execution trace alone does not see it then.)

    Args:
        name: Of the operator.
        schema: Its arguments and results, as `torch.library.define` wants them.
        function: Computes it.
        shapes: Gives results of the right shapes, strides and dtypes, with nothing in them.
    """

    def __init__(
        self, name: str, schema: str, function: Callable[..., Any], shapes: Callable[..., Any]
    ) -> None:
        self.name, self.function = f"mambamed::{name}", function
        torch.library.define(self.name, schema)
        torch.library.impl(self.name, "cpu", function)
        torch.library.register_fake(self.name, shapes)
        self.dispatched = getattr(torch.ops.mambamed, name).default

    def differentiate(self, gradients: Callable[..., Any], save: Callable[..., None]) -> None:
        """Give it a backward pass: see `torch.library.register_autograd`."""
        torch.library.register_autograd(self.name, gradients, setup_context=save)

    def __call__(self, *arguments: Any) -> Any:
        """Its results, by the shortest way."""
        return (
            self.function(*arguments) if goes_straight(arguments) else self.dispatched(*arguments)
        )


def goes_straight(arguments: Iterable[Any]) -> bool:
    """Whether nobody but the operator itself has to do with these arguments, tensors and others."""
    if torch.compiler.is_compiling() or are_recorded():
        return False
    if torch._C._is_torch_function_mode_enabled() or torch._C._autograd._profiler_enabled():
        return False
    return are_plain(arguments, torch.is_grad_enabled())


def are_recorded() -> bool:
    """Whether what torch computes is recorded or transformed, other than by torch.compile."""
    return torch._C._dispatch_tls_local_include_set().raw_repr() not in PLAIN_CALLS


def are_plain(arguments: Iterable[Any], gradients: bool = False) -> bool:
    """Whether these are as the library takes them: plain tensors, flags and numbers, and lists.

    Args:
        arguments: Of an operator.
        gradients: Whether tensors are not plain either that require a gradient.
    """
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            keys = torch._C._dispatch_keys(x).raw_repr()
            if keys not in PLAIN_TENSORS or (gradients and x.requires_grad):
                return False
        elif isinstance(x, list | tuple):
            if not are_plain(x, gradients):
                return False
        elif kind not in (bool, int, NoneType):
            return False
    return True
