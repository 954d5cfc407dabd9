import signal
from itertools import chain

import pytest
import torch

from pretrain.sampling import epoch_batches, load, seed_of, steps_per_epoch
from tests.pretrain.toys import small


def test_an_epoch_takes_no_sample_twice_and_drops_the_rest():
    batches = epoch_batches(26, small(), epoch=0)
    indices = list(chain(*batches))
    assert [len(batch) for batch in batches] == [4] * 6
    assert len(set(indices)) == 24
    assert set(indices) <= set(range(26))


def test_the_order_is_a_function_of_seed_and_epoch():
    first = epoch_batches(26, small(seed=1), epoch=0)
    assert first == epoch_batches(26, small(seed=1), epoch=0)
    assert first != epoch_batches(26, small(seed=1), epoch=1)
    assert first != epoch_batches(26, small(seed=2), epoch=0)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_processes_and_parts_share_out_the_same_batches(processes, accumulate):
    whole = epoch_batches(26, small(), epoch=5)
    settings = small(accumulate=accumulate)
    shares = [epoch_batches(26, settings, 5, rank, processes) for rank in range(processes)]
    for step, batch in enumerate(whole):
        parts = [share[step * accumulate : (step + 1) * accumulate] for share in shares]
        assert sorted(chain(*chain(*parts))) == sorted(batch)


def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="batch_size is 4; it must be a multiple of 6"):
        steps_per_epoch(26, small(accumulate=2), processes=3)
    with pytest.raises(ValueError, match="3 samples and a batch 4"):
        steps_per_epoch(3, small(), processes=1)


def test_seeds_differ():
    seeds = {seed_of(0, epoch, step) for epoch in range(9) for step in range(9)}
    assert len(seeds) == 81


class Ignored:
    def __getitem__(self, index):
        return {"ignored": torch.tensor(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)}


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_leave_ctrl_c_to_the_trainer(workers):
    batch = next(load(Ignored(), [[0, 1]], workers, torch.device("cpu")))
    assert batch["ignored"].tolist() == [workers == 1] * 2
