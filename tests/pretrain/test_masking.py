"""Masks and patches."""

import pytest
import torch

from pretrain.masking import from_patches, random_visible, to_patches


@pytest.mark.parametrize("grid", [(6, 6, 6), (3, 5), (1, 2, 7)])
@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.99])
def test_as_many_tokens_are_visible_in_every_sample(grid, ratio):
    visible = random_visible(5, grid, ratio)
    assert visible.shape == (5, 1, *grid)
    length = visible[0].numel()
    expected = min(max(round(length * (1 - ratio)), 1), length - 1)
    assert visible.flatten(1).sum(1).tolist() == [expected] * 5


def test_a_seed_decides_a_mask_whatever_the_batch():
    seeds = torch.tensor([3, 2**61, 5])
    together = random_visible(3, (4, 4, 4), 0.75, seeds)
    for i in range(3):
        assert torch.equal(random_visible(1, (4, 4, 4), 0.75, seeds[i : i + 1])[0], together[i])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize(("ratio", "grid"), [(0, (2, 2)), (1, (2, 2)), (0.5, (1, 1, 1))])
def test_masks_that_hide_or_show_nothing_are_refused(ratio, grid):
    with pytest.raises(ValueError, match="use a ratio between 0 and 1"):
        random_visible(1, grid, ratio)


def test_patches_are_the_recorded_voxels(shared):
    from tests.golden import Golden

    index = Golden(shared / "golden/hymamba_modules.safetensors")["patchify_index_b0_p5_first64"]
    volume = torch.arange(48.0**3).view(1, 1, 48, 48, 48)
    assert torch.equal(to_patches(volume, (3, 3, 3))[0, 5, 0, :64].long(), index.long().flatten())


@pytest.mark.parametrize("size", [(8, 6, 4), (8, 6)])
def test_patches_go_back_where_they_came_from(size):
    volume = torch.randn(2, 3, *size)
    grid = tuple(n // 2 for n in size)
    assert torch.equal(from_patches(to_patches(volume, grid), grid, size), volume)
