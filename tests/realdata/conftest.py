"""Commands as they are typed, each test in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def run(tmp_path):
    """Run an installed command in a folder of its own, with nnU-Net's variables."""
    folders = {name: str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    environment = os.environ | {f"nnUNet_{name}": path for name, path in folders.items()}
    environment |= {"nnUNet_def_n_proc": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def call(command: str, *arguments: object) -> str:
        done = subprocess.run(
            [str(BIN / command), *map(str, arguments)],
            env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return call
