from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nnunet_plugins.process_group import leave_group


def threads():
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


def train(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    weights = nn.Linear(3, 3)
    network = nn.parallel.DistributedDataParallel(weights)
    network(torch.ones(2, 3)).sum().backward()
    assert "pt_gloo_runloop" in threads()
    leave_group(network)
    assert not dist.is_initialized()
    assert "pt_gloo_runloop" not in threads()
    assert network.module is weights


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="lists threads as Linux does")
def test_nothing_of_the_group_is_left_while_its_network_lives(tmp_path):
    torch.multiprocessing.spawn(train, (tmp_path / "store",), nprocs=2)


def test_one_process_has_no_group_to_leave():
    network = nn.Linear(3, 3)
    leave_group(network)
    assert network(torch.ones(3)).isfinite().all()
