"""What the wheel takes in everybody's environment: three packages, two start-up files, no more."""

import subprocess
import sys
import zipfile
from pathlib import Path

import hatchling.build
import pytest

from mamba_kernels.native import build as native

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built as a release is: the sdist from our sources, the wheel from that sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    assert len(list(folder.glob("*.tar.gz"))) == 1
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def wheel_of_sources(folder: Path, monkeypatch) -> zipfile.ZipFile:
    """Built as `pip install .` does it."""
    monkeypatch.chdir(ROOT)
    return zipfile.ZipFile(folder / hatchling.build.build_wheel(str(folder)))


def metadata(wheel: zipfile.ZipFile) -> list[str]:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    return wheel.read(name).decode().splitlines()


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
    (licence,) = (name for name in names if name.endswith("LICENSE"))
    assert licence.endswith(".dist-info/licenses/LICENSE")  # where exported bundles take it from


def test_bundles_travel_as_templates_without_weights_and_videos(wheel):
    templates = "nnunet_plugins/bundle/templates"
    inside = {name.removeprefix(f"{templates}/") for name in wheel.namelist() if templates in name}
    bundles = {path.name for path in (ROOT / "bundles").iterdir()} - {"monailabel_app"}
    assert "monailabel_app/main.py" in inside
    for bundle in bundles:
        assert {f"{bundle}/configs/inference.json", f"{bundle}/docs/README.md"} <= inside
    assert not {"models", "videos", "predictions"} & {name.split("/")[1] for name in inside}


def test_the_library_of_this_platform_is_inside(wheel):
    target = native.TARGETS[native.host_target()]
    assert Path(wheel.filename).name.endswith(f"-py3-none-{target.wheel_platform}.whl")
    assert f"Tag: py3-none-{target.wheel_platform}" in metadata(wheel)
    assert "Root-Is-Purelib: false" in metadata(wheel)
    libraries = [name for name in wheel.namelist() if "mambamed_kernels." in name]
    assert libraries == [f"mamba_kernels/native/{target.library}"]


def test_the_wheel_is_small(wheel):
    assert Path(wheel.filename).stat().st_size <= 1_010_000  # that of Windows is the largest


def test_the_library_can_be_built_again_from_what_is_installed(wheel):
    names = set(wheel.namelist())
    assert {"mamba_kernels/native/build.py", "mamba_kernels/native/src/api.cpp"} <= names
    assert "mamba_kernels/native/hatch_hook.py" not in names


def test_sdist_and_sources_give_the_same_wheel(wheel, tmp_path, monkeypatch):
    from_sources = wheel_of_sources(tmp_path, monkeypatch)
    assert sorted(from_sources.namelist()) == sorted(wheel.namelist())


def test_without_a_compiler_the_wheel_is_pure_and_says_why(wheel, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ziglang", None)
    pure = wheel_of_sources(tmp_path, monkeypatch)
    assert Path(pure.filename).name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in metadata(pure)
    library = f"mamba_kernels/native/{native.TARGETS[native.host_target()].library}"
    assert set(pure.namelist()) == set(wheel.namelist()) - {library}
    said = capfd.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if "kernels" in line]
    assert line.startswith("mambamed is installed without its C++ kernels: the compiler is missing")


def test_the_installer_is_asked_for_the_compiler_only_where_the_kernels_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert native.ZIGLANG in hatchling.build.get_requires_for_build_wheel()
    assert native.ZIGLANG in hatchling.build.get_requires_for_build_editable()
    assert native.ZIGLANG not in hatchling.build.get_requires_for_build_sdist()
    monkeypatch.setattr("sysconfig.get_platform", lambda: "freebsd-14.0-amd64")
    assert native.ZIGLANG not in hatchling.build.get_requires_for_build_wheel()
