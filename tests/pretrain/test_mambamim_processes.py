"""MambaMIM on two processes: the weights of one, and the command as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrain.export import read_pretrained
from tests.pretrain.test_command import TINY, losses

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def python(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("option", ["skips", "no-skips"])
def test_two_processes_give_the_weights_of_one(tmp_path, option):
    """In float64: AdamW makes of float32's rounding what it makes of a gradient."""
    for folder, launcher in (("one", ()), ("two", TORCHRUN)):
        python(*launcher, "-m", "tests.pretrain.mambamim_ddp", tmp_path / folder, option)
    one, two = (
        torch.load(tmp_path / folder / "checkpoint_last.pt", weights_only=True)["model"]
        for folder in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=name)


def test_the_command_on_two_processes(scans, tmp_path):
    command = ("-m", "pretrain", "mambamim", scans, *TINY, "--epochs", 1, "--out")
    python(*command, tmp_path / "one")
    said = python(*TORCHRUN, *command, tmp_path / "two")
    assert said.count("4 scans, 0 left out") == 1
    one, two = (losses(tmp_path / folder)[0] for folder in ("one", "two"))
    assert float(two[1]) == pytest.approx(float(one[1]), rel=1e-3)
    assert (tmp_path / "two/data.json").exists()
    ours, theirs = (read_pretrained(tmp_path / folder).weights for folder in ("one", "two"))
    assert ours.keys() == theirs.keys()
