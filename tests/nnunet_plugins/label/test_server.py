"""The server over HTTP on the loopback interface: every address, masks, training, promotion."""

import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.label.shelf import Shelf
from tests.bundles.conftest import write_volume
from tests.nnunet_plugins.label.conftest import (
    Server,
    draw_case,
    needs_monai_label,
    running,
    write_studies,
)
from tests.nnunet_plugins.label.test_models import assert_equal

pytestmark = needs_monai_label


def wait_for(server: Server, address: str, seconds: float = 240) -> dict:
    """The job of an address, once it has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = server.client.get(address).json()
        if job["status"] not in ("SUBMITTED", "RUNNING"):
            return job
        time.sleep(0.2)
    raise TimeoutError(job)


def logged(server: Server) -> str:
    return server.client.get("/logs/").text


def infer(server: Server, model: str, image: str, out: Path, **params: str) -> Path:
    """Labels of a study as a client gets them."""
    answer = server.client.post(
        f"/infer/{model}", params={"image": image, "output": "image"}, data=params
    )
    assert answer.status_code == 200, answer.text
    file = out / f"{image}.nii.gz"
    file.write_bytes(answer.content)
    return file


def expected_masks(bundle: Path, studies: Path, out: Path) -> Path:
    """What the command line gives for the volumes of a folder."""
    import monai.bundle
    import torch

    images = out / "images"
    images.mkdir()
    for file in studies.glob("*.nii.gz"):
        shutil.copy(file, images / file.name.replace(".nii", "_0000.nii"))
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"), logging_file=False,
        bundle_root=str(bundle), dataset_dir=str(images), output_dir=str(out / "masks"),
        device=torch.device("cpu"),
    )  # fmt: skip
    return out / "masks"


def test_information_and_lists(server):
    info = server.client.get("/info/").json()
    assert info["models"]["tiny"]["kind"] == "volume"
    assert info["models"]["tiny"]["labels"] == {"shell": 1, "core": 2}
    assert set(info["strategies"]) == {"random", "uncertainty"}
    assert info["datastore"]["total"] >= 6
    everything = server.client.get("/datastore/", params={"output": "all"}).json()
    assert "study_0" in everything["objects"]
    assert str(server.studies) not in server.client.get("/datastore/?output=all").text
    assert server.client.get("/openapi.json").status_code == 200
    assert "GET /info/ 200" in server.client.get("/logs/").text
    assert server.token not in server.client.get("/logs/").text
    assert server.client.post("/reload").json() == {}


def test_served_masks_are_those_of_the_command_line(server, bundle_folder, tmp_path):
    masks = expected_masks(bundle_folder, server.studies, tmp_path)
    for name in ("study_0", "study_1", "study_2"):
        assert_equal(infer(server, "tiny", name, tmp_path), masks / f"{name}.nii.gz")
    file = server.studies / "study_1.nii.gz"
    with file.open("rb") as stream:
        sent = server.client.post(
            "/infer/tiny", params={"output": "image"}, files={"file": (file.name, stream)}
        )
    (tmp_path / "sent.nii.gz").write_bytes(sent.content)
    assert_equal(tmp_path / "sent.nii.gz", masks / "study_1.nii.gz")
    assert list((server.studies / ".mambamed/tmp").iterdir()) == []


def test_monai_labels_own_client_is_served(server, tmp_path):
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    client.update_auth({"token_type": "Bearer", "access_token": server.token})
    assert client.info()["name"] == "mambamed"
    image, label = draw_case(50)
    write_volume(tmp_path / "own.nii.gz", image)
    write_volume(tmp_path / "label.nii.gz", label)
    assert client.upload_image(str(tmp_path / "own.nii.gz"), "own") == {"image": "own"}
    file, facts = client.infer("tiny", "own", {"device": "cuda", "logging": "INFO"})
    assert sitk.ReadImage(file).GetSize() == image.shape[::-1]
    assert 0 < facts["uncertainty"] < 1
    client.save_label("own", str(tmp_path / "label.nii.gz"), "final", {"label_info": []})
    assert_equal(Path(client.download_label("own", "final")), tmp_path / "label.nii.gz")
    assert client.next_sample("random", {})["id"] != "own"


def test_studies_and_labels_go_in_and_come_out_unchanged(server, tmp_path):
    image, label = draw_case(60)
    write_volume(tmp_path / "image.nii.gz", image)
    write_volume(tmp_path / "label.nrrd", label)
    assert server.upload("new", tmp_path / "image.nii.gz").json() == {"image": "new"}
    back = server.client.get("/datastore/image", params={"image": "new"})
    assert back.content == (tmp_path / "image.nii.gz").read_bytes()
    assert server.client.head("/datastore/image", params={"image": "new"}).status_code == 200
    assert server.put_label("new", tmp_path / "label.nrrd").json()["label"] == "new"
    query = {"label": "new", "tag": "final"}
    assert (
        server.client.get("/datastore/label", params=query).content
        == (tmp_path / "label.nrrd").read_bytes()
    )
    assert server.client.get("/datastore/label/info", params=query).json()["name"] == "new.nrrd"
    assert server.client.get("/datastore/image/info", params={"image": "new"}).json()["ts"]
    again = server.upload("new", tmp_path / "image.nii.gz")
    assert (again.status_code, "already" in again.text) == (409, True)


def test_bad_uploads_change_nothing(server, tmp_path, video):
    other = tmp_path / "other.nii.gz"
    write_volume(other, draw_case(1, (4, 5, 6))[1])
    text = tmp_path / "text.nii.gz"
    text.write_text("no volume")
    program = tmp_path / "program.sh"
    program.write_text("#!/bin/sh")
    before = sorted(p.name for p in server.studies.iterdir())
    answers = [
        server.upload("one", text), server.upload("one", program),
        server.put_label("study_0", other), server.put_label("study_0", text),
        server.put_label("study_0", video), server.put_label("nobody", other),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 400, 404]
    assert all(answer.json()["detail"] for answer in answers)
    assert sorted(p.name for p in server.studies.iterdir()) == before
    assert list((server.studies / ".mambamed/tmp").iterdir()) == []


def test_the_least_certain_study_comes_first(server):
    asked = server.client.post("/activelearning/uncertainty", json={"model": "tiny"}).json()
    while asked["not_yet_seen"]:
        asked = server.client.post("/activelearning/uncertainty", json={"model": "tiny"}).json()
    studies = server.client.get("/datastore/?output=all").json()["objects"]
    figures = {
        name: study["image"]["info"]["uncertainty"]["tiny"]["value"]
        for name, study in studies.items()
        if "final" not in study["labels"]
    }
    assert asked["id"] == max(figures, key=figures.get)
    assert asked["uncertainty"] == max(figures.values())
    wrong = server.client.post("/activelearning/uncertainty", json={"model": "nothing"})
    assert wrong.status_code == 400
    assert server.client.post("/activelearning/other", json={}).status_code == 404


def test_twenty_clients_wait_their_turn_and_get_their_own(server, bundle_folder, tmp_path):
    masks = expected_masks(bundle_folder, server.studies, tmp_path)
    names = [f"study_{i % 6}" for i in range(20)]
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss

    def ask(number: int) -> dict:
        name, out = names[number], tmp_path / str(number)
        out.mkdir()
        return {"file": infer(server, "tiny", name, out), "name": name}

    with ThreadPoolExecutor(20) as pool:
        running_clients = [pool.submit(ask, number) for number in range(20)]
        most = 0
        while not all(future.done() for future in running_clients):
            queue = server.client.get("/info/").json()["queue"]  # the server answers meanwhile
            assert queue["running"] <= 1
            most = max(most, queue["waiting"])
            time.sleep(0.05)
    for future in running_clients:
        result = future.result()
        assert_equal(result["file"], masks / f"{result['name']}.nii.gz")
    assert most > 0
    assert process.memory_info().rss - before < 500 * 2**20


def test_the_whole_loop(serve, tmp_path):
    server = serve(labelled=3)
    client = server.client
    table = "name,patient\nstudy_0,one\nstudy_2,one \ngone,two\n"
    (server.studies / "patients.csv").write_text(table, encoding="utf-8")
    first = client.get("/info/").json()["models"]["tiny"]["weights"]
    assert client.get("/candidate/tiny").status_code == 404
    assert client.post("/promote/tiny").status_code == 404
    job = client.post("/batch/infer/tiny", params={"images": "labeled"}).json()
    assert wait_for(server, "/batch/infer/")["status"] == "DONE", job
    assert client.post("/scoring/dice").status_code == 200
    assert wait_for(server, "/scoring/")["status"] == "DONE"
    assert set(client.get("/datastore/image/info?image=study_0").json()["dice"]) == {
        "shell", "core"
    }  # fmt: skip
    began = client.post("/train/tiny", json={"max_epochs": 2, "learning_rate": 0.001})
    assert began.status_code == 200
    assert client.post("/train/tiny", json={}).status_code == 429
    assert infer(server, "tiny", "study_3", tmp_path).is_file()
    ended = wait_for(server, "/train/")
    assert ended["status"] == "DONE", ended
    report = client.get("/candidate/tiny").json()
    assert "the candidate is" in report["verdict"]
    assert set(report["mean_dice"]) == {"candidate", "served"}
    assert sorted([report["trained_on"], report["held_out"]]) == [
        ["study_0", "study_2"], ["study_1"]
    ]  # fmt: skip
    assert "of 1 of 3 studies no patient is known" in report["patients"]
    assert "1 names in tables of patients are no study of this folder: gone" in logged(server)
    info = client.get("/info/").json()
    assert info["models"]["tiny"]["weights"] == first
    assert info["models"]["tiny"]["candidate"] == report["verdict"]
    before = infer(server, "tiny", "study_4", tmp_path).read_bytes()
    seen = {"candidate": report["weights"]}
    assert client.post("/promote/tiny", params=seen).json()["weights"] == report["weights"]
    assert client.get("/info/").json()["models"]["tiny"]["weights"] == report["weights"]
    assert infer(server, "tiny", "study_4", tmp_path).read_bytes() != before
    assert client.post("/restore/tiny").status_code == 200
    assert client.get("/info/").json()["models"]["tiny"]["weights"] == first


def test_the_candidate_that_was_seen_is_promoted_once(serve, bundle_folder):
    server = serve()
    client, shipped = server.client, bundle_folder / "models/model.pt"
    shelf = Shelf(server.studies / ".mambamed/models/tiny", shipped)
    weights = torch.load(shipped, weights_only=True)
    shelf.put_candidate({n: w + 1 for n, w in weights.items()}, {"verdict": "seen"})
    seen = {"candidate": client.get("/candidate/tiny").json()["weights"]}
    shelf.put_candidate({n: w + 2 for n, w in weights.items()}, {"verdict": "newer"})
    answer = client.post("/promote/tiny", params=seen)
    assert (answer.status_code, "not the one you saw" in answer.text) == (409, True)
    answer = client.post("/promote/tiny")
    assert (answer.status_code, "say which candidate" in answer.text) == (400, True)
    before = client.get("/info/").json()["models"]["tiny"]["weights"]
    seen = {"candidate": client.get("/candidate/tiny").json()["weights"]}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/promote/tiny", params=seen), range(12)))
    told = Counter(answer.status_code for answer in answers)
    assert told == {200: 1, 404: 11}
    texts = {answer.text for answer in answers if answer.status_code == 404}
    assert texts == {'{"detail":"tiny has no candidate; train it first, then promote"}'}
    assert client.get("/info/").json()["models"]["tiny"]["weights"] == seen["candidate"]
    assert client.post("/restore/tiny").status_code == 200
    assert client.get("/info/").json()["models"]["tiny"]["weights"] == before
    for part in (".", "logs", "logs/server.log"):
        mode = (server.studies / ".mambamed" / part).stat().st_mode & 0o777
        assert mode == (0o600 if part.endswith(".log") else 0o700)


def test_videos_and_nnunet_results(serve, results, video, tmp_path):
    studies = write_studies(tmp_path / "studies", 1)
    shutil.copy(video, studies / "clip.mp4")
    server = serve("--bundles", "vivim", "--nnunet", str(results), studies=studies)
    masks = sitk.GetArrayFromImage(
        sitk.ReadImage(str(infer(server, "vivim", "clip", tmp_path, params="{}")))
    )
    import monai.bundle
    from PIL import Image

    root = Path(video).parents[1]
    monai.bundle.run(
        config_file=str(root / "configs/inference.json"), logging_file=False, bundle_root=str(root),
        dataset_dir=str(video), output_dir=str(tmp_path / "out"), overlay=False,
    )  # fmt: skip
    files = sorted((tmp_path / "out").glob("*/masks/*.png"))
    expected = np.stack([np.asarray(Image.open(file)) for file in files]) // 255
    assert np.array_equal(masks, expected)
    assert masks.any()
    found = infer(server, "Dataset901_Tiny", "study_0", tmp_path)
    from tests.bundles.test_export import predict_with_nnunet

    (tmp_path / "images").mkdir()
    shutil.copy(studies / "study_0.nii.gz", tmp_path / "images/study_0_0000.nii.gz")
    predict_with_nnunet(results, tmp_path / "images", tmp_path / "nnunet", (0,), True)
    assert_equal(found, tmp_path / "nnunet/study_0.nii.gz")


def test_killed_in_training_and_upload_it_starts_clean(bundle_folder, tmp_path):
    studies = write_studies(tmp_path / "studies", 3, labelled=3)
    options = ("--bundles", str(bundle_folder))
    with running(studies, *options) as server:
        client = server.client
        weights = client.get("/info/").json()["models"]["tiny"]["weights"]
        client.post("/train/tiny", json={"max_epochs": 500})
        shelf = studies / ".mambamed/models/tiny"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(shelf.glob("training/*/models/*.pt")):
            time.sleep(0.1)

        def half() -> object:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="h.nii.gz"\r\n\r\n'
            yield b"\x1f\x8b" + bytes(2**21)
            os.killpg(server.process.pid, signal.SIGKILL)
            yield bytes(10)

        with contextlib.suppress(Exception):
            client.put(
                "/datastore/image?image=half", content=half(),
                headers={"content-type": "multipart/form-data; boundary=x"},
            )  # fmt: skip
        for child in psutil.process_iter(["pid", "cmdline"]):
            if str(studies) in " ".join(child.info["cmdline"] or []):
                child.kill()
    with running(studies, *options) as server:
        info = server.client.get("/info/").json()
        assert info["models"]["tiny"]["weights"] == weights
        assert info["datastore"] == {"total": 3, "completed": 3, "label_tags": {"final": 3}}
        assert list((studies / ".mambamed/tmp").iterdir()) == []
        infer(server, "tiny", "study_0", tmp_path)


def test_two_servers_do_not_share_studies(server, bundle_folder):
    with (
        pytest.raises(AssertionError, match="another server has"),
        running(server.studies, "--bundles", str(bundle_folder)),
    ):
        pass
