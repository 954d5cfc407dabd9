"""Addresses of DICOM: the folders of series among the studies, and labels as DICOM SEG."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask

from nnunet_plugins.label.dicom_seg import write_seg
from nnunet_plugins.label.dicom_series import read_series
from nnunet_plugins.label.server.app import LabelApp
from nnunet_plugins.label.server.datastore import FINAL
from nnunet_plugins.label.server.tasks import PREDICTED, remove_result

router = APIRouter()


def add_dicom(application: FastAPI, dependencies: Sequence[Any]) -> None:
    """Serve these addresses behind the same checks as all others."""
    application.include_router(router, dependencies=list(dependencies))


@router.get("/dicom/series")
def list_series() -> dict[str, str]:
    """Folders of DICOM files, and for each "study" or why it is none."""
    app: LabelApp = app_instance()
    return app.series


@router.get("/dicom/label")
def get_dicom_label(image: str, tag: str = FINAL, model: str = "") -> FileResponse:
    """A label of a study that came as a DICOM series, as DICOM SEG."""
    app: LabelApp = app_instance()
    studies = app.datastore()
    studies.get_image_uri(image)
    label = Path(studies.get_label_uri(image, tag))
    about = studies.get_label_info(image, tag)
    model = about.get("model") or model
    names = about.get("label_names") or _names_of(app, model)
    folder = Path(tempfile.mkdtemp(dir=app.temporary, prefix="dicom_"))
    try:
        series = read_series(Path(app.studies).resolve(), image)
        maker = f"mambamed {model}".strip()
        file = write_seg(
            folder / f"{image}_{tag}.dcm", series, label, names, maker, tag != PREDICTED
        )
    except (ValueError, OSError):
        folder.rmdir()
        raise
    return FileResponse(
        file, media_type="application/dicom", filename=file.name,
        background=BackgroundTask(remove_result, str(file)),
    )  # fmt: skip


def _names_of(app: LabelApp, model: str) -> dict[str, int]:
    """Classes of a model; those of the only one if none is named."""
    if model:
        app.shelf(model)
        return app.bundles[model].labels
    return next(iter(app.bundles.values())).labels if len(app.bundles) == 1 else {}
