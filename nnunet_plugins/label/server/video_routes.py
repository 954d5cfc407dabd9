"""Addresses of videos: a piece is segmented as a job, labels go out and come in."""

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, File, Form, Query, Request
from fastapi import UploadFile as Upload
from fastapi.responses import FileResponse
from monailabel.interfaces.utils.app import app_instance
from starlette.background import BackgroundTask

from nnunet_plugins.label.disk import is_full
from nnunet_plugins.label.names import VOLUMES, check_name, confined, ending_of, is_video
from nnunet_plugins.label.opened import Opened
from nnunet_plugins.label.options import read_params
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.server.app import LabelApp
from nnunet_plugins.label.server.datastore import FINAL
from nnunet_plugins.label.server.tasks import PREDICTED, BundleInfer
from nnunet_plugins.label.uploads import received
from nnunet_plugins.label.video.annotate import Annotation, annotate, goes_on_at, scheme_of
from nnunet_plugins.label.video.choices import Choices, read_choices
from nnunet_plugins.label.video.cvat import all_frames, read_cvat
from nnunet_plugins.label.video.drafts import Draft, ranges
from nnunet_plugins.label.video.exports import FORMATS, Known
from nnunet_plugins.label.video.jobs import Job, Jobs
from nnunet_plugins.label.video.label_files import LabelFrames, check_size, write_volume
from nnunet_plugins.label.video.pieces import Piece
from nnunet_plugins.label.video.prompts import (
    UNLABELLED,
    Prompt,
    prompt_of_picture,
    prompt_of_volume,
)

Name = Annotated[str, Query(max_length=512)]
Format = Enum("Format", {name: name for name in FORMATS}, type=str)
NIFTI = Format("nifti")


@dataclass(frozen=True)
class Clip:
    """A study that is a video, and the model that it is about."""

    name: str
    video: SeekableVideo
    task: BundleInfer
    draft: Draft
    weights: Path

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns."""
        return len(self.video), self.video.height, self.video.width


class Desk:
    """Videos of the running server, and the jobs about them."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self._opened = Opened()

    @property
    def app(self) -> LabelApp:
        """The app that MONAI Label holds."""
        return app_instance()

    def video(self, image: str) -> SeekableVideo:
        """A study, open.

        Raises:
            ValueError: If it is no video or cannot be read.
        """
        file = Path(self.app.datastore().get_image_uri(image))
        if not is_video(file):
            raise ValueError(f"{image[:80]} is a volume; this address is for videos")
        if not file.is_file():
            raise FileNotFoundError("the file of this study has gone; POST /reload")
        return self._opened.get(file, SeekableVideo)

    def clip(self, model: str, image: str) -> Clip:
        """A study with what a model has made of it.

        Raises:
            ValueError: If the model is not for videos or has no weights.
        """
        weights = self.app.shelf(model).served
        task, video = self.app._infers[model], self.video(image)
        task.bundle.check(video.path)
        if weights is None:
            raise ValueError(f"{model} has no weights yet; train and promote some")
        folder = confined(self.app.work / "video", model, image)
        wanted = Annotation(task.bundle, weights, video, Piece(0, 1, len(video)))
        return Clip(image, video, task, Draft(folder, wanted.key), weights)

    def work(self, clip: Clip, wanted: Annotation, save_label: bool, job: Job) -> None:
        """Segment, and keep what was made as the study's predicted label, however it ends.

        Raises:
            OSError: If the disk is full; then it says what is kept.
        """
        try:
            try:
                unsure = annotate(wanted, clip.draft, clip.task.turns, job.advance)
                job.result = {"uncertainty": round(unsure, 6)}
            finally:
                if save_label and clip.draft.done():
                    self._keep(clip, wanted, job)
        except Exception as error:
            if not is_full(error):
                raise
            done = len(clip.draft.done())
            raise OSError(
                f"the disk of the studies is full; {done} finished frames of this model are kept, "
                f"but the label {PREDICTED} may lack the last of them; make room "
                "and ask again from where /video/progress says"
            ) from error

    def _keep(self, clip: Clip, wanted: Annotation, job: Job) -> None:
        """The draft as the study's predicted label."""
        about = {
            "model": job.about["model"],
            "label_names": clip.task.bundle.labels,
            "weights": clip.draft.key.partition("-")[0],
            "frames": ranges(clip.draft.done()),
            "prompted": ranges(sorted(wanted.prompt)),
            **job.result,
        }
        with self.temporary(".nii.gz") as file:
            clip.draft.write(file, clip.size[1:])
            self.app.datastore().save_label(clip.name, str(file), PREDICTED, about)

    def temporary(self, ending: str) -> "_Temporary":
        """A file on its way."""
        return _Temporary(self.app.temporary / f"{uuid.uuid4().hex}{ending}")


class _Temporary:
    """A file that is gone afterwards, unless it was moved."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Path:
        return self.file

    def __exit__(self, *_: object) -> None:
        self.file.unlink(missing_ok=True)


def desk_of(request: Request) -> Desk:
    """The desk of the application that a request reached."""
    return request.app.state.desk


OfVideos = Annotated[Desk, Depends(desk_of)]


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """Cancel the jobs that are left when the server ends."""
    yield
    application.state.desk.jobs.close()


router = APIRouter(prefix="/video", lifespan=lifespan)


def add_videos(application: FastAPI, dependencies: Sequence[Any]) -> None:
    """Serve these addresses.

    Args:
        application: Of the other addresses.
        dependencies: FastAPI's, of every request.
    """
    application.state.desk = Desk()
    application.include_router(router, dependencies=dependencies)


@router.post("/segment/{model}")
def segment(
    desk: OfVideos,
    model: str,
    image: Name,
    params: Annotated[str, Form()] = "{}",
    mask: Annotated[Upload | None, File()] = None,
) -> dict[str, Any]:
    """Begin to segment a video or a piece of it; gives the job."""
    choices = read_choices(read_params(params))
    clip = desk.clip(model, image)
    total = len(clip.video)
    piece = Piece(choices.start, total if choices.end is None else choices.end, total)
    if choices.save_label:
        check_size((max(piece.end, clip.draft.length), *clip.size[1:]))
    prompt = _prompt(desk, clip, choices, mask)
    wanted = Annotation(clip.task.bundle, clip.weights, clip.video, piece, prompt, choices.how)
    about = {"model": model, "image": image, "start": piece.start, "end": piece.end}
    work: Callable[[Job], None] = partial(desk.work, clip, wanted, choices.save_label)
    return desk.jobs.begin(Job(about, len(piece)), work).told()


@router.get("/jobs/")
def list_jobs(desk: OfVideos) -> list[dict[str, Any]]:
    """Jobs that wait, run, or ended lately."""
    return [job.told() for job in desk.jobs.all()]


@router.get("/jobs/{job}")
def get_job(desk: OfVideos, job: str) -> dict[str, Any]:
    """How far a job is."""
    return desk.jobs.get(job).told()


@router.delete("/jobs/{job}")
def cancel_job(desk: OfVideos, job: str) -> dict[str, Any]:
    """End a job between two frames or steps of adaptation; what it has made is kept."""
    found = desk.jobs.get(job)
    found.cancelled.set()
    return found.told()


@router.get("/progress/{model}")
def progress(desk: OfVideos, model: str, image: Name) -> dict[str, Any]:
    """What a model has made of a video so far, and where it goes on with all that it has seen."""
    clip = desk.clip(model, image)
    return {
        "frames_total": len(clip.video),
        "frames": ranges(clip.draft.done()),
        "continue_at": goes_on_at(clip.task.bundle, clip.draft),
    }


@router.get("/export")
def export(
    desk: OfVideos, image: Name, tag: Name = FINAL, format: Format = NIFTI, model: Name = ""
) -> FileResponse:
    """A study's label as a file for other programs; classes are called as by a model."""
    video, studies = desk.video(image), desk.app.datastore()
    label = Path(studies.get_label_uri(image, tag))
    labels = Known(LabelFrames(label), len(video))
    if labels.label.size[1:] != (video.height, video.width):
        raise ValueError("this label is not on the video's frames; send one of its size")
    if model:
        names = desk.clip(model, image).task.bundle.labels
    else:
        names = studies.get_label_info(image, tag).get("label_names") or _numbered(labels)
    ending, write = FORMATS[format.value]
    file = desk.temporary(ending).file
    try:
        with desk.app.turns.turn():
            write(file, labels, video, names)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    after = BackgroundTask(file.unlink, missing_ok=True)
    return FileResponse(file, filename=f"{image}{ending}", background=after)


@router.put("/label")
def put_label(
    desk: OfVideos, model: str, image: Name, label: Annotated[Upload, File()], tag: Name = "prompt"
) -> dict[str, Any]:
    """Keep masks that CVAT exported, or a zip of grey PNG masks, as a study's label."""
    clip = desk.clip(model, image)
    names = clip.task.bundle.labels
    check_name(tag, "a tag")
    check_size(clip.size)
    with received(label.file, desk.app.temporary, ".zip") as archive:
        masks = read_cvat(archive, names, clip.size)
    with desk.temporary(".nii.gz") as file:
        write_volume(file, all_frames(masks, clip.size), clip.size)
        about = {"label_names": names, "frames": ranges(sorted(masks))}
        desk.app.datastore().save_label(image, str(file), tag, about)
    return {"image": image, "tag": tag, "frames": ranges(sorted(masks))}


def _prompt(desk: Desk, clip: Clip, choices: Choices, mask: Upload | None) -> Prompt:
    """Masks of frames that came with a request, or are a label of the study."""
    scheme = scheme_of(clip.task.bundle)
    if mask is None:
        if choices.prompt is None:
            return {}
        file = Path(desk.app.datastore().get_label_uri(clip.name, choices.prompt))
        return prompt_of_volume(file, choices.frames, scheme, clip.size)
    if choices.prompt is not None:
        raise ValueError("a mask came and prompt names a label; send one of the two")
    ending = ending_of(mask.filename or "", (*VOLUMES, ".png"))
    with received(mask.file, desk.app.temporary, ending) as file:
        if ending != ".png":
            return prompt_of_volume(file, choices.frames, scheme, clip.size)
        if choices.frames is None or len(choices.frames) != 1:
            raise ValueError("a picture is the mask of one frame; say which with frames, as [0]")
        return prompt_of_picture(file, choices.frames[0], scheme, clip.size)


def _numbered(labels: Known) -> dict[str, int]:
    """Names of classes about which nothing else is known."""
    values = sorted({value for frame in labels for value in np.unique(frame).tolist()})
    return {f"class {value}": value for value in values if value not in (0, UNLABELLED)}
