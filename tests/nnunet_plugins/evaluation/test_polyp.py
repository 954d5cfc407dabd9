"""The VPS figures: the authors' recorded values, definitions in loops, and identities."""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from nnunet_plugins.evaluation.polyp import (
    THRESHOLDS,
    import_pysodmetrics,
    inner_frames,
    vps_scores,
)

needs_pysodmetrics = pytest.mark.skipif(
    find_spec("py_sod_metrics") is None,
    reason="pysodmetrics is not installed",
)


@pytest.fixture(scope="module")
def recorded(shared):
    net = load_file(shared / "golden/vivim_net.safetensors")
    loss = load_file(shared / "golden/vivim_loss.safetensors")
    figures = json.loads((shared / "golden/vivim_metrics.json").read_text())
    probability = 1 / (1 + np.exp(-net["out.logits"][2::5, 0].astype(np.float64)))
    return probability, loss["in.target"][2::5, 0] > 0.5, loss, figures


@needs_pysodmetrics
def test_curves_equal_the_recorded_ones(recorded):
    """The authors' script does not scale maps, and leaves the threshold itself out."""
    probability, truth, loss, _ = recorded
    names = ("Dice", "IoU", "precision", "Sen", "Spe (pysodmetrics)")
    for i in range(2):
        curves = vps_scores(probability[i : i + 1], truth[i : i + 1], scale=False).curves
        wanted = loss[f"metric.frame{i}.curves_dice_jac_prec_rec_spec_f"]
        found = np.stack([curves[name] for name in names], axis=1)
        np.testing.assert_allclose(found, wanted[:, :5], atol=1e-9)


@needs_pysodmetrics
def test_figures_equal_the_recorded_ones(recorded):
    probability, truth, _, wanted = recorded
    plain = vps_scores(probability, truth, scale=False).curves
    assert plain["Dice"].mean() == pytest.approx(wanted["code_reports_dice"], abs=1e-9)
    assert plain["Dice"].max() == pytest.approx(wanted["maxDice_paper_protocol"], abs=1e-9)
    scores = vps_scores(probability, truth)
    assert scores.values["S-measure"] == pytest.approx(wanted["Smeasure"], abs=1e-6)
    assert scores.values["MAE"] == pytest.approx(wanted["MAE"], abs=1e-6)
    assert scores.values["E-measure (adaptive)"] == pytest.approx(
        wanted["Emeasure"]["adpEm"], abs=1e-6
    )
    assert scores.curves["E-measure"].mean() == pytest.approx(
        wanted["Emeasure"]["meanEm"], abs=1e-6
    )


def slow_curves(probability, truth):
    """The toolbox's definition for one 8 bit map: Dice, IoU, specificity, sensitivity."""
    grey = probability - probability.min()
    grey = np.rint(255 * grey / grey.max()) if grey.max() else probability * 255
    rows = []
    for threshold in range(255, -1, -1):
        tp = fp = fn = tn = 0
        for value, true in zip(grey.ravel(), truth.ravel(), strict=True):
            predicted = value >= threshold
            tp += predicted and true
            fp += predicted and not true
            fn += true and not predicted
            tn += not true and not predicted
        rows.append(
            (2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn), tn / (tn + fp), tp / (tp + fn))
            if tp
            else (0, 0, 0, 0)
        )
    return np.array(rows)


@needs_pysodmetrics
@pytest.mark.parametrize("seed", range(3))
def test_curves_are_the_mean_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    grey = rng.integers(0, 256, (2, 5, 6))
    grey[:, 0, :2] = 0, 255  # so that scaling keeps every level where it is
    truth = rng.random(grey.shape) < 0.3
    truth[:, 2, 2], truth[:, 3, 3] = True, False
    curves = vps_scores(grey / 255, truth).curves
    wanted = np.mean([slow_curves(*f) for f in zip(grey / 255, truth, strict=True)], axis=0)
    found = np.stack([curves[name] for name in ("Dice", "IoU", "Spe", "Sen")], axis=1)
    np.testing.assert_allclose(found, wanted)


@needs_pysodmetrics
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_figures_are_means_over_frames_in_any_order_and_scale(seed, frames):
    rng = np.random.default_rng(seed)
    probability, truth = rng.random((frames, 9, 8)), rng.random((frames, 9, 8)) < 0.4
    all_frames = vps_scores(probability, truth)
    singles = [vps_scores(probability[i : i + 1], truth[i : i + 1]) for i in range(frames)]
    reverse = vps_scores(probability[::-1] * 0.5 + 0.25, truth[::-1])
    for name, value in all_frames.values.items():
        assert value == pytest.approx(np.mean([single.values[name] for single in singles]))
        assert value == pytest.approx(reverse.values[name])
    for name, curve in all_frames.curves.items():
        np.testing.assert_allclose(curve, np.mean([s.curves[name] for s in singles], axis=0))
        assert ((curve >= 0) & (curve <= 1 + 2 / truth[0].size)).all(), name  # E divides by n - 1


@needs_pysodmetrics
def test_perfect_and_complement():
    truth = np.zeros((2, 16, 20), bool)
    truth[:, 4:10, 5:12] = True
    perfect, complement = (vps_scores(m.astype(float), truth) for m in (truth, ~truth))
    assert perfect.curves["Dice"][:-1] == pytest.approx(1)
    assert perfect.values["S-measure"] == pytest.approx(1)
    assert (perfect.values["MAE"], complement.values["MAE"]) == (0, 1)
    assert complement.curves["Dice"][:-1] == pytest.approx(0)
    assert complement.values["S-measure"] < 0.1
    shared_threshold = np.flatnonzero(THRESHOLDS == 0)
    share = truth.mean()
    for scores in (perfect, complement):  # at threshold 0 everything is predicted
        assert scores.curves["Dice"][shared_threshold] == pytest.approx(2 * share / (1 + share))


@needs_pysodmetrics
def test_only_the_toolbox_zeroes_specificity_without_overlap():
    truth, probability = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8))
    truth[0, 1, 1] = probability[0, 6, 6] = 1
    curves = vps_scores(probability, truth).curves
    assert curves["Spe"].max() == 0
    assert curves["Spe (pysodmetrics)"].max() == pytest.approx(62 / 63)


@pytest.mark.parametrize(("frames", "kept"), [(1, []), (2, []), (3, [1]), (5, [1, 2, 3])])
def test_the_first_and_the_last_frame_are_dropped(frames, kept):
    assert list(range(frames))[inner_frames(frames)] == kept


def test_without_the_package_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "py_sod_metrics", None)
    with pytest.raises(RuntimeError, match=r"pip install 'mambamed\[video\]'.*--no-vps"):
        import_pysodmetrics()


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (np.full((1, 8, 8), 1.5), "0..1"),
        (np.full((1, 8, 8), -0.1), "0..1"),
        (np.full((1, 8, 8), np.nan), "0..1"),
        (np.zeros((2, 8, 8)), "shape"),
        (np.zeros((0, 8, 8)), "shape"),
    ],
)
def test_what_is_no_probability_of_these_frames_is_refused(probability, words):
    with pytest.raises(ValueError, match=words):
        vps_scores(probability, np.ones((1, 8, 8), bool))
