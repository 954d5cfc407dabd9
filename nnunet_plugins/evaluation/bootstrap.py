"""Means over videos, with intervals from resampling whole videos.

Frames of a video resemble each other, so it is the videos that are drawn, with replacement.
"""

from dataclasses import dataclass

import numpy as np

from nnunet_plugins.evaluation.overlap import Numbers


@dataclass(frozen=True)
class Estimate:
    """A mean over videos and its 95 % interval, which is NaN where fewer than two videos count."""

    value: float
    low: float
    high: float
    videos: int
    """Videos that have the figure."""


def resample(videos: int, *, draws: int = 2000, seed: int = 0) -> Numbers:
    """Weight of each video in each draw, (draws, videos); rows sum to 1.

    Raises:
        ValueError: There are no draws to make.
    """
    if draws < 1:
        raise ValueError(f"{draws} bootstrap samples give no interval; draw 1 or more, say 2000")
    even = np.full(videos, 1 / videos)
    return np.random.default_rng(seed).multinomial(videos, even, size=draws) / videos


def estimate(values: Numbers, weights: Numbers) -> Estimate:
    """Mean of what videos have, or the maximum of their mean curve; percentile interval.

    Args:
        values: One number a video, (videos,), or one curve, (videos, points). A video with NaN
            does not count, and draws of such videos alone are left out.
        weights: What `resample` gives.
    """
    curves = values.reshape(len(values), -1)
    counted = ~np.isnan(curves).any(axis=1)
    videos = int(counted.sum())
    if not videos:
        return Estimate(np.nan, np.nan, np.nan, 0)
    value = float(curves[counted].mean(axis=0).max())
    if videos == 1:
        return Estimate(value, np.nan, np.nan, 1)
    share = weights[:, counted]
    share = share[share.any(axis=1)]
    means = (share @ curves[counted]) / share.sum(axis=1, keepdims=True)
    low, high = np.quantile(means.max(axis=1), (0.025, 0.975))
    return Estimate(value, float(low), float(high), videos)
