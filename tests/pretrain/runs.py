"""How runs of the toys are ended early and compared."""

import csv
import os
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.pretrain.toys import ToySamples

TIMES = ("seconds", "samples_per_second")


def wait_for(happens):
    """Wait, for two minutes at most, until the function says yes."""
    for _ in range(12000):
        if happens():
            return
        time.sleep(0.01)
    pytest.fail("a process did not do what was waited for")


def events(folder, tag):
    """Steps and values in TensorBoard's files."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def outcome(folder):
    """Log without times, and the state of the last checkpoint without them."""
    rows = list(csv.DictReader((folder / "log.csv").open()))
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    for row in (*rows, *state["progress"]["rows"]):
        for name in TIMES:
            del row[name]
    return rows, state


def assert_same_outcome(folder, other):
    (rows, state), (other_rows, other_state) = outcome(folder), outcome(other)
    assert rows == other_rows
    assert state["progress"] == other_state["progress"]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(state[part], other_state[part], rtol=0, atol=0)
    for name in ("last", "best"):
        weights = [(f / f"{name}.safetensors").read_bytes() for f in (folder, other)]
        assert weights[0] == weights[1]


class Interrupting(ToySamples):
    """Sends a signal or fails when so many samples were read; counts them."""

    def __init__(self, at=None, event=None):
        super().__init__()
        self.at, self.event, self.read = at, event, 0

    def __getitem__(self, index):
        self.read += 1
        if self.read == self.at:
            if self.event is None:
                raise RuntimeError("the power is gone")
            os.kill(os.getpid(), self.event)
        return super().__getitem__(index)
