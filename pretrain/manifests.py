"""Lists of data in JSON, CSV or text files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

MANIFESTS = (".json", ".csv", ".txt")


def read_entries(manifest: Path, what: str) -> list[dict[str, Any]]:
    """The entries of a manifest, each with at least a "path".

    A manifest is a JSON list of paths or of objects, or an object with such a list under the
    name of `what` it lists; a CSV with a header; or a text file with one path a line.

    Raises:
        ValueError: If it cannot be read so.
    """
    text = manifest.read_text(encoding="utf-8-sig")
    entries: Any
    if manifest.suffix == ".txt":
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    elif manifest.suffix == ".csv":
        entries = list(csv.DictReader(text.splitlines()))
    else:
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest} is no JSON: {error}") from error
        entries = entries.get(what) if isinstance(entries, dict) else entries
    if not isinstance(entries, list):
        raise ValueError(f'{manifest} holds no list of {what}; give [...] or {{"{what}": [...]}}')
    entries = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
    if not all(isinstance(entry, dict) and entry.get("path") for entry in entries):
        raise ValueError(f"{manifest} has an entry without a path; name the column or key `path`")
    return entries


def positive(entry: dict[str, Any], name: str, manifest: Path) -> float | None:
    """A positive number of an entry; None if the entry leaves it out.

    Raises:
        ValueError: If it is anything else.
    """
    if entry.get(name) in (None, ""):
        return None
    try:
        number = float(entry[name])
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(
            f"{manifest} gives {entry['path']} the {name} {entry[name]!r}; give a positive number"
        )
    return number
