"""What the page looks at: studies, pictures of their planes and labels, and a word on a prediction.

Browsers get PNG pictures and a little JSON; volumes and videos are read here.
"""

import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import SimpleITK as sitk
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from numpy.typing import NDArray
from PIL import Image
from starlette.background import BackgroundTask

from nnunet_plugins.label.colours import LISTED, drawn, hexadecimal
from nnunet_plugins.label.names import VOLUMES, ending_of, is_video
from nnunet_plugins.label.opened import Opened, stamp
from nnunet_plugins.label.planes import (
    Volume,
    grey,
    read_labels,
    read_video_labels,
    read_volume,
    statistics,
    window,
)
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.server import page
from nnunet_plugins.label.server.app import LabelApp
from nnunet_plugins.label.server.datastore import FINAL, Studies
from nnunet_plugins.label.server.tasks import PREDICTED
from nnunet_plugins.label.uploads import received

PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Planes and their axes of (z, y, x): along which they follow, their rows, their columns."""
WORK = ("train", "batch_infer", "scoring")
"""MONAI Label's kinds of work in processes of their own."""
Name = Annotated[str, Query(max_length=512)]


class Views:
    """The studies of the running server, and those that are open to be looked at."""

    def __init__(self) -> None:
        self._opened = Opened()

    @property
    def app(self) -> LabelApp:
        """The app that MONAI Label holds."""
        return app_instance()

    @property
    def studies(self) -> Studies:
        """Its studies."""
        return self.app.datastore()

    def file(self, study: str) -> Path:
        """A study's file, inside the folder of studies."""
        return _existing(Path(self.studies.get_image_uri(study)))

    def label_file(self, study: str, tag: str) -> Path:
        """A label's file, inside the folder of studies."""
        return _existing(Path(self.studies.get_label_uri(study, tag)))

    def image(self, study: str) -> Volume | SeekableVideo:
        """A study, open.

        Raises:
            ValueError: If it cannot be read.
        """
        file = self.file(study)
        return self._opened.get(file, SeekableVideo if is_video(file) else read_volume)

    def labels(self, study: str, tag: str) -> Volume:
        """A label, open.

        Raises:
            ValueError: If it cannot be read or is on another grid than its study.
        """
        image, file = self.image(study), self.label_file(study, tag)
        of_video = isinstance(image, SeekableVideo)
        found = self._opened.get(file, read_video_labels if of_video else read_labels)
        wanted = (len(image), image.height, image.width) if of_video else image.voxels.shape
        given = found.voxels.shape
        if given[of_video:] != wanted[of_video:]:  # a video's last frames may be unlabelled
            raise ValueError(f"the label has {_by(given)} voxels and its study {_by(wanted)}")
        return found


def views_of(request: Request) -> Views:
    """The views of the application that a request reached."""
    return request.app.state.views


Shown = Annotated[Views, Depends(views_of)]
router = APIRouter(prefix="/view")


def add_views(application: FastAPI, dependencies: Sequence[Any]) -> None:
    """Serve the page and what it looks at.

    Args:
        application: Of the other addresses.
        dependencies: FastAPI's, of every request but those for the page's own files.
    """
    application.state.views = Views()
    application.include_router(router, dependencies=dependencies)
    application.include_router(page.router)


@router.get("/studies")
def list_studies(views: Shown) -> list[dict[str, Any]]:
    """Name, kind, bytes, and labels of every study that is there."""
    studies, found = views.studies, []
    for name, entry in sorted(studies.json()["objects"].items()):
        try:
            file = _existing(studies.place(name))
        except (ValueError, OSError, MONAILabelException):
            continue
        figures = entry["image"]["info"].get("uncertainty", {})
        found.append(
            {
                "name": name,
                "kind": "video" if is_video(file) else "volume",
                "bytes": file.stat().st_size,
                "labels": {tag: _told(label["info"]) for tag, label in entry["labels"].items()},
                "uncertainty": {model: figure["value"] for model, figure in figures.items()},
            }
        )
    return found


@router.get("/jobs")
def jobs() -> dict[str, Any]:
    """The last work of each kind in the background; None where there was none."""
    found = {method: AsyncTask.status(method)[0] for method in WORK}
    return {
        method: job and {**job, "details": list(job.get("details", ()))}
        for method, job in found.items()
    }


@router.get("/colours")
def colours() -> list[str]:
    """Colours of the values 1, 2, 3 and so on."""
    return [hexadecimal(value) for value in range(1, LISTED + 1)]


@router.get("/study")
def study(views: Shown, image: Name) -> dict[str, Any]:
    """Kind, planes with their sizes, and window of a study; where its voxels are, see `Places`."""
    opened = views.image(image)
    if isinstance(opened, SeekableVideo):
        size = {"rows": opened.height, "columns": opened.width, "pixel": [1.0, 1.0]}
        window_ = {"low": 0.0, "high": 255.0, "least": 0.0, "most": 255.0}
        planes = {"frame": {"count": len(opened), **size}}
        about = {"kind": "video", "fps": opened.fps, "dicom": False}
        return {**about, "planes": planes, "window": window_}
    shape, spacing = opened.voxels.shape, opened.spacing
    planes = {
        name: {
            "count": shape[along], "rows": shape[row], "columns": shape[column],
            "pixel": [spacing[row], spacing[column]],
        }
        for name, (along, row, column) in PLANES.items()
    }  # fmt: skip
    return {
        "kind": "volume",
        "shape": shape,
        "spacing": spacing,
        "in_file": opened.places.in_file.tolist(),
        "in_patient": opened.places.in_patient.tolist(),
        "dicom": views.app.series.get(image) == "study",
        "planes": planes,
        "window": window(opened.voxels),
    }


@router.get("/label")
def label(views: Shown, image: Name, tag: Name) -> dict[str, Any]:
    """What is in a label: voxels and place of each value; and its version, to speak of later."""
    version = stamp(views.label_file(image, tag))
    found = views.labels(image, tag)
    told = views.studies.get_label_info(image, tag)
    names = {value: name for name, value in told.get("label_names", {}).items()}
    facts = statistics(found)
    for entry in facts["counts"]:
        value = entry["value"]
        entry |= {"name": names.get(value), "colour": hexadecimal(value)}
    cubic = float(np.prod(found.spacing)) / 1000
    return {"version": version, "millilitres": cubic, **facts, **_told(told)}


@router.get("/image.png")
def image_picture(
    views: Shown, image: Name, index: int, plane: Name = "axial", low: float = 0, high: float = 255
) -> Response:
    """A plane of a volume in grey, or a frame of a video; values from `low` to `high` are shown."""
    opened = views.image(image)
    if not isinstance(opened, SeekableVideo):
        return _png(grey(opened.plane(plane, index), low, high))
    frame = opened.frame(index)
    return _png(frame if (low, high) == (0, 255) else grey(frame, low, high))


@router.get("/label.png")
def label_picture(
    views: Shown,
    image: Name,
    tag: Name,
    index: int,
    plane: Name = "axial",
    hidden: Annotated[list[int] | None, Query()] = None,
) -> Response:
    """The same plane of a label in colours, clear where there is none."""
    labels, opened = views.labels(image, tag), views.image(image)
    if isinstance(opened, SeekableVideo) and len(labels.voxels) <= index < len(opened):
        return _png(np.zeros((opened.height, opened.width, 4), np.uint8))
    return _png(drawn(labels.plane(plane, index), frozenset(hidden or ())))


@router.get("/value")
def value(
    views: Shown,
    image: Name,
    index: int,
    row: int,
    column: int,
    plane: Name = "axial",
    tag: Name = "",
) -> dict[str, Any]:
    """The `value` of a voxel, or red, green and blue of a pixel, and its `label` in that of a tag.

    None stands for what is no number, and where there is no label.
    """
    opened = views.image(image)
    video = isinstance(opened, SeekableVideo)
    found = _at(opened.frame(index) if video else opened.plane(plane, index), row, column)
    told: dict[str, Any] = {"value": found, "label": None}
    if tag:
        labels = views.labels(image, tag)
        if not video or index < len(labels.voxels):
            told["label"] = _at(labels.plane(plane, index), row, column)
    return told


@router.get("/label.nii.gz")
def label_file(views: Shown, image: Name, tag: Name) -> FileResponse:
    """A label as NIfTI, whatever it is kept as."""
    file, name = views.label_file(image, tag), f"{image}_{tag}.nii.gz"
    if file.name.lower().endswith(".nii.gz"):
        return FileResponse(file, filename=name, media_type="application/gzip")
    copy = views.app.temporary / f"{uuid.uuid4().hex}.nii.gz"
    try:
        sitk.WriteImage(sitk.ReadImage(str(file)), str(copy), useCompression=True)
    except RuntimeError as error:
        copy.unlink(missing_ok=True)
        raise ValueError(f"{file.name} cannot be read as labels; is it damaged?") from error
    after = BackgroundTask(copy.unlink, missing_ok=True)
    return FileResponse(copy, filename=name, media_type="application/gzip", background=after)


@router.post("/accept")
def accept(views: Shown, image: Name, version: Name, replace: bool = False) -> dict[str, str]:
    """Make a study's prediction its final label.

    Args:
        image: The study.
        version: Of the prediction that was looked at.
        replace: Whether an older final label may go.
    """
    studies, file = views.studies, views.label_file(image, PREDICTED)
    if not replace and FINAL in studies.get_labels_by_image_id(image):
        raise HTTPException(409, f"{image} has a final label already; say that it is to go")
    told = _told(studies.get_label_info(image, PREDICTED))
    ending = ending_of(file.name, VOLUMES)
    with file.open("rb") as stream, received(stream, views.app.temporary, ending) as copy:
        _check_version(file, version)
        studies.save_label(image, str(copy), FINAL, {**told, "accepted": True})
    return {"image": image, "tag": FINAL}


@router.post("/reject")
def reject(views: Shown, image: Name, version: Name) -> dict[str, str]:
    """Discard a study's prediction, of the version that was looked at."""
    _check_version(views.label_file(image, PREDICTED), version)
    views.studies.remove_label(image, PREDICTED)
    views.studies.refresh()
    return {"image": image}


def _check_version(file: Path, version: str) -> None:
    if stamp(file) != version:
        raise HTTPException(409, "there is a newer prediction than the one you saw; look at it")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError("the file of this study has gone; POST /reload")
    return file


def _told(info: dict[str, Any]) -> dict[str, Any]:
    """What a label's own facts say of how it was made."""
    told = {
        key: info[key] for key in ("model", "weights", "uncertainty", "label_names") if key in info
    }
    return told | ({"accepted": True} if info.get("accepted") else {})


def _at(pixels: NDArray[Any], row: int, column: int) -> int | float | list[int] | None:
    """A pixel's value or values; None if it is no number."""
    rows, columns = pixels.shape[:2]
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"there is no pixel in row {row}, column {column}; there are {rows} x {columns}"
        )
    found = pixels[row, column].tolist()
    if not isinstance(found, float):
        return found
    return float(f"{found:.7g}") if np.isfinite(found) else None


def _png(pixels: NDArray[np.uint8]) -> Response:
    picture = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(picture, "png", compress_level=1)
    return Response(picture.getvalue(), media_type="image/png")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
