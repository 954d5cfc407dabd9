"""Imports point down: kernels < networks < trainers, pretraining and the command line."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_NOT_IMPORT = {
    "mamba_kernels": {"nnunet_plugins", "pretrain", "monai", "nnunetv2", "numpy", "transformers"},
    "nnunet_plugins/networks": {
        "nnunet_plugins.trainers",
        "nnunet_plugins.planners",
        "nnunet_plugins.demo",
        "pretrain",
        "nnunetv2",
    },
    "nnunet_plugins/losses": {"nnunet_plugins.trainers", "pretrain", "monai", "nnunetv2"},
    "nnunet_plugins/trainers": {"pretrain", "nnunet_plugins.demo", "nnunet_plugins.cli"},
    "nnunet_plugins/bundle": {"pretrain", "nnunet_plugins.demo", "nnunet_plugins.cli"},
    "nnunet_plugins/stream": {
        "pretrain",
        "nnunet_plugins.trainers",
        "nnunet_plugins.demo",
        "nnunet_plugins.cli",
    },
    "nnunet_plugins/label": {
        "pretrain",
        "nnunet_plugins.trainers",
        "nnunet_plugins.demo",
        "nnunet_plugins.cli",
    },
    "nnunet_plugins/data": {"pretrain", "nnunet_plugins.trainers", "nnunet_plugins.bundle"},
    "nnunet_plugins/planners": {"pretrain", "nnunet_plugins.demo", "nnunet_plugins.trainers"},
    "pretrain": {"nnunet_plugins.trainers", "nnunet_plugins.demo", "nnunetv2"},
}
NOWHERE = {"torchvision", "mamba_ssm", "causal_conv1d"}
"""Broken or absent on many machines: never imported outside a function."""


def imports(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively; nnU-Net loads files by path"
            yield str(node.module)


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("folder", MAY_NOT_IMPORT)
def test_imports_point_down(folder):
    forbidden = MAY_NOT_IMPORT[folder] | NOWHERE
    upward = [
        f"{source.relative_to(ROOT)} imports {name}"
        for source in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(source)
        if any(is_below(name, package) for package in forbidden)
    ]
    assert upward == []


def test_monai_label_is_imported_by_its_server_alone():
    server = ROOT / "nnunet_plugins" / "label" / "server"
    foreign = {"monailabel", "fastapi", "starlette", "uvicorn", "requests_toolbelt"}
    elsewhere = [
        f"{source.relative_to(ROOT)} imports {name}"
        for source in sorted((ROOT / "nnunet_plugins").rglob("*.py"))
        if server not in source.parents
        for name in imports(source)
        if name.split(".")[0] in foreign or is_below(name, "nnunet_plugins.label.server")
    ]
    assert elsewhere == []


def test_what_python_loads_at_start_imports_only_sys():
    loaded = [ROOT / "nnunet_plugins" / name for name in ("__init__.py", "discovery.py")]
    top_level = [
        alias.name
        for source in loaded
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert top_level == ["sys"]


def test_only_the_fixed_names_stand_at_the_top():
    allowed = {
        "bundles", "nnunet_plugins", "mamba_kernels", "pretrain", "pyproject.toml", "tests",
        "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", ".ci",
        ".gitignore",
    }  # fmt: skip
    tracked = {
        line.split("/")[0]
        for line in __import__("subprocess")
        .run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
        .stdout.splitlines()
    }
    assert tracked <= allowed
