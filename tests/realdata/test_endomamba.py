"""Real videos through the streaming bundles, split by sequence; run by `pytest -m realdata`."""

import csv
import json
import shutil
from pathlib import Path

import av
import pytest

from nnunet_plugins.cli import main
from tests.realdata.test_bundle import ROOT, monai

pytestmark = pytest.mark.realdata
SMALL = {
    "--network_def#d_model": 48, "--network_def#depth": 4, "--image_size": "[64,64]",
    "--stride": 4,
}  # fmt: skip


def videos_of(shared: Path) -> list[Path]:
    data = shared / "data"
    files = [*(data / "video_unlabelled").iterdir(), *data.glob("video/VTUS/*/*.mp4")]
    return sorted(file for file in files if file.is_file())


def test_every_real_video_streams(shared, tmp_path):
    """MP4, MOV and MPEG of all sizes, frames that nobody announces: each has its answer."""
    videos = videos_of(shared)
    assert {video.suffix for video in videos} == {".mp4", ".mov", ".mpeg"}
    for video in videos:
        out, report = tmp_path / f"{video.stem}.mp4", tmp_path / f"{video.stem}.json"
        words = ["stream", video, "--bundle", ROOT / "bundles/endomamba", "--out", out]
        words += ["--json", report, "--device", "cpu", "--max-frames", 12]
        assert main([str(word) for word in words]) == 0
        figures = json.loads(report.read_text())
        assert (figures["frames"], figures["corrupt"]) == (12, 0)
        with av.open(str(video)) as source, av.open(str(out)) as overlay:
            picture = next(source.decode(video=0))
            frames = list(overlay.decode(video=0))
        assert len(frames) == 12
        even = (picture.width + picture.width % 2, picture.height + picture.height % 2)
        assert {(frame.width, frame.height) for frame in frames} == {even}


def test_colonoscopies_are_split_by_sequence(run, shared, tmp_path):
    """Frames of CVC-ClinicDB: no sequence, and no picture, is in two parts, by five folds or 80 to
    10 to 10."""
    source = shared / "data/video/CVC-ClinicDB"
    run("mambamed", "dataset", "table", source, "--out", "t.csv", "--parts", 80, 10, 10)
    for number, given in ((601, source), (602, tmp_path / "t.csv")):
        run(
            "mambamed", "dataset", "from-videos", given, "--id", number, "--name", "CVC",
            "--labels", "polyp", "--clip-length", 8,
        )  # fmt: skip
        dataset = tmp_path / f"raw/Dataset{number}_CVC"
        folds = json.loads((dataset / "splits_final.json").read_text())
        assert len(folds) == (5 if number == 601 else 1)
        for fold in folds:
            train, val = (
                {case.rpartition("_")[0] for case in fold[part]} for part in ("train", "val")
            )
            assert train
            assert val
            assert not train & val
        assert "No patient and no picture is in two parts" in run(
            "mambamed", "dataset", "check-leak", number
        )


def test_procedures_are_told_apart(run, shared, tmp_path):
    """Two classes from a table made of folders to figures of videos that were not trained on."""
    tree, data = tmp_path / "tree", shared / "data"
    for kind, videos in {
        "colonoscopy": sorted(data.glob("video/CVC-ClinicDB/seq0*")),
        "ultrasound": sorted(data.glob("video_unlabelled/lungUS*")),
    }.items():
        (tree / kind).mkdir(parents=True)
        for video in videos:
            (tree / kind / video.name).symlink_to(video)
    table = tree / "videos.csv"
    run("mambamed", "dataset", "table", tree, "--classes", "--parts", 2, 1, 1, "--out", table)
    bundle = tmp_path / "bundle"
    shutil.copytree(ROOT / "bundles/endomamba_classification", bundle)
    labels = {"labels": {"colonoscopy": 0, "ultrasound": 1}}
    (bundle / "configs/dataset.json").write_text(json.dumps(labels))
    options = [word for option in SMALL.items() for word in option]
    monai(
        bundle, "--config_file", "configs/train.json", "--dataset_dir", table, "--ckpt_dir",
        tmp_path / "weights", "--epochs", 12, "--warmup", 1, "--learning_rate", 1e-3, "--frames", 4,
        "--clips_per_video", 4, *options,
    )  # fmt: skip
    evaluate = str([f"configs/{name}.json" for name in ("inference", "evaluate")])
    monai(
        bundle, "--config_file", evaluate, "--dataset_dir", table, "--part", "test",
        "--ckpt_path", tmp_path / "weights/checkpoint_last.pt", *options,
    )  # fmt: skip
    rows = list(csv.DictReader((bundle / "eval/scores.csv").open()))
    (accuracy,) = (float(row["value"]) for row in rows if row["metric"] == "accuracy")
    assert accuracy == 1  # of three or four videos that differ in colour alone
