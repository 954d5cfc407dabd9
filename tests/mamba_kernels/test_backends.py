import subprocess
import sys
import threading

import pytest
import torch

import mamba_kernels
from mamba_kernels import available_backends, use_backend
from mamba_kernels.dispatch import Backend, choose

CPU = torch.device("cpu")


def forced(backends):
    return choose(backends, "auto", CPU)()


@pytest.fixture
def backends():
    return {
        "gpu": Backend(lambda: "gpu", devices=frozenset({"cuda"})),
        "broken": Backend(lambda: "broken", usable=lambda: False),
        "torch": Backend(lambda: "torch"),
        "reference": Backend(lambda: "reference"),
    }


def test_auto_is_the_first_that_takes_the_device(backends):
    assert forced(backends) == "torch"
    assert choose(backends, "auto", torch.device("cuda"))() == "gpu"


def test_names_that_cannot_run_are_refused(backends):
    with pytest.raises(ValueError, match=r"'broken' is not available.*auto, gpu, torch, reference"):
        choose(backends, "broken", CPU)
    with pytest.raises(ValueError, match=r"'gpu' does not run on device cpu.*\['cuda'\]"):
        choose(backends, "gpu", CPU)


def test_use_backend_nests_and_restores(backends):
    with use_backend("reference"):
        assert forced(backends) == "reference"
        with use_backend("torch"):
            assert forced(backends) == "torch"
        with use_backend("auto"):
            assert forced(backends) == "torch"
        assert forced(backends) == "reference"
        assert choose(backends, "torch", CPU)() == "torch"
        del backends["reference"]
        assert forced(backends) == "torch"
    assert forced(backends) == "torch"


def test_use_backend_restores_after_an_exception(backends):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert forced(backends) == "torch"


def test_use_backend_holds_in_its_thread_only(backends):
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(forced(backends)))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_use_backend_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"'abacus' is not available; .*: auto, torch, reference"):
        use_backend("abacus").__enter__()


def test_the_operators_obey(monkeypatch):
    ran = []

    def spy(*args):
        ran.append("spy")
        return args[0], args[0]

    from mamba_kernels.selective_scan import BACKENDS

    monkeypatch.setitem(BACKENDS, "reference", Backend(spy))
    ones = torch.ones(1, 1, 1)
    with use_backend("reference"):
        mamba_kernels.selective_scan(ones, ones, ones[0], ones, ones)
    assert ran == ["spy"]


def test_names():
    assert available_backends() == ("torch", "reference")
    assert all(hasattr(mamba_kernels, name) for name in mamba_kernels.__all__)


def test_importing_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import mamba_kernels;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mamba_kernels"]
