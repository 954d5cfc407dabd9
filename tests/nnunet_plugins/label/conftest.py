"""Small served bundles, studies in folders, and a server in a process of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.bundles.conftest import (
    TRAINER,
    VIDEO_TEMPLATE,
    small_plans,
    write_results,
    write_volume,
)

DATASET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
needs_monai_label = pytest.mark.skipif(
    find_spec("monailabel") is None, reason="MONAI Label is not installed here: make label-test"
)


def draw_case(seed: int, shape: tuple[int, int, int] = (10, 24, 22)) -> tuple:
    """A blob in a blob on noise, and its labels."""
    rng = np.random.default_rng(seed)
    index = np.indices(shape)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    scaled = (index - centre[:, None, None, None]) / np.array([1, 2, 2])[:, None, None, None]
    distance = np.sqrt((scaled**2).sum(0))
    label = (distance < 4).astype(np.uint8) + (distance < 2).astype(np.uint8)
    return (label + 0.3 * rng.standard_normal(shape)).astype(np.float32), label


def write_studies(folder: Path, count: int, labelled: int = 0) -> Path:
    """Volumes of different shapes, the first of them with final labels."""
    for seed in range(count):
        image, label = draw_case(seed, (10 + seed % 3, 24, 22 + seed % 2))
        write_volume(folder / f"study_{seed}.nii.gz", image)
        if seed < labelled:
            write_volume(folder / f"labels/final/study_{seed}.nii.gz", label)
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """nnU-Net results with random weights."""
    folder = tmp_path_factory.mktemp("results") / "Dataset901_Tiny"
    name = f"{TRAINER}__nnUNetPlans__3d_fullres"
    return write_results(folder / name, TRAINER, small_plans(), DATASET, (0,))


@pytest.fixture(scope="session")
def bundle_folder(results, tmp_path_factory) -> Path:
    """The same as a bundle called `tiny`."""
    from nnunet_plugins.bundle.export import export_bundle

    return export_bundle(results, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def video() -> Path:
    """The clip that comes with the bundle of Vivim."""
    return next((VIDEO_TEMPLATE / "videos").glob("*.mp4"))


@dataclass
class Server:
    """A running `mambamed label`, and a client that has its token."""

    process: subprocess.Popen
    address: str
    token: str
    studies: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(
            base_url=self.address, headers=self.authorization, timeout=120, trust_env=False
        )

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def anonymous(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=30, trust_env=False)

    def upload(self, name: str, file: Path) -> httpx.Response:
        with file.open("rb") as stream:
            return self.client.put(
                "/datastore/image", params={"image": name}, files={"file": (file.name, stream)}
            )

    def put_label(self, name: str, file: Path, tag: str = "final") -> httpx.Response:
        with file.open("rb") as stream:
            return self.client.put(
                "/datastore/label",
                params={"image": name, "tag": tag},
                files={"label": (file.name, stream)},
            )


@contextlib.contextmanager
def running(studies: Path, *options: str) -> Iterator[Server]:
    """`mambamed label` on a free port of the loopback interface."""
    command = [
        str(Path(sys.executable).parent / "mambamed"), "label", "--studies", str(studies),
        "--port", "0", "--threads", "1", *options,
    ]  # fmt: skip
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        env=environment, start_new_session=True,
    )  # fmt: skip
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        found = re.search(r"Address +(http://127\.0\.0\.1:\d+)/#token=(\S+)", "".join(said))
        assert found, "".join(said)
        yield Server(process, found[1], found[2], studies)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def serve(bundle_folder, tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Start servers of `tiny` over six studies, which end with the module."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, labelled: int = 0, studies: Path | None = None) -> Server:
            if studies is None:
                studies = write_studies(tmp_path_factory.mktemp("studies"), 6, labelled)
            options = options or ("--bundles", str(bundle_folder))
            return stack.enter_context(running(studies, *options))

        yield start


@pytest.fixture(scope="module")
def server(serve) -> Server:
    """One server for all tests of a module."""
    return serve()


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder and its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
