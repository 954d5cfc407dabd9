"""The page in a real browser: what it shows is what is in the files, and its buttons work."""

import base64
import shutil
import time
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_plugins.data.clips import FrameStream
from nnunet_plugins.label.colours import colour
from nnunet_plugins.label.shelf import Shelf
from tests.nnunet_plugins.label.browser import Browser, browsing, find_chromium
from tests.nnunet_plugins.label.conftest import needs_monai_label, write_studies
from tests.nnunet_plugins.label.test_planes import as_seen, write_nifti

pytestmark = [
    needs_monai_label,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium or Chrome here"),
]
SIGNED_OUT = "document.getElementById('sign-in').open"


@pytest.fixture(scope="module")
def server(serve, bundle_folder, video, tmp_path_factory):
    """Volumes, one of them bright all over and of thick slices, a labelled video, a broken file."""
    studies = write_studies(tmp_path_factory.mktemp("studies"), 3, labelled=1)
    shutil.copy(video, studies / "clip.mp4")
    bright = np.full((20, 20, 10), 7, np.int16)
    bright[0, 0, 0] = 6
    write_nifti(studies / "bright.nii.gz", bright, "LPS", (1.0, 1.0, 5.0))
    (studies / "broken.nii.gz").write_bytes(b"nothing")
    running = serve("--bundles", str(bundle_folder), studies=studies)
    masks = np.zeros((len(list(FrameStream(video))), 128, 160), np.uint8)
    masks[6:9, 20:60, 30:90] = 1
    masks[7, 20:80, 30:90] = 1
    file = tmp_path_factory.mktemp("masks") / "masks.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(masks), str(file))
    assert running.put_label("clip", file, "original").status_code == 200
    return running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Browser:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chromium, server) -> Browser:
    """The page, opened anew with the token."""
    chromium.open("about:blank")
    chromium.events.clear()
    chromium.open(f"{server.address}/#token={server.token}")
    chromium.wait("document.querySelector('.pane')?.dataset.index")
    return chromium


@pytest.fixture
def choose(page) -> Callable[..., None]:
    """Open a study and wait until the label of a tag is drawn, or none."""

    def open_(name: str, tag: str = "") -> None:
        page.click(f".study[data-name='{name}']")
        shown(page, name, tag)

    return open_


def shown(page: Browser, name: str, tag: str) -> None:
    page.wait(
        f"document.getElementById('study-name').textContent === '{name}' && "
        f"document.querySelector('.pane')?.dataset.label === '{tag}'"
    )


def index(page: Browser, plane: str) -> int:
    return int(page.run(f"document.querySelector('[data-plane={plane}]').dataset.index"))


def wait_for_index(page: Browser, plane: str, wanted: int) -> None:
    page.wait(f"document.querySelector('[data-plane={plane}]').dataset.index === '{wanted}'")


def canvas(page: Browser, plane: str) -> np.ndarray:
    """What is drawn of a plane, (h, w, 4)."""
    width, height, values = page.run(
        "(() => { const c = document.querySelector("
        f"'[data-plane={plane}] .picture canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let s = '';"
        " for (let i = 0; i < d.length; i += 8192)"
        " s += String.fromCharCode(...d.subarray(i, i + 8192));"
        " return [c.width, c.height, btoa(s)]; })()"
    )
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width, 4)


def middle(page: Browser, plane: str) -> tuple[float, float]:
    """Where the middle of a plane is in the window."""
    x, y, width, height = page.run(
        f"(() => {{ const b = document.querySelector('[data-plane={plane}] .picture canvas')"
        ".getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    return x + width / 2, y + height / 2


def says(page: Browser, words: str) -> None:
    """Wait for a message with some words."""
    page.wait(
        "[...document.querySelectorAll('.toast p')].some("
        f"toast => toast.textContent.includes('{words}'))"
    )


def enabled(page: Browser, button: str) -> None:
    page.wait(f"!document.getElementById('{button}').disabled")


def labels_of(server, name: str) -> dict:
    found = server.client.get("/view/studies").json()
    return {study["name"]: study["labels"] for study in found}[name]


def test_the_token_leaves_the_address_and_nothing_else_is_loaded(page, server):
    assert page.run("location.href") == f"{server.address}/"
    assert page.run("sessionStorage.getItem('mambamed-token')") == server.token
    asked = page.requests()
    assert asked
    assert all(address.startswith((server.address, "about:")) for address in asked)
    assert not any(server.token in a for a in asked if "#" not in a)
    assert page.complaints() == []


def test_a_strict_policy_holds(server):
    policy = server.anonymous().get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy


def test_without_the_token_it_is_asked_for(chromium, server):
    chromium.open("about:blank")
    chromium.open(server.address)
    chromium.wait("document.readyState === 'complete'")
    chromium.run("sessionStorage.clear(); location.reload()")
    chromium.wait(SIGNED_OUT)
    assert chromium.run("document.querySelectorAll('.study').length") == 0
    chromium.type("#token", "x" * 40)
    chromium.key("Enter", "Enter", "\r")
    chromium.wait("document.getElementById('sign-in-error').textContent.includes('does not know')")
    chromium.run("document.getElementById('token').value = ''")
    chromium.type("#token", server.token)
    chromium.key("Enter", "Enter", "\r")
    chromium.wait(f"!{SIGNED_OUT} && document.querySelectorAll('.study').length > 3")
    chromium.click("#leave")
    chromium.wait(SIGNED_OUT)


def test_studies_and_models_are_listed(page):
    names = page.run("[...document.querySelectorAll('.study')].map(s => s.dataset.name)")
    assert names == ["bright", "broken", "clip", "study_0", "study_1", "study_2"]
    told = page.run("document.querySelector('.study[data-name=study_0]').innerText")
    assert "3D" in told
    assert "final" in told
    assert "kB" in told
    card = page.run("document.querySelector('#models details[data-model=tiny]').textContent")
    assert "shell" in card
    assert "core" in card
    assert "as it came" in card
    swatch = page.run("document.querySelector('#models .swatch').style.background")
    assert swatch == f"rgb{colour(1)}"
    page.type("#filter", "dy_1")
    page.wait("document.querySelectorAll('.study').length === 1")


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


def test_segment_reject_segment_accept(page, choose, server):
    choose("study_2")
    folder = server.studies / "labels"
    page.click("#segment")
    shown(page, "study_2", "original")
    enabled(page, "reject")
    page.key("R")
    shown(page, "study_2", "")
    assert labels_of(server, "study_2") == {}
    assert not (folder / "original/study_2.nii.gz").exists()
    page.key("s")
    shown(page, "study_2", "original")
    enabled(page, "accept")
    page.key("A")
    shown(page, "study_2", "final")
    made, kept = (folder / tag / "study_2.nii.gz" for tag in ("original", "final"))
    assert kept.read_bytes() == made.read_bytes()
    assert labels_of(server, "study_2")["final"]["accepted"]
    page.wait("document.getElementById('accept').disabled")


def test_an_older_final_label_is_only_replaced_when_agreed_to(page, choose, server):
    choose("study_0", "final")
    final = server.studies / "labels/final/study_0.nii.gz"
    before = final.read_bytes()
    page.click("#segment")
    shown(page, "study_0", "original")
    enabled(page, "accept")
    for button, replaced in (("no", False), ("yes", True)):
        page.click("#accept")
        page.wait("document.querySelector('dialog[open] button[value=yes]')")
        page.click(f"dialog[open] button[value={button}]")
        page.wait("!document.querySelector('dialog[open]')")
        if replaced:
            shown(page, "study_0", "final")
        assert (final.read_bytes() != before) == replaced


def test_next_opens_what_the_model_is_least_sure_of(page, server):
    page.click("#next")
    says(page, "uncertainty")
    wanted = server.client.post("/activelearning/uncertainty", json={"model": "tiny"}).json()["id"]
    assert page.run("document.getElementById('study-name').textContent") == wanted


def test_failures_are_told_in_sentences(page, server):
    page.click(".study[data-name=broken]")
    says(page, "cannot be read as a volume")
    page.run("window.fetch = () => Promise.reject(new TypeError('down'))")
    page.click("#reload")
    says(page, "does not answer")


def test_a_prediction_that_changed_meanwhile_is_not_accepted(page, choose, server):
    choose("clip", "original")
    file = server.studies / "labels/original/clip.nii.gz"
    file.write_bytes(file.read_bytes())
    page.click("#accept")
    says(page, "newer prediction")
    assert "final" not in labels_of(server, "clip")


def test_a_candidate_is_compared_and_promoted(page, server, bundle_folder):
    shelf = Shelf(server.studies / ".mambamed/models/tiny", bundle_folder / "models/model.pt")
    report = {
        "verdict": "the candidate is better than the served model: Dice 0.8123 and 0.7001",
        "mean_dice": {"candidate": 0.8123, "served": 0.7001}, "better": True, "epochs": 3,
        "dice": {"candidate": {"study_0": {"shell": 0.8, "core": None}},
                 "served": {"study_0": {"shell": 0.7, "core": None}}},
        "trained_on": ["a", "b"], "held_out": ["study_0"], "made": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    shelf.put_candidate(torch.load(shelf.shipped, weights_only=True), report)
    page.click("#reload")
    page.wait("document.querySelector('.candidate-box')")
    told = page.run("document.querySelector('.candidate-box').innerText")
    assert "0.812" in told
    assert "0.700" in told
    assert shelf.served == shelf.shipped
    page.click(".candidate-box button")
    page.wait("document.querySelector('dialog[open] table')")
    assert "0.800" in page.run("document.querySelector('dialog[open]').innerText")
    page.click("dialog[open] button[value=yes]")
    page.wait("!document.querySelector('.candidate-box')")
    assert shelf.served == shelf.model
    page.wait("document.getElementById('models').textContent.includes('2026-01-02, promoted')")
    page.click("#models [data-act=restore]")
    page.wait("document.querySelector('dialog[open]')")
    page.click("dialog[open] button[value=yes]")
    page.wait("document.getElementById('models').textContent.includes('as it came')")
    assert not shelf.previous.is_file()


def test_a_training_is_started_watched_and_stopped(page, server):
    page.run("document.querySelector('#models input[name=epochs]').value = 500")
    page.click("#models [data-act=train]")
    page.wait("document.querySelector('.job[data-kind=train]')")
    page.wait("document.querySelector('.job[data-status=RUNNING]')")
    request = server.client.get("/train/").json()["request"]
    assert (request["model"], request["max_epochs"]) == ("tiny", 500)
    page.click(".job button")
    page.wait("document.querySelector('.job[data-status=STOPPED]')")
    assert server.client.get("/train/?check_if_running=true").status_code == 404


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, choose, scheme):
    page.scheme(scheme)
    choose("clip", "original")
    pairs = page.run(
        """[...document.querySelectorAll(
          'h1,h2,p,button:not(:disabled),label,th,td,.chip,.name,.meta,summary')]
        .filter(e => e.innerText && e.getClientRects().length && !e.closest('.picture'))
        .map(e => { let b = e, c;
          do { c = getComputedStyle(b).backgroundColor; b = b.parentElement; }
          while (/, 0\\)$|transparent/.test(c) && b);
          const rgb = t => t.match(/[\\d.]+/g).slice(0, 3).map(n => n / 255);
          return [e.innerText.slice(0, 30), rgb(getComputedStyle(e).color), rgb(c)]; })"""
    )
    assert len(pairs) > 30
    for text, ink, paper in pairs:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ink, paper)
    assert (luminance(pairs[0][2]) > 0.5) == (scheme == "light")


def test_everything_fits_a_small_screen(page, choose):
    choose("study_0", "original")
    page.resize(1280, 800)
    assert page.run("document.documentElement.scrollWidth") <= 1280
    assert page.run("document.documentElement.scrollHeight") <= 800
    cut = page.run(
        "[...document.querySelectorAll('button')].filter(b => {"
        " const r = b.getBoundingClientRect();"
        " const a = b.closest('aside, section, dialog')?.getBoundingClientRect();"
        " return r.width && a && (r.right > a.right + 1 || r.left < a.left - 1); })"
        ".map(b => b.textContent)"
    )
    assert cut == []
    assert page.run("document.querySelectorAll('.pane').length") == 3
