"""Compile the C++ kernels into one small library, for this machine or any other in `TARGETS`.

The compiler is the clang inside the pip package `ziglang`; nothing has to be installed beside it,
and it compiles for every target from every machine. Installing mambamed runs this through
`hatch_hook.py`; by hand: `python -m mamba_kernels.native.build`. Imports the standard library only.
"""

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ZIGLANG = "ziglang==0.16.0"
"""The newest release with wheels for all our platforms; the same in pyproject's dev extra."""

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"

ISAS = {
    "x86_64": {
        "sse2": ["-mcpu=x86_64", "-Os"],  # as fast as with -O3, and much smaller
        # Processors without prefetchw take it for no operation; v4 alone stays at 256 bits.
        "avx2": ["-mcpu=x86_64_v3", "-mprfchw"],
        "avx512": ["-mcpu=x86_64_v4", "-mprfchw", "-mprefer-vector-width=512"],
    },
    "aarch64": {"neon": ["-mcpu=baseline"]},
}
"""Flags by architecture and instruction set, baseline first: kernels.cpp is compiled with each."""


class Target(NamedTuple):
    """Where a library runs, in the words of zig and of wheels, and the name of its file."""

    triple: str
    wheel_platform: str
    library: str

    @property
    def isas(self) -> dict[str, list[str]]:
        """The instruction sets the library holds, with their flags."""
        return ISAS[self.triple.split("-")[0]]


SO, DYLIB, DLL = "libmambamed_kernels.so", "libmambamed_kernels.dylib", "mambamed_kernels.dll"
TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", SO),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", SO),
    "linux-x86_64-musl": Target("x86_64-linux-musl", "musllinux_1_2_x86_64", SO),
    "linux-aarch64-musl": Target("aarch64-linux-musl", "musllinux_1_2_aarch64", SO),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", DYLIB),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", DYLIB),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", DLL),
}

COMPILE = [
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-sanitize=undefined"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=on"),
    *("-mllvm", "-unroll-runtime=false"),  # loops of unknown length: smaller, and no slower
    "-fno-builtin-memset",  # clear() stays a loop: the memset that zig links is slow
    *("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),  # they need the C++ runtime
    "-Werror=global-constructors",  # nothing would call them on Windows: see LINK
]
LINK = {
    # Without what nothing refers to: most of the compiler's runtime library, which zig links.
    SO: ["-nostdlib++", f"-Wl,-soname,{SO}", "-Wl,-z,defs", "-Wl,--gc-sections"],
    DYLIB: ["-nostdlib++", f"-Wl,-install_name,@rpath/{DYLIB}"],
    # Without mingw's C runtime, which zig would compile first: a minute, for malloc and threads.
    DLL: [
        *("-nostdlib", "-rtlib=compiler-rt", "-lkernel32", "-lapi-ms-win-crt-heap-l1-1-0"),
        "-Wl,-Brepro",  # no time stamp: the same file each time, as on the other platforms
    ],
}
DLL_ENTRY = 'extern "C" int _DllMainCRTStartup(void *, unsigned, void *) { return 1; }\n'
"""What Windows calls on loading; the rest of that C runtime's duties we have no need of."""


class BuildError(RuntimeError):
    """No library came out. The first line says why and what to do; the compiler's words follow."""


def host_target() -> str:
    """The name in `TARGETS` of the machine we run on; BuildError where there is none."""
    system, _, machine = sysconfig.get_platform().partition("-")
    if system == "macosx":  # "11.0-universal2" says nothing of the processor
        system, machine = "macos", platform.machine()
    name = {"win-amd64": "windows-x86_64"}.get(f"{system}-{machine}", f"{system}-{machine}")
    if system == "linux" and not _runs_on_glibc():
        name += "-musl"
    bits = sys.maxsize.bit_length() + 1
    if name not in TARGETS or bits != 64:
        raise BuildError(
            f"there are no C++ kernels for {name} ({bits}-bit Python), only for 64-bit"
            f" {', '.join(TARGETS)}; the torch backend runs here"
        )
    return name


def build(target: str, output_dir: Path) -> Path:
    """The library for `target`, a name in `TARGETS`, compiled and put in `output_dir`.

    An older library there is replaced in one step. BuildError if zig is missing or fails."""
    if target not in TARGETS:
        raise BuildError(f"unknown target {target!r}; name one of {', '.join(TARGETS)}")
    triple, _, library = TARGETS[target]
    isas = TARGETS[target].isas
    baseline = next(iter(isas.values()))
    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=output_dir) as folder:
        zig = _Zig(triple, Path(folder))
        kernels, api = SOURCES / "kernels.cpp", SOURCES / "api.cpp"
        jobs = [(kernels, f"kernels_{i}.o", [*f, f"-DMK_ISA={i}"]) for i, f in isas.items()]
        jobs += [(api, "api.o", baseline)]
        if library == DLL:
            entry = Path(folder, "entry.cpp")
            entry.write_text(DLL_ENTRY, encoding="utf-8")
            jobs += [(entry, "entry.o", baseline)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: zig.compile(*job), jobs))
        zig.link([object_name for _, object_name, _ in jobs], library)
        os.replace(Path(folder, library), output_dir / library)
    return output_dir / library


class _Zig:
    """zig's C++ compiler, set to one target and one folder of intermediate files."""

    def __init__(self, triple: str, folder: Path) -> None:
        if importlib.util.find_spec("ziglang") is None:
            raise BuildError(
                f"the compiler is missing: {sys.executable} has no module ziglang;"
                f" `python -m pip install {ZIGLANG}` brings it, and then"
                " `python -m mamba_kernels.native.build` makes the kernels"
            )
        self.triple, self.folder = triple, folder
        self.environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(_cache_folder(folder))}

    def compile(self, source: Path, object_name: str, flags: list[str]) -> None:
        self._run(object_name, [*COMPILE, *flags, "-c", str(source), "-o", object_name])

    def link(self, object_names: list[str], library: str) -> None:
        self._run(library, ["-shared", "-s", *object_names, *LINK[library], "-o", library])

    def _run(self, product: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "ziglang", "c++", "-target", self.triple, *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing"]
            first = next((line for line in said if "error" in line), said[0])
            raise BuildError(
                "\n".join([f"zig could not make {product} for {self.triple}: {first}", *said])
            )


def _cache_folder(scratch: Path) -> Path:
    """Where zig keeps what it has compiled: the user's cache, or `scratch` if that is read-only."""
    chosen = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    user = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    try:
        folder = Path(user or Path.home() / ".cache", "zig").absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or no home at all
        return scratch / "cache"
    return folder if os.access(folder, os.W_OK) else scratch / "cache"


def _runs_on_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):  # musl does not know the name
        return False


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line names and print file, size and seconds; 1 if one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m mamba_kernels.native.build", description="Compile the C++ kernels."
    )
    parser.add_argument(
        "--target", default="host", choices=["host", "all", *TARGETS], help="default: host"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder to fill with TARGET/library; default, for the host only: in the package",
    )
    asked = parser.parse_args(arguments)
    if asked.out is None and asked.target != "host":
        parser.error(f"--target {asked.target} needs --out DIR: the package holds the host's only")
    failed = 0
    try:
        names = {"host": [], "all": list(TARGETS)}.get(asked.target, [asked.target])
        for name in names or [host_target()]:
            start = time.perf_counter()
            library = build(name, asked.out / name if asked.out else HERE)
            seconds = time.perf_counter() - start
            print(
                f"{name:18}  {library.stat().st_size / 1024:7.0f} KiB  {seconds:5.1f} s  {library}"
            )
    except (BuildError, OSError) as error:
        print(f"Not built: {error}", file=sys.stderr)
        failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
