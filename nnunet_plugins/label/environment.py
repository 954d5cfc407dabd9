"""Whether this Python can serve, and how MONAI Label is told what to do."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MONAI_LABEL = "0.8.5"
"""The version that this was tested with."""
NEEDED = (
    "fastapi",
    "uvicorn",
    "multipart",
    "pydantic_settings",
    "requests_toolbelt",
    "pydicom_seg",
)
GUARDED = "MAMBAMED_LABEL_GUARDED"
"""Variable that tells the app that `mambamed label` started it."""
WORK = ".mambamed"
"""Folder beside the studies: weights, results on their way, logs."""
INSTALL = (
    "in a checkout, make label-env makes an environment for it: then .venv-label/bin/mambamed label"
)


def problems() -> Iterator[str]:
    """One sentence for each reason why this Python cannot serve."""
    try:
        installed = version("monailabel")
    except PackageNotFoundError:
        yield f"MONAI Label is not installed here; {INSTALL}"
        return
    if installed.split("-")[0] != MONAI_LABEL:
        yield f"MONAI Label is {installed} and {MONAI_LABEL} is what was tested; {INSTALL}"
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        yield f"MONAI Label needs {', '.join(absent)}, not installed here; {INSTALL}"
    if int(version("pydicom").split(".")[0]) > 2:
        yield f"pydicom {version('pydicom')} is too new for MONAI Label's pydicom-seg; {INSTALL}"


def work_folder(studies: Path) -> Path:
    """Folder of weights, files on their way and logs."""
    return studies.resolve() / WORK


def make_private(folder: Path) -> None:
    """Let nobody but this user into a folder, which is made where there is none.

    Raises:
        PermissionError: If it is another user's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        folder.chmod(0o700)
    except PermissionError as error:
        raise PermissionError(
            f"{folder} is another user's, and what a server writes there is private; serve these "
            "studies as that user, or move the folder away"
        ) from error


def configure(app: Path, studies: Path, conf: Mapping[str, str]) -> None:
    """Set the variables that MONAI Label reads, for this process and those that it starts.

    Call it before MONAI Label is imported. Whatever is written on the way lies beside the studies,
    in a folder that nobody else may look into.

    Raises:
        PermissionError: If that folder is another user's.
    """
    make_private(work_folder(studies))
    temporary = work_folder(studies) / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    off = ("SESSIONS", "AUTO_UPDATE_SCORING", "TRACKING_ENABLED", "AUTH_ENABLE")
    os.environ |= {f"MONAI_LABEL_{name}": "false" for name in off} | {
        GUARDED: "1",
        "MONAI_LABEL_APP_DIR": str(app),
        "MONAI_LABEL_STUDIES": str(studies.resolve()),
        "MONAI_LABEL_APP_CONF": json.dumps(dict(conf)),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # MONAI Label takes it to be there
        "TMPDIR": str(temporary),
    }
    tempfile.tempdir = str(temporary)
