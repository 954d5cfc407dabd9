"""One direction of a scan in several, and what backends make of a list of them.

Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Direction(NamedTuple):
    """The operands of one direction, at their tokens, and where its scan goes.

    `order` is the token at each position of the scan, (l,) int64; None for the order of the
    sequence. With `reverse` positions run from the last to the first. Optional operands are given
    for all directions of a scan or for none. That `order` is a permutation is left to backends.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    order: Tensor | None
    reverse: bool


LISTED = Direction._fields[:8]
"""The differentiable ones, of which operators for several directions take a list each."""

SCHEMA = ", ".join([*(f"Tensor[] {name}" for name in LISTED), "Tensor? z", "Tensor[] orders"])
OPTIONS = "int[] order_of, bool[] reverse, bool softplus"


class Lists(NamedTuple):
    """The arguments of operators for several directions, of `SCHEMA` and `OPTIONS`.

    Args:
        u: Of each direction, or one for all. Lists are empty for operands that are absent.
        orders: Those of directions that have one.
        order_of: For each direction its place in `orders`, or -1.
    """

    u: list[Tensor]
    delta: list[Tensor]
    A: list[Tensor]
    B: list[Tensor]
    C: list[Tensor]
    D: list[Tensor]
    delta_bias: list[Tensor]
    initial_state: list[Tensor]
    z: Tensor | None
    orders: list[Tensor]
    order_of: list[int]
    reverse: list[bool]
    softplus: bool

    @classmethod
    def of(cls, directions: Sequence[Direction], z: Tensor | None, softplus: bool) -> Lists:
        """Those of some directions and what they share."""
        columns: Any = [list(column) for column in zip(*directions, strict=True)]
        *operands, orders, reverse = columns
        operands = [[] if x[0] is None else x for x in operands]
        if all(u is operands[0][0] for u in operands[0]):
            del operands[0][1:]
        present = [x for x in orders if x is not None]
        places = iter(range(len(present)))
        order_of = [-1 if x is None else next(places) for x in orders]
        arguments: Any = (*operands, z, present, order_of, reverse, softplus)
        return cls(*arguments)

    @property
    def operands(self) -> Sequence[list[Tensor]]:
        """The lists that `LISTED` names."""
        first: Any = self[: len(LISTED)]
        return first

    def directions(self) -> list[Direction]:
        """Each of them again."""
        result = []
        for i, order in enumerate(self.order_of):
            own: list[Any] = [x[i if len(x) > 1 else 0] if x else None for x in self.operands]
            own += [self.orders[order] if order >= 0 else None, self.reverse[i]]
            result.append(Direction(*own))
        return result

    def require_grad(self) -> bool:
        """Whether any operand wants a gradient."""
        operands = [x for one in self.operands for x in one]
        return any(x is not None and x.requires_grad for x in (*operands, self.z))


def save(ctx: Any, p: Lists, kept: Tensor) -> None:
    """Keep arguments, and states that need no gradient, for a backward pass."""
    lists: tuple[list[Any], ...] = (*p.operands, [p.z], p.orders, [kept])
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)  # zeros of the size of the states that are kept
    ctx.save_for_backward(*(x for one in lists for x in one))
    ctx.counts, ctx.options = [len(one) for one in lists], p[-3:]


def saved(ctx: Any) -> tuple[Lists, Tensor]:
    """What `save` has kept."""
    tensors = iter(ctx.saved_tensors)
    lists: Any = [[next(tensors) for _ in range(count)] for count in ctx.counts]
    *operands, (z,), orders, (kept,) = lists
    arguments: Any = (*operands, z, orders, *ctx.options)
    return Lists(*arguments), kept


def refused(
    refuses: Callable[..., str | None], directions: Sequence[Direction], *rest: Any
) -> str | None:
    """What of several directions a backend cannot take that takes directions of one size.

    Args:
        refuses: The same of a single scan.
        directions: At least one.
        rest: What they share.
    """
    if len({(x.A.shape[1], x.B.shape[1]) for x in directions}) > 1:
        return "directions that differ in their numbers of states or groups"
    refusals = (refuses(*x, *rest) for x in directions)
    return next((refusal for refusal in refusals if refusal is not None), None)
