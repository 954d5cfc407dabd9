import json

import numpy as np
import pytest
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.data.from_videos import named_dataset


@pytest.mark.parametrize("action", ["from-videos", "images", "to-videos", "check-leak"])
def test_every_action_explains_its_options(action, capsys):
    with pytest.raises(SystemExit) as done:
        main(["dataset", action, "--help"])
    assert done.value.code == 0
    assert "--" in capsys.readouterr().out


def test_there_and_back_again_as_typed(source, tmp_path, capsys):
    raw = tmp_path / "raw"
    convert = ["dataset", "from-videos", str(source), "--id", "501", "--name", "Discs"]
    options = ["--raw", str(raw), "--labels", "disc", "--group-by", r"patient\d+", "--fps", "10"]
    assert main([*convert, *options]) == 0
    shown = capsys.readouterr().out
    assert "4 training cases of 4 videos, 2 patients; 26 of 26 frames labelled" in shown
    assert "splits_final.json has 2 folds" in shown
    assert main([*convert, *options]) == 1
    assert "number 501 is taken" in capsys.readouterr().err
    dataset, out = raw / "Dataset501_Discs", tmp_path / "out"
    back = ["dataset", "to-videos", str(dataset / "labelsTr"), "--dataset", str(dataset)]
    assert main([*back, "--out", str(out)]) == 0
    for before in source.glob("*/masks/*.png"):
        after = out / before.relative_to(source)
        np.testing.assert_array_equal(Image.open(after), Image.open(before))
    assert len(list(out.glob("*/overlay.mp4"))) == 4


def test_one_patient_gets_no_folds_and_notes_are_shown(tmp_path, draw, capsys):
    images, labels = draw.video(0)
    draw.frames(tmp_path / "source/v/frames", images[..., 0])
    draw.frames(tmp_path / "source/v/masks", labels * np.uint8(255))
    convert = ["dataset", "from-videos", str(tmp_path / "source"), "--raw", str(tmp_path / "raw")]
    assert main([*convert, "--id", "1", "--name", "One"]) == 0
    shown = capsys.readouterr().out
    assert "v: grey frames: made RGB" in shown
    assert "train with fold all, or --split-clips" in shown
    clips = ["--id", "2", "--name", "Clips", "--clip-length", "2", "--split-clips"]
    assert main([*convert, *clips]) == 0
    assert "scores will flatter" in capsys.readouterr().out
    assert main(["dataset", "check-leak", str(tmp_path / "raw/Dataset002_Clips")]) == 1


def test_images_alone(tmp_path, draw, capsys):
    path = draw.lossless(tmp_path / "new.mkv", draw.video(0)[0], "bgr0")
    out = tmp_path / "images"
    assert main(["dataset", "images", str(path), "--out", str(out), "--stride", "4"]) == 0
    assert "nnUNetv2_predict" in capsys.readouterr().out
    record = json.loads((out / "videos.json").read_text())["cases"]["new"]
    assert record["frames"] == ["0001", "0005"]
    assert main(["dataset", "images", str(path), "--out", str(out)]) == 1


def test_stock_nnunet_takes_the_dataset_and_its_folds(nnunet, source, capsys):
    convert = ["dataset", "from-videos", str(source), "--raw", str(nnunet.raw.parent)]
    assert main([*convert, "--id", "902", "--name", "Discs"]) == 0
    nnunet(
        "nnUNetv2_plan_and_preprocess", "-d", "902", "-c", "3d_fullres", "-np", "1", "-npfp", "1",
        "--verify_dataset_integrity",
    )  # fmt: skip
    preprocessed = nnunet.preprocessed.parent / "Dataset902_Discs"
    folds = (nnunet.raw.parent / "Dataset902_Discs/splits_final.json").read_text()
    assert (preprocessed / "splits_final.json").read_text() == folds
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    assert plans["transpose_forward"] == [0, 1, 2]
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [1, 1, 1]
    assert configuration["median_image_size_in_voxels"] == [6.5, 40, 48]
    assert configuration["normalization_schemes"] == 3 * ["RGBTo01Normalization"]


def test_datasets_are_named_as_nnunet_names_them(tmp_path, monkeypatch):
    folder = tmp_path / "raw/Dataset007_Polyps"
    folder.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("7", "007", "Dataset007_Polyps", str(folder)):
        assert named_dataset(name) == folder
    assert str(named_dataset("Dataset008_Other")) == "Dataset008_Other"
