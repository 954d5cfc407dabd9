import subprocess
import sys
import threading

import pytest
import torch
from torch.autograd import forward_ad

import mamba_kernels
from mamba_kernels import available_backends, use_backend
from mamba_kernels.dispatch import Backend, choose

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:mamba_kernels runs more slowly")


def forced(backends):
    return choose(backends, "auto", CPU)()


@pytest.fixture
def backends():
    return {
        "gpu": Backend(lambda: "gpu", devices=frozenset({"cuda"})),
        "broken": Backend(lambda: "broken", lambda: "it is broken"),
        "torch": Backend(lambda: "torch"),
        "reference": Backend(lambda: "reference"),
    }


def test_auto_is_the_first_that_takes_the_device(backends):
    assert forced(backends) == "torch"
    assert choose(backends, "auto", torch.device("cuda"))() == "gpu"


def test_names_that_cannot_run_are_refused(backends):
    with pytest.raises(
        ValueError, match=r"'broken' is not available \(it is broken\).*auto, gpu, torch, reference"
    ):
        choose(backends, "broken", CPU)
    with pytest.raises(ValueError, match=r"'gpu' does not run on device cpu.*\['cuda'\]"):
        choose(backends, "gpu", CPU)


def test_auto_passes_over_what_refuses_the_arguments(backends):
    picky = Backend(lambda: "picky", refuses=lambda x: "an odd number" if x % 2 else None)
    backends = {"picky": picky, **backends}
    assert choose(backends, "auto", CPU, 2)() == "picky"
    assert choose(backends, "auto", CPU, 3)() == "torch"
    with pytest.raises(ValueError, match="'picky' cannot take an odd number"):
        choose(backends, "picky", CPU, 3)


def test_a_missing_fast_backend_is_said(backends):
    with pytest.warns(UserWarning, match=r"more slowly, without: broken \(it is broken\)"):
        choose({"broken": backends["broken"], "torch": backends["torch"]}, "auto", CPU)


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
    with pytest.raises(
        ValueError, match=r"'abacus' is not available; .*: auto, cpu, torch, reference"
    ):
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
    assert available_backends() == ("cpu", "torch", "reference")
    assert all(hasattr(mamba_kernels, name) for name in mamba_kernels.__all__)


def test_importing_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import mamba_kernels;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == ["mamba_kernels"]


def dual(x):
    return forward_ad.make_dual(x, torch.ones_like(x))


OPERATORS = {
    "scan": lambda u, **options: mamba_kernels.selective_scan(u, u, -u[0], u, u, **options),
    "directions": lambda u, **options: mamba_kernels.selective_scan_multi(
        u, [u], [-u[0]], [u], [u], orders=["forward"], **options
    )[0],
    "convolution": lambda u, **options: mamba_kernels.causal_conv1d(u, u[0], **options),
}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_tangents_pass_or_are_refused(operator, trained):
    run, u = OPERATORS[operator], torch.rand(1, 4, 4)
    with forward_ad.dual_level():
        x = dual(u.requires_grad_(trained))
        outputs = (run(x, backend=name) for name in ("auto", "reference"))
        got, want = (forward_ad.unpack_dual(y).tangent for y in outputs)
        assert torch.equal(got, want)
        assert got.abs().sum() > 0
        for name in ("cpu", "torch"):
            with pytest.raises(ValueError, match=rf"'{name}' cannot take operands with tangents"):
                run(x, backend=name)
