"""From folders to figures, files and the command."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nnunet_plugins.cli import main
from nnunet_plugins.evaluation import evaluate_videos, write_report
from nnunet_plugins.evaluation.report import frame_dice
from nnunet_plugins.evaluation.scores import (
    ALL_CLASSES,
    FLICKER,
    FLOW,
    FRAME_MEAN,
    NEGATIVE,
    POOLED,
    PROTOCOLS,
    VPS,
    Metric,
)

pytest.importorskip("py_sod_metrics")


def values(report, protocol, name, label="1"):
    metric = Metric(protocol, name, label)
    return {video: scores.values[metric] for video, scores in report.videos.items()}


def test_figures_of_videos_that_can_be_told_by_hand(folders, videos):
    report = evaluate_videos(*folders)
    dice = values(report, FRAME_MEAN, "Dice")
    assert (dice["perfect"], dice["empty"]) == (1, 0)
    truth, shifted = (by_name["shifted"].astype(bool) for by_name in videos)
    by_frame = 2 * (truth & shifted).sum((1, 2)) / (truth.sum((1, 2)) + shifted.sum((1, 2)))
    assert dice["shifted"] == pytest.approx(by_frame.mean())  # the false alarm counts 0
    assert report.estimate(FRAME_MEAN, "Dice").value == pytest.approx(np.mean([*dice.values()]))
    pooled = 2 * (truth & shifted).sum() / (truth.sum() + shifted.sum())
    assert values(report, POOLED, "Dice")["shifted"] == pytest.approx(pooled)
    assert values(report, NEGATIVE, "false-positive frames") == {
        "perfect": 0, "empty": 0, "shifted": 1,
    }  # fmt: skip
    area = values(report, NEGATIVE, "false-positive area")["shifted"]
    assert area == pytest.approx(6 / (24 * 32))
    assert values(report, FLICKER, "mask flicker")["empty"] == 0
    for video in ("perfect", "empty", "shifted"):
        flicker = values(report, FLICKER, "mask flicker of truth")[video]
        assert 0.3 < flicker < 0.5  # moves a pixel a frame, and vanishes once


def test_vps_maximises_the_mean_curve_not_each_video(folders, videos, tmp_path, write_nifti):
    """A video is best at a low threshold and another at a high one."""
    truth, _ = videos
    maps = {"perfect": truth["perfect"] * 0.3, "empty": np.full(truth["empty"].shape, 0.6)}
    maps["empty"][truth["empty"] == 1] = 1
    maps["shifted"] = truth["shifted"] * 1.0
    maps["perfect"][:, 0, 0], maps["empty"][:, 0, 0] = 1, 0
    for name, array in maps.items():
        write_nifti(tmp_path / "maps" / f"{name}.nii.gz", array.astype(np.float32))
    report = evaluate_videos(*folders, probabilities=tmp_path / "maps")
    curves = [scores.curves["1"]["Dice"] for scores in report.videos.values()]
    best = report.estimate(VPS, "maxDice").value
    assert best == pytest.approx(np.mean(curves, axis=0).max())
    assert best < np.mean([*values(report, VPS, "maxDice").values()]) - 0.01


def test_the_vps_figures_do_not_see_the_first_and_last_frame(folders, videos, write_nifti):
    before = evaluate_videos(*folders)
    spoilt = 1 - videos[1]["perfect"]
    spoilt[1:-1] = videos[1]["perfect"][1:-1]
    write_nifti(folders[0] / "perfect.nii.gz", spoilt)
    after = evaluate_videos(*folders)
    for metric, found in before.summary.items():
        if metric.protocol == VPS:
            assert found == after.summary[metric]
    assert values(after, FRAME_MEAN, "Dice")["perfect"] < 1


def test_permuted_videos_give_the_same_figures_and_names_go_along(folders):
    before = evaluate_videos(*folders)
    new_names = {"perfect": "zz", "empty": "mm", "shifted": "aa"}
    for folder in folders:
        for old, new in new_names.items():
            (folder / f"{old}.nii.gz").rename(folder / f"{new}.nii.gz")
    after = evaluate_videos(*folders)
    for old, new in new_names.items():
        np.testing.assert_equal(after.videos[new].values, before.videos[old].values)
    for metric, found in before.summary.items():
        assert after.summary[metric].value == pytest.approx(found.value, nan_ok=True)
        assert after.summary[metric].videos == found.videos


def test_the_bootstrap_is_the_seeds(folders):
    first, same, other = (evaluate_videos(*folders, vps=False, seed=s) for s in (1, 1, 2))
    np.testing.assert_equal(first.summary, same.summary)
    np.testing.assert_equal(*([e.value for e in r.summary.values()] for r in (first, other)))
    metric = Metric(FRAME_MEAN, "Dice", "1")
    few = [evaluate_videos(*folders, vps=False, seed=s, draws=4).summary for s in (1, 2)]
    assert few[0][metric] != few[1][metric]


def test_classes_are_scored_each_for_itself(tmp_path, write_nifti):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (5, 20, 24)).astype(np.uint8)
    prediction = np.where(truth == 2, rng.integers(0, 3, truth.shape), truth).astype(np.uint8)
    write_nifti(tmp_path / "t/v.nii.gz", truth)
    write_nifti(tmp_path / "p/v.nii.gz", prediction)
    both = evaluate_videos(tmp_path / "p", tmp_path / "t", vps=True)
    quiet = evaluate_videos(tmp_path / "p", tmp_path / "t")
    assert {m for m in both.summary if m.protocol != VPS} == set(quiet.summary)
    singles = {}
    for label in (1, 2):
        for whose, array in (("t", truth), ("p", prediction)):
            write_nifti(tmp_path / f"{whose}{label}/v.nii.gz", (array == label).astype(np.uint8))
        report = evaluate_videos(tmp_path / f"p{label}", tmp_path / f"t{label}")
        singles |= {m._replace(label=str(label)): e.value for m, e in report.summary.items()}
    for metric, wanted in singles.items():
        np.testing.assert_equal(both.summary[metric].value, wanted)
    recalls = [both.estimate(FRAME_MEAN, "recall", label).value for label in ("1", "2")]
    assert both.estimate(FRAME_MEAN, "recall", ALL_CLASSES).value == pytest.approx(np.mean(recalls))
    assert both.estimate(FRAME_MEAN, "recall").value == pytest.approx(np.mean(recalls))


def test_dice_of_a_frame_is_the_mean_over_the_classes_that_it_has(tmp_path, write_nifti):
    truth, prediction = np.zeros((2, 3, 8, 8), np.uint8)
    truth[0, :4], prediction[0, :4] = 1, 1
    truth[0, 4:], truth[1, :4], prediction[1, :2] = 2, 1, 1
    for whose, array in (("t", truth), ("p", prediction)):
        write_nifti(tmp_path / whose / "v.nii.gz", array)
    report = evaluate_videos(tmp_path / "p", tmp_path / "t")
    np.testing.assert_allclose(frame_dice(report.videos["v"]), [0.5, 2 / 3, np.nan])


def test_unlabelled_frames_change_nothing(tmp_path, videos, write_nifti):
    """Sparse labels: a video with unknown frames in it scores as the one without them."""
    truth, prediction = (by_name["shifted"] for by_name in videos)
    sparse, free = truth.copy(), prediction.copy()
    sparse[[3, 7]], free[[3, 7]] = 9, 1
    kept = [i for i in range(len(truth)) if i not in (3, 7)]
    for folder, array in (
        ("t", sparse),
        ("p", free),
        ("t2", truth[kept]),
        ("p2", prediction[kept]),
    ):
        write_nifti(tmp_path / folder / "v.nii.gz", array)
    found = evaluate_videos(tmp_path / "p", tmp_path / "t", ignore=9)
    wanted = evaluate_videos(tmp_path / "p2", tmp_path / "t2")
    assert found.classes == wanted.classes
    for metric, value in wanted.videos["v"].values.items():
        if metric.protocol in (FRAME_MEAN, POOLED, NEGATIVE, VPS):
            assert found.videos["v"].values[metric] == pytest.approx(value, nan_ok=True), metric


def test_short_videos_are_left_out_of_vps_and_named(folders, tmp_path, write_nifti):
    for folder in folders:
        write_nifti(folder / "short.nii.gz", np.ones((2, 24, 32), np.uint8))
    report = evaluate_videos(*folders)
    assert report.estimate(VPS, "S-measure").videos == 3
    assert report.estimate(VPS, "maxDice").videos == 3
    assert report.estimate(FRAME_MEAN, "Dice").videos == 4
    assert any("Not in the VPS figures" in note and "short" in note for note in report.notes)


@pytest.fixture
def pictures(videos, tmp_path, write_pngs):
    pytest.importorskip("cv2")
    texture = gaussian_filter(np.random.default_rng(0).random((24, 32)), 1.5)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    for name, truth in videos[0].items():
        moving = np.stack([np.roll(texture, t, 1) for t in range(len(truth))])
        write_pngs(tmp_path / "frames" / name, moving)
    return tmp_path / "frames"


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_files_hold_every_figure_with_its_protocol(folders, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "video", *map(str, folders)]
    assert main([*command, "--frames", str(pictures), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    names = ["frames.csv", "report.html", "summary.csv", "videos.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    report = evaluate_videos(*folders, frames=pictures)
    summary = rows(out / "summary.csv")
    assert {row["protocol"] for row in summary} == set(PROTOCOLS)
    for row in summary:
        found = report.estimate(row["protocol"], row["metric"], row["class"])
        assert float(row["mean"] or "nan") == pytest.approx(found.value, abs=1e-6, nan_ok=True)
        assert float(row["high95"] or "nan") == pytest.approx(found.high, abs=1e-6, nan_ok=True)
        assert row["metric"] in printed
    assert len(rows(out / "videos.csv")) == 3 * len(summary)
    frames = rows(out / "frames.csv")
    assert len(frames) == 36
    assert [r["Dice"] for r in frames if r["video"] == "perfect"][4:7] == [
        "1.000000",
        "",
        "1.000000",
    ]
    page = (out / "report.html").read_text()
    assert len(re.findall("data:image/png;base64", page)) == 4
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    for meaning in PROTOCOLS.values():
        assert meaning.split('"')[0].split(";")[0][:40] in page
    worst = [(frame.video, frame.dice) for frame in report.worst]
    assert worst == sorted(worst, key=lambda pair: pair[1])
    assert [video for video, _ in worst].count("empty") == 2


def test_a_report_without_pictures_and_probabilities_says_so(folders, tmp_path):
    report = evaluate_videos(*folders, vps=False)
    assert not {m.protocol for m in report.summary} & {VPS, FLOW}
    page = write_report(report, tmp_path / "out", title="A <title>").read_text()
    assert "A &lt;title&gt;" in page
    assert "No pictures were given" in page
    assert page.count("data:image/png") == 2


def test_predictions_without_truth_are_named(folders):
    (folders[1] / "empty.nii.gz").unlink()
    notes = evaluate_videos(*folders, vps=False).notes
    assert any("without truth" in note and "empty" in note for note in notes)


def test_bad_input_is_one_line_and_writes_nothing(folders, tmp_path, capsys):
    (folders[0] / "empty.nii.gz").unlink()
    out = tmp_path / "out"
    assert main(["evaluate", "video", *map(str, folders), "--output", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mambamed evaluate: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_real_masks_against_a_shifted_copy(shared, tmp_path):
    """Figures fall as the copy moves away; where it does not move all are perfect."""
    source = shared / "data/video/CVC-ClinicDB"
    names = ("seq09", "seq10")
    found = []
    for shift in (0, 6, 20):
        for name in names:
            for folder in ("t", f"p{shift}"):
                (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((source / name / "masks").glob("*.png"))[:5]:
                mask = np.asarray(Image.open(file))
                Image.fromarray(mask).save(tmp_path / "t" / name / file.name)
                moved = Image.fromarray(np.roll(mask, shift, 1))
                moved.save(tmp_path / f"p{shift}" / name / file.name)
        found.append(evaluate_videos(tmp_path / f"p{shift}", tmp_path / "t"))
    figures = ((FRAME_MEAN, "Dice"), (POOLED, "Jaccard"), (VPS, "maxDice"), (VPS, "S-measure"))
    for protocol, name in figures:
        series = [report.estimate(protocol, name).value for report in found]
        assert series[0] == pytest.approx(1)
        assert series[0] > series[1] > series[2] > 0.3
    errors = [report.estimate(VPS, "MAE").value for report in found]
    assert errors[0] == 0 < errors[1] < errors[2]
