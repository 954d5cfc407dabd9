"""nnU-Net's own commands with our trainers, as a user types them, without a variable of ours."""

import json
import signal
import subprocess
import time

import pytest
import SimpleITK as sitk

TRAINER = "HyMambaTrainer_small_2epochs_2iterations"


@pytest.fixture(scope="module")
def results(nnunet):
    """Results of a finished training."""
    nnunet.train(TRAINER)
    return nnunet.results(TRAINER)


def test_training_validates_itself_and_says_what_was_trained(results):
    summary = json.loads((results / "fold_0/validation/summary.json").read_text())
    assert 0 <= summary["foreground_mean"]["Dice"] <= 1
    plans = json.loads((results / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["batch_size"] <= 2


def test_validation_alone_and_continuing_a_finished_training(nnunet, results):
    summary = results / "fold_0/validation/summary.json"
    for option in ("--val", "--c"):
        summary.unlink()
        nnunet.train(TRAINER, option)
        assert summary.exists()


def test_prediction_gives_a_label_map_on_the_grid_of_the_image(nnunet, results, tmp_path):
    nnunet(
        "nnUNetv2_predict", "-i", str(nnunet.raw / "imagesTr"), "-o", str(tmp_path), "-d", "901",
        "-c", "3d_fullres", "-f", "0", "-tr", TRAINER, "-device", "cpu", "-npp", "1", "-nps", "1",
        "--disable_tta",
    )  # fmt: skip
    for image in (nnunet.raw / "imagesTr").iterdir():
        label = sitk.ReadImage(str(tmp_path / image.name.replace("_0000", "")))
        original = sitk.ReadImage(str(image))
        assert label.GetSize() == original.GetSize()
        assert label.GetSpacing() == original.GetSpacing()


def test_find_best_configuration(nnunet, results):
    nnunet(
        "nnUNetv2_find_best_configuration", "901", "-tr", TRAINER, "-c", "3d_fullres", "-f", "0",
        "--disable_ensembling", "-np", "1",
    )  # fmt: skip
    best = json.loads((results.parent / "inference_information.json").read_text())
    assert best["best_model_or_ensemble"]["selected_model_or_models"][0]["trainer"] == TRAINER


def test_pretrained_weights_start_another_training(nnunet, results):
    other = f"{TRAINER}_seed5"
    checkpoint = str(results / "fold_0/checkpoint_final.pth")
    shown = nnunet.train(other, "-pretrained_weights", checkpoint).stdout
    assert "Loading pretrained weights" in shown
    assert (nnunet.results(other) / "fold_0/checkpoint_final.pth").exists()


def test_kill_9_in_the_middle_of_a_training_and_continue(nnunet):
    trainer = "HyMambaTrainer_small_6epochs_2iterations"
    latest = nnunet.results(trainer) / "fold_0/checkpoint_latest.pth"
    process = subprocess.Popen(
        nnunet.training(trainer),
        env=nnunet.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert latest.exists()
    shown = nnunet.train(trainer, "--c").stdout
    epochs = [line.split()[-1] for line in shown.splitlines() if ": Epoch " in f": {line}"]
    epochs = [int(epoch) for epoch in epochs if epoch.isdigit()]
    assert epochs[0] > 0
    assert epochs[-1] == 5
    assert (latest.parent / "checkpoint_final.pth").exists()


def test_an_unknown_trainer_is_one_clear_sentence(nnunet):
    done = nnunet.train("HyMambaTrainer_spiral", check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: HyMambaTrainer has no")
