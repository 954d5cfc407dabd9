"""What the server gives its page: who may read it, and whether it is what is in the files."""

import asyncio
import io
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.data.clips import FrameStream
from nnunet_plugins.label.colours import drawn, hexadecimal
from nnunet_plugins.label.guard import Guard
from nnunet_plugins.label.page_files import FILES, FOLDER
from nnunet_plugins.label.planes import grey
from tests.nnunet_plugins.label.conftest import needs_monai_label, write_studies
from tests.nnunet_plugins.label.test_planes import as_seen

pytestmark = needs_monai_label
TOKEN = "a" * 40


@pytest.fixture(scope="module")
def server(serve, bundle_folder, video, tmp_path_factory):
    """Volumes with and without labels, a video with a prediction, and files that lead astray."""
    outside = tmp_path_factory.mktemp("outside")
    studies = write_studies(tmp_path_factory.mktemp("studies"), 4, labelled=2)
    shutil.copy(video, studies / "clip.mp4")
    (studies / "broken.nii.gz").write_bytes(b"nothing")
    shutil.copy(studies / "study_0.nii.gz", outside / "secret.nii.gz")
    os.symlink(outside / "secret.nii.gz", studies / "leak.nii.gz")
    running = serve("--bundles", str(bundle_folder), studies=studies)
    frames = len(list(FrameStream(video)))
    masks = np.zeros((frames, 128, 160), np.uint8)
    masks[2:, 20:60, 30:90] = 1
    sitk.WriteImage(sitk.GetImageFromArray(masks[:-1]), str(outside / "masks.nii.gz"))
    assert running.put_label("clip", outside / "masks.nii.gz", "original").status_code == 200
    return running


def get(server, path: str, **params):
    return server.client.get(f"/view/{path}", params=params)


def pixels(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.array(Image.open(io.BytesIO(answer.content)))


def planes_of(voxels: np.ndarray):
    """Every plane of (z, y, x) as it is to be seen."""
    for index in range(voxels.shape[0]):
        yield "axial", index, voxels[index]
    for index in range(voxels.shape[1]):
        yield "coronal", index, voxels[::-1, index]
    for index in range(voxels.shape[2]):
        yield "sagittal", index, voxels[::-1, :, index]


def status_without_token(application, method: str, path: str) -> int:
    """What the guard lets through, asked without a server."""
    sent = []

    async def receive():
        if sent:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [], "client": None, "root_path": "", "scheme": "http",
        "server": ("127.0.0.1", 80),
    }  # fmt: skip
    asyncio.run(Guard(application, TOKEN, 2**20, FILES)(scope, receive, send))
    return sent[0]["status"]


def test_only_the_files_of_the_page_are_open():
    from nnunet_plugins.label.server.routes import make_application

    application = make_application()
    asked = set()
    for template, methods in [*application.openapi()["paths"].items(), *((p, ()) for p in FILES)]:
        path = template.replace("{", "").replace("}", "")
        for method in {"GET", "HEAD"} | {method.upper() for method in methods}:
            asked.add((method, path))
            open_ = path in FILES and method in ("GET", "HEAD")
            assert status_without_token(application, method, path) == (200 if open_ else 401)
    assert {("GET", "/view/image.png"), ("POST", "/view/accept"), ("PUT", "/datastore/label"),
            ("DELETE", "/train/"), ("GET", "/logs/"), ("GET", "/")} <= asked  # fmt: skip
    for path in (
        "/page", "/page/", "/page/nothing.js", "/page/../view/studies", "/page/style.css/", "//",
        "/PAGE/style.css", "/page/%2e%2e/guard.py", "/page/main.js\x00", "/index.html", "/page/..",
    ):  # fmt: skip
        assert status_without_token(application, "GET", path) == 401
    for path in FILES:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
            assert status_without_token(application, method, path) == 401


def test_the_page_is_served_to_all_and_holds_no_secret(server):
    with server.anonymous() as anyone:
        for path, name in FILES.items():
            answer = anyone.get(path)
            assert answer.status_code == 200
            assert answer.content == (FOLDER / name).read_bytes()
            assert server.token not in answer.text
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert anyone.get("/page/main.js").headers["content-type"].startswith("text/javascript")
        assert anyone.get("/view/studies").status_code == 401
        assert anyone.get("/view/image.png?image=study_0&index=1").status_code == 401


def test_studies_are_listed_without_their_places(server):
    found = {study["name"]: study for study in get(server, "studies").json()}
    assert set(found) == {"study_0", "study_1", "study_2", "study_3", "clip", "broken"}
    assert found["clip"]["kind"] == "video"
    assert list(found["study_1"]["labels"]) == ["final"]
    assert list(found["clip"]["labels"]) == ["original"]
    assert found["study_0"]["bytes"] == (server.studies / "study_0.nii.gz").stat().st_size
    assert str(server.studies) not in get(server, "studies").text


def test_planes_are_the_voxels_of_the_file(server):
    file = server.studies / "study_0.nii.gz"
    expected, facts = as_seen(file), get(server, "study", image="study_0").json()
    low, high = facts["window"]["low"], facts["window"]["high"]
    spacing = nibabel.as_closest_canonical(nibabel.load(file)).header.get_zooms()[::-1]
    assert facts["shape"] == list(expected.shape)
    assert facts["spacing"] == pytest.approx(list(spacing))
    assert facts["planes"]["coronal"]["pixel"] == pytest.approx([spacing[0], spacing[2]])
    for plane, index, wanted in planes_of(expected):
        answer = get(
            server, "image.png", image="study_0", plane=plane, index=index, low=low, high=high
        )
        assert np.array_equal(pixels(answer), grey(wanted, low, high))
        of_plane = facts["planes"][plane]
        assert (of_plane["rows"], of_plane["columns"]) == wanted.shape


def test_colours_are_those_of_the_voxels(server):
    expected = as_seen(server.studies / "labels/final/study_0.nii.gz")
    facts = get(server, "label", image="study_0", tag="final").json()
    counts = {entry["value"]: entry["voxels"] for entry in facts["counts"]}
    assert counts == {v: int((expected == v).sum()) for v in (1, 2)}
    assert [entry["colour"] for entry in facts["counts"]] == [hexadecimal(1), hexadecimal(2)]
    assert get(server, "colours").json()[:2] == [hexadecimal(1), hexadecimal(2)]
    for plane, index, wanted in planes_of(expected):
        query = {"image": "study_0", "tag": "final", "plane": plane, "index": index}
        assert np.array_equal(pixels(get(server, "label.png", **query)), drawn(wanted))
    index = expected.shape[0] // 2
    query = {"image": "study_0", "tag": "final", "index": index, "hidden": [1, 9]}
    assert np.array_equal(
        pixels(get(server, "label.png", **query)), drawn(expected[index], frozenset({1}))
    )


def test_values_are_those_of_the_voxels(server):
    image = as_seen(server.studies / "study_0.nii.gz")
    label = as_seen(server.studies / "labels/final/study_0.nii.gz")
    rng = np.random.default_rng(0)
    labels = list(planes_of(label))
    for (plane, index, wanted), (_, _, of_label) in zip(planes_of(image), labels, strict=True):
        row, column = (int(rng.integers(side)) for side in wanted.shape)
        query = {"image": "study_0", "plane": plane, "index": index, "row": row, "column": column}
        told = get(server, "value", **query, tag="final").json()
        assert told["value"] == pytest.approx(wanted[row, column], rel=1e-6)
        assert told["label"] == of_label[row, column]
        assert get(server, "value", **query).json()["label"] is None
    assert len({int(found.max()) for _, _, found in labels}) == 3


def test_the_value_of_a_pixel_of_a_frame_is_its_colour(server, video):
    frames = [frame for _, frame in FrameStream(video)]
    query = {"image": "clip", "plane": "frame", "tag": "original", "row": 30, "column": 40}
    for index, label in ((1, 0), (2, 1), (len(frames) - 1, None)):
        told = get(server, "value", **query, index=index).json()
        assert told == {"value": frames[index][30, 40].tolist(), "label": label}


def test_a_value_that_is_no_number_is_told_as_none(server):
    file = server.studies / "nan.nrrd"
    voxels = np.array([np.nan, np.inf, -2.5], np.float32).reshape(1, 1, 3)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(file))
    server.client.post("/reload")
    found = [get(server, "value", image="nan", index=0, row=0, column=c).json() for c in range(3)]
    assert found == [{"value": value, "label": None} for value in (None, None, -2.5)]
    file.unlink()
    server.client.post("/reload")


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (0, -1), (22, 0), (0, 24), (10**9, 0)])
def test_pixels_outside_of_a_plane_are_refused(server, row, column):
    answer = get(server, "value", image="study_0", index=0, row=row, column=column)
    assert answer.status_code == 400
    assert "there are 22 x 24" in answer.json()["detail"]


def test_labels_are_given_as_nifti(server, tmp_path):
    final = server.studies / "labels/final/study_0.nii.gz"
    answer = get(server, "label.nii.gz", image="study_0", tag="final")
    assert answer.content == final.read_bytes()
    assert 'filename="study_0_final.nii.gz"' in answer.headers["content-disposition"]
    label = sitk.ReadImage(str(final))
    sitk.WriteImage(label, str(tmp_path / "label.nrrd"))
    assert server.put_label("study_0", tmp_path / "label.nrrd", "kept_as_nrrd").status_code == 200
    answer = get(server, "label.nii.gz", image="study_0", tag="kept_as_nrrd")
    (tmp_path / "back.nii.gz").write_bytes(answer.content)
    back = sitk.ReadImage(str(tmp_path / "back.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(label))
    assert back.GetOrigin() == pytest.approx(label.GetOrigin())
    assert not list((server.studies / ".mambamed/tmp").iterdir())
    (server.studies / "labels/kept_as_nrrd/study_0.nrrd").write_bytes(b"nothing")
    broken = get(server, "label.nii.gz", image="study_0", tag="kept_as_nrrd")
    assert (broken.status_code, "damaged" in broken.json()["detail"]) == (400, True)
    (server.studies / "labels/kept_as_nrrd/study_0.nrrd").unlink()
    server.client.post("/reload")


def test_frames_are_those_of_the_video(server, video):
    frames = [frame for _, frame in FrameStream(video)]
    facts = get(server, "study", image="clip").json()
    assert facts["planes"]["frame"]["count"] == len(frames)
    for index in (len(frames) - 1, 0, 7, 8, 3):
        found = pixels(get(server, "image.png", image="clip", plane="frame", index=index))
        assert np.array_equal(found, frames[index])
    query = {"image": "clip", "plane": "frame", "index": 3}
    windowed = pixels(get(server, "image.png", **query, low=50, high=150))
    assert np.array_equal(windowed, grey(frames[3], 50, 150))
    for index, labelled in ((1, False), (2, True), (len(frames) - 1, False)):
        shown = pixels(get(server, "label.png", image="clip", tag="original", plane="frame",
                           index=index))  # fmt: skip
        assert shown.shape == (128, 160, 4)
        assert bool(shown[30, 40, 3]) == labelled


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "leak",
        "study_0/../study_1",
        "",
        "study_0\x00",
        "nobody",
        "a" * 500,
    ],
)
def test_nothing_but_studies_is_read(server, name):
    for path in ("study", "image.png", "label.png", "label", "label.nii.gz", "value"):
        answer = get(server, path, image=name, index=0, tag="final", row=0, column=0)
        assert answer.status_code in (400, 404)
        assert answer.json()["detail"]
    for tag in ("../..", "/etc", "none", "..", "final/../final"):
        for path in ("label", "label.nii.gz"):
            assert get(server, path, image="study_0", tag=tag).status_code in (400, 404)
    for path in ("accept", "reject"):
        answer = server.client.post(f"/view/{path}", params={"image": name, "version": "x"})
        assert answer.status_code in (400, 404)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"index": 99}, 400, "no axial plane 99"), ({"index": -1}, 400, "no axial plane -1"),
        ({"index": 1, "plane": "x"}, 400, "is no plane"), ({"index": "x"}, 422, "index"),
        ({}, 422, "index"), ({"index": 1, "low": 3, "high": 3}, 400, "low must be below"),
        ({"index": 1, "low": "nan"}, 400, "low must be below"),
        ({"index": 1, "plane": "$x"}, 400, "would be evaluated"),
        ({"image": "broken", "index": 0}, 400, "damaged"),
        ({"image": "clip", "index": 10**6}, 400, "no frame"),
        ({"image": "x" * 600, "index": 0}, 422, "512"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_a_sentence(server, query, status, words):
    answer = get(server, "image.png", **{"image": "study_0", **query})
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def predict(server, name: str) -> dict:
    """Segment a study, keep that, and give what the page knows of it."""
    answer = server.client.post(
        "/infer/tiny", params={"image": name, "output": "json"},
        data={"params": '{"save_label": true}'},
    )  # fmt: skip
    assert answer.status_code == 200
    return get(server, "label", image=name, tag="original").json()


def labels_of(server, name: str) -> dict:
    return {s["name"]: s["labels"] for s in get(server, "studies").json()}[name]


def test_an_accepted_prediction_is_the_final_label(server):
    seen = predict(server, "study_2")
    assert seen["model"] == "tiny"
    assert {entry["name"] for entry in seen["counts"]} <= {"shell", "core"}
    query = {"image": "study_2", "version": seen["version"]}
    old = server.client.post("/view/accept", params=query | {"version": "older"})
    assert old.status_code == 409
    assert "newer prediction" in old.json()["detail"]
    assert "final" not in labels_of(server, "study_2")
    assert server.client.post("/view/accept", params=query).status_code == 200
    folder = server.studies / "labels"
    made, kept = (folder / tag / "study_2.nii.gz" for tag in ("original", "final"))
    assert kept.read_bytes() == made.read_bytes()
    assert labels_of(server, "study_2")["final"]["model"] == "tiny"
    assert labels_of(server, "study_2")["final"]["accepted"]
    assert server.client.post("/view/accept", params=query).status_code == 409
    replaced = server.client.post("/view/accept", params=query | {"replace": True})
    assert replaced.status_code == 200
    assert not list((server.studies / ".mambamed" / "tmp").iterdir())


def test_a_rejected_prediction_is_gone_and_the_final_label_is_not(server):
    seen = predict(server, "study_1")
    final = (server.studies / "labels/final/study_1.nii.gz").read_bytes()
    query = {"image": "study_1", "version": "older"}
    assert server.client.post("/view/reject", params=query).status_code == 409
    assert "original" in labels_of(server, "study_1")
    query["version"] = seen["version"]
    assert server.client.post("/view/reject", params=query).status_code == 200
    assert set(labels_of(server, "study_1")) == {"final"}
    assert not (server.studies / "labels/original/study_1.nii.gz").exists()
    assert (server.studies / "labels/final/study_1.nii.gz").read_bytes() == final
    assert server.client.post("/view/reject", params=query).status_code == 404


def test_a_label_on_another_grid_is_refused(server):
    target: Path = server.studies / "labels/other"
    target.mkdir()
    shutil.copy(server.studies / "labels/final/study_1.nii.gz", target / "study_0.nii.gz")
    server.client.post("/reload")
    answer = get(server, "label", image="study_0", tag="other")
    assert answer.status_code == 400
    assert "its study" in answer.json()["detail"]


def test_jobs_are_told(server):
    assert get(server, "jobs").json() == {"train": None, "batch_infer": None, "scoring": None}
    begun = server.client.post("/scoring/", json={})
    assert begun.status_code == 200
    assert get(server, "jobs").json()["scoring"]["status"] in ("SUBMITTED", "RUNNING", "DONE")
    server.client.delete("/scoring/")
