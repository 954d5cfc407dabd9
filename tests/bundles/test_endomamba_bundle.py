"""The bundle that segments by streaming: every frame once, in bounded memory; its training."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_plugins.bundle.export import export_bundle
from nnunet_plugins.bundle.frames import FramePlan, PlannedVideo
from nnunet_plugins.bundle.network import FoldEnsemble
from nnunet_plugins.bundle.plan import Plan
from nnunet_plugins.bundle.stream_inferer import StreamInferer
from nnunet_plugins.data import read_clip, write_video
from nnunet_plugins.networks import EndoMamba

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles/endomamba"
TRAINER = "EndoMambaTrainer_small_1epochs"
TINY = {"d_model": 16, "depth": 2, "image_size": (32, 32), "decoder_widths": (8, 8, 8, 8)}


@pytest.fixture
def results(make_video_results) -> Path:
    return make_video_results(trainer=TRAINER)


def tiny_network(seed: int) -> EndoMamba:
    torch.manual_seed(seed)
    return EndoMamba(3, 3, skips=True, **TINY).eval()


def masks(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("masks/*"))])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 20])
def test_streaming_is_the_forward_of_the_whole_video(chunk):
    network = tiny_network(0)
    video = torch.rand(1, 3, 7, 32, 48)
    with torch.inference_mode():
        whole = network(video)
    inferer = StreamInferer(chunk=chunk)
    assert torch.allclose(inferer(video, network), whole, atol=1e-5)
    frames = list(inferer(iter(video[0].unbind(1)), network))
    assert torch.allclose(torch.stack(frames, 1), whole[0], atol=1e-5)


@torch.inference_mode()
def test_views_and_members_are_averaged():
    members = [tiny_network(seed) for seed in (0, 1)]
    video = torch.rand(1, 3, 4, 32, 48)
    views = [(), (-2,), (-1,), (-2, -1)]
    expected = [m(video.flip(v)).flip(v) for m in members for v in views]
    found = StreamInferer([1, 2], chunk=3)(video, FoldEnsemble(members))
    assert torch.allclose(found, torch.stack(expected).mean(0), atol=1e-5)


def test_memory_does_not_grow_with_the_video(results, draw, tmp_path):
    plan = Plan(results, "3d_fullres")
    path = write_video(tmp_path / "long.mp4", draw(0, 40)[0])
    video = PlannedVideo(path, FramePlan(plan))
    waiting = []
    for _ in StreamInferer(chunk=4)(video, tiny_network(0)):
        waiting.append(len(video.waiting))
        video.take()
    assert len(waiting) == 40
    assert max(waiting) <= 4


@pytest.mark.parametrize(
    ("options", "words"), [({"mirror_axes": [0]}, "direction"), ({"chunk": 0}, "1 or more")]
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        StreamInferer(**options)


def test_exports_start_from_this_bundle_and_may_be_halved(results, draw, run_bundle, tmp_path):
    whole = export_bundle(results, tmp_path / "whole")
    half = export_bundle(results, tmp_path / "half", half=True)
    inference = json.loads((half / "configs/inference.json").read_text())
    assert inference["inferer"]["_target_"].endswith("StreamInferer")
    assert inference["network_def"]["_target_"].endswith("endomamba.EndoMamba")
    assert inference["mirror_axes"] == []
    sizes = [(bundle / "models/model.pt").stat().st_size for bundle in (half, whole)]
    assert sizes[0] < 0.56 * sizes[1]
    write_video(tmp_path / "a.mp4", draw(0, 6)[0])
    found = []
    for bundle in (whole, half):
        said = run_bundle(
            bundle / "configs/inference.json", bundle_root=bundle, overlay=False,
            dataset_dir=tmp_path / "a.mp4", output_dir=tmp_path / "out",
        )  # fmt: skip
        assert said == ""
        found.append(masks(tmp_path / "out/a"))
    assert len(np.unique(found[0])) > 1
    assert (found[0] == found[1]).mean() > 0.98


def test_it_trains_goes_on_and_evaluates(results, raw_videos, run_bundle, tmp_path):
    bundle = export_bundle(results, tmp_path / "bundle")
    options = {
        "bundle_root": bundle, "dataset_dir": raw_videos, "ckpt_dir": tmp_path / "weights",
        "warmup": 0, "val_interval": 1, "output_dir": tmp_path / "runs",
    }  # fmt: skip
    train = bundle / "configs/train.json"
    assert run_bundle(train, epochs=1, pretrained=bundle / "models/model.pt", **options) == ""
    assert run_bundle(train, epochs=2, resume=True, **options) == ""
    last = torch.load(tmp_path / "weights/checkpoint_last.pt", weights_only=True)
    assert last["epoch"] == 2
    said = run_bundle(
        bundle / "configs/inference.json", bundle / "configs/evaluate.json", bundle_root=bundle,
        dataset_dir=raw_videos, output_dir=tmp_path / "eval",
        ckpt_path=tmp_path / "weights/model.pt",
    )  # fmt: skip
    assert said == ""
    rows = list(csv.reader((tmp_path / "eval/dice.csv").open()))
    assert rows[0] == ["case", "polyp", "tool"]
    assert all(0 <= float(score) <= 1 for row in rows[1:] for score in row[1:])


def test_the_shipped_clip_is_segmented_from_the_root_by_the_command_as_typed(tmp_path):
    config = ["--config_file", "bundles/endomamba/configs/inference.json"]
    command = [sys.executable, "-m", "monai.bundle", "run", *config, "--output_dir", str(tmp_path)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
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


def test_a_copied_bundle_runs_elsewhere(draw, run_bundle, tmp_path, monkeypatch):
    shutil.copytree(BUNDLE, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Path("mine").mkdir()
    write_video(Path("mine/short.mp4"), draw(0, 2)[0])
    assert run_bundle("configs/inference.json", dataset_dir="mine") == ""
    assert masks(Path("predictions/short")).shape == (2, 32, 64)


def test_what_ships_is_small_and_git_takes_it_along():
    assert (BUNDLE / "models/model.pt").stat().st_size < 5e6
    assert sum(file.stat().st_size for file in (BUNDLE / "videos").iterdir()) < 1e5
    weights = torch.load(BUNDLE / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values())
    for file in (BUNDLE / "models/model.pt", *(BUNDLE / "videos").iterdir()):
        ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert ignored.returncode == 1, f"{file} is ignored"
