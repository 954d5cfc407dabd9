"""Tables of released names and ours, and sizes read off released tensors."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Names = Sequence[tuple[str, str]]
"""Patterns of released names and ours; `{0-2}` is the first number less two. First match wins."""


def renamed(name: str, names: Names) -> str | None:
    """The name that a released tensor has in our network, None if nothing stands for it."""
    for pattern, template in names:
        match = re.match(pattern, name)
        if match:
            return _filled(template, match.groups()) + name[match.end() :]
    return None


def all_renamed(
    released: Mapping[str, Tensor], names: Names, unread: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Our names to the released tensors, and the released names that nothing stands for.

    Args:
        released: Released names to tensors.
        names: Table of names.
        unread: Patterns of released names that have no place and need none.
    """
    weights, unknown = {}, []
    for name, tensor in released.items():
        if any(re.fullmatch(pattern, name) for pattern in unread):
            continue
        ours = renamed(name, names)
        if ours is None:
            unknown.append(name)
        else:
            weights[ours] = tensor
    return weights, unknown


def sizes(released: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Shape of a released tensor.

    Raises:
        ValueError: If it is not there.
    """
    if name not in released:
        raise ValueError(f"the released checkpoint lacks {name}, from which a size is read")
    return tuple(released[name].shape)


def count(released: Mapping[str, Tensor], pattern: str) -> int:
    """How many released names the pattern matches as a whole."""
    return sum(re.fullmatch(pattern, name) is not None for name in released)


def _filled(template: str, numbers: Sequence[str]) -> str:
    """The template with `{i}` and `{i-k}` replaced by number i, less k."""

    def number(slot: re.Match[str]) -> str:
        return str(int(numbers[int(slot[1])]) - int(slot[2] or 0))

    return re.sub(r"\{(\d)(?:-(\d))?\}", number, template)
