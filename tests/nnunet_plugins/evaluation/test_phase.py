"""Phase figures, strict and relaxed, against figures counted by hand."""

import math

import numpy as np
import pytest

from nnunet_plugins.evaluation.phase import (
    STRICT,
    UNKNOWN,
    mean_figures,
    phase_figures,
    relaxed,
    relaxed_name,
)

RELAXED = "relaxed (10 s)"
TRUTH = [0] * 20 + [1] * 20


def change_at(frame: int) -> list[int]:
    """Forty frames of phase 0 and then, from a frame on, phase 1."""
    return [0] * frame + [1] * (40 - frame)


def test_a_late_change_counts_in_the_strict_protocol_alone():
    found = phase_figures(TRUTH, change_at(26), 2, fps=1)
    assert found[STRICT, "accuracy"] == pytest.approx(34 / 40)
    assert found[STRICT, "precision"] == pytest.approx((20 / 26 + 1) / 2)
    assert found[STRICT, "recall"] == pytest.approx((1 + 14 / 20) / 2)
    assert found[STRICT, "jaccard"] == pytest.approx((20 / 26 + 14 / 20) / 2)
    assert found[STRICT, "f1"] == pytest.approx((40 / 46 + 28 / 34) / 2)
    for name in ("accuracy", "precision", "recall", "jaccard", "f1"):
        assert found[RELAXED, name] == 1


@pytest.mark.parametrize(
    ("change", "right"), [(10, 40), (8, 38), (30, 40), (33, 37)], ids=["10", "12", "+10", "+13"]
)
def test_ten_seconds_on_either_side_are_excused(change, right):
    found = phase_figures(TRUTH, change_at(change), 2, fps=1)
    assert found[RELAXED, "accuracy"] == pytest.approx(right / 40)


def test_the_window_is_in_seconds():
    slow, fast = (phase_figures(TRUTH, change_at(26), 2, fps=fps) for fps in (0.3, 1))
    assert slow[RELAXED, "accuracy"] == pytest.approx(37 / 40)  # three frames
    assert fast[RELAXED, "accuracy"] == 1


def test_only_the_neighbouring_phase_is_excused():
    prediction = [0] * 18 + [2] * 4 + [1] * 18
    found = phase_figures(TRUTH, prediction, 3, fps=1)
    assert found[RELAXED, "accuracy"] == found[STRICT, "accuracy"] == pytest.approx(36 / 40)


def test_short_phases_are_not_excused_into_others():
    truth = np.array([0, 0, 0, 1, 2, 2, 2])
    excused = relaxed(truth, np.array([0, 0, 0, 0, 0, 2, 2]), 3)
    assert excused.tolist() == [0, 0, 0, 1, 0, 2, 2]


def test_frames_without_annotation_do_not_count():
    truth = [UNKNOWN] * 5 + TRUTH
    found = phase_figures(truth, [1] * 5 + change_at(26), 2, fps=1)
    assert found == phase_figures(TRUTH, change_at(26), 2, fps=1)


def test_phases_that_a_video_lacks_are_left_out():
    found = phase_figures([0, 0, 1, 1], [0, 0, 0, 2], 4, fps=0.01)
    assert found[STRICT, "recall"] == pytest.approx(1 / 2)
    assert found[STRICT, "precision"] == pytest.approx(2 / 3)  # phase 1 is never predicted
    assert found[STRICT, "jaccard"] == pytest.approx(1 / 3)


def test_means_are_over_videos():
    videos = {
        "a": {(STRICT, "f1"): 0.5},
        "b": {(STRICT, "f1"): 1.0},
        "c": {(STRICT, "f1"): math.nan},
    }
    assert mean_figures(videos) == {(STRICT, "f1"): 0.75}


def test_the_protocol_says_its_window():
    assert relaxed_name() == RELAXED
    assert (relaxed_name(5), "f1") in phase_figures([0, 1], [0, 1], 2, fps=1, window=5)


@pytest.mark.parametrize(
    ("truth", "fps", "words"),
    [([0, 0], 0, "positive rate"), ([0], 1, "as many"), ([UNKNOWN] * 2, 1, "at least one")],
    ids=["rate", "lengths", "nothing annotated"],
)
def test_what_cannot_be_scored_is_refused(truth, fps, words):
    with pytest.raises(ValueError, match=words):
        phase_figures(truth, [0, 0], 2, fps=fps)
