"""The C++ library: one command makes it for every platform, and nothing but libc goes into it."""

import ctypes
import re
import struct
import sys
from pathlib import Path

import pytest

from mamba_kernels.native import build as native

ROOT = Path(__file__).parents[2]
FORMATS = {
    "linux-x86_64": "ELF 62",
    "linux-x86_64-musl": "ELF 62",
    "linux-aarch64": "ELF 183",
    "linux-aarch64-musl": "ELF 183",
    "macos-arm64": f"Mach-O {0x0100000C}",
    "macos-x86_64": f"Mach-O {0x01000007}",
    "windows-x86_64": f"PE {0x8664}",
}
LINUX = [name for name in FORMATS if name.startswith("linux")]


def format_of(library: bytes) -> str:
    if library[:4] == b"\x7fELF":
        return f"ELF {struct.unpack_from('<H', library, 18)[0]}"
    if library[:4] == b"\xcf\xfa\xed\xfe":
        return f"Mach-O {struct.unpack_from('<I', library, 4)[0]}"
    header = struct.unpack_from("<I", library, 0x3C)[0]
    assert library[:2] == b"MZ"
    assert library[header : header + 4] == b"PE\0\0"
    return f"PE {struct.unpack_from('<H', library, header + 4)[0]}"


def elf_sections(library: bytes, kind: int) -> tuple[bytes, bytes]:
    """The first section of a kind, and the strings that it refers to."""
    (start,) = struct.unpack_from("<Q", library, 40)
    size, count = struct.unpack_from("<HH", library, 58)
    headers = [struct.unpack_from("<IIQQQQI", library, start + size * i) for i in range(count)]
    section = next(header for header in headers if header[1] == kind)
    strings = headers[section[6]]
    return (
        library[section[4] : section[4] + section[5]],
        library[strings[4] : strings[4] + strings[5]],
    )


def text_at(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def exported(library: bytes) -> set[str]:
    symbols, strings = elf_sections(library, kind=11)  # SHT_DYNSYM
    return {
        text_at(strings, name)
        for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", symbols)
        if section != 0
    }


def needed(library: bytes) -> set[str]:
    entries, strings = elf_sections(library, kind=6)  # SHT_DYNAMIC
    return {text_at(strings, v) for tag, v in struct.iter_unpack("<QQ", entries) if tag == 1}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    assert native.main(["--target", "all", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def without_zig(monkeypatch):
    monkeypatch.setitem(sys.modules, "ziglang", None)


def test_every_target_is_expected_here():
    assert set(native.TARGETS) == set(FORMATS)


@pytest.mark.parametrize("target", FORMATS)
def test_every_platform_has_its_library(libraries, target):
    library = libraries / target / native.TARGETS[target].library
    assert format_of(library.read_bytes()) == FORMATS[target]
    assert library.stat().st_size < 1_000_000
    assert list(library.parent.iterdir()) == [library]


def test_one_command_makes_them_all_the_same_each_time(libraries, tmp_path, capsys):
    assert native.main(["--target", "all", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(native.TARGETS)
    for target, line in zip(native.TARGETS, lines, strict=True):
        library = Path(target, native.TARGETS[target].library)
        assert line.endswith(str(tmp_path / library))
        assert (tmp_path / library).read_bytes() == (libraries / library).read_bytes()


@pytest.mark.parametrize("target", LINUX)
def test_linux_libraries_need_libc_and_export_our_functions_only(libraries, target):
    library = (libraries / target / native.SO).read_bytes()
    libc = {"libc.so"} if "musl" in target else {"libc.so.6", "libpthread.so.0", "libm.so.6"}
    assert needed(library) <= libc
    assert exported(library)
    assert {name for name in exported(library) if not name.startswith("mk_")} == set()


@pytest.mark.parametrize("target", ["linux-x86_64", "linux-aarch64"])
def test_linux_libraries_run_on_glibc_2_17(libraries, target):
    library = (libraries / target / native.SO).read_bytes()
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([\d.]+)", library)}
    assert versions
    assert max(versions) <= (2, 17)


def test_the_library_of_this_machine_loads(libraries):
    host = native.host_target()
    library = ctypes.CDLL(str(libraries / host / native.TARGETS[host].library))
    if host in LINUX:
        for name in exported((libraries / host / native.SO).read_bytes()):
            assert getattr(library, name)


@pytest.mark.parametrize(
    ("python", "processor", "glibc", "target"),
    [
        ("linux-x86_64", "x86_64", True, "linux-x86_64"),
        ("linux-aarch64", "aarch64", True, "linux-aarch64"),
        ("linux-x86_64", "x86_64", False, "linux-x86_64-musl"),
        ("macosx-11.0-arm64", "arm64", False, "macos-arm64"),
        ("macosx-10.9-universal2", "arm64", False, "macos-arm64"),
        ("macosx-10.9-universal2", "x86_64", False, "macos-x86_64"),
        ("win-amd64", "ARM64", False, "windows-x86_64"),  # emulated
    ],
)
def test_the_host_is_recognised(monkeypatch, python, processor, glibc, target):
    monkeypatch.setattr("sysconfig.get_platform", lambda: python)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr(native, "_runs_on_glibc", lambda: glibc)
    assert native.host_target() == target


@pytest.mark.parametrize("python", ["win32", "win-arm64", "freebsd-14.0-amd64", "linux-riscv64"])
def test_other_hosts_are_told_what_runs_there(monkeypatch, python):
    monkeypatch.setattr("sysconfig.get_platform", lambda: python)
    with pytest.raises(native.BuildError, match="the torch backend runs here"):
        native.host_target()


def test_an_unknown_target_is_told_the_known_ones(tmp_path):
    with pytest.raises(native.BuildError, match=r"'amiga'; name one of linux-x86_64, .*windows"):
        native.build("amiga", tmp_path)


@pytest.mark.usefixtures("without_zig")
def test_a_missing_compiler_is_named_with_the_command_that_brings_it(tmp_path, capsys):
    with pytest.raises(native.BuildError, match=re.escape(f"pip install {native.ZIGLANG}`")):
        native.build("linux-x86_64", tmp_path)
    assert native.main(["--target", "all", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("Not built: the compiler is missing")


def test_a_failed_build_says_where_and_leaves_the_old_library(tmp_path, monkeypatch):
    sources, out = tmp_path / "src", tmp_path / "out"
    sources.mkdir()
    out.mkdir()
    (sources / "api.cpp").write_text("")
    (sources / "kernels.cpp").write_text("int broken = nonsense;")
    old = out / native.SO
    old.write_text("old")
    monkeypatch.setattr(native, "SOURCES", sources)
    with pytest.raises(native.BuildError) as failure:
        native.build("linux-aarch64", out)
    first = str(failure.value).splitlines()[0]
    assert "kernels_neon.o for aarch64-linux" in first
    assert "kernels.cpp:1:14: error: use of undeclared identifier 'nonsense'" in first
    assert list(out.iterdir()) == [old]
    assert old.read_text() == "old"


def test_global_constructors_are_refused(tmp_path, monkeypatch):
    (tmp_path / "api.cpp").write_text("")
    (tmp_path / "kernels.cpp").write_text("int f(); static int g = f(); int h() { return g; }")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    with pytest.raises(native.BuildError, match="global constructor"):
        native.build("linux-aarch64", tmp_path)


def test_a_home_that_cannot_hold_the_cache_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    assert native._cache_folder(tmp_path) == tmp_path / "home" / "zig"
    (tmp_path / "file").write_text("")
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert native._cache_folder(tmp_path) == tmp_path / "cache"
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "mine"))
    assert native._cache_folder(tmp_path) == tmp_path / "mine"


def test_the_compiler_has_one_version():
    assert native.ZIGLANG in (ROOT / "constraints.txt").read_text().splitlines()
    assert f'"{native.ZIGLANG}"' in (ROOT / "pyproject.toml").read_text()
