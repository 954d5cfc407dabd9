"""Scores of classes, against figures counted by hand."""

import numpy as np
import pytest

from nnunet_plugins.evaluation.classification import confusion, figures, score_classes

TRUTH = [0, 0, 0, 1, 1, 2]
PREDICTION = [0, 0, 1, 1, 2, 2]


def test_each_class_is_counted_by_itself():
    scores = score_classes(TRUTH, PREDICTION, 3)
    assert scores.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert scores.recall.tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores.f1.tolist() == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    assert scores.jaccard.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert scores.support.tolist() == [3, 2, 1]
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)


def test_a_class_that_is_nowhere_has_no_figure_and_one_that_is_missed_has_zero():
    scores = score_classes([0, 0, 1], [0, 0, 0], 3)
    assert scores.f1.tolist()[:2] == pytest.approx([4 / 5, 0])
    assert np.isnan(scores.f1[2])
    assert np.isnan(scores.precision[1])
    assert scores.macro_f1 == pytest.approx(2 / 5)


def test_figures_are_named():
    named = figures(score_classes(TRUTH, PREDICTION, 3), ("a", "b", "c"))
    assert list(named) == ["accuracy", "macro F1", "F1 a", "F1 b", "F1 c"]
    assert named["F1 b"] == pytest.approx(1 / 2)


def test_truth_is_in_rows():
    assert confusion([0, 1, 1], [1, 1, 0], 2).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("truth", "prediction", "words"),
    [([], [], "at least one"), ([0], [0, 1], "one of each"), ([0, 3], [0, 0], "classes 3")],
    ids=["nothing", "lengths", "no class"],
)
def test_what_cannot_be_compared_is_refused(truth, prediction, words):
    with pytest.raises(ValueError, match=words):
        score_classes(truth, prediction, 3)
