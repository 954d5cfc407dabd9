"""Which labelled studies train a candidate, and which only score it: never those of one patient."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_plugins.label.shelf import write_text

SHARE = 5
"""One study of so many is held out."""


@dataclass(frozen=True)
class Parts:
    """Labelled studies by what they are for, sorted by name."""

    train: list[str]
    held_out: list[str]
    set_aside: list[str]
    """Held out before it was known that their patient had been trained on; for neither."""
    unknown: list[str]
    """Those of `train` and `held_out` of which no patient is known."""

    @property
    def sentence(self) -> str:
        """What is known of patients on both sides, for the report."""
        count = len(self.train) + len(self.held_out)
        told = (
            f"of {len(self.unknown)} of {count} studies no patient is known and each counts as a "
            "patient of its own: two of one may be on both sides, which flatters both figures"
            if self.unknown
            else f"the patients of all {count} studies are known and none is on both sides"
        )
        if not self.set_aside:
            return told
        names = ", ".join(self.set_aside)
        return f"{told}; not scored, since their patients were trained on: {names}"


def split_studies(patients: Mapping[str, str | None], memory: Path) -> Parts:
    """Studies to train on, and studies held out.

    A study that was held out stays so for ever, and one that was trained on is never held out
    later; `memory` is the file that remembers. A new study goes where its patient is; new patients
    are drawn by a hash, which is all that is remembered of them.

    Args:
        patients: All studies with a final label, and whose they are; a study with None counts as a
            patient of its own.
        memory: JSON file of this model; made here.

    Raises:
        ValueError: If there are not both.
    """
    known: dict[str, Any] = {"held_out": [], "trained": [], "patients": {}}
    if memory.is_file():
        known |= json.loads(memory.read_text(encoding="utf-8"))
    known["patients"] |= {name: _key(who) for name, who in patients.items() if who is not None}
    _place_new(known, patients)
    trained = {_patient(known, name) for name in known["trained"]}
    held = [name for name in known["held_out"] if name in patients]
    parts = Parts(
        train=sorted(name for name in known["trained"] if name in patients),
        held_out=sorted(name for name in held if _patient(known, name) not in trained),
        set_aside=sorted(name for name in held if _patient(known, name) in trained),
        unknown=sorted(name for name in patients if name not in known["patients"]),
    )
    if not parts.train or not parts.held_out:
        raise ValueError(
            f"there are {len(patients)} studies with a final label, {len(parts.train)} to train on "
            f"and {len(parts.held_out)} to score by; label two new ones at least, of different "
            "patients, or say in patients.csv whose they are"
        )
    write_text(memory, json.dumps(known, indent=2))
    return parts


def _place_new(known: dict[str, Any], labelled: Mapping[str, str | None]) -> None:
    """Add to `held_out` and `trained` the studies that are in neither."""
    trained = {_patient(known, name) for name in known["trained"]}
    held_out = {_patient(known, name) for name in known["held_out"]} - trained
    fresh: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(set(labelled) - {*known["held_out"], *known["trained"]}):
        who = _patient(known, name)
        if who in trained:
            known["trained"].append(name)
        elif who in held_out:
            known["held_out"].append(name)
        else:
            fresh[who].append(name)
    held = sum(n in labelled and _patient(known, n) in held_out for n in known["held_out"])
    drawn = _drawn(fresh, -(-len(labelled) // SHARE) - held, must=not held)
    known["held_out"] += drawn
    known["trained"] += [name for names in fresh.values() for name in names if name not in drawn]


def _drawn(fresh: Mapping[str, list[str]], wanted: int, must: bool) -> list[str]:
    """Studies of new patients, as many as wanted or fewer; those of the smallest if there must be.

    The keys of patients are hashes, and their order is the draw.
    """
    found: list[str] = []
    for who in sorted(fresh):
        if len(found) + len(fresh[who]) <= wanted:
            found += fresh[who]
    if must and fresh and not found:
        return fresh[min(fresh, key=lambda who: (len(fresh[who]), who))]
    return found


def _patient(known: Mapping[str, Any], name: str) -> str:
    return known["patients"].get(name) or _key(name)


def _key(patient: str) -> str:
    return hashlib.sha256(patient.encode()).hexdigest()
