import numpy as np
import pytest

from nnunet_plugins.evaluation.bootstrap import estimate, resample

NAN = float("nan")


def test_weights_are_shares_of_videos_drawn_with_replacement():
    weights = resample(7, draws=500, seed=3)
    assert weights.shape == (500, 7)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights.mean(axis=0) == pytest.approx(1 / 7, abs=0.02)
    np.testing.assert_allclose(weights * 7, np.rint(weights * 7), atol=1e-9)
    np.testing.assert_array_equal(weights, resample(7, draws=500, seed=3))
    assert not np.array_equal(weights, resample(7, draws=500, seed=4))


@pytest.mark.parametrize("points", [1, 5])
def test_interval_is_that_of_means_taken_draw_by_draw(points):
    rng = np.random.default_rng(0)
    values = rng.random((6, points))
    weights = resample(6, draws=200, seed=1)
    maxima = []
    for row in weights:
        videos = [v for v, share in zip(values, row, strict=True) for _ in range(round(share * 6))]
        maxima.append(np.mean(videos, axis=0).max())
    found = estimate(values[:, 0] if points == 1 else values, weights)
    assert found.value == pytest.approx(values.mean(axis=0).max())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(maxima, (0.025, 0.975))))
    assert found.videos == 6


def test_width_is_that_of_the_standard_error():
    values = np.random.default_rng(0).normal(0.7, 0.1, 200)
    found = estimate(values, resample(200, draws=4000))
    half = 1.96 * values.std() / np.sqrt(200)
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.15 * half
    )


def test_videos_without_the_figure_do_not_count():
    weights = resample(4)
    found = estimate(np.array([0.2, NAN, 0.4, NAN]), weights)
    assert (found.value, found.videos) == (pytest.approx(0.3), 2)
    assert (found.low, found.high) == pytest.approx((0.2, 0.4))


def test_one_video_has_no_interval_and_none_has_no_figure():
    one = estimate(np.array([0.5, NAN]), resample(2))
    assert (one.value, one.videos) == (0.5, 1)
    assert np.isnan([one.low, one.high]).all()
    none = estimate(np.array([NAN, NAN]), resample(2))
    assert np.isnan([none.value, none.low, none.high]).all()
    assert none.videos == 0


def test_equal_videos_have_an_interval_of_no_width():
    found = estimate(np.full(5, 0.25), resample(5))
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="draw 1 or more"):
        resample(3, draws=0)
