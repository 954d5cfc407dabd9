"""What requests may choose, beside names: everything else that they send is left out."""

import json
from collections.abc import Mapping
from typing import Any

MOST_EPOCHS = 1000
HIGHEST_RATE = 1.0


def read_params(text: str) -> dict[str, Any]:
    """The form field `params`, a JSON object.

    Raises:
        ValueError: If it is none.
    """
    try:
        params = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError("params is no JSON; send an object such as {}") from error
    if not isinstance(params, dict):
        raise ValueError("params is JSON and no object; send one such as {}")
    return params


def training_options(params: Mapping[str, Any]) -> dict[str, Any]:
    """`max_epochs` and `learning_rate` of a training round, where they are given.

    Raises:
        ValueError: If they cannot be.
    """
    options: dict[str, Any] = {}
    epochs, rate = params.get("max_epochs"), params.get("learning_rate")
    if epochs is not None:
        if not isinstance(epochs, int) or isinstance(epochs, bool) or not 0 < epochs <= MOST_EPOCHS:
            raise ValueError(f"max_epochs is a whole number from 1 to {MOST_EPOCHS}")
        options["max_epochs"] = epochs
    if rate is not None:
        options["learning_rate"] = learning_rate(rate, HIGHEST_RATE)
    return options


def learning_rate(value: Any, highest: float) -> float:
    """A learning rate.

    Raises:
        ValueError: If it is no number, or one of another size.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= highest:  # NaN and whole numbers of any length too
        raise ValueError(f"learning_rate is a number above 0, {highest} at most")
    return float(value)


def flag(params: Mapping[str, Any], key: str) -> bool:
    """Whether an option is true, spelt as JSON or as the clients of MONAI Label spell it.

    Raises:
        ValueError: If it is neither true nor false.
    """
    value = params.get(key, False)
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError(f"{key} is true or false")
    return value
