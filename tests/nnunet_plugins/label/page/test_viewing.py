"""Planes, frames, keys and pointer: what is shown is what is in the files."""

import json
import re
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.data.clips import FrameStream
from nnunet_plugins.label.colours import colour
from tests.nnunet_plugins.label.browser import Browser
from tests.nnunet_plugins.label.page.conftest import (
    canvas,
    index,
    middle,
    needs_a_browser,
    shown,
    wait_for_index,
)
from tests.nnunet_plugins.label.test_planes import as_seen

pytestmark = needs_a_browser


def test_a_plane_shows_the_voxels_and_colours_of_its_slice(page, choose, server):
    choose("study_0", "final")
    labels = as_seen(server.studies / "labels/final/study_0.nii.gz")
    page.run("document.getElementById('opacity').value = 100;"
             "document.getElementById('opacity').dispatchEvent(new Event('input'))")  # fmt: skip
    page.key("x")
    slices = {"axial": labels, "coronal": labels[::-1].swapaxes(0, 1),
              "sagittal": labels[::-1].transpose(2, 0, 1)}  # fmt: skip
    for plane, stack in slices.items():
        drawn = canvas(page, plane)
        wanted = stack[index(page, plane)]
        for value in (1, 2):
            share = (drawn[..., :3] == colour(value)).all(-1).mean()
            size = canvas_share(page, plane)
            assert share == pytest.approx((wanted == value).mean() * size, rel=0.08)
    assert page.run("document.querySelectorAll('#legend tbody tr').length") == 2
    told = page.run("document.querySelector('#legend tr[data-value=\"1\"]').textContent")
    assert f"{int((labels == 1).sum()):,}" in told
    assert "shell" in told
    page.key("o")
    page.wait("document.querySelector('.pane').dataset.label === ''")
    assert not (canvas(page, "axial")[..., :3] == colour(1)).all(-1).any()
    assert (np.ptp(canvas(page, "axial")[..., :3], axis=-1) == 0).all()
    page.key("o")


def canvas_share(page: Browser, plane: str) -> float:
    """Share of a plane's canvas that its picture covers, from the sizes that the server tells."""
    facts = page.run(
        "fetch('/view/study?image=study_0', {headers: {Authorization: 'Bearer ' +"
        " sessionStorage.getItem('mambamed-token')}}).then(a => a.json())"
    )["planes"][plane]
    height, width = canvas(page, plane).shape[:2]
    tall, wide = (facts[k] * p for k, p in zip(("rows", "columns"), facts["pixel"], strict=True))
    scale = min(height / tall, width / wide)
    return tall * wide * scale**2 / (height * width)


def test_a_hidden_label_is_not_drawn(page, choose):
    choose("study_0", "final")
    page.click("#legend tr[data-value='1'] input")
    deadline = time.monotonic() + 20
    while (canvas(page, "axial")[..., :3] == colour(1)).all(-1).any():
        assert time.monotonic() < deadline
    assert (canvas(page, "axial")[..., :3] == colour(2)).all(-1).any()


def test_thick_slices_keep_their_proportions(page, choose):
    choose("bright")
    page.key("x")
    for plane, ratio in (("axial", 20 / 20), ("coronal", 50 / 20), ("sagittal", 50 / 20)):
        light = canvas(page, plane)[..., 0] > 200
        rows, columns = np.flatnonzero(light.any(1)), np.flatnonzero(light.any(0))
        assert np.ptp(rows) / np.ptp(columns) == pytest.approx(ratio, rel=0.05)


def test_keys_and_wheel_move_through_planes(page, choose):
    choose("study_1")
    before = index(page, "axial")
    page.key("1")
    page.key("ArrowUp", "ArrowUp")
    wait_for_index(page, "axial", before + 1)
    page.key("2")
    coronal = index(page, "coronal")
    page.key("ArrowDown", "ArrowDown")
    wait_for_index(page, "coronal", coronal - 1)
    assert index(page, "axial") == before + 1
    box = middle(page, "sagittal")
    sagittal = index(page, "sagittal")
    page.mouse("mouseWheel", *box, deltaX=0, deltaY=120)
    wait_for_index(page, "sagittal", sagittal + 1)
    page.key("j")
    shown(page, "study_2", "")
    page.key("k")
    shown(page, "study_1", "")


def test_a_click_moves_the_other_planes_there(page, choose):
    choose("study_1")
    x, y = middle(page, "axial")
    axial = index(page, "axial")
    for dx in (40, -40):
        page.mouse("mousePressed", x + dx, y)
        page.mouse("mouseReleased", x + dx, y)
        side = ">" if dx > 0 else "<"
        page.wait(f"document.querySelector('[data-plane=sagittal]').dataset.index {side} 11")
    assert index(page, "axial") == axial
    assert page.run("document.getElementById('readout').textContent") != ""


def test_the_window_changes_the_picture(page, choose):
    choose("study_1")
    page.key("x")
    bright = canvas(page, "axial")[..., 0].mean()
    x, y = 450, 400
    page.mouse("mousePressed", x, y, "right")
    page.mouse("mouseMoved", x, y + 60, "right", buttons=2)
    page.mouse("mouseReleased", x, y + 60, "right")
    page.wait("document.getElementById('preset').value === 'Own'")
    deadline = time.monotonic() + 20
    while not canvas(page, "axial")[..., 0].mean() < bright - 5:
        assert time.monotonic() < deadline
    page.key("w")
    page.wait("document.getElementById('preset').value === 'Auto'")


def test_a_video_opens_where_its_label_is_largest_and_plays(page, choose, server, video):
    choose("clip", "original")
    assert page.run("document.querySelectorAll('.pane').length") == 1
    wait_for_index(page, "frame", 7)
    frames = [frame for _, frame in FrameStream(video)]
    page.key("o")
    drawn = canvas(page, "frame")
    height, width = drawn.shape[:2]
    middle = drawn[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4, :3]
    wanted = frames[7][62:66, 78:82].reshape(-1, 3).mean(0)
    assert np.abs(middle.reshape(-1, 3).mean(0) - wanted).max() < 25
    page.key("o")
    page.key(" ", "Space")
    page.wait("Number(document.querySelector('.pane').dataset.index) >= 10")
    page.key(" ", "Space")
    page.wait("document.getElementById('play').textContent === 'Play'")


def readout(page: Browser, words: str = "value") -> str:
    """What is told of the pixel under the pointer, once it holds some words."""
    page.wait(f"document.getElementById('readout').textContent.includes('{words}')")
    return page.run("document.getElementById('readout').textContent")


def point(page: Browser, plane: str, right: float, down: float) -> None:
    """Lay the pointer on a place of the canvas, counted from its middle in halves."""
    x, y = middle(page, plane)
    width, height = page.run(
        f"(() => {{ const c = document.querySelector('[data-plane={plane}] canvas');"
        " return [c.clientWidth, c.clientHeight]; })()"
    )
    side = min(width, height) / 2
    page.mouse("mouseMoved", x, y - 1, "none")
    page.run("document.getElementById('readout').textContent = ''")
    page.mouse("mouseMoved", x + right * side, y + down * side, "none")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_voxel_place_and_label_under_the_pointer_are_those_of_the_file(page, choose, server, plane):
    choose("turned", "final")
    image = sitk.ReadImage(str(server.studies / "turned.nii.gz"))
    label = sitk.ReadImage(str(server.studies / "labels/final/turned.nrrd"))
    seen = set()
    for right, down in ((0.01, 0.02), (-0.3, -0.35), (0.4, 0.1), (-0.2, 0.3)):
        point(page, plane, right, down)
        told = readout(page)
        voxel = tuple(map(int, re.search(r"voxel (\d+), (\d+), (\d+)", told).groups()))
        assert f"value {image[voxel]:g} " in told + " "
        sides = re.search(r"([LR]) ([\d.]+) ([PA]) ([\d.]+) ([SI]) ([\d.]+) mm", told).groups()
        place = [
            float(mm) * (1 if side in "LPS" else -1)
            for side, mm in zip(sides[::2], sides[1::2], strict=True)
        ]
        assert place == pytest.approx(image.TransformIndexToPhysicalPoint(voxel), abs=0.051)
        assert ("shell" in told) == bool(label[voxel])
        seen.add(voxel)
    assert len(seen) == 4


def test_the_readout_follows_planes_and_labels_under_a_resting_pointer(page, choose, server):
    choose("turned", "final")
    image = sitk.ReadImage(str(server.studies / "turned.nii.gz"))
    point(page, "axial", 0.01, 0.02)
    before = readout(page)
    page.key("1")
    page.key("ArrowUp", "ArrowUp")
    page.wait(f"!{json.dumps(before)}.startsWith(document.getElementById('readout')"
              ".textContent.split(' · ')[0])")  # fmt: skip
    told = readout(page)
    voxel = tuple(map(int, re.search(r"voxel (\d+), (\d+), (\d+)", told).groups()))
    assert f"value {image[voxel]:g} " in told + " "
    point(page, "axial", 3, 3)
    readout(page, "arrow keys")


def test_the_pixel_of_a_frame_is_told(page, choose, video):
    choose("clip", "original")
    wait_for_index(page, "frame", 7)
    point(page, "frame", -0.2, -0.3)
    told = readout(page, "red")
    row, column = map(int, re.search(r"row (\d+), column (\d+)", told).groups())
    frames = [frame for _, frame in FrameStream(video)]
    red, green, blue = frames[7][row, column]
    assert f"red {red}, green {green}, blue {blue}" in told
    assert "frame 8, " in told
    inside = 20 <= row < 80 and 30 <= column < 90
    assert ("label 1" in told or told.count("·") == 3) == inside
