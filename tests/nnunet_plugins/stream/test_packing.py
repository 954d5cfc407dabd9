"""Networks prepared for streaming answer as before, to the rounding that their mode promises."""

import copy
import platform
import subprocess
import sys

import pytest
import torch

from mamba_kernels.native.library import missing, multiplies_bfloat16
from nnunet_plugins.networks import EndoMamba
from nnunet_plugins.stream import packing
from nnunet_plugins.stream.packing import PackedLayer, prepared
from nnunet_plugins.streaming import StreamingSession
from tests.nnunet_plugins.stream.conftest import ROOT

CPU = torch.device("cpu")
LIMITS = {"float32": 1e-5, "mixed": 5e-3, "bfloat16": 5e-2}
SIZES = {"d_model": 192, "depth": 4, "image_size": (32, 48), "patch_size": 16}

if not multiplies_bfloat16():
    LIMITS.pop("mixed")


def build() -> EndoMamba:
    torch.manual_seed(0)
    return EndoMamba(3, 4, head="phase", **SIZES).eval()


@pytest.mark.parametrize("mode", LIMITS)
def test_answers_differ_by_rounding_alone(mode):
    clip, exact = torch.rand(1, 3, 4, 32, 48), StreamingSession(build())
    session = StreamingSession(prepared(build(), mode, CPU))
    packed = [m for m in session.model.modules() if isinstance(m, PackedLayer)]
    assert len(packed) == (
        4 if missing() is None and (mode == "float32" or "mixed" in LIMITS) else 0
    )
    for frame in clip.unbind(2):
        ours, wanted = session.step(frame).float(), exact.step(frame)
        assert (ours - wanted).norm() < LIMITS[mode] * wanted.norm()
        assert mode == "float32" or not torch.equal(ours, wanted)


def test_a_state_goes_from_a_packed_network_to_a_plain_one(tmp_path):
    frame, path = torch.rand(1, 3, 32, 48), tmp_path / "state.safetensors"
    packed, plain = StreamingSession(prepared(build(), "float32", CPU)), StreamingSession(build())
    packed.step(frame)
    packed.save(path)
    plain.load(path)
    torch.testing.assert_close(plain.step(frame), packed.step(frame), rtol=1e-4, atol=1e-5)


def test_weights_loaded_into_a_packed_network_are_its_own():
    torch.manual_seed(1)
    other = EndoMamba(3, 4, head="phase", **SIZES).eval()
    packed = prepared(build(), "float32", CPU)
    packed.load_state_dict(other.state_dict())
    one_by_one = prepared(build(), "float32", CPU)
    for own, its in zip(one_by_one.encoder.layers, other.encoder.layers, strict=True):
        own.load_state_dict(its.state_dict())
    with torch.no_grad():
        for name, weight in one_by_one.named_parameters():
            weight.copy_(other.get_parameter(name))
    frame = torch.rand(1, 3, 32, 48)
    want = StreamingSession(other).step(frame)
    for network in (packed, copy.deepcopy(packed), one_by_one):
        torch.testing.assert_close(
            StreamingSession(network).step(frame), want, rtol=1e-4, atol=1e-5
        )


@pytest.mark.skipif("mixed" not in LIMITS, reason="this CPU does not multiply bfloat16")
def test_a_network_prepared_again_has_the_arithmetic_asked_for_last():
    frame = torch.rand(1, 3, 32, 48)
    for first, last in (("float32", "mixed"), ("mixed", "float32")):
        twice = prepared(prepared(build(), first, CPU), last, CPU)
        once = prepared(build(), last, CPU)
        assert torch.equal(StreamingSession(twice).step(frame), StreamingSession(once).step(frame))


def test_unknown_arithmetic_is_refused():
    with pytest.raises(ValueError, match="unknown arithmetic 'int8'; use one of float32"):
        prepared(build(), "int8", CPU)


def test_mixed_is_refused_where_it_cannot_be_done(monkeypatch):
    monkeypatch.setattr(packing, "missing", lambda: "it was not built")
    with pytest.raises(ValueError, match="need a CPU with AVX512_BF16 and the compiled kernels"):
        prepared(build(), "mixed", CPU)


def test_bfloat16_streams_on_a_cpu_too_old_to_pack_it(monkeypatch):
    monkeypatch.setattr(packing, "multiplies_bfloat16", lambda: False)
    network = prepared(build(), "bfloat16", CPU)
    assert not any(isinstance(m, PackedLayer) for m in network.modules())
    assert StreamingSession(network).step(torch.rand(1, 3, 32, 48)).isfinite().all()


TOLD = "from nnunet_plugins.stream.memory import keep_freed_memory as k; raise SystemExit(not k())"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_glibc_takes_all_that_it_is_told_about_freed_memory():
    assert subprocess.run([sys.executable, "-c", TOLD], cwd=ROOT).returncode == 0
