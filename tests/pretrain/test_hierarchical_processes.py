"""Hierarchical pretraining on two processes ends with the weights of one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_two_processes_give_the_weights_of_one(tmp_path):
    """In float64: AdamW makes of float32's rounding what it makes of a gradient."""
    for folder, launcher in (("one", ()), ("two", TORCHRUN)):
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.pretrain.hierarchical_ddp", tmp_path / folder],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, two = (
        torch.load(tmp_path / folder / "checkpoint_last.pt", weights_only=True)["model"]
        for folder in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=name)
