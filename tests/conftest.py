"""Fixtures for all tests: a fixed seed, the folder of golden tensors and real data."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Commands that are run in this process may set torch's threads, and sums depend on them."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden tensors and real data, which the project does not ship."""
    folder = os.environ.get("MAMBAMED_SHARED")
    if not folder:
        pytest.skip("MAMBAMED_SHARED is unset: golden tensors and real data are not at hand")
    return Path(folder)
