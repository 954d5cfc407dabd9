"""Twenty clients over volumes of a real size; some minutes, run by `pytest -m realdata`."""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_plugins.bundle.export import export_bundle
from tests.bundles.conftest import TRAINER, small_plans, write_results
from tests.nnunet_plugins.label.conftest import DATASET, Server, needs_monai_label, running
from tests.nnunet_plugins.label.test_models import assert_equal
from tests.nnunet_plugins.label.test_server import infer

pytestmark = [pytest.mark.realdata, needs_monai_label]
SHAPE, STUDIES, CLIENTS = (160, 192, 192), 4, 20
PATCH = (56, 64, 64)
VOLUME = 4 * int(np.prod(SHAPE))
"""Bytes of one in single precision, 22.5 MiB."""


def pattern(seed: int, shape: Sequence[int], scale: int) -> np.ndarray:
    """Noise whose grains have so many voxels a side."""
    coarse = np.random.default_rng(seed).standard_normal([-(-side // scale) for side in shape])
    return ndimage.zoom(coarse, scale, order=1).astype(np.float32)[tuple(map(slice, shape))]


def balance(network: torch.nn.Module) -> None:
    """Let every class have about a third of the voxels."""
    with torch.no_grad():
        image = torch.from_numpy(pattern(0, PATCH, 5))[None, None]
        logits = network.eval()(image / image.std())[0]
        network.decoder.seg_layers[0].bias -= logits.flatten(1).median(1).values


def write_large(file: Path, seed: int) -> None:
    """Coarse patterns, different ones from each seed, that outlast a network's resampling."""
    image = sitk.GetImageFromArray(pattern(seed, SHAPE, 16))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


@pytest.fixture(scope="module")
def coarse_bundle(tmp_path_factory) -> Path:
    """A small network on voxels of 3 mm, whose logits are brought to the grid of the study."""
    plans = small_plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": list(PATCH), "spacing": [3.0, 3.0, 3.0]}
    configuration["architecture"]["arch_kwargs"] |= {
        "features_per_stage": [4, 8, 8], "strides": [[1, 1, 1], [4, 4, 4], [2, 2, 2]]
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("results") / "Dataset902_Coarse"
    results = folder / f"{TRAINER}__nnUNetPlans__3d_fullres"
    write_results(results, TRAINER, plans, DATASET, (0,), balance)
    return export_bundle(results, tmp_path_factory.mktemp("bundles") / "coarse")


def peak(server: Server) -> int:
    """Most bytes of memory that the server has ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def send(server: Server, file: Path, out: Path) -> Path:
    """Labels of a file that is sent along."""
    with file.open("rb") as stream:
        answer = server.client.post(
            "/infer/coarse", params={"output": "image"}, files={"file": (file.name, stream)},
            timeout=1200,
        )  # fmt: skip
    assert answer.status_code == 200, answer.text
    out.write_bytes(answer.content)
    return out


def test_twenty_clients_with_large_volumes_get_their_own_in_bounded_memory(
    coarse_bundle, tmp_path, capsys
):
    studies = tmp_path / "studies"
    for number in range(STUDIES):
        write_large(studies / f"large_{number}.nii.gz", number)
    with running(studies, "--bundles", str(coarse_bundle)) as server:
        server.client.timeout = 1200
        idle = peak(server)
        one_by_one = tmp_path / "alone"
        one_by_one.mkdir()
        names = [f"large_{number}" for number in range(STUDIES)]
        expected = {name: infer(server, "coarse", name, one_by_one) for name in names}
        alone = peak(server)
        masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in expected.values()]
        assert all((a != b).mean() > 0.2 for a, b in combinations(masks, 2))

        def ask(number: int) -> tuple[str, Path]:
            name, out = names[number % STUDIES], tmp_path / str(number)
            out.mkdir()
            if number // STUDIES % 2:
                return name, send(server, studies / f"{name}.nii.gz", out / "sent.nii.gz")
            return name, infer(server, "coarse", name, out)

        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(ask, number) for number in range(CLIENTS)]
            most = 0
            while not all(future.done() for future in asked):
                queue = server.client.get("/info/").json()["queue"]
                assert queue["running"] <= 1
                most = max(most, queue["waiting"])
                time.sleep(0.5)
        together = peak(server)
    with capsys.disabled():
        figures = (f"{what / 2**20:.0f}" for what in (idle, alone, together))
        print("\nMiB at most, idle, with one client and with 20:", *figures)
    for future in asked:
        name, file = future.result()
        assert_equal(file, expected[name])
    assert most == CLIENTS - 1
    assert alone - idle < 30 * VOLUME
    assert together - alone < 8 * VOLUME  # seen: 2, as one thread computes
