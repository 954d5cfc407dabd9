"""Videos over HTTP on the loopback interface: pieces, prompts, jobs, labels out and in."""

import contextlib
import errno
import io
import json
import signal
import time
import zipfile
from functools import partial
from types import SimpleNamespace

import av
import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_plugins.data.clips import write_video
from nnunet_plugins.label.seeking import SeekableVideo
from nnunet_plugins.label.served import ServedBundle
from nnunet_plugins.label.turns import Turns
from nnunet_plugins.label.video.annotate import Annotation
from nnunet_plugins.label.video.drafts import Draft, ranges
from nnunet_plugins.label.video.jobs import Job
from nnunet_plugins.label.video.label_files import LONGEST
from nnunet_plugins.label.video.pieces import Piece
from tests.bundles.conftest import draw_frames, write_volume
from tests.nnunet_plugins.label.conftest import draw_case, needs_monai_label, running
from tests.nnunet_plugins.label.video_bundles import lively_bundle

pytestmark = needs_monai_label
FRAMES, SIZE = 15, (48, 64)


@pytest.fixture(scope="module")
def clip():
    frames, labels = draw_frames(3, FRAMES, SIZE)
    return frames, (labels > 0).astype(np.uint8)


@pytest.fixture(scope="module")
def server(clip, tmp_path_factory):
    studies = tmp_path_factory.mktemp("studies")
    write_video(studies / "clip.mp4", clip[0])
    write_volume(studies / "volume.nii.gz", draw_case(0)[0])
    long = np.concatenate([clip[0]] * 60)
    write_video(studies / "long.mp4", long)
    folders = tmp_path_factory.mktemp("bundles")
    bundles = [str(lively_bundle(name, folders)) for name in ("endomamba", "vivim")]
    with running(studies, "--bundles", ",".join(bundles)) as found:
        yield found


def begin(server, model="endomamba", image="clip", files=None, **params):
    return server.client.post(
        f"/video/segment/{model}", params={"image": image}, data={"params": json.dumps(params)},
        files=files,
    )  # fmt: skip


def finish(server, answer) -> dict:
    assert answer.status_code == 200, answer.text
    job = answer.json()
    while job["status"] in ("WAITING", "RUNNING"):
        time.sleep(0.1)
        with contextlib.suppress(httpx.ReadError):  # an idle connection ended just now
            job = server.client.get(f"/video/jobs/{job['id']}").json()
    return job


def exported(server, tag="original", image="clip", format="nifti") -> bytes:
    query = {"image": image, "tag": tag, "format": format}
    answer = server.client.get("/video/export", params=query)
    assert answer.status_code == 200, answer.text
    return answer.content


def volume(server, tmp_path, **query) -> np.ndarray:
    file = tmp_path / "exported.nii.gz"
    file.write_bytes(exported(server, **query))
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def nothing_left(server) -> bool:
    """Whether no file is on its way; those that were sent go just afterwards."""
    folder = server.studies / ".mambamed/tmp"
    for _ in range(100):
        if not any(folder.iterdir()):
            return True
        time.sleep(0.05)
    return False


def whole(server, model, tmp_path) -> np.ndarray:
    """What /infer gives for the whole clip."""
    query = {"image": "clip", "output": "image"}
    (tmp_path / "whole.nii.gz").write_bytes(
        server.client.post(f"/infer/{model}", params=query, data={"params": "{}"}).content
    )
    return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "whole.nii.gz")))


@pytest.mark.parametrize("model", ["endomamba", "vivim"])
def test_pieces_make_the_label_of_the_whole(server, tmp_path, model):
    for start, end in ((0, 6), (6, FRAMES)):
        job = finish(server, begin(server, model, start=start, end=end))
        assert (job["status"], job["frames_done"]) == ("DONE", end - start), job
        told = server.client.get(f"/video/progress/{model}?image=clip").json()
        assert told["frames"] == [[0, end]]
        assert told["continue_at"] == end
        assert volume(server, tmp_path).shape == (end, *SIZE)
    expected = whole(server, model, tmp_path)
    assert 0.1 < expected.mean() < 0.9
    assert np.array_equal(volume(server, tmp_path), expected)
    info = server.client.get("/datastore/label/info?label=clip&tag=original").json()
    assert (info["model"], info["frames"]) == (model, [[0, FRAMES]])


def test_every_kind_of_prompt_is_kept(server, clip, tmp_path):
    truth = clip[1]
    png = io.BytesIO()
    Image.fromarray(truth[4]).save(png, "png")
    png.seek(0)
    sent = {"mask": ("mask.png", png)}
    assert finish(server, begin(server, files=sent, frames=[4], steps=2))["status"] == "DONE"
    assert np.array_equal(volume(server, tmp_path)[4], truth[4])
    marked = truth.copy()
    marked[2:] = 255
    write_volume(tmp_path / "marked.nii.gz", marked)
    with (tmp_path / "marked.nii.gz").open("rb") as stream:
        sent = {"mask": ("marked.nii.gz", stream)}
        assert finish(server, begin(server, files=sent, steps=2))["status"] == "DONE"
    assert np.array_equal(volume(server, tmp_path)[:2], truth[:2])
    write_volume(tmp_path / "final.nii.gz", truth)
    assert server.put_label("clip", tmp_path / "final.nii.gz", "prompt").status_code == 200
    job = finish(server, begin(server, prompt="prompt", frames=[0, 14], steps=2))
    assert job["status"] == "DONE", job
    assert np.array_equal(volume(server, tmp_path)[[0, 14]], truth[[0, 14]])
    info = server.client.get("/datastore/label/info?label=clip&tag=original").json()
    assert info["prompted"] == [[0, 1], [14, 15]]


def test_a_long_job_is_watched_and_cancelled_and_kept(server, tmp_path):
    job = begin(server, image="long").json()
    address = f"/video/jobs/{job['id']}"
    while server.client.get(address).json()["frames_done"] == 0:
        time.sleep(0.05)
    assert begin(server, image="long").status_code == 409
    assert server.client.get("/info/").status_code == 200
    assert server.client.delete(address).status_code == 200
    while (told := server.client.get(address).json())["status"] == "RUNNING":
        time.sleep(0.05)
    assert told["status"] == "CANCELED"
    assert 0 < told["frames_done"] < told["frames_total"] == 60 * FRAMES
    assert len(volume(server, tmp_path, image="long")) == told["frames_done"]
    left = server.client.get("/video/progress/endomamba?image=long").json()
    assert left["continue_at"] == told["frames_done"]
    assert job["id"] in [one["id"] for one in server.client.get("/video/jobs/").json()]


def test_labels_go_out_and_come_in(server, clip, tmp_path):
    write_volume(tmp_path / "final.nii.gz", clip[1])
    assert server.put_label("clip", tmp_path / "final.nii.gz", "final").status_code == 200
    assert np.array_equal(volume(server, tmp_path, tag="final"), clip[1])
    with zipfile.ZipFile(io.BytesIO(exported(server, "final", format="png"))) as masks:
        found = [np.asarray(Image.open(masks.open(name))) for name in sorted(masks.namelist())]
    assert np.array_equal(np.stack(found), clip[1])
    assert exported(server, "final", format="overlay")[4:8] == b"ftyp"
    query = {"image": "clip", "tag": "final", "format": "cvat", "model": "endomamba"}
    content = server.client.get("/video/export", params=query).content
    query = {"model": "endomamba", "image": "clip", "tag": "fromcvat"}
    answer = server.client.put(
        "/video/label", params=query, files={"label": ("masks.zip", io.BytesIO(content))}
    )
    assert answer.json()["frames"] == [[0, FRAMES]], answer.text
    assert np.array_equal(volume(server, tmp_path, tag="fromcvat"), clip[1])
    assert nothing_left(server)


def test_bad_requests_are_one_sentence_and_change_nothing(server):
    empty = {"label": ("masks.zip", io.BytesIO(b"no zip"))}
    picture = {"mask": ("mask.png", io.BytesIO(b"no picture"))}
    program = {"mask": ("mask.py", io.BytesIO(b"print()"))}
    client = server.client
    answers = [
        (400, begin(server, start=30)),
        (400, begin(server, start="$import os")),
        (400, begin(server, prompt="../../final")),
        (404, begin(server, prompt="nothing")),
        (404, begin(server, "nothing")),
        (404, begin(server, image="/etc/passwd")),
        (404, begin(server, image="nobody")),
        (400, begin(server, image="volume")),
        (400, begin(server, files=picture, frames=[0])),
        (400, begin(server, files=picture)),
        (400, begin(server, files=program, frames=[0])),
        (404, client.get("/video/jobs/nothing")),
        (404, client.delete("/video/jobs/nothing")),
        (404, client.get("/video/progress/nothing?image=clip")),
        (404, client.get("/video/export?image=clip&tag=nothing")),
        (400, client.get("/video/export?image=volume&tag=final")),
        (422, client.get("/video/export?image=clip&tag=final&format=exe")),
        (400, client.put("/video/label?model=vivim&image=clip&tag=t", files=empty)),
        (400, client.put("/video/label?model=vivim&image=clip&tag=../t", files=empty)),
    ]
    assert [answer.status_code for _, answer in answers] == [status for status, _ in answers]
    assert all(answer.json()["detail"] for _, answer in answers)
    assert server.anonymous().get("/video/jobs/").status_code == 401
    assert nothing_left(server)


def endless(file):
    """A video of more frames than a label can have."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "250"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")
        for index in range(LONGEST + 1):
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def test_what_no_label_can_hold_is_refused_before_it_is_computed(server, tmp_path):
    endless(tmp_path / "endless.mp4")
    assert server.upload("endless", tmp_path / "endless.mp4").status_code == 200
    for piece in ({}, {"start": LONGEST - 1}, {"start": LONGEST, "end": LONGEST + 1}):
        answer = begin(server, image="endless", **piece)
        assert answer.status_code == 400, answer.text
        assert (
            "32768 frames of 16 x 16 pixels, and a NIfTI file holds 32767"
            in answer.json()["detail"]
        )
    assert not any(job["image"] == "endless" for job in server.client.get("/video/jobs/").json())
    last = {"start": LONGEST, "save_label": False}
    assert finish(server, begin(server, image="endless", **last))["status"] == "DONE"
    assert begin(server, image="endless", end=2).status_code == 400  # its label would end there
    query = {"model": "vivim", "image": "endless", "tag": "t"}
    answer = server.client.put("/video/label", params=query, files={"label": io.BytesIO(b"zip")})
    assert (answer.status_code, "32767" in answer.json()["detail"]) == (400, True)


def test_a_full_disk_is_said_with_what_is_kept(clip, tmp_path, monkeypatch):
    from nnunet_plugins.label.server.video_routes import Desk

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    put = Draft.put
    monkeypatch.setattr(Draft, "put", lambda self, i, x: full() if i == 9 else put(self, i, x))
    monkeypatch.setattr(Draft, "write", full)
    monkeypatch.setattr(Desk, "app", SimpleNamespace(temporary=tmp_path / "tmp"))
    bundle = ServedBundle(lively_bundle("endomamba", tmp_path))
    video = SeekableVideo(write_video(tmp_path / "clip.mp4", clip[0]))
    wanted = Annotation(bundle, bundle.shipped, video, Piece(0, FRAMES, FRAMES))
    draft, turns = Draft(tmp_path / "draft", wanted.key), Turns(tmp_path / "turns")
    about = SimpleNamespace(
        name="clip",
        size=(FRAMES, *SIZE),
        draft=draft,
        task=SimpleNamespace(bundle=bundle, turns=turns),
    )
    desk = Desk()
    work = partial(desk.work, about, wanted, True)
    job = desk.jobs.begin(Job({"model": "endomamba", "image": "clip"}, FRAMES), work)
    desk.jobs._worker.shutdown()
    assert (job.status, ranges(draft.done())) == ("ERROR", [(0, 9)])
    assert "disk of the studies is full; 9 finished frames of this model are kept" in job.detail
    assert "Errno" not in job.detail
    assert turns.state() == {"running": 0, "waiting": 0}
    assert not any((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_job_goes_on_with_another_server(clip, tmp_path, how):
    studies = tmp_path / "studies"
    studies.mkdir()
    write_video(studies / "long.mp4", np.concatenate([clip[0]] * 60))
    options = ("--bundles", str(lively_bundle("endomamba", tmp_path)))
    with running(studies, *options) as server:
        job = begin(server, image="long").json()
        while server.client.get(f"/video/jobs/{job['id']}").json()["frames_done"] < 80:
            time.sleep(0.02)
        server.process.send_signal(how)
        assert server.process.wait(60) is not None
    with running(studies, *options) as server:
        left = server.client.get("/video/progress/endomamba?image=long").json()
        ((start, done),) = left["frames"]
        assert start == 0
        assert 64 <= left["continue_at"] <= done < 60 * FRAMES
        end = done + 10
        again = begin(server, image="long", start=left["continue_at"], end=end)
        assert finish(server, again)["status"] == "DONE"
        pieces = volume(server, tmp_path, image="long")
        whole = finish(server, begin(server, image="long", end=end))
        assert whole["status"] == "DONE"
        assert np.array_equal(volume(server, tmp_path, image="long"), pieces)
        assert nothing_left(server)
