"""The bundle of video: files in, masks and overlays out, in the memory of a clip; its refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from nnunet_plugins.bundle import command
from nnunet_plugins.bundle.command import find_bundle_root
from nnunet_plugins.bundle.export import export_bundle
from nnunet_plugins.bundle.frames import FramePlan, PlannedVideo
from nnunet_plugins.bundle.inferer import VideoInferer
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.bundle.transforms import ForegroundMasksd
from nnunet_plugins.data import convert_images, find_videos, read_clip, write_video
from tests.bundles.test_export import predict_with_nnunet

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles/vivim"


@pytest.fixture
def bundle(make_video_results, tmp_path) -> Path:
    return export_bundle(make_video_results(), tmp_path / "bundle")


@pytest.fixture
def segment(run_bundle, tmp_path):
    """Run inference.json without mirroring; the sentence it ends with, if any."""

    def run(bundle: Path, source: Path, **options) -> str:
        options = {"mirror_axes": [], "output_dir": tmp_path / "out", **options}
        return run_bundle(
            bundle / "configs/inference.json", bundle_root=bundle, dataset_dir=source, **options
        )

    return run


def write_frames(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"frame_{number}.png")
    return folder


def write(path: Path, pictures: np.ndarray) -> Path:
    """A video in the format that its name asks for."""
    if not path.suffix:
        return write_frames(path, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pixels = {".gif": ("gif", "rgb8"), ".avi": ("mpeg4", "yuv420p")}.get(
        path.suffix, ("libx264", "yuv420p")
    )
    faststart = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=faststart) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pixels
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def masks(folder: Path) -> np.ndarray:
    """Masks of a video, (t, h, w)."""
    files = sorted((folder / "masks").iterdir(), key=lambda file: (len(file.name), file.name))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_the_shipped_clip_is_segmented_from_the_root_by_the_command_as_typed(tmp_path):
    options = ["--output_dir", str(tmp_path), "--mirror_axes", "[]"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    config = ["--config_file", "bundles/vivim/configs/inference.json"]
    command = [sys.executable, "-m", "monai.bundle", "run", *config, *options]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (clip,) = (BUNDLE / "videos").iterdir()
    frames = read_clip(clip).frames
    found = masks(tmp_path / clip.stem)
    assert found.shape == frames.shape[:3]
    assert set(np.unique(found)) == {0, 255}
    assert read_clip(tmp_path / clip.stem / "overlay.mp4").frames.shape == frames.shape
    assert str(tmp_path / clip.stem) in done.stdout


def test_what_ships_is_small_and_trained():
    assert (BUNDLE / "models/model.pt").stat().st_size < 5e6
    assert sum(file.stat().st_size for file in (BUNDLE / "videos").iterdir()) < 3e5
    weights = torch.load(BUNDLE / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())
    scores = json.loads((BUNDLE / "configs/metadata.json").read_text())["eval_metrics"]
    assert scores["dice_fold_0"] > 0.7


def test_git_takes_what_ships_along():
    for file in (BUNDLE / "models/model.pt", *(BUNDLE / "videos").iterdir()):
        ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert ignored.returncode == 1, f"{file} is ignored"


def test_a_copied_bundle_runs_elsewhere(draw, run_bundle, tmp_path, monkeypatch):
    shutil.copytree(BUNDLE, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    write(Path("mine/short.mp4"), draw(0, 2)[0])
    said = run_bundle("configs/inference.json", dataset_dir="mine", mirror_axes=[])
    assert said == ""
    assert masks(Path("predictions/short")).shape == (2, 32, 64)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mov", "a.gif", "a"])
def test_videos_come_in_many_formats(bundle, segment, draw, tmp_path, name):
    pictures = draw(0, 7, (40, 66))[0]
    write(tmp_path / "videos" / name, pictures)
    assert segment(bundle, tmp_path / "videos") == ""
    found = masks(tmp_path / "out/a")
    assert found.shape == pictures.shape[:3]
    assert set(np.unique(found)) <= {0, 1, 2}
    assert len(np.unique(found)) > 1
    assert read_clip(tmp_path / "out/a/overlay.mp4").frames.shape == pictures.shape
    names = {file.stem for file in (tmp_path / "out/a/masks").iterdir()}
    assert ("frame_6" if name == "a" else "0007") in names


@pytest.mark.parametrize(
    ("frames", "size", "spacing", "folds"),
    [
        (4, (32, 64), 1.0, (0,)),
        (4, (30, 51), 1.0, (0,)),
        (8, (40, 90), 1.0, (0,)),
        (6, (64, 96), 1.7, (0, 1)),
    ],
    ids=["one window", "smaller frames", "windows in time and space", "shrunk, two folds"],
)
@pytest.mark.parametrize("axes", [[], [1, 2]], ids=["plain", "mirrored"])
def test_bundle_and_nnunet_predict_the_same(
    make_video_results, segment, draw, tmp_path, frames, size, spacing, folds, axes
):
    results = make_video_results(spacing, folds)
    source = write_frames(tmp_path / "videos/a", draw(0, frames, size)[0])
    convert_images(find_videos(source.parent), tmp_path / "images")
    (tmp_path / "images/videos.json").unlink()
    blended = size[0] > 32 or frames > 4  # else weights cancel, but for nnU-Net's rounding of them
    predict_with_nnunet(
        results, tmp_path / "images", tmp_path / "expected", folds, bool(axes), blended
    )
    bundle = export_bundle(results, tmp_path / "bundle")
    assert segment(bundle, source.parent, mirror_axes=axes) == ""
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "expected/a.nii.gz")))
    assert len(np.unique(expected)) > 1
    assert (masks(tmp_path / "out/a") == expected).mean() >= 0.999


def test_memory_does_not_grow_with_the_video(make_video_results, draw, tmp_path):
    plan = Plan(make_video_results(), "3d_fullres")
    network = torch.nn.Conv3d(3, 3, 1)
    most = {}
    for frames in (12, 60):
        path = write_video(tmp_path / f"{frames}.mp4", draw(0, frames)[0])
        video = PlannedVideo(path, FramePlan(plan))
        waiting = []
        for _ in VideoInferer(plan)(video, network):
            waiting.append(len(video.waiting))
            video.take()
        assert len(waiting) == frames
        most[frames] = max(waiting)
    assert most[60] == most[12] <= 4 + 2


def test_tensors_and_streams_are_predicted_alike(make_video_results):
    inferer = VideoInferer(Plan(make_video_results(), "3d_fullres"))
    network = torch.nn.Conv3d(3, 3, (1, 3, 3), padding=(0, 1, 1))
    videos = torch.rand(2, 3, 9, 32, 64)
    logits = inferer(videos, network)
    assert logits.shape == (2, 3, 9, 32, 64)
    assert torch.allclose(logits, network(videos), atol=1e-2)
    assert torch.equal(torch.stack(list(inferer(videos[1].unbind(1), network)), 1), logits[1])


def test_a_truncated_video_keeps_its_frames(bundle, segment, draw, tmp_path, caplog):
    path = write(tmp_path / "videos/cut.mp4", np.concatenate([draw(s, 6)[0] for s in range(8)]))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with caplog.at_level("WARNING"):
        assert segment(bundle, path) == ""
    kept = len(masks(tmp_path / "out/cut"))
    assert 4 < kept < 48
    assert f"the video broke after frame {kept}" in caplog.text


def test_grey_frames_and_transparency_are_said(bundle, segment, draw, tmp_path, caplog):
    pictures = draw(0, 3)[0]
    alpha = np.full((*pictures.shape[:3], 1), 200, np.uint8)
    write_frames(tmp_path / "videos/grey", pictures[..., 0])
    write_frames(tmp_path / "videos/clear", np.concatenate([pictures, alpha], -1))
    with caplog.at_level("WARNING"):
        assert segment(bundle, tmp_path / "videos") == ""
    assert "grey: grey frames" in caplog.text
    assert "clear: frames with transparency" in caplog.text


def test_one_bad_video_does_not_stop_the_others(bundle, segment, draw, tmp_path):
    for name in ("a.mp4", "c.mp4"):
        write(tmp_path / "videos" / name, draw(0, 3)[0])
    (tmp_path / "videos/b.mp4").write_bytes(b"no video" * 100)
    said = segment(bundle, tmp_path / "videos")
    assert said.startswith("1 of 3 videos could not be segmented")
    assert "b.mp4 cannot be decoded" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "c"]


def no_frames(folder: Path) -> Path:
    with av.open(str(folder / "empty.mp4"), "w") as container:
        container.add_stream("libx264", rate=10)
    return folder / "empty.mp4"


def no_video(folder: Path) -> Path:
    (folder / "noise.avi").write_bytes(os.urandom(2000))
    return folder / "noise.avi"


def sizes_differ(folder: Path) -> Path:
    for number, side in enumerate((32, 32, 40)):
        Image.fromarray(np.zeros((side, 64, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_frames, "empty.mp4"),
        (no_video, "it broke before the first frame"),
        (sizes_differ, "all frames of a video need one size"),
        (lambda folder: folder, "holds no videos"),
        (lambda folder: folder / "nowhere", "does not exist"),
    ],
    ids=["no frames", "no video", "sizes differ", "empty folder", "nowhere"],
)
def test_videos_that_cannot_be_segmented_are_one_sentence(bundle, segment, tmp_path, spoil, words):
    (tmp_path / "videos").mkdir()
    said = segment(bundle, spoil(tmp_path / "videos"))
    assert words in said
    assert "\n" not in said
    assert not list((tmp_path / "out").glob("*"))
    assert not list((tmp_path / "out").glob(".*"))


def test_results_are_replaced_and_other_folders_are_not(bundle, segment, draw, tmp_path):
    source = write(tmp_path / "a.mp4", draw(0, 5)[0])
    assert segment(bundle, source) == ""
    write(source, draw(0, 3)[0])
    assert segment(bundle, source, overlay=False) == ""
    assert [path.name for path in (tmp_path / "out/a").iterdir()] == ["masks"]
    assert len(masks(tmp_path / "out/a")) == 3
    (tmp_path / "out/a/thesis.tex").touch()
    assert "thesis.tex" in segment(bundle, source)
    assert len(masks(tmp_path / "out/a")) == 3


def test_options_that_cannot_be_are_refused(make_video_results):
    plan = Plan(make_video_results(), "3d_fullres")
    with pytest.raises(ValueError, match="direction"):
        VideoInferer(plan, [0, 1])
    with pytest.raises(ValueError, match="overlap"):
        VideoInferer(plan, overlap=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalization_schemes": ["ZScoreNormalization"] * 3}, "ZScoreNormalization needs whole"),
        ({"spacing": [2.0, 1.0, 1.0]}, "resamples time"),
        ({"patch_size": [32, 64], "spacing": [1.0, 1.0]}, "no time"),
    ],
    ids=["normalisation", "time", "2d"],
)
def test_plans_that_are_not_of_video_are_refused(make_video_results, change, words):
    results = make_video_results()
    plans = json.loads((results / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= change
    (results / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=words) as raised:
        FramePlan(Plan(results, "3d_fullres"))
    assert "-pl VivimPlanner" in str(raised.value)


def test_an_exported_bundle_is_one_of_video(bundle):
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert "av" in metadata["required_packages_version"]
    inference = json.loads((bundle / "configs/inference.json").read_text())
    assert inference["mirror_axes"] == [1, 2]
    assert inference["network_def"]["_target_"] == "nnunet_plugins.networks.vivim.Vivim"
    assert inference["network_def"]["num_classes"] == 3
    assert not (bundle / "videos").exists()


def test_wrong_options_end_the_command_with_a_sentence(segment, tmp_path):
    clip = BUNDLE / "videos"
    assert "time has a direction" in segment(BUNDLE, clip, mirror_axes=[0, 1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--config_file {}", "--config_file=['{}','x/evaluate.json']"])
def test_the_bundle_is_that_of_the_configuration_which_is_run(monkeypatch, tmp_path, option):
    other = tmp_path / "other"
    shutil.copytree(BUNDLE / "configs", other / "configs")
    words = option.format(other / "configs/inference.json").split()
    monkeypatch.setattr(sys, "argv", ["monai", "run", *words])
    monkeypatch.chdir(ROOT)  # which has a bundle of that name
    assert Path(find_bundle_root("vivim")) == other
    monkeypatch.setattr(sys, "argv", ["monai", "run"])
    assert find_bundle_root("vivim") == "bundles/vivim"


def test_a_fold_with_fewer_cases_than_processes_is_refused(make_video_results, monkeypatch):
    results = make_video_results()
    cases = [{"image": ["a"], "label": "a"}]
    monkeypatch.setattr(command, "cases_of_fold", lambda *arguments: cases)
    assert command.list_cases("raw", Plan(results, "3d_fullres"), "validation") == cases
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="1 cases for validation and there are 2 processes"):
        command.list_cases("raw", Plan(results, "3d_fullres"), "validation")


def test_unknown_pixels_do_not_count_in_masks(make_video_results):
    results = make_video_results()
    dataset = json.loads((results / "dataset.json").read_text())
    names = [name for name in dataset["labels"] if name != "background"]
    ignored = len(names) + 1
    dataset["labels"]["ignore"] = ignored
    (results / "dataset.json").write_text(json.dumps(dataset))
    truth = torch.tensor([[[0, 1, ignored, 1]]])
    masks = ForegroundMasksd(Plan(results, "3d_fullres"))(
        {"pred": torch.tensor([[[1, 1, 1, 0]]]), "label": truth}
    )
    assert masks["pred"][0].flatten().tolist() == [1, 1, 0, 0]
    assert masks["label"][0].flatten().tolist() == [0, 1, 0, 1]
