"""What the wheel takes in everybody's environment: three packages, two start-up files, no more."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_top_level_holds_our_names_and_no_others(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    metadata = {name for name in top if name.endswith(".dist-info")}
    assert len(metadata) == 1
    assert top - metadata == {
        "mamba_kernels", "nnunet_plugins", "pretrain", "mambamed.pth", "mambamed.start",
    }  # fmt: skip


def test_both_start_up_files_call_the_same_function(wheel):
    assert wheel.read("mambamed.pth").decode().strip() == (
        "import nnunet_plugins.discovery; nnunet_plugins.discovery.install()"
    )
    assert wheel.read("mambamed.start").decode().strip() == "nnunet_plugins.discovery:install"


def test_types_and_licence_travel_along(wheel):
    names = wheel.namelist()
    for package in ("mamba_kernels", "nnunet_plugins", "pretrain"):
        assert f"{package}/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
