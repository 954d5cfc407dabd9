"""Several processes train as one does on their joint batch."""

import os
import signal
import socket

import pytest
import torch

from pretrain.engine import pretrain
from tests.pretrain.runs import assert_same_outcome, wait_for
from tests.pretrain.toys import Toy, ToySamples, small


def test_two_processes_give_the_weights_of_one(tmp_path, launch):
    toy = Toy(hides=False)
    rows = pretrain(toy, ToySamples(), tmp_path / "one", small())
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = launch(tmp_path / "two", *torchrun, hides=False)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert output.count("epoch 4/4") == 1  # one of them speaks
    state = torch.load(tmp_path / "two" / "checkpoint_last.pt", weights_only=True)
    for name, weight in toy.state_dict().items():
        torch.testing.assert_close(state["model"][name], weight, rtol=0, atol=1e-5)
    for row, two in zip(rows, state["progress"]["rows"], strict=True):
        assert two["loss"] == pytest.approx(row["loss"], abs=1e-5)


def start_two(fork, folder, **options):
    """Two processes with what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **together} for rank in "01"]
    return [fork(folder, {**own, "LOCAL_WORLD_SIZE": "2"}, **options) for own in ranks]


def end(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_two_processes_stop_at_the_same_step_and_go_on(tmp_path, fork):
    assert end(start_two(fork, tmp_path / "whole")) == [0, 0]
    processes = start_two(fork, tmp_path / "stopped", pause=0.03)
    wait_for((tmp_path / "stopped" / "log.csv").exists)
    os.kill(processes[1].pid, signal.SIGTERM)  # one is told, both stop
    assert end(processes) == [1, 1]  # as multiprocessing reports a KeyboardInterrupt
    state = torch.load(tmp_path / "stopped" / "checkpoint_last.pt", weights_only=True)
    assert state["progress"]["epoch"] < 4
    assert end(start_two(fork, tmp_path / "stopped", resume=True)) == [0, 0]
    assert_same_outcome(tmp_path / "stopped", tmp_path / "whole")
