"""Bounded queues between threads, and durations in bounded memory."""

import threading

import numpy as np
import pytest

from nnunet_plugins.stream.handover import Handover
from nnunet_plugins.stream.latency import Durations


def test_the_newest_item_wins_and_drops_are_counted():
    handover = Handover(1, newest_wins=True)
    for i in range(5):
        assert handover.put(i)
    handover.close()
    assert list(handover.taken()) == [4]
    assert handover.dropped == 4


def test_a_giver_waits_for_the_taker_and_nothing_is_lost():
    handover, most = Handover(2), 0

    def give():
        for i in range(50):
            handover.put(i)
        handover.close()

    threading.Thread(target=give).start()
    taken = []
    for item in handover.taken():
        most = max(most, len(handover._items))
        taken.append(item)
    assert taken == list(range(50))
    assert most <= 2
    assert handover.dropped == 0


def test_an_error_comes_after_what_waits():
    handover = Handover(3)
    handover.put("last")
    handover.close(OSError("gone"))
    items = handover.taken()
    assert next(items) == "last"
    with pytest.raises(OSError, match="gone"):
        next(items)


def test_a_taker_that_leaves_frees_the_giver():
    handover, answers = Handover(1), []
    handover.put(0)
    thread = threading.Thread(target=lambda: answers.append(handover.put(1)))
    thread.start()
    handover.leave()
    thread.join(5)
    assert answers == [False]


def test_a_waiting_taker_can_be_stopped():
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    assert list(Handover(1).taken(stop)) == []


def test_percentiles_are_right_to_a_percent():
    values = np.random.default_rng(0).lognormal(-3, 1, 5000)
    durations = Durations()
    for value in values:
        durations.add(float(value))
    for percent in (50, 99):
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert durations.percentile(percent) == pytest.approx(exact, rel=0.01)
    assert durations.milliseconds()["mean"] == pytest.approx(1000 * values.mean(), rel=1e-3)
    assert Durations().milliseconds() is None
