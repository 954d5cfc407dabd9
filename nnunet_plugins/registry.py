"""Our trainers and planners by name, options in the name included.

nnU-Net names variants of a trainer by suffix (`nnUNetTrainer_5epochs`), and so do we, for any
value: `HyMambaTrainer_small_20epochs_hilbert_seed1`. The name is all that nnU-Net stores of a
trainer, so everything that changes the result stands in the name of the results folder, and
prediction, `--c`, `--val` and spawned workers build the same network again.
"""

import difflib
import inspect
import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

FOLDERS = ("trainers", "planners")

OPTIONS = {
    r"([1-9]\d*)epochs": ("hyperparameters.num_epochs", "Nepochs"),
    r"([1-9]\d*)iterations": ("hyperparameters.num_iterations_per_epoch", "Niterations"),
    r"seed(\d+)": ("hyperparameters.seed", "seedN"),
    r"lr([1-9]\d*e-[1-9]\d*)": ("hyperparameters.initial_lr", "lr1e-3"),
    r"(raster|zigzag|hilbert|shuffle)": ("network_options.scan_order", "zigzag, hilbert, shuffle"),
    r"unidirectional()": ("network_options.bidirectional", "unidirectional"),
}
"""What may follow a trainer's name, after an underscore each: what it sets, and how it is said."""


def names() -> list[str]:
    """Names of our trainers and planners, without options."""
    here = Path(__file__).parent
    return sorted(
        path.stem
        for folder in FOLDERS
        for path in (here / folder).glob("*.py")
        if path.stem != "__init__"
    )


@cache
def find_class(name: str) -> type | None:
    """The trainer or planner called `name`, or None if the name is none of ours.

    Raises:
        ValueError: If the name starts or looks like one of ours and is not: an unknown option, an
            option given twice, a slip of the pen.
    """
    bases = [base for base in names() if name == base or name.startswith(base + "_")]
    if not bases:
        close = difflib.get_close_matches(name, names(), n=1, cutoff=0.85)
        if close:
            raise ValueError(f"there is no {name!r}; did you mean {close[0]!r}?")
        return None
    base = max(bases, key=len)
    suffixes = name[len(base) + 1 :].split("_") if name != base else []
    cls = _load(base)
    return _with_options(cls, name, suffixes) if suffixes else cls


def _load(name: str) -> type:
    here = Path(__file__).parent
    folder = next(f for f in FOLDERS if (here / f / f"{name}.py").exists())
    return getattr(import_module(f"nnunet_plugins.{folder}.{name}"), name)


def _with_options(base: type, name: str, suffixes: list[str]) -> type:
    """A subclass of a trainer called `name`, with the options that its suffixes stand for."""
    chosen: dict[str, dict[str, object]] = {}
    for suffix in suffixes:
        target, value = _parse(base, suffix)
        group, key = target.split(".")
        if key in chosen.setdefault(group, {}):
            raise ValueError(f"{name!r} sets {key} twice; keep one")
        chosen[group][key] = value
    attributes = {group: getattr(base, group) | values for group, values in chosen.items()}
    origin = {"__module__": "nnunet_plugins.trainers", "__doc__": base.__doc__}
    return type(name, (base,), attributes | origin)


def _parse(base: type, suffix: str) -> tuple[str, object]:
    """What a suffix sets, as group.key, and to which value."""
    for pattern, (target, _) in OPTIONS.items():
        match = re.fullmatch(pattern, suffix)
        if match and _takes(base, target):
            return target, _value(match[1])
    sizes: Sequence[str] = getattr(base, "sizes", ())
    if suffix in sizes:
        return "network_options.size", suffix
    forms = "; ".join(
        [form for target, form in OPTIONS.values() if _takes(base, target)] + [*sizes]
    )
    raise ValueError(
        f"{base.__name__} has no option '_{suffix}'; after an underscore each, it takes: {forms}"
        if forms
        else f"{base.__name__} has no options, and '_{suffix}' follows its name"
    )


def _takes(base: type, target: str) -> bool:
    """Whether a trainer has a hyperparameter, or its network an argument, that is called so."""
    group, key = target.split(".")
    if not hasattr(base, group):
        return False
    network = getattr(base, "network_class", None)
    return group != "network_options" or key in inspect.signature(network).parameters


def _value(text: str) -> object:
    """A number, a word, or False for an option that switches something off."""
    if re.fullmatch(r"\d+e-\d+", text):
        return float(text)
    return int(text) if text.isdigit() else text or False
