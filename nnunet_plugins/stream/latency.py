"""Median and high percentiles of any number of durations in little memory."""

import math

import numpy as np

SHORTEST = 1e-5
"""Seconds; shorter durations count as this."""
GROWTH = 1.01
"""Of each bin over the one before: what is read off is right to half a percent."""
BINS = 2000
"""Up to an hour."""


class Durations:
    """A histogram whose bins grow with what they count."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        place = math.log(max(seconds, SHORTEST) / SHORTEST) / math.log(GROWTH)
        self.counts[min(int(place), BINS - 1)] += 1
        self.total += seconds

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the durations do not exceed; NaN if there are none."""
        number = int(self.counts.sum())
        if not number:
            return math.nan
        rank = max(1, math.ceil(number * percent / 100))
        place = int(np.searchsorted(self.counts.cumsum(), rank))
        return SHORTEST * GROWTH ** (place + 0.5)

    def milliseconds(self) -> dict[str, float] | None:
        """Median, 99th percentile and mean, in milliseconds; None if there are none."""
        number = int(self.counts.sum())
        if not number:
            return None
        return {
            "median": round(1000 * self.percentile(50), 3),
            "p99": round(1000 * self.percentile(99), 3),
            "mean": round(1000 * self.total / number, 3),
        }
