"""A full disk: one sentence wherever it shows, and nothing left behind."""

import argparse
import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pytest

from nnunet_plugins.label.disk import FULL, is_full, told
from tests.nnunet_plugins.label.conftest import needs_monai_label

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wrapped(error: Exception) -> ValueError:
    """An error that was raised from another."""
    try:
        try:
            raise error
        except OSError as cause:
            raise ValueError("about a transform") from cause
    except ValueError as outer:
        return outer


def test_a_full_disk_is_known_however_deep():
    for error in (NO_SPACE, OSError(errno.EDQUOT, "quota"), wrapped(NO_SPACE)):
        assert is_full(error)
    assert told(NO_SPACE) == FULL
    assert told(wrapped(NO_SPACE)) == "about a transform"
    for error in (OSError(errno.EACCES, "no"), ValueError("no"), wrapped(OSError(2, "no"))):
        assert not is_full(error)
        assert told(error) == str(error)


@pytest.fixture
def client():
    """Addresses at which a disk is full, or something else is wrong."""
    from fastapi import FastAPI, File, UploadFile
    from starlette.testclient import TestClient

    from nnunet_plugins.label.server.errors import sentences

    application = FastAPI()
    errors = {
        "/full": NO_SPACE, "/value": wrapped(NO_SPACE), "/runtime": RuntimeError("x"),
        "/denied": PermissionError(errno.EACCES, "secret"),
    }  # fmt: skip

    def add(address: str, error: Exception) -> None:
        @application.get(address)
        def fail() -> None:
            raise error

    for address, error in errors.items():
        add(address, error)

    @application.put("/upload")
    def upload(file: Annotated[UploadFile, File()]) -> int:
        return file.size

    sentences(application)
    return TestClient(application, raise_server_exceptions=False)


@needs_monai_label
def test_full_disks_are_507(client):
    for address in ("/full", "/value"):
        answer = client.get(address)
        assert (answer.status_code, answer.json()["detail"]) == (507, FULL)
    for address in ("/denied", "/runtime"):
        answer = client.get(address)
        assert answer.status_code == 500
        assert "secret" not in answer.text


@needs_monai_label
def test_so_are_uploads_that_do_not_fit(client, monkeypatch):
    files = {"file": ("a.nii", bytes(3 * 2**20))}
    assert client.put("/upload", files=files).status_code == 200
    full = Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full.open("w+b", buffering=0))
    answer = client.put("/upload", files=files)
    assert (answer.status_code, answer.json()["detail"]) == (507, FULL)
    cut = client.put("/upload", content=b"x", headers={"content-type": "multipart/form-data"})
    assert cut.status_code == 400


@needs_monai_label
@pytest.mark.parametrize("error", [NO_SPACE, ValueError("no"), RuntimeError("no")])
def test_a_prediction_that_fails_leaves_nothing(tmp_path, error):
    from nnunet_plugins.label.server.tasks import BundleInfer

    def segment(study: Path, out: Path, weights: Path) -> None:
        out.mkdir()
        (out / "half.nii.gz").touch()
        raise error

    (tmp_path / "weights").touch()
    task = SimpleNamespace(
        bundle=SimpleNamespace(check=lambda study: None, segment=segment),
        turns=SimpleNamespace(turn=lambda: contextlib.nullcontext(0)),
        shelf=SimpleNamespace(served=tmp_path / "weights"),
        folder=tmp_path / "tmp",
        worker=ThreadPoolExecutor(1),
    )
    with pytest.raises(type(error)):
        BundleInfer.__call__(task, {"image": "study.nii.gz"})
    assert list(task.folder.iterdir()) == []


@needs_monai_label
@pytest.mark.parametrize("fails", ["update_image_info", "save_label"])
def test_nor_does_one_that_cannot_be_kept(tmp_path, fails):
    from nnunet_plugins.label.server.app import LabelApp

    file = tmp_path / "infer_x/labels/study.nii.gz"
    file.parent.mkdir(parents=True)
    file.touch()

    def fail(*_):
        raise NO_SPACE

    studies = SimpleNamespace(
        get_image_uri=str, get_image_info=lambda name: {},
        **{"update_image_info": lambda *_: None, fails: fail},
    )  # fmt: skip
    facts = {"uncertainty": 0.0, "weights": "x"}
    app = SimpleNamespace(_infers={"tiny": lambda request: (str(file), facts)}, _datastore=studies)
    with pytest.raises(OSError, match="No space"):
        LabelApp.infer(app, {"model": "tiny", "image": "study", "save_label": True})
    assert list(tmp_path.iterdir()) == []


@needs_monai_label
def test_a_server_does_not_start_on_a_full_disk(tmp_path, monkeypatch):
    from nnunet_plugins.label import command

    def fail(*_):
        raise NO_SPACE

    monkeypatch.setattr(command, "configure", fail)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(OSError, match=FULL):
        command.run(parser.parse_args(["--studies", str(tmp_path), "--port", "0"]))
