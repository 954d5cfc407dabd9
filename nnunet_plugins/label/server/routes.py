"""The addresses that are served: those of MONAI Label that a clinic needs, and promotion.

Functions that compute are no coroutines, so that one request never stops the others. What MONAI
Label has beside these is not served: uploads of weights and archives, its proxy, pathology.
"""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, File, Form, HTTPException, Query, Request
from fastapi import UploadFile as Upload
from fastapi.responses import FileResponse, Response
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from nnunet_plugins.label.expressions import find_expression
from nnunet_plugins.label.names import VIDEOS, VOLUMES, ending_of
from nnunet_plugins.label.options import flag, read_params, training_options
from nnunet_plugins.label.server.app import LabelApp
from nnunet_plugins.label.server.dicom_routes import add_dicom
from nnunet_plugins.label.server.errors import sentences
from nnunet_plugins.label.server.tasks import remove_result
from nnunet_plugins.label.server.video_routes import add_videos
from nnunet_plugins.label.server.views import add_views
from nnunet_plugins.label.shelf import NewerCandidate
from nnunet_plugins.label.uploads import check_image, received

JOBS = {"train": "/train", "scoring": "/scoring", "batch_infer": "/batch/infer"}
"""MONAI Label's kinds of work in processes of their own, and their addresses."""
BUSY = {"train": "a training round", "scoring": "scoring", "batch_infer": "a batch"}
"""The same in words."""
FORMS = ("multipart/", "application/x-www")
"""Beginnings of content types that are forms."""
Json = Annotated[dict[str, Any] | None, Body()]


class Output(StrEnum):
    """What a prediction is answered with."""

    image = "image"
    json = "json"
    all = "all"


class Listing(StrEnum):
    """What is listed of the studies."""

    stats = "stats"
    all = "all"
    train = "train"


class Images(StrEnum):
    """Which studies are predicted at once."""

    all = "all"
    labeled = "labeled"
    unlabeled = "unlabeled"


async def refuse_expressions(request: Request) -> None:
    """Refuse a request with anything that MONAI would evaluate, wherever it stands.

    What is looked at is what the server's own parser makes of the request.
    """
    values: list[Any] = [dict(request.path_params), request.query_params.multi_items()]
    if request.method in ("GET", "HEAD", "DELETE"):
        pass  # nobody reads their bodies, and MONAI Label's client announces some and sends none
    elif request.headers.get("content-type", "").lower().startswith(FORMS):
        for key, value in (await request.form()).multi_items():
            values += [key, value.filename if isinstance(value, UploadFile) else value]
    else:
        try:
            values.append(json.loads(await request.body() or b"null"))
        except (ValueError, RecursionError):
            values.append(None)  # no JSON, and nobody reads it as such
    found = find_expression(values)
    if found is not None:
        shown = found[:80].encode("ascii", "backslashreplace").decode()
        raise HTTPException(
            400, f"{shown!r} would be evaluated by MONAI; send names and numbers, no $, @ or %"
        )
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise HTTPException(400, "the request holds text that is no Unicode") from error


router = APIRouter(dependencies=[Depends(refuse_expressions)])


def served() -> LabelApp:
    """The app that MONAI Label holds."""
    return app_instance()


@router.get("/info/")
def info() -> dict[str, Any]:
    """Models, studies, strategies, and who waits."""
    return served().info()


@router.post("/reload")
def reload() -> dict[str, Any]:
    """Look for new studies, and read weights again."""
    served().reload()
    return {}


@router.get("/logs/")
def logs(lines: int = 300) -> Response:
    """The end of the server's log."""
    file = served().work / "logs" / "server.log"
    with file.open(encoding="utf-8", errors="replace") as stream:
        end = deque(stream, min(max(lines, 1), 10_000))
    return Response("".join(end), media_type="text/plain")


@router.post("/infer/{model}")
def infer(
    model: str,
    image: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[Upload | None, File()] = None,
    output: Output | None = None,
) -> Response:
    """Labels of a study, or of a file that is sent along."""
    options = read_params(params)
    app = served()
    app.shelf(model)
    if file is None:
        request = {"model": model, "image": image, "save_label": flag(options, "save_label")}
        return _answer(app.infer(request), output)
    ending = ending_of(file.filename or "", VOLUMES + VIDEOS)
    with received(file.file, app.temporary, ending) as path:
        check_image(path)
        return _answer(app.infer({"model": model, "file": str(path)}), output)


@router.get("/datastore/")
def list_studies(output: Listing = Listing.stats) -> Any:
    """How many studies there are; all of them; or those with a final label."""
    studies = served().datastore()
    if output is Listing.all:
        return studies.json()
    if output is Listing.train:
        return [{"image": s.name, "label": s.name} for s in studies.labelled_studies()]
    return studies.status()


@router.put("/datastore/")
@router.put("/datastore/image")
def put_image(
    file: Annotated[Upload, File()],
    image: str = "",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """Add a study."""
    read_params(params)
    ending = ending_of(file.filename or "", VOLUMES + VIDEOS)
    name = image or Path(file.filename or "").name[: -len(ending)]
    app = served()
    with received(file.file, app.temporary, ending) as path:
        return {"image": app.datastore().add_image(name, str(path), {})}


@router.api_route("/datastore/image", methods=["GET", "HEAD"])
def get_image(image: str) -> FileResponse:
    """The file of a study."""
    return _file(served().datastore().get_image_uri(image))


@router.get("/datastore/image/info")
def get_image_info(image: str) -> dict[str, Any]:
    """What is known of a study."""
    return served().datastore().get_image_info(image)


@router.put("/datastore/label")
def put_label(
    image: str,
    label: Annotated[Upload, File()],
    tag: str = "final",
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """Keep a label of a study, in the place of an older one of this tag."""
    read_params(params)
    ending = ending_of(label.filename or "", VOLUMES)
    app = served()
    with received(label.file, app.temporary, ending) as path:
        app.datastore().save_label(image, str(path), tag or "final", {})
    return {"image": image, "label": image}


@router.api_route("/datastore/label", methods=["GET", "HEAD"])
def get_label(tag: str, label: str = "", image: str = "") -> FileResponse:
    """The file of a label."""
    return _file(served().datastore().get_label_uri(label or image, tag))


@router.get("/datastore/label/info")
def get_label_info(label: str, tag: str) -> dict[str, Any]:
    """What is known of a label."""
    studies = served().datastore()
    studies.get_label_uri(label, tag)
    return studies.get_label_info(label, tag)


@router.post("/activelearning/{strategy}")
def next_study(strategy: str, params: Json = None) -> dict[str, Any]:
    """The study to label next; nothing if all are labelled."""
    return served().next_sample({"strategy": strategy, "model": (params or {}).get("model")})


@router.post("/train/{model}")
def train(model: str, params: Json = None) -> dict[str, Any]:
    """Begin a training round; its outcome is a candidate."""
    app = served()
    app.shelf(model)
    if model not in app.info()["trainers"]:
        raise HTTPException(400, f"{model} cannot be trained: its bundle has no train.json")
    return _begin("train", {"model": model, **training_options(params or {})})


@router.post("/scoring/")
@router.post("/scoring/{method}")
def score(method: str = "dice", params: Json = None) -> dict[str, Any]:
    """Begin to score predicted labels against final ones."""
    if method not in served().info()["scoring"]:
        raise HTTPException(404, "there is no such method of scoring; there is dice")
    return _begin("scoring", {"method": method})


@router.post("/batch/infer/{model}")
def batch_infer(model: str, images: Images = Images.all, params: Json = None) -> dict[str, Any]:
    """Begin to predict many studies and keep the labels."""
    served().shelf(model)
    return _begin("batch_infer", {"model": model, "images": images.value})


@router.get("/candidate/{model}")
def candidate(model: str) -> dict[str, Any]:
    """How the candidate was trained, and whether it is better than what is served."""
    report = served().shelf(model).candidate_report()
    if report is None:
        raise HTTPException(404, f"{model} has no candidate; train it first")
    return report


@router.post("/promote/{model}")
def promote(model: str, candidate: Annotated[str, Query(max_length=512)] = "") -> dict[str, Any]:
    """Serve the candidate from now on; what was served is kept.

    Args:
        model: Whose.
        candidate: The `weights` in the report that was looked at.
    """
    shelf = served().shelf(model)
    if shelf.candidate_report() is not None and not candidate:
        raise HTTPException(
            400,
            f"say which candidate is promoted: candidate=WEIGHTS, as GET /candidate/{model} tells",
        )
    try:
        return shelf.promote(candidate)
    except NewerCandidate as error:
        raise HTTPException(409, str(error)) from error


@router.post("/restore/{model}")
def restore(model: str) -> dict[str, Any]:
    """Serve what was served before the last promotion."""
    served().shelf(model).restore()
    return {}


def add_job_routes(method: str, address: str) -> None:
    """Status of a kind of work, and its end."""

    @router.get(f"{address}/", name=f"{method}_status")
    def status(all: bool = False, check_if_running: bool = False) -> Any:
        found, why = AsyncTask.status(method, all, check_if_running)
        if found is None:
            raise HTTPException(404, why)
        return [_shown(job) for job in found] if isinstance(found, list) else _shown(found)

    @router.delete(f"{address}/", name=f"stop_{method}")
    def stop() -> Any:
        job = AsyncTask.stop(method)
        return _shown(job) if job else {}


for _method, _address in JOBS.items():
    add_job_routes(_method, _address)


@asynccontextmanager
async def lifespan(application: FastAPI) -> AsyncIterator[None]:
    """Make the app before the first request, and end its work after the last."""
    app = served()
    app.server_mode(True)
    app.on_init_complete()
    yield
    for method in JOBS:
        AsyncTask.stop(method)


def make_application() -> FastAPI:
    """All addresses, without the guard."""
    application = FastAPI(
        title="mambamed label", docs_url=None, redoc_url=None, lifespan=lifespan,
        redirect_slashes=True,
    )  # fmt: skip
    application.include_router(router)
    add_views(application, router.dependencies)
    add_dicom(application, router.dependencies)
    add_videos(application, router.dependencies)
    sentences(application)
    return application


def _begin(method: str, request: dict[str, Any]) -> dict[str, Any]:
    job, _ = AsyncTask.run(method, request=request)
    if job is None:
        raise HTTPException(429, f"{BUSY[method]} is at work already; wait for its end, or stop it")
    return _shown(job)


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    return job | {"details": list(job.get("details", ()))}


def _file(path: str) -> FileResponse:
    if not Path(path).is_file():
        raise HTTPException(404, "the file of this study has gone; POST /reload")
    return FileResponse(path, filename=Path(path).name)


def _answer(result: dict[str, Any], output: Output | None) -> Response:
    """A prediction as the client wants it; a file that was made for it goes afterwards."""
    label, facts = result["label"], json.dumps(result["params"])
    if output is Output.json or (output is None and result["file"] is None):
        remove_result(result["file"])
        return Response(facts, media_type="application/json")
    kept = result["file"] is None
    file = Path(served().datastore().get_label_uri(label, result["tag"]) if kept else label)
    after = None if kept else BackgroundTask(remove_result, str(file))
    if output is Output.image:
        return FileResponse(file, filename=file.name, background=after)
    with file.open("rb") as stream:
        fields = {
            "params": (None, facts, "application/json"),
            "image": (file.name, stream, "application/octet-stream"),
        }
        message = MultipartEncoder(fields=fields)
        body = message.to_string()
    return Response(body, media_type=message.content_type, background=after)
