"""Errors of requests as a status and one sentence."""

import logging

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from monailabel.interfaces.exception import MONAILabelException
from starlette.exceptions import HTTPException

from nnunet_plugins.label.disk import FULL, is_full
from nnunet_plugins.label.guard import Refusal
from nnunet_plugins.label.turns import TooMany

STATUS: dict[type[Exception], int] = {
    MONAILabelException: 404,
    FileExistsError: 409,
    FileNotFoundError: 404,
    TooMany: 503,
    ValueError: 400,
}
"""Status of errors that a client can mend."""

logger = logging.getLogger(__name__)


def sentences(application: FastAPI) -> None:
    """Let an application answer with a sentence whatever goes wrong."""
    for kind, status in STATUS.items():
        application.add_exception_handler(kind, _handler(status))
    application.add_exception_handler(RequestValidationError, _invalid)
    application.add_exception_handler(OSError, _disk)
    application.add_exception_handler(HTTPException, _told)
    application.add_exception_handler(Exception, _failed)


def _handler(status: int):
    def handle(request: Request, error: Exception) -> JSONResponse:
        if is_full(error):
            return _answer(507, FULL)
        text = error.msg if isinstance(error, MONAILabelException) else str(error)
        headers = {"Retry-After": "10"} if status == 503 else None
        return _answer(status, text, headers)

    return handle


def _disk(request: Request, error: OSError) -> JSONResponse:
    if not is_full(error):
        raise error
    return _answer(507, FULL)


async def _told(request: Request, error: HTTPException) -> Response:
    """FastAPI says of any error, while it reads a body, that the body cannot be read."""
    return _answer(507, FULL) if is_full(error) else await http_exception_handler(request, error)


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return _answer(422, f"{where}: {first['msg']}")


def _failed(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refusal):
        raise error
    if is_full(error):
        return _answer(507, FULL)
    kind = type(error).__name__
    return _answer(500, f"the server failed at this ({kind}); its log says where")


def _answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    shown = text[:1000].encode("ascii", "backslashreplace").decode()
    return JSONResponse({"detail": shown}, status, headers=headers)
