"""Whose a study is, as far as files tell: of one patient, nothing may be on both sides of a split.

The rules are those of datasets of videos: a table's `patient` goes before all else, then what the
file itself tells, then a pattern in the name.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_plugins.bundle.video_table import read_rows
from nnunet_plugins.data.sources import find_group
from nnunet_plugins.label.dicom_series import patient_of_series
from nnunet_plugins.label.names import VIDEOS, VOLUMES

TABLES = ("patients.csv", "patients.json")
"""Tables in the folder of studies with the columns `name`, of a study, and `patient`.

Spaces around values and the ending of a study's file do not count. A number of JSON is its digits;
capitals differ from small letters.
"""


@dataclass(frozen=True)
class Patients:
    """Patients of studies."""

    studies: Path
    """The folder of studies."""
    group_by: str | None = None
    """Regular expression that finds the patient in a study's name, as in `find_videos`."""

    def of(self, names: Iterable[str]) -> dict[str, str | None]:
        """Patient of each study: of a table, of its DICOM series, or in its name; None if unknown.

        Raises:
            ValueError: If a table cannot be read or gives a study two patients, or `group_by` is
                no regular expression.
        """
        listed = self._listed()
        return {
            name: _told(listed, name) or patient_of_series(self.studies, name) or self._named(name)
            for name in names
        }

    def strangers(self, studies: Iterable[str]) -> list[str]:
        """Names in the tables that are none of these studies: removed ones, or misspelt.

        Raises:
            ValueError: If a table cannot be read.
        """
        known = {spelling for name in studies for spelling in _spellings(name)}
        return sorted(self._listed().keys() - known)

    def _listed(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for table in (self.studies / name for name in TABLES):
            for number, row in enumerate(_rows(table), start=1):
                name, patient = _text(row.get("name")), _text(row.get("patient"))
                if name is None or patient is None or patient.lower() == "nan":
                    raise ValueError(
                        f"row {number} of {table.name} does not tell a patient; give the columns "
                        "name, of a study, and patient, both as printable text"
                    )
                if found.setdefault(name, patient) != patient:
                    raise ValueError(f"{name} is of two patients in {table.name}; keep one row")
        return found

    def _named(self, name: str) -> str | None:
        return None if self.group_by is None else find_group(name, self.group_by)


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        return read_rows(table) if table.is_file() else []
    except RecursionError as error:
        raise ValueError(f"{table.name} is nested too deep; give a list of objects") from error


def _text(value: object) -> str | None:
    """A value without spaces around, written in one way; None if it is no printable text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = unicodedata.normalize("NFC", str(value).strip())
    return text if text and text.isprintable() else None


def _spellings(name: str) -> list[str]:
    """How a table may call a study."""
    plain = unicodedata.normalize("NFC", name)
    return [plain, *(plain + ending for ending in VOLUMES + VIDEOS)]


def _told(listed: dict[str, str], name: str) -> str | None:
    """Patient of a study in a table.

    Raises:
        ValueError: If there are two.
    """
    told = {listed[spelling] for spelling in _spellings(name) if spelling in listed}
    if len(told) > 1:
        raise ValueError(f"{name} is of two patients in {' and '.join(TABLES)}; keep one row")
    return told.pop() if told else None
