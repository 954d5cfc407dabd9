"""Whose a study is, as far as files tell: of one patient, nothing may be on both sides of a split.

The rules are those of datasets of videos: a table's `patient` goes before all else, then what the
file itself tells, then a pattern in the name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_plugins.bundle.video_table import read_rows
from nnunet_plugins.data.sources import find_group
from nnunet_plugins.label.dicom_series import patient_of_series

TABLES = ("patients.csv", "patients.json")
"""Tables in the folder of studies with the columns `name`, of a study, and `patient`."""


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
            ValueError: If a table cannot be read, or `group_by` is no regular expression.
        """
        listed = self._listed()
        return {
            name: listed.get(name) or patient_of_series(self.studies, name) or self._named(name)
            for name in names
        }

    def _listed(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for table in (self.studies / name for name in TABLES):
            for row in read_rows(table) if table.is_file() else ():
                name, patient = (str(row.get(column) or "") for column in ("name", "patient"))
                if not name or not patient:
                    raise ValueError(
                        f"{table.name} has the row {row}; give the columns name, of a study, and "
                        "patient"
                    )
                if found.setdefault(name, patient) != patient:
                    raise ValueError(f"{name} is of two patients in {table.name}; keep one row")
        return found

    def _named(self, name: str) -> str | None:
        return None if self.group_by is None else find_group(name, self.group_by)
