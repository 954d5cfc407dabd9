"""The files of the page, at addresses of their own."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from nnunet_plugins.label.page_files import FILES, FOLDER, TYPES

router = APIRouter()


def add_file(address: str, name: str) -> None:
    """Serve one file."""

    @router.api_route(address, methods=["GET", "HEAD"], name=name, include_in_schema=False)
    def get_file() -> FileResponse:
        return FileResponse(FOLDER / name, media_type=TYPES[Path(name).suffix])


for _address, _name in FILES.items():
    add_file(_address, _name)
