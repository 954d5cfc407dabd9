"""`python -m pretrain endomamba`, `teacher-features` and `export` as a user types them."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nnunet_plugins.networks import EndoMamba
from nnunet_plugins.networks.weights import fit
from pretrain.__main__ import main
from pretrain.blueprint import CLIP_NETWORKS, Blueprint
from pretrain.export import read_pretrained, trainer_of
from pretrain.teachers.endomamba import endomamba_teacher
from pretrain.teachers.features import FeatureTeacher
from pretrain.teachers.located import LocatedClips
from pretrain.videos import ClipSettings, VideoClips, find_videos, first_pass
from tests.pretrain.runs import assert_same_outcome, wait_for
from tests.pretrain.videos.generated import moving, write_frames, write_video

ROOT = Path(__file__).parents[2]
TINY = ("--frames", "2", "--stride", "2", "--size", "32", "48", "--clips", "4", "--device", "cpu")
TINY += ("--batch-size", "2", "--precision", "no", "--decoder-width", "12", "--decoder-depth", "1")
TINY += ("--side", "48", "--epochs", "2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "one.mp4", moving(14, (48, 64)))
    write_frames(folder / "two", moving(8, (48, 64), seed=1))
    return folder


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A finished run, with pictures."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["endomamba", str(videos), "--out", str(folder), *TINY]) == 0
    return folder


def log(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def clip_plans(folder, channels=3, scheme="RGBTo01Normalization"):
    """What EndoMambaPlanner leaves, as far as export reads it."""
    entry = {
        "patch_size": [8, 64, 96],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": [scheme] * channels,
        "architecture": {"arch_kwargs": {}},
    }
    plans = {
        "configurations": {"3d_fullres": entry},
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
    path = folder / "nnUNetEndoMambaPlans.json"
    path.write_text(json.dumps(plans))
    return path


def one_line(capsys, *command: str) -> str:
    assert main([*command]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"python -m pretrain {command[0]}: ")
    return said


def test_a_run_leaves_log_pictures_and_weights(run):
    rows = log(run)
    assert len(rows) == 2
    for row in rows:
        assert 0.9 < float(row["patch_mean"]) <= 1
        assert float(row["loss"]) == pytest.approx(float(row["reconstruction"]))
        assert "alignment" not in row
    assert (run / "pictures/epoch_0002.png").stat().st_size > 1000
    assert len(json.loads((run / "data.json").read_text())["videos"]) == 2
    pretrained = read_pretrained(run)
    assert pretrained.metadata["objective"] == "endomamba"
    network = pretrained.blueprint.build()
    assert isinstance(network, EndoMamba)
    report = fit(network, pretrained.weights)
    assert not report.unexpected
    assert not report.misshapen
    assert all(name.startswith("decoder.") for name in report.missing)
    assert pretrained.weights["encoder.pos_embed"][:, 1:].abs().sum() > 0


def test_the_weights_are_for_clips_in_0_1(run):
    """The checkpoint's are for normalised ones; the difference is the patch embedding's alone."""
    model = torch.load(run / "checkpoint_last.pt", weights_only=True)["model"]
    with safe_open(run / "last.safetensors", "pt") as opened:
        handed_on = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    changed = {
        name for name, x in handed_on.items()
        if not torch.equal(x, model[name.replace("encoder.", "backbone.", 1)])
    }  # fmt: skip
    assert changed == {"encoder.patch_embed.weight", "encoder.patch_embed.bias"}


def test_the_file_for_nnunet_fits_the_small_trainer(run, tmp_path, capsys):
    from nnunet_plugins.trainers.EndoMambaTrainer_small import EndoMambaTrainer_small as Trainer

    out, plans = tmp_path / "nnunet.pth", str(clip_plans(tmp_path))
    command = ["export", str(run), "--to", "nnunet", "--plans", plans, "--out", str(out), "--keys"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "-tr EndoMambaTrainer_small -pretrained_weights" in said
    assert "Note" not in said
    weights = torch.load(out, weights_only=True)["network_weights"]
    network = Trainer.network_class(3, 4, **Trainer.network_options)
    report = fit(network, weights)
    assert not report.missing
    assert not report.unexpected
    assert all(".seg_layers." in name for name in report.misshapen)
    pretrained = read_pretrained(run).weights
    assert all(torch.equal(weights[name], x) for name, x in pretrained.items())
    lines = dict(line.rsplit(" ", 1)[::-1] for line in said.splitlines()[: len(weights)])
    assert lines.keys() == weights.keys()
    assert lines["encoder.pos_embed"].strip() == "pretrained"
    assert lines["encoder.cls_token"].strip() == "as it began"
    assert lines["decoder.widen.0.weight"].strip() == "new"


def test_plans_of_other_images_are_told_or_refused(run, tmp_path, capsys):
    plans = str(clip_plans(tmp_path, scheme="ZScoreNormalization"))
    command = ["export", str(run), "--to", "nnunet", "--plans", plans, "--out", str(tmp_path / "x")]
    assert main(command) == 0
    assert "clips want RGB / 255" in capsys.readouterr().out
    clip_plans(tmp_path, channels=1)
    assert "is for 1 channels and 3 were pretrained" in one_line(capsys, *command)


def test_a_bundle_of_the_network_gets_the_weights(run, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    network = {"_target_": "nnunet_plugins.networks.endomamba.EndoMamba", "num_classes": 3}
    network |= {"input_channels": 3, **CLIP_NETWORKS["endomamba_small"]}
    (tmp_path / "configs/train.json").write_text(json.dumps({"network_def": network}))
    assert main(["export", str(run), "--to", "bundle", "--out", str(tmp_path)]) == 0
    again = read_pretrained(tmp_path / "models/pretrained.safetensors")
    assert again.weights.keys() == read_pretrained(run).weights.keys()


@pytest.mark.parametrize("name", CLIP_NETWORKS)
def test_the_trainer_that_builds_the_same_network(name):
    from nnunet_plugins.registry import find_class

    trainer = trainer_of(Blueprint.of_clips(name, 3, drop_path=0.0))
    found = find_class(trainer)
    with torch.device("meta"):
        ours = Blueprint.of_clips(name, 3).build().state_dict()
        theirs = found.network_class(3, 2, **found.network_options).state_dict()
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
    assert trainer_of(Blueprint.of_clips(name, 3, d_state=8)) is None


def test_a_run_that_was_killed_ends_the_same(videos, run, tmp_path):
    killed = tmp_path / "killed"
    arguments = ["endomamba", str(videos), "--out", str(killed), *TINY]
    process = subprocess.Popen(
        [sys.executable, "-m", "pretrain", *arguments, "--checkpoint-minutes", "1e-9"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = killed / "checkpoint_last.pt"
    try:
        wait_for(lambda: checkpoint.exists() or process.poll() is not None)
        first = checkpoint.stat().st_ino
        wait_for(lambda: checkpoint.stat().st_ino != first or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert torch.load(checkpoint, weights_only=True)["progress"]["epoch"] < 2
    assert main([*arguments, "--resume"]) == 0
    assert_same_outcome(killed, run)


@pytest.mark.parametrize("kind", ["endomamba", "features"])
def test_a_teacher_guides_and_is_recorded(videos, run, tmp_path, kind, capsys):
    told = f"endomamba:{run}"
    if kind == "features":
        folder = tmp_path / "features"
        command = ["teacher-features", str(videos), "--teacher", told, "--out", str(folder)]
        command += ["--frames", "4", "--stride", "2", "--size", "32", "48"]
        assert main(command) == 0
        assert "2 videos" in capsys.readouterr().out
        assert main(command) == 0
        assert ", 0 of them new" in capsys.readouterr().out
        assert "another teacher, or of clips" in one_line(capsys, *command, "--fps", "5")
        told = f"features:{folder}"
    taught = tmp_path / "taught"
    command = ["endomamba", str(videos), "--out", str(taught), *TINY, "--teacher", told]
    assert main(command) == 0
    for row in log(taught):
        total = float(row["reconstruction"]) + 0.25 * float(row["alignment"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
    recorded = read_pretrained(taught).metadata["teacher"]
    assert recorded["fingerprint"] == endomamba_teacher(run).fingerprint
    model = torch.load(taught / "checkpoint_last.pt", weights_only=True)["model"]
    assert not any("teacher" in name for name in model)
    without = [one for one in command if one not in ("--teacher", told)]
    assert "run.teacher" in one_line(capsys, *without, "--resume")


def test_features_on_disk_are_those_of_the_clip_that_is_shown(videos, run, tmp_path):
    """Unchanged frames: what is read from disk is what the teacher says of the clip itself."""
    folder, cache = tmp_path / "features", str(tmp_path / "cache")
    command = ["teacher-features", str(videos), "--teacher", f"endomamba:{run}", "--out"]
    size = ["--frames", "1", "--stride", "1", "--size", "48", "64", "--cache", cache]
    assert main([*command, str(folder), *size]) == 0
    findings = first_pass(find_videos(videos), cache)
    settings = ClipSettings(
        frames=1, stride=1, size=(48, 64), scale=(0.999, 1), ratio=(1.3, 1.34), colour=0, flip=False
    )
    clips = LocatedClips(VideoClips(findings, settings))
    clips.set_epoch(0)
    stored = FeatureTeacher(folder, [kept.content for kept in findings.kept])
    running = endomamba_teacher(run)
    for index in (0, len(clips) - 1):
        item = {name: x[None] for name, x in clips[index].items()}
        clip = item.pop("clip")
        wanted, found = running.tokens(clip), stored.tokens(clip, **item)
        cosine = torch.cosine_similarity(wanted, found, dim=-1)
        assert cosine.min() > 0.99
        other = {**item, "frames": item["frames"] - 3 if index else item["frames"] + 3}
        assert torch.cosine_similarity(wanted, stored.tokens(clip, **other), dim=-1).min() < 0.98


def test_refusals(videos, run, tmp_path, capsys):
    out = ("--out", str(tmp_path / "run"), *TINY)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no videos" in one_line(capsys, "endomamba", str(empty), *out)
    (empty / "a.mp4").write_bytes(b"rubbish")
    assert main(["endomamba", str(empty), *out]) == 1
    assert "1 of 1 videos cannot be used" in capsys.readouterr().err
    shelf = ("endomamba", str(videos), *out)
    assert "shorter than a clip" in one_line(capsys, *shelf, "--frames", "40")
    assert "sides that 16 divides" in one_line(capsys, *shelf, "--size", "40", "48")
    assert "mask_ratio is 1" in one_line(capsys, *shelf, "--mask-ratio", "1")
    assert "give KIND:PATH" in one_line(capsys, *shelf, "--teacher", "videomae")
    features = f"features:{empty}"
    assert "holds no teacher.json" in one_line(capsys, *shelf, "--teacher", features)
    assert "no run to resume" in one_line(capsys, *shelf, "--resume")
    assert "already holds a run" in one_line(
        capsys, "endomamba", str(videos), "--out", str(run), *TINY
    )
    other = tmp_path / "volumes"
    other.mkdir()
    config = {"settings": {}, "run": {"objective": "mambamim"}}
    (other / "config.json").write_text(json.dumps(config))
    command = ("endomamba", str(videos), "--out", str(other), *TINY, "--resume")
    assert "holds a run of mambamim and cannot be resumed as endomamba" in one_line(
        capsys, *command
    )
