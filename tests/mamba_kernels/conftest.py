import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """An output that is never written must not pass for a right one."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
