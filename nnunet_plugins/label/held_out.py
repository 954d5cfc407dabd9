"""Which labelled studies train a candidate, and which only score it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nnunet_plugins.label.shelf import write_text

SHARE = 5
"""One study of so many is held out."""


def split_studies(labelled: Sequence[str], memory: Path) -> tuple[list[str], list[str]]:
    """Studies to train on, and studies held out.

    A study that was held out stays so for ever, and one that was trained on is never held out
    later; `memory` is the file that remembers. New studies are drawn by a hash of their names.

    Args:
        labelled: Names of all studies with a final label.
        memory: JSON file of this model; made here.

    Raises:
        ValueError: If there are not both.
    """
    known: dict[str, list[str]] = {"held_out": [], "trained": []}
    if memory.is_file():
        known = json.loads(memory.read_text(encoding="utf-8"))
    new = sorted(set(labelled) - {*known["held_out"], *known["trained"]}, key=_draw)
    held = [name for name in known["held_out"] if name in labelled]
    wanted = max(0, -(-len(labelled) // SHARE) - len(held))
    known["held_out"] += new[:wanted]
    known["trained"] += new[wanted:]
    train, held = (
        sorted(name for name in known[part] if name in labelled) for part in ("trained", "held_out")
    )
    if not train or not held:
        raise ValueError(
            f"there are {len(labelled)} studies with a final label, {len(train)} to train on and "
            f"{len(held)} to score by; label two new ones at least"
        )
    write_text(memory, json.dumps(known, indent=2))
    return train, held


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
