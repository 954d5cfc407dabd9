import base64
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.demo import report

LABELS = {"background": 0, "liver": 1, "aorta": 2, "spleen": 3, "ignore": 4}
NAN = float("nan")


def write_volume(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0))
    sitk.WriteImage(image, str(path))


def write_summary(path, dice_by_case, keys):
    """A summary.json in nnU-Net's form; prediction files are looked for beside it."""
    cases = [
        {
            "reference_file": f"/gone/{name}.nii.gz",
            "prediction_file": f"/gone/{name}.nii.gz",
            "metrics": {key: {"Dice": d} for key, d in zip(keys, dice, strict=True)},
        }
        for name, dice in dice_by_case.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metric_per_case": cases}))
    return path


def log_text(first, losses, dice="[np.float32(0.5), np.float32(nan), 0.25]"):
    stamp = "2026-01-02 03:04:05.678901: "
    lines = [stamp + "Using torch.compile... ", "This is the configuration: 'Epoch 3'"]
    for epoch, loss in enumerate(losses, start=first):
        lines += [f"{stamp} ", f"{stamp}Epoch {epoch} ", f"{stamp}Current learning rate: 0.01 "]
        if loss is not None:
            lines += [f"{stamp}train_loss {loss} ", f"{stamp}val_loss -0.5 "]
            lines += [f"{stamp}Pseudo dice {dice} ", f"{stamp}Epoch time: 1.5 s "]
    return "\n".join(lines)


@pytest.fixture
def training(tmp_path):
    """A raw dataset of three cases and the results folder of a training on it."""
    raw = tmp_path / "Dataset001_Made"
    results = tmp_path / "HyMambaTrainer__nnUNetPlans__3d_fullres"
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        seg = np.zeros((6, 12, 16), np.uint8)
        seg[1:4, 3:8, 2:8] = 1
        seg[2:5, 4:7, 10:12] = 2
        image = (100 * seg + rng.normal(0, 20, seg.shape)).astype(np.int16)
        write_volume(raw / "imagesTr" / f"{name}_0000.nii.gz", image)
        write_volume(raw / "labelsTr" / f"{name}.nii.gz", seg)
        write_volume(results / "fold_0/validation" / f"{name}.nii.gz", np.roll(seg, 1, 2))
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset))
    dice = {"a": (0.9, 0.7, NAN), "b": (0.5, 0.3, NAN), "c": (0.7, NAN, NAN)}
    write_summary(results / "fold_0/validation/summary.json", dice, ("1", "2", "3"))
    (results / "fold_0/training_log_2026_1_2_03_04_05.txt").write_text(log_text(0, (-0.1, -0.2)))
    return raw, results


def test_dice_counts_only_cases_that_hold_the_class(tmp_path):
    dice = {"a": (0.9, 0.7, NAN), "b": (0.5, NAN, NAN)}
    summary = write_summary(tmp_path / "summary.json", dice, ("1", "2", "3"))
    liver, aorta, spleen = report.dice_table(summary, LABELS)
    assert (liver.name, liver.cases, liver.worst) == ("liver", 2, 0.5)
    assert (liver.mean, liver.std) == pytest.approx((0.7, 0.2))
    assert aorta == report.DiceRow("aorta", 0.7, 0.0, 0.7, 1)
    assert spleen.cases == 0
    assert np.isnan([spleen.mean, spleen.std, spleen.worst]).all()


def test_regions_are_found_under_nnunets_keys(tmp_path):
    summary = write_summary(tmp_path / "summary.json", {"a": (0.9, 0.8)}, ("(1, 2)", "(2,)"))
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    assert [(row.name, row.mean) for row in report.dice_table(summary, labels)] == [
        ("whole", 0.9),
        ("core", 0.8),
    ]


def test_a_summary_of_other_labels_is_refused(tmp_path):
    summary = write_summary(tmp_path / "summary.json", {"a": (0.9,)}, ("1",))
    with pytest.raises(ValueError, match="no numbers for aorta, spleen"):
        report.dice_table(summary, LABELS)


def test_the_text_table_is_aligned_and_says_what_is_absent():
    rows = [report.DiceRow("liver", 0.9, 0.1, 0.8, 2), report.DiceRow("x", NAN, NAN, NAN, 0)]
    head, liver, absent, overall = report.format_dice_table(rows).splitlines()
    assert len(head) == len(liver) == len(absent)
    assert absent.split() == ["x", "-", "-", "-", "0"]
    assert overall.split() == ["all", "classes", "0.900"]


def test_a_resumed_training_replaces_what_it_repeats(tmp_path):
    first, second = log_text(0, (-0.1, -0.2, -0.3, None)), log_text(2, (-0.4, -0.5, None))
    (tmp_path / "training_log_2026_9_30_23_00_00.txt").write_text(first)
    (tmp_path / "training_log_2026_10_1_00_00_00.txt").write_text(second)
    epochs = report.read_training_logs(tmp_path)
    assert [epochs[epoch]["train_loss"] for epoch in epochs] == [[-0.1], [-0.2], [-0.4], [-0.5]]
    np.testing.assert_equal(epochs[0]["Pseudo dice"], [0.5, NAN, 0.25])


def test_the_page_holds_everything_and_links_to_nothing(training, tmp_path):
    raw, results = training
    page = report.write_report(
        title="A <demo>",
        commands=["nnUNetv2_train 1 3d_fullres 0 -tr HyMambaTrainer"],
        results_folder=results,
        raw_dataset=raw,
        output=tmp_path / "out" / "report.html",
        timings={"training": 125.0},
    )
    text = page.read_text()
    assert [p.name for p in page.parent.iterdir()] == ["report.html"]
    assert re.findall(r"(Best|Median|Worst): (\w)", text)[::2] == [
        ("Best", "a"),
        ("Median", "c"),
        ("Worst", "b"),
    ]
    for part in ("A &lt;demo&gt;", "nnUNetv2_train 1", "2 min 05 s", "0.700", "nnunetv2"):
        assert part in text
    assert not re.search(r'(src|href)="(?!data:image/png)|https?://|url\(', text)
    pictures = [base64.b64decode(png) for png in re.findall(r'base64,([^"]+)"', text)]
    assert len(pictures) == 4
    assert all(png.startswith(b"\x89PNG") for png in pictures)


def test_missing_logs_and_predictions_are_said(training, tmp_path):
    raw, results = training
    next(results.glob("fold_0/training_log_*.txt")).unlink()
    (results / "fold_0/validation/b.nii.gz").unlink()
    page = report.write_report(
        title="t", commands=[], results_folder=results, raw_dataset=raw, output=tmp_path / "r.html"
    )
    text = page.read_text()
    assert "No training_log_*.txt" in text
    assert re.search(r"Worst: b, .*no picture without.*b\.nii\.gz", text)


def test_no_validation_is_refused_with_the_way_out(training, tmp_path):
    with pytest.raises(FileNotFoundError, match="--val"):
        report.write_report(
            title="t",
            commands=[],
            results_folder=tmp_path,
            raw_dataset=training[0],
            output=tmp_path / "r.html",
        )


def test_panels_keep_physical_proportions(training):
    raw, results = training
    figure = report.overlay_figure(
        raw / "imagesTr/a_0000.nii.gz",
        raw / "labelsTr/a.nii.gz",
        results / "fold_0/validation/a.nii.gz",
        LABELS,
        {"liver": 0.9, "aorta": 0.7},
    )
    extents = [axis.images[0].get_extent() for axis in figure.axes[:3]]
    assert extents == [[0, 16, 12, 0], [0, 16, 0, 18], [0, 12, 0, 18]]
    assert {axis.get_aspect() for axis in figure.axes} == {1.0}
