"""Torch operators that the compiled library computes, for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


class Operator:
    """An operator `mambamed::name`, opaque to torch.compile and torch.export, which see shapes.

    The dispatcher takes 10 us to come to Python and back. Where it would do nothing on its way, for
    no one records, transforms or differentiates, a call goes straight to the function.

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
    if torch.compiler.is_compiling() or torch._C._autograd._profiler_enabled() or are_recorded():
        return False
    return are_plain(arguments, torch.is_grad_enabled())


def are_recorded() -> bool:
    """Whether operators are recorded or transformed at present, other than by torch.compile."""
    return bool(
        torch._C._get_tracing_state()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack()
    )


def are_plain(arguments: Iterable[Any], gradients: bool = False) -> bool:
    """Whether tensors among these are what lies in their memory: no subclass, nothing pending.

    Args:
        arguments: Tensors, lists and tuples of them, and others.
        gradients: Whether they are not plain either that require a gradient.
    """
    for x in arguments:
        kind = type(x)
        if kind is Tensor or kind is Parameter:
            if (gradients and x.requires_grad) or x.is_neg() or x._is_zerotensor():
                return False
        elif kind is list or kind is tuple:
            if not are_plain(x, gradients):
                return False
        elif isinstance(x, Tensor):
            return False
    return True
