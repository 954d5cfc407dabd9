"""Ctrl-C and SIGTERM save, say how to go on, and lose nothing."""

import os
import signal
import time

import pytest

from pretrain.engine import pretrain
from tests.pretrain.runs import Interrupting, assert_same_outcome, wait_for
from tests.pretrain.toys import Toy, ToySamples, small


def test_ctrl_c_saves_says_how_to_go_on_and_ends_as_interrupted(tmp_path, launch):
    folder = tmp_path / "stopped"
    pretrain(Toy(), ToySamples(), tmp_path / "whole", small(workers=1))
    process = launch(folder, settings={"workers": 1}, pause=0.02)
    wait_for((folder / "log.csv").exists)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the worker too
    output = process.communicate(timeout=30)[0]
    assert process.returncode in (130, -signal.SIGINT), output
    assert "resume to go on" in output
    pretrain(Toy(seed=5), ToySamples(), folder, small(workers=1), resume=True)
    assert_same_outcome(folder, tmp_path / "whole")


@pytest.mark.parametrize("event", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 34, 48, 96])
def test_a_stop_takes_up_at_the_next_step_and_reads_nothing_twice(tmp_path, at, event):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    pretrain(Toy(), ToySamples(), tmp_path / "whole", small())
    first, rest = Interrupting(at, event), Interrupting()
    with pytest.raises(KeyboardInterrupt):
        pretrain(Toy(), first, tmp_path / "stopped", small())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    pretrain(Toy(seed=5), rest, tmp_path / "stopped", small(), resume=True)
    assert first.read + rest.read == 4 * 24
    assert_same_outcome(tmp_path / "stopped", tmp_path / "whole")
