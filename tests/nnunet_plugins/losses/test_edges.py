"""Edges of label maps: where they are, where they are not."""

import pytest
import torch

from nnunet_plugins.losses import released_edges, sobel_edges
from nnunet_plugins.losses.edges import near


def square(size: int = 12, value: int = 1) -> torch.Tensor:
    labels = torch.zeros(size, size, dtype=torch.long)
    labels[4:8, 4:8] = value
    return labels


def test_a_square_has_an_edge_two_pixels_wide_around_its_outline():
    edges = sobel_edges(square()).bool()
    wanted = torch.zeros(12, 12, dtype=torch.bool)
    wanted[3:9, 3:9] = True
    wanted[5:7, 5:7] = False
    assert torch.equal(edges, wanted)


def test_a_frames_border_is_no_edge_but_as_released_it_is():
    labels = torch.zeros(12, 12)
    labels[:6] = 1
    edges = sobel_edges(labels)
    assert edges.sum() == 2 * 12
    assert edges[5:7].all()
    released = released_edges(labels)
    assert released[0].all()
    assert released[-1].all()


@pytest.mark.parametrize("value", [0, 1])
def test_a_uniform_frame_has_no_edge(value):
    assert not sobel_edges(torch.full((3, 9, 9), value)).any()


def test_every_class_has_edges_and_touching_ones_too():
    labels = square(value=2)
    assert not sobel_edges(labels, num_classes=2).any()
    assert sobel_edges(labels, num_classes=3).any()
    labels[:, 6:] = 1
    assert sobel_edges(labels, num_classes=3)[5, 5:7].all()


def test_frames_do_not_mix():
    clip = torch.stack([square(), torch.zeros(12, 12, dtype=torch.long)])[None, None]
    edges = sobel_edges(clip)
    assert edges.shape == clip.shape
    assert edges[0, 0, 0].any()
    assert not edges[0, 0, 1].any()


def test_near_is_a_pixel_and_its_neighbours():
    pixels = torch.zeros(2, 5, 5, dtype=torch.bool)
    pixels[0, 2, 2] = True
    assert near(pixels)[0].sum() == 9
    assert not near(pixels)[1].any()
