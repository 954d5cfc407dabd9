"""Compiles the C++ kernels whenever mambamed is installed or packed; part of the build only.

It asks the installer for the compiler, a pip package, wherever the kernels can run. If they cannot
be had, mambamed installs all the same, as pure Python, and says why in one line; `pip install -v`
shows it. HATCH_BUILD_NO_HOOKS=true leaves compiler and kernels out from the start.
"""

import importlib.util
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def build_module() -> ModuleType:
    """build.py beside this file, by its path: importing the package would import torch."""
    path = Path(__file__).with_name("build.py")
    spec = importlib.util.spec_from_file_location("mambamed_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeLibraryHook(BuildHookInterface[Any]):
    """Puts the library in the wheel, or for an editable install in the source tree."""

    def dependencies(self) -> list[str]:
        """The compiler, or nothing where it has no wheel or the kernels cannot run."""
        native = build_module()
        try:
            native.host_target()
        except native.BuildError:
            return []
        if sys.platform == "darwin" and int(platform.mac_ver()[0].split(".")[0]) < 12:
            return []
        return [native.ZIGLANG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform; or warn, and leave it pure."""
        native = build_module()
        in_place = version == "editable"
        self.scratch = None if in_place else tempfile.TemporaryDirectory()
        try:
            target = native.host_target()
            library = native.build(target, Path(self.scratch.name if self.scratch else native.HERE))
        except (native.BuildError, OSError) as error:
            reason = str(error).partition("\n")[0]
            self.app.display_warning(f"mambamed is installed without its C++ kernels: {reason}")
            if in_place:  # an older library would not fit the sources
                for name in {target.library for target in native.TARGETS.values()}:
                    with suppress(OSError):
                        os.remove(native.HERE / name)
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{native.TARGETS[target].wheel_platform}"
        if not in_place:
            build_data["force_include"][str(library)] = f"mamba_kernels/native/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Drop what was compiled for the wheel."""
        if self.scratch:
            self.scratch.cleanup()
