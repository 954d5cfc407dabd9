"""A compiled network streams as the network does, and is compiled once for a shape of frames."""

import copy
import json
import os
import shutil

import pytest
import torch
import torch._dynamo.config
import torch._inductor.config
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mamba_kernels import available_backends
from nnunet_plugins.cli import main
from nnunet_plugins.networks import EndoMamba
from nnunet_plugins.stream.compiling import compiled, warm_up
from nnunet_plugins.stream.packing import prepared
from nnunet_plugins.streaming import StreamingSession

CPU = torch.device("cpu")
SIZES = {"d_model": 16, "depth": 2, "image_size": (16, 16), "patch_size": 8}
HEADS = {"phase": {}, "localization": {}, "segmentation": {"decoder_widths": (12, 10, 8)}}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
kernels = pytest.mark.skipif("cpu" not in available_backends(), reason="kernels were not compiled")
cxx = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")


@pytest.fixture(autouse=True)
def _forgotten():
    """Networks of one make share what was compiled for the first of them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(head: str = "phase") -> EndoMamba:
    torch.manual_seed(0)
    return EndoMamba(3, 4, head=head, **SIZES | HEADS[head])


def traced(head: str = "phase") -> StreamingSession:
    """As compiled, but for the C++, which takes long."""
    return StreamingSession(compiled(build(head), "float32", CPU, backend="aot_eager"))


def assert_steps_equal(ours: StreamingSession, wanted: StreamingSession, frames) -> None:
    for frame in frames:
        torch.testing.assert_close(ours.step(frame), wanted.step(frame), **CLOSE)
    torch.testing.assert_close(ours._state, wanted._state, **CLOSE)


@kernels
@cxx
def test_generated_code_answers_as_the_network_does():
    session = StreamingSession(compiled(build(), "float32", CPU))
    frames = torch.rand(5, 1, 3, 16, 16)
    assert warm_up(session.model, frames[0]) > 0
    assert session.index == 0
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_steps_equal(session, StreamingSession(build()), frames)
        assert session.index == 5


@kernels
@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_compiled_after_the_first_frame(head, tmp_path):
    session, exact, path = traced(head), StreamingSession(build(head)), tmp_path / "state"
    clip = torch.rand(2, 3, 9, 16, 16)
    session.step(clip[:, :, 0])
    with torch.compiler.set_stance("fail_on_recompile"):
        session.reset()
        assert_steps_equal(session, exact, clip[:, :, :3].unbind(2))
        assert_steps_equal(session, exact, clip.movedim(1, -1)[:, 3:5].movedim(-1, 1).unbind(2))
        session.save(path)
        session.load(path)  # tensors that are not of inference
        with torch.inference_mode():
            assert_steps_equal(session, exact, clip[:, :, 5:7].clone().unbind(2))
        assert_steps_equal(session, exact, clip[:, :, 7:].split(1, dim=2))


@kernels
def test_frames_of_another_shape_are_compiled_for():
    session = traced()
    session.step(torch.rand(1, 3, 16, 16))
    for shape in [(1, 3, 16, 24), (2, 3, 13, 16), (1, 3, 3, 16, 16)]:
        frame, exact = torch.rand(shape), StreamingSession(build())
        session.reset()
        with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError):
            session.step(frame)
        assert_steps_equal(session, exact, [frame, frame])


@kernels
def test_states_go_from_a_compiled_network_to_the_plain_one_and_back(tmp_path):
    ours, plain, path = traced(), StreamingSession(build()), tmp_path / "state"
    frames = torch.rand(6, 2, 3, 16, 16)
    for source, target in [(ours, plain), (plain, ours)]:
        source.step(frames[0])
        source.save(path)
        target.load(path)
        assert_steps_equal(ours, plain, frames[1:3])


@kernels
def test_a_copy_has_weights_of_its_own():
    frame, network = torch.rand(1, 3, 16, 16), compiled(build(), "float32", CPU, "aot_eager")
    want, other = StreamingSession(network).step(frame), copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    torch.testing.assert_close(StreamingSession(other).step(frame), want, **CLOSE)


def test_a_network_is_packed_or_compiled_and_not_both():
    with pytest.raises(ValueError, match="packed for a CPU already; compile one as it was built"):
        compiled(prepared(build(), "float32", CPU), "float32", CPU)
    with pytest.raises(ValueError, match="compiled already; prepare one as it was built"):
        prepared(compiled(build(), "float32", CPU), "float32", CPU)


def replayed(graph, inputs):
    """A backend that writes outputs where it wrote them before, as a CUDA graph does."""
    places: list[torch.Tensor] = []

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = graph.forward(*inputs)
        places.extend(x.clone() for x in outputs[len(places) :])
        return tuple(place.copy_(x) for place, x in zip(places, outputs, strict=True))

    return run


@kernels
def test_streams_outlive_the_replays_after_them():
    clip, network = torch.rand(2, 3, 1, 3, 16, 16), compiled(build(), "float32", CPU, replayed)
    assert_turns_equal(network, build(), clip)


def assert_turns_equal(network, plain, clip) -> None:
    """Two streams take turns in one network, and each is as it is alone."""
    first, second = StreamingSession(network), StreamingSession(network)
    turns = [(first.step(a), second.step(b)) for a, b in zip(*clip, strict=True)]
    for frames, together in zip(clip, zip(*turns, strict=True), strict=True):
        alone = StreamingSession(plain)
        for frame, ours in zip(frames, together, strict=True):
            torch.testing.assert_close(ours, alone.step(frame), **CLOSE)


@kernels
def test_bfloat16_is_that_of_the_network():
    frame = torch.rand(1, 3, 16, 16)
    session = StreamingSession(compiled(build(), "bfloat16", CPU, backend="aot_eager"))
    ours, wanted = session.step(frame), StreamingSession(build().bfloat16()).step(frame)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, wanted, rtol=2e-2, atol=2e-2)


@kernels
def test_frames_that_do_not_fit_are_refused_as_without_compiling():
    session = traced()
    with pytest.raises(ValueError, match="has 4 channels and this EndoMamba was built for 3"):
        session.step(torch.rand(1, 4, 16, 16))
    assert session.index == 0


@kernels
def test_more_shapes_than_torch_keeps_are_refused_in_a_sentence():
    session = traced()
    session.step(torch.rand(1, 3, 16, 16))
    session.reset()
    refused = pytest.raises(
        RuntimeError, match=r"cannot be compiled here \(FailOnRecompileLimitHit"
    )
    with torch._dynamo.config.patch(recompile_limit=1), refused:
        session.step(torch.rand(1, 3, 16, 24))


def test_arithmetic_of_packed_products_is_refused():
    with pytest.raises(ValueError, match="compiled in float32 or bfloat16, not in 'mixed'"):
        compiled(build(), "mixed", CPU)


class Devices(TorchDispatchMode):
    """Collects the devices of what operators give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        outputs = operator(*args, **kwargs or {})
        self.seen |= {x.device.type for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)}
        return outputs


@pytest.mark.parametrize("head", HEADS)
def test_all_of_a_step_is_on_the_networks_device(head):
    """torch makes no CUDA graph of what is in part on the CPU."""
    network = build(head).eval().to("meta")
    with torch.inference_mode(), Devices() as devices:
        network.step(torch.rand(1, 3, 1, 13, 18, device="meta"), network.initial_state(1))
    assert devices.seen == {"meta"}


def stream(clip, bundle, *words) -> int:
    return main(["stream", str(clip), "--bundle", str(bundle), "--device", "cpu", *map(str, words)])


@kernels
@cxx
def test_the_command_compiles_before_the_stream_begins(clip, phase_bundle, tmp_path, capsys):
    reports = [tmp_path / name for name in ("plain.json", "compiled.json")]
    assert stream(clip, phase_bundle, "--json", reports[0]) == 0
    assert "compil" not in capsys.readouterr().err
    assert stream(clip, phase_bundle, "--json", reports[1], "--compile") == 0
    assert "compiling the network for frames of 32 x 48" in capsys.readouterr().err
    plain, ours = (json.loads(report.read_text()) for report in reports)
    assert plain["compile_seconds"] is None
    assert ours["compile_seconds"] > ours["latency_ms"]["p99"] / 1000
    assert ours["runs"] == plain["runs"]
    assert ours["frames"] == ours["next_index"] == 10


def test_without_a_compiler_nothing_is_lost(clip, phase_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    missing = torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "none"))})
    report = tmp_path / "report.json"
    report.write_text("an older one")
    with missing:
        assert stream(clip, phase_bundle, "--json", report, "--compile") == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert "the network cannot be compiled here" in error[-1]
    assert "install a C++ compiler" in error[-1]
    assert report.read_text() == "an older one"


@cuda
@pytest.mark.parametrize("mode", ["float32", "bfloat16"])
def test_a_gpu_replays_a_graph_and_answers_as_the_network_does(mode):
    device, limit = torch.device("cuda"), {"float32": 5e-3, "bfloat16": 5e-2}[mode]
    session = StreamingSession(compiled(build("segmentation"), mode, device))
    exact = StreamingSession(build("segmentation").to(device, getattr(torch, mode)))
    clip = torch.rand(8, 2, 3, 16, 16)
    warm_up(session.model, clip[0])
    once = torch.compiler.set_stance("fail_on_recompile")
    with once, profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        answers = [session.step(frame) for frame in clip]
    for ours, frame in zip(answers, clip, strict=True):
        wanted = exact.step(frame)
        assert (ours - wanted).norm() < limit * wanted.norm()
    launches = [event.count for event in profiled.key_averages() if event.key == "cudaGraphLaunch"]
    assert sum(launches) == len(clip)


@cuda
def test_two_streams_of_a_network_on_a_gpu_do_not_disturb_each_other():
    device, clip = torch.device("cuda"), torch.rand(2, 4, 1, 3, 16, 16)
    network = compiled(build(), "float32", device)
    assert_turns_equal(network, network, clip)
