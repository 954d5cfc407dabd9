"""Strings that MONAI would evaluate if they reached a configuration."""

import json
from typing import Any

EVALUATED = ("$", "@", "%")
"""Beginnings of MONAI's expressions, references and macros."""
COMPONENT_KEYS = ("_target_", "_requires_", "_disabled_", "_mode_", "_desc_")
"""Keys by which MONAI makes an object of a dictionary."""


def find_expression(value: Any) -> str | None:
    """What MONAI would evaluate, anywhere in a value that was read from JSON; None if nothing.

    Dictionaries, lists, keys, and strings that hold JSON themselves are looked into, to any depth.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str):
            text = item.lstrip()
            if text.startswith(EVALUATED) or text in COMPONENT_KEYS:
                return item
            if text.startswith(("{", "[", '"')):
                waiting.append(_json(text))
    return None


def _json(text: str) -> Any:
    """What a string holds that looks like JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
