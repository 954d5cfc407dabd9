import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_plugins.evaluation.overlap import count, false_alarms, mean_known, overlap

NAMES = ("Dice", "Jaccard", "precision", "recall")


@st.composite
def compared(draw):
    """Prediction, truth and known pixels, from empty to full."""
    shape = tuple(draw(st.integers(1, size)) for size in (4, 5, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = [draw(st.sampled_from((0.0, 0.05, 0.5, 1.0))) for _ in range(3)]
    return tuple(rng.random(shape) < share for share in shares)


def slow_scores(prediction, truth, known):
    """Dice, Jaccard, precision, recall of one frame, pixel by pixel."""
    tp = fp = fn = 0
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if known[y, x]:
                tp += prediction[y, x] and truth[y, x]
                fp += prediction[y, x] and not truth[y, x]
                fn += truth[y, x] and not prediction[y, x]
    if tp + fp + fn == 0:
        return (np.nan,) * 4
    return (
        2 * tp / (2 * tp + fp + fn),
        tp / (tp + fp + fn),
        tp / (tp + fp) if tp + fp else 0,
        tp / (tp + fn) if tp + fn else 0,
    )


@settings(max_examples=100, deadline=None)
@given(compared())
def test_every_frame_is_scored_as_defined(masks):
    found = overlap(count(*masks))
    wanted = [slow_scores(*frame) for frame in zip(*masks, strict=True)]
    np.testing.assert_allclose(np.stack([found[name] for name in NAMES], axis=1), wanted)


@settings(max_examples=50, deadline=None)
@given(compared())
def test_pooled_counts_are_those_of_one_long_frame(masks):
    found = overlap(count(*masks).pooled())
    long = [mask.reshape(-1, mask.shape[-1]) for mask in masks]
    np.testing.assert_allclose([found[name][0] for name in NAMES], slow_scores(*long))


@settings(max_examples=100, deadline=None)
@given(compared())
def test_false_alarms_as_defined(masks):
    areas = []
    for prediction, truth, known in zip(*masks, strict=True):
        if known.any() and not truth[known].any():
            areas.append(prediction[known].mean())
    found = false_alarms(count(*masks))
    wanted = [np.mean([a > 0 for a in areas]), np.mean(areas)] if areas else [np.nan, np.nan]
    np.testing.assert_allclose([*found.values()], wanted)


def test_perfect_empty_and_complement():
    truth = np.random.default_rng(0).random((3, 8, 9)) < 0.4
    known = np.ones_like(truth)
    for prediction, value in ((truth, 1), (np.zeros_like(truth), 0), (~truth, 0)):
        scores = overlap(count(prediction, truth, known))
        assert all((scores[name] == value).all() for name in NAMES)
    nothing = np.zeros_like(truth)
    assert all(np.isnan(v).all() for v in overlap(count(nothing, nothing, known)).values())
    assert false_alarms(count(nothing, nothing, known)) == {
        "false-positive frames": 0,
        "false-positive area": 0,
    }


def test_what_is_unknown_does_not_count():
    truth = np.zeros((1, 2, 2), bool)
    known = np.array([[[True, True], [False, False]]])
    counts = count(~known, truth, known)
    assert counts.known[0] == 2
    assert false_alarms(counts)["false-positive frames"] == 0


def test_masks_of_other_shapes_are_refused():
    a, b = np.zeros((2, 3, 4), bool), np.zeros((3, 3, 4), bool)
    with pytest.raises(ValueError, match="differ in shape"):
        count(a, b, b)


def test_mean_of_nothing_is_nan():
    assert np.isnan(mean_known(np.array([np.nan])))
    assert mean_known(np.array([np.nan, 1, 3])) == 2
