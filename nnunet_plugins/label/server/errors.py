"""Errors of requests as a status and one sentence."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelException

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
    application.add_exception_handler(Exception, _failed)


def _handler(status: int):
    def handle(request: Request, error: Exception) -> JSONResponse:
        text = error.msg if isinstance(error, MONAILabelException) else str(error)
        headers = {"Retry-After": "10"} if status == 503 else None
        return _answer(status, text, headers)

    return handle


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return _answer(422, f"{where}: {first['msg']}")


def _failed(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refusal):
        raise error
    kind = type(error).__name__
    return _answer(500, f"the server failed at this ({kind}); its log says where")


def _answer(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    shown = text[:1000].encode("ascii", "backslashreplace").decode()
    return JSONResponse({"detail": shown}, status, headers=headers)
