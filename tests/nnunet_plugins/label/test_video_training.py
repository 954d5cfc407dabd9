"""Videos that are trained on over HTTP, labelled whole or in part, and served with new weights."""

import json
import shutil
import zipfile
from pathlib import Path

import av
import monai.bundle
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from nnunet_plugins.data.clips import FrameStream, write_video
from nnunet_plugins.label.scores import dice
from nnunet_plugins.label.served import ServedBundle
from nnunet_plugins.label.shelf import Shelf
from nnunet_plugins.label.training import LabelledStudy, Round, _write_dataset, train_candidate
from nnunet_plugins.label.video.labelled import labelled_clips, labelled_runs
from tests.bundles.conftest import draw_frames, write_volume
from tests.nnunet_plugins.label.conftest import Server, needs_monai_label, running
from tests.nnunet_plugins.label.test_server import infer, wait_for
from tests.nnunet_plugins.label.video_bundles import lively_bundle

pytestmark = needs_monai_label
FRAMES, SIZE, PATCH = 9, (48, 64), [4, 32, 48]
CODECS = {".avi": "mpeg4", ".mov": "libx264", ".mkv": "mpeg4"}


def small_bundle(name: str, parent: Path) -> Path:
    """A bundle of the project that trains on small clips."""
    folder = lively_bundle(name, parent)
    file = folder / "configs" / "plans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = PATCH
    file.write_text(json.dumps(plans))
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: small_bundle(name, folder) for name in ("vivim", "endomamba")}


@pytest.fixture(scope="module")
def server(bundles, tmp_path_factory):
    """A server with videos of four kinds of files and no label."""
    studies = tmp_path_factory.mktemp("studies")
    for seed in range(3):
        write_video(studies / f"clip_{seed}.mp4", drawn(seed)[0])
    for ending in CODECS:
        write_other(studies / f"other_{ending[1:]}{ending}", drawn(5)[0])
    with running(studies, "--bundles", ",".join(map(str, bundles.values()))) as found:
        yield found


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and their classes, of which there is one."""
    frames, labels = draw_frames(seed, FRAMES, SIZE)
    return frames, (labels > 0).astype(np.uint8)


def write_other(
    file: Path, frames: np.ndarray, codec: str | None = None, pixels: str = "yuv420p"
) -> None:
    """A video in another container than MP4."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec or CODECS[file.suffix], rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def masks_of(bundle: Path, video: Path, out: Path, **options: str) -> np.ndarray:
    """What the bundle's command line gives for a video, (t, h, w)."""
    monai.bundle.run(
        config_file=str(bundle / "configs/inference.json"), logging_file=False,
        bundle_root=str(bundle), dataset_dir=str(video), output_dir=str(out), overlay=False,
        device=torch.device("cpu"), **options,
    )  # fmt: skip
    files = sorted(out.glob("*/masks/*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files]) // 255


def served_masks(server: Server, model: str, image: str, out: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(infer(server, model, image, out))))


def overlap(truth: np.ndarray, found: np.ndarray) -> float:
    """Dice of masks."""
    return 2 * (truth & found).sum() / (truth.sum() + found.sum())


def put(server: Server, name: str, label: np.ndarray, folder: Path) -> None:
    """A final label of a study."""
    write_volume(folder / f"{name}.nii.gz", label)
    answer = server.put_label(name, folder / f"{name}.nii.gz")
    assert answer.status_code == 200, answer.text


def trained(server: Server, model: str, **options: float) -> dict:
    """The report of a round."""
    begun = server.client.post(f"/train/{model}", json=options)
    assert begun.status_code == 200, begun.text
    job = wait_for(server, "/train/")
    assert job["status"] == "DONE", job["details"][-20:]
    return server.client.get(f"/candidate/{model}").json()


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("model", ["vivim", "endomamba"])
def test_other_containers_are_served_like_mp4(server, bundles, tmp_path, model, ending):
    name = f"other_{ending[1:]}"
    listed = server.client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert listed[name]["image"]["ext"] == ending
    found = served_masks(server, model, name, tmp_path)
    assert 0 < found.mean() < 1
    assert found.shape == (FRAMES, *SIZE)
    expected = masks_of(bundles[model], server.studies / f"{name}{ending}", tmp_path / "out")
    assert np.array_equal(found, expected)


def test_another_container_is_sent_and_comes_back(server, tmp_path):
    write_other(tmp_path / "sent.mov", drawn(6)[0])
    assert server.upload("sent", tmp_path / "sent.mov").json() == {"image": "sent"}
    back = server.client.get("/datastore/image", params={"image": "sent"})
    assert back.content == (tmp_path / "sent.mov").read_bytes()
    assert served_masks(server, "vivim", "sent", tmp_path).shape == (FRAMES, *SIZE)


@pytest.mark.parametrize("model", ["vivim", "endomamba"])
def test_a_round_on_videos_is_scored_promoted_and_served(server, bundles, tmp_path, model):
    names = [f"clip_{seed}" for seed in range(3)] + ["other_avi"]
    for name, seed in zip(names, (0, 1, 2, 5), strict=True):
        put(server, name, drawn(seed)[1], tmp_path)
    before = served_masks(server, model, "clip_0", tmp_path)
    report = trained(server, model, max_epochs=2, learning_rate=1e-3)
    assert sorted(report["trained_on"] + report["held_out"]) == names
    assert set(report["mean_dice"]) == {"candidate", "served"}
    assert report["verdict"].startswith("the candidate is ")
    assert np.array_equal(served_masks(server, model, "clip_0", tmp_path), before)
    seen = {"candidate": report["weights"]}
    assert server.client.post(f"/promote/{model}", params=seen).status_code == 200
    promoted = server.studies / f".mambamed/models/{model}/model.pt"
    bundle = shutil.copytree(bundles[model], tmp_path / model)
    assert promoted.read_bytes() != (bundle / "models/model.pt").read_bytes()
    shutil.copyfile(promoted, bundle / "models/model.pt")
    for name in ("clip_0", "other_mov"):
        (file,) = server.studies.glob(f"{name}.*")
        after = served_masks(server, model, name, tmp_path)
        assert np.array_equal(after, masks_of(bundle, file, tmp_path / f"out_{name}"))
    (held,) = report["held_out"]
    truth = drawn({"clip_0": 0, "clip_1": 1, "clip_2": 2, "other_avi": 5}[held])[1]
    found = served_masks(server, model, held, tmp_path)
    assert report["mean_dice"]["candidate"] == pytest.approx(overlap(truth, found))


def test_a_video_whose_corners_are_black_is_trained_on_whole(bundles, tmp_path):
    """nnU-Net crops what is zero from volumes; frames are seen whole when they are segmented."""
    frames, labels = drawn(0)
    shown = np.zeros((FRAMES, 80, 96, 3), np.uint8)
    shown[:, 16:64, 16:80] = frames
    write_video(tmp_path / "clip.mp4", shown)
    write_volume(tmp_path / "label.nii.gz", np.pad(labels, [(0, 0), (16, 16), (16, 16)]))
    study = LabelledStudy("clip", tmp_path / "clip.mp4", tmp_path / "label.nii.gz")
    plan = ServedBundle(bundles["vivim"]).plan
    _write_dataset(tmp_path / "dataset", [study], plan)
    images = sorted((tmp_path / "dataset/imagesTr").iterdir())
    (label,) = (tmp_path / "dataset/labelsTr").iterdir()
    image, label, _ = plan.preprocess(images, label)
    assert image.shape == (3, FRAMES, 80, 96)
    assert np.array_equal(label[0, :, 16:64, 16:80], labels)


@pytest.mark.parametrize(
    ("known", "runs"),
    [
        ("LLLL", [(0, 4)]),
        ("?L?", [(1, 2)]),
        ("LL??L", [(0, 2), (4, 5)]),
        ("?LL?p?LL", [(1, 3), (6, 8)]),
        ("pp??", []),
    ],
)
def test_runs_of_labelled_frames_are_found(known, runs):
    """L is labelled, ? is not, p in part."""
    labels = np.zeros((len(known), 4, 5), np.uint8)
    for frame, letter in zip(labels, known, strict=True):
        frame[:2] = 255 if letter in "?p" else 1
        frame[2:] = 255 if letter == "?" else 0
    assert labelled_runs(labels) == runs


def test_clips_are_the_labelled_frames_and_short_ones_go_forth_and_back(tmp_path):
    frames, labels = drawn(1)
    video = write_video(tmp_path / "clip.mp4", frames)
    decoded = np.stack([frame for _, frame in FrameStream(video)])
    labels[[0, 3, 7, 8]] = 255
    first, second = labelled_clips(video, labels[:8], 3)
    for clip, kept in ((first, [1, 2, 2]), (second, [4, 5, 6])):
        assert np.array_equal(clip.frames, decoded[kept])
        assert np.array_equal(clip.labels, labels[kept])
    labels[[4, 6]] = 255
    *_, still = labelled_clips(video, labels, 4)
    assert np.array_equal(still.frames, decoded[[5] * 4])
    with pytest.raises(ValueError, match="more than can be read"):
        list(labelled_clips(video, np.ones((FRAMES + 1, *SIZE), np.uint8), 3))
    with pytest.raises(ValueError, match="rows and columns"):
        list(labelled_clips(video, np.ones((FRAMES, 4, 5), np.uint8), 3))


def candidate(bundle: ServedBundle, folder: Path, marked: list[np.ndarray], seen: list) -> tuple:
    """Weights and report of a round on videos with such labels."""
    studies = []
    folder.mkdir()
    for seed, (label, frames) in enumerate(zip(marked, seen, strict=True)):
        video = folder / f"clip_{seed}.avi"
        write_other(video, frames, "mjpeg", "yuvj420p")  # no frame depends on another
        write_volume(folder / f"label_{seed}.nii.gz", label)
        studies.append(LabelledStudy(f"clip_{seed}", video, folder / f"label_{seed}.nii.gz"))
    shelf = Shelf(folder / "shelf", bundle.shipped)
    report = train_candidate(bundle, shelf, studies, Round(epochs=1, learning_rate=1e-3))
    return torch.load(shelf.candidate, weights_only=True), report


def in_part(label: np.ndarray, frames: list[int], fill: int = 255) -> np.ndarray:
    """A label of which some frames are drawn."""
    found = np.full_like(label, fill)
    found[frames] = label[frames]
    return found


@pytest.mark.parametrize("model", ["vivim", "endomamba"])
def test_frames_without_a_label_teach_nothing(bundles, tmp_path, model):
    """What was never drawn changes no weight; taken for background, it does."""
    bundle = ServedBundle(bundles[model])
    frames, labels = (list(part) for part in zip(*map(drawn, range(3)), strict=True))
    drawn_on = [0, 1, 2, 3, 5]
    others = [clip.copy() for clip in frames]
    for clip in others:
        clip[[4, 6, 7, 8]] = 255 - clip[[4, 6, 7, 8]]
    marked = [in_part(label, drawn_on) for label in labels]
    one, report = candidate(bundle, tmp_path / "one", marked, frames)
    shorter = [label[:6] for label in marked]
    for name, given, seen in (("other", marked, others), ("shorter", shorter, frames)):
        again, _ = candidate(bundle, tmp_path / name, given, seen)
        assert all(torch.equal(one[part], again[part]) for part in one)
    background = [in_part(label, drawn_on, 0) for label in labels]
    wrong, _ = candidate(bundle, tmp_path / "wrong", background, frames)
    assert not all(torch.equal(one[part], wrong[part]) for part in one)
    assert len(report["trained_on"]) == 2
    assert report["labelled_frames"] == {"trained_on": 10, "held_out": 5}
    (held,) = report["held_out"]
    assert 0 <= report["dice"]["candidate"][held]["polyp"] <= 1


def test_a_label_without_a_whole_frame_is_named(bundles, tmp_path):
    labels = [drawn(seed)[1] for seed in range(2)]
    labels[1][:, 0, 0] = 255
    frames = [drawn(seed)[0] for seed in range(2)]
    with pytest.raises(ValueError, match="no frame of the final label of clip_1 is labelled"):
        candidate(ServedBundle(bundles["vivim"]), tmp_path / "clips", labels, frames)


def test_unlabelled_pixels_of_videos_do_not_score(tmp_path):
    truth, found = np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0, :2], found[0, :1] = 1, 1
    truth[1], found[1] = 255, 1
    found[2], found[3] = 255, 1
    for name, array in (("truth", truth), ("found", found)):
        write_volume(tmp_path / f"{name}.nii.gz", array)
    files = (tmp_path / "truth.nii.gz", tmp_path / "found.nii.gz", {"polyp": 1})
    assert dice(*files, of_video=True) == {"polyp": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="the shape"):
        dice(*files)


def test_frames_corrected_over_http_are_trained_on(server, bundles, tmp_path):
    """Masks of some frames come as CVAT and programs send them: a zip, or a volume with 255."""
    truths = {f"clip_{seed}": drawn(seed)[1] for seed in range(3)}
    for name, truth in truths.items():
        put(server, name, in_part(truth, [2, 3, 6]), tmp_path)
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        for index in (0, 4):
            Image.fromarray(drawn(5)[1][index]).save(tmp_path / "mask.png")
            archive.write(tmp_path / "mask.png", f"frame_{index:06d}.png")
    with (tmp_path / "masks.zip").open("rb") as stream:
        query = {"model": "endomamba", "image": "other_avi", "tag": "final"}
        answer = server.client.put("/video/label", params=query, files={"label": stream})
    assert answer.json()["frames"] == [[0, 1], [4, 5]], answer.text
    report = trained(server, "endomamba", max_epochs=1, learning_rate=1e-4)
    assert set(report["trained_on"] + report["held_out"]) == {*truths, "other_avi"}
    (held,) = report["held_out"]
    frames = [0, 4] if held == "other_avi" else [2, 3, 6]
    truth = truths.get(held, drawn(5)[1])[frames]
    seen = {"candidate": report["weights"]}
    assert server.client.post("/promote/endomamba", params=seen).status_code == 200
    found = served_masks(server, "endomamba", held, tmp_path)[frames]
    assert report["mean_dice"]["candidate"] == pytest.approx(overlap(truth, found))


def test_predictions_are_scored_on_labelled_frames(server, tmp_path):
    truth = drawn(5)[1]
    put(server, "other_mkv", in_part(truth, [1, 7]), tmp_path)
    infer(server, "vivim", "other_mkv", tmp_path, params='{"save_label": true}')
    assert server.client.post("/scoring/dice").status_code == 200
    job = wait_for(server, "/scoring/")
    assert job["status"] == "DONE", job["details"][-20:]
    found = served_masks(server, "vivim", "other_mkv", tmp_path)
    told = server.client.get("/datastore/image/info", params={"image": "other_mkv"}).json()
    assert told["dice"] == {"polyp": pytest.approx(overlap(truth[[1, 7]], found[[1, 7]]))}
