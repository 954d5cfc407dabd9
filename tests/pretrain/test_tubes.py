"""Tubes hide the same patches of every frame, as many as asked for."""

import pytest
import torch

from pretrain.tubes import tube_visible


@pytest.mark.parametrize(("ratio", "patches"), [(0.75, 196), (0.9, 36), (0.5, 7), (0.99, 4)])
def test_so_many_patches_of_each_frame_in_tubes(ratio, patches):
    visible = tube_visible(3, 5, patches, ratio)
    assert visible.shape == (3, 5, patches)
    assert visible.dtype == torch.bool
    shown = max(round((1 - ratio) * patches), 1)
    assert (visible.sum(2) == shown).all()
    assert (visible == visible[:, :1]).all()


def test_a_clips_choice_is_its_seeds_alone():
    together = tube_visible(3, 2, 36, 0.75, torch.tensor([5, 6, 5]))
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    assert torch.equal(tube_visible(1, 2, 36, 0.75, torch.tensor([6]))[0], together[1])


def test_without_seeds_torch_decides():
    torch.manual_seed(3)
    first, second = tube_visible(1, 2, 36, 0.75), tube_visible(1, 2, 36, 0.75)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(tube_visible(1, 2, 36, 0.75), first)


def test_what_leaves_nothing_to_hide_is_refused():
    for ratio, patches in ((1.0, 36), (0.0, 36), (0.75, 1)):
        with pytest.raises(ValueError, match="leaves none to hide or none to show"):
            tube_visible(1, 2, patches, ratio)
