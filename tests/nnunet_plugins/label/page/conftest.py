"""The page in a real browser, over a server with studies of every kind."""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_plugins.data.clips import FrameStream
from tests.nnunet_plugins.label.browser import Browser, browsing, find_chromium
from tests.nnunet_plugins.label.conftest import draw_case, needs_monai_label, write_studies
from tests.nnunet_plugins.label.test_planes import write_nifti

needs_a_browser = [
    needs_monai_label,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium or Chrome here"),
]


@pytest.fixture(scope="module")
def server(serve, bundle_folder, video, tmp_path_factory):
    """Volumes, one of them bright all over and of thick slices, one whose axes are turned, with
    labels of another format, a DICOM series, a labelled video, a broken file."""
    from tests.nnunet_plugins.label.test_dicom import write_series

    studies = write_studies(tmp_path_factory.mktemp("studies"), 3, labelled=1)
    write_turned(studies)
    image, label = draw_case(9)
    write_series(studies / "series", np.round(100 * image))
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
    of_series = sitk.GetImageFromArray(label)
    of_series.CopyInformation(sitk.ReadImage(str(studies / "series.nii.gz")))
    sitk.WriteImage(of_series, str(file.with_name("series.nrrd")))
    assert running.put_label("series", file.with_name("series.nrrd")).status_code == 200
    assert running.put_label("clip", file, "original").status_code == 200
    return running


def write_turned(studies: Path) -> None:
    """Voxels that all differ, fractions among them, on turned axes, and labels of a third."""
    values = np.random.default_rng(5).permutation(9 * 11 * 13).reshape(9, 11, 13)
    file = write_nifti(
        studies / "turned.nii.gz", (values / 4).astype(np.float32), "PIR", (1.5, 1.25, 1.75)
    )
    labels = sitk.Cast(sitk.ReadImage(str(file)) > 200, sitk.sitkUInt8)
    (studies / "labels/final").mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(labels, str(studies / "labels/final/turned.nrrd"))


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
