"""Requests as the application reads them, without a server; and files that belong to a study."""

import os
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest

from nnunet_plugins.label.served import channel_files
from tests.bundles.conftest import write_volume
from tests.nnunet_plugins.label.conftest import needs_monai_label

TWO = SimpleNamespace(channels=("T1", "T2"))


@needs_monai_label
@pytest.mark.parametrize("kind", ["multipart/form-data", "Multipart/Form-Data"])
def test_forms_are_searched_whatever_their_capitals(kind):
    from fastapi import Depends, FastAPI, Form
    from starlette.testclient import TestClient

    from nnunet_plugins.label.server.routes import refuse_expressions

    application = FastAPI(dependencies=[Depends(refuse_expressions)])

    @application.put("/")
    def put(params: Annotated[str, Form()]) -> str:
        return params

    client = TestClient(application)
    for value, status in (("liver", 200), ("$x", 400)):
        part = f'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{value}\r\n--b--\r\n'
        answer = client.put("/", content=part, headers={"content-type": f"{kind}; boundary=b"})
        assert answer.status_code == status, answer.text


@needs_monai_label
@pytest.mark.parametrize("method", ["train", "scoring", "batch_infer"])
def test_work_that_is_done_already_is_told_in_a_sentence(monkeypatch, method):
    from fastapi import HTTPException

    from nnunet_plugins.label.server import routes

    busy = {"id": None}
    monkeypatch.setattr("monailabel.utils.async_tasks.task.processes", lambda method: busy)
    with pytest.raises(HTTPException) as refused:
        routes._begin(method, {})
    assert refused.value.status_code == 429
    assert "is at work already; wait for its end, or stop it" in refused.value.detail
    assert "+" not in refused.value.detail


def test_channels_lie_beside_their_study(tmp_path):
    files = [tmp_path / f"case_000{i}.nii.gz" for i in range(2)]
    for file in files:
        write_volume(file, np.zeros((2, 3, 4), np.float32))
    assert channel_files(files[0], TWO) == files


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd"])
def test_no_channel_leads_out_of_the_folder(tmp_path, target):
    studies = tmp_path / "studies"
    studies.mkdir()
    (tmp_path / "secret").touch()
    write_volume(studies / "case_0000.nii.gz", np.zeros((2, 3, 4), np.float32))
    os.symlink(target, studies / "case_0001.nii.gz")
    with pytest.raises(ValueError, match="leads out"):
        channel_files(studies / "case_0000.nii.gz", TWO)
