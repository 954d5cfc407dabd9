"""A stream equals the clip: any chunks, any length, over a killed process, without growth."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nnunet_plugins.networks import EndoMamba, EndoMambaBackbone, Vivim
from nnunet_plugins.streaming import StreamingSession

ROOT = Path(__file__).parents[2]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {"d_model": 16, "depth": 4, "image_size": (32, 24), "patch_size": 8}
TINY = {"d_model": 8, "depth": 2, "image_size": (16, 16), "patch_size": 16, "head": "phase"}


def build(head: str = "segmentation", **options) -> EndoMamba:
    widths = {"decoder_widths": (12, 10, 8)} if head == "segmentation" else {}
    torch.manual_seed(1)
    return EndoMamba(3, 4, head=head, **SMALL | widths | options).eval()


def outputs_of(session: StreamingSession, clip: torch.Tensor, chunks: list[int]) -> list:
    parts = clip.split(chunks, dim=2)
    return [y if isinstance(y, tuple) else (y,) for y in map(session.step, parts)]


def joined(parts: list) -> list[torch.Tensor]:
    columns = zip(*parts, strict=True)
    return [torch.cat(column, dim=2 if column[0].ndim == 5 else 1) for column in columns]


@pytest.mark.parametrize("chunks", [[1] * 14, [2] * 7, [3, 3, 3, 3, 2], [7, 7], [1, 5, 2, 3, 3]])
@pytest.mark.parametrize("head", ["segmentation", "classification", "localization"])
def test_a_stream_equals_the_clip(head, chunks):
    network, clip = build(head, skips=head == "segmentation"), torch.randn(2, 3, 14, 37, 22)
    streamed = joined(outputs_of(StreamingSession(network), clip, chunks))
    with torch.no_grad():
        whole = network(clip)
    whole = whole if isinstance(whole, tuple) else (whole,)
    for ours, wanted in zip(streamed, whole, strict=True):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_a_backbone_streams_too():
    backbone, clip = EndoMambaBackbone(3, **SMALL).eval(), torch.randn(1, 3, 5, 32, 24)
    streamed = joined(outputs_of(StreamingSession(backbone), clip, [2, 1, 2]))
    torch.testing.assert_close(streamed[0], backbone(clip).detach(), **CLOSE)


@pytest.mark.parametrize("head", ["segmentation", "phase", "localization"])
def test_a_single_frame_has_no_time_axis(head):
    network, frame = build(head), torch.randn(2, 3, 32, 24)
    outputs, whole = StreamingSession(network).step(frame), network(frame.unsqueeze(2))
    if head == "localization":
        outputs, whole = outputs[1], whole[1]
    axis = 2 if head == "segmentation" else 1
    torch.testing.assert_close(outputs, whole.select(axis, 0).detach(), **CLOSE)


def test_there_is_no_last_frame():
    """The released table ends at frame 8192."""
    network, clip = build("phase"), torch.randn(1, 3, 4, 16, 16)
    start = 8190
    state = (torch.full((1,), start), *network.initial_state(1)[1:])
    session = StreamingSession(network)
    session._state, session._frame_size = state, (16, 16)
    streamed = torch.cat([session.step(frame) for frame in clip.split(1, dim=2)], dim=1)
    with torch.no_grad():
        whole, _ = network.step(clip, state)
    torch.testing.assert_close(streamed, whole, **CLOSE)
    assert session.index == start + 4
    early = network(clip).detach()
    assert (whole - early).abs().max() > 1e-4


def test_streams_of_a_batch_do_not_mix():
    network, clip = build(), torch.randn(3, 3, 4, 32, 24)
    together = joined(outputs_of(StreamingSession(network), clip, [1, 3]))[0]
    for i in range(3):
        alone = joined(outputs_of(StreamingSession(network), clip[i : i + 1], [1, 3]))[0]
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_steps_give_gradients_through_the_state():
    network, clip = build("phase"), torch.randn(1, 3, 2, 16, 16, requires_grad=True)
    _, state = network.step(clip[:, :, :1])
    logits, _ = network.step(clip[:, :, 1:], state)
    (grad,) = torch.autograd.grad(logits.square().sum(), clip)
    assert grad[:, :, 0].any()


def test_a_reset_session_is_a_fresh_one():
    session, clip = StreamingSession(build("phase")), torch.randn(1, 3, 3, 16, 16)
    first = session.step(clip)
    session.reset()
    assert session.index == 0
    assert torch.equal(session.step(clip), first)
    session.reset()
    session.step(torch.randn(2, 3, 40, 40))


def test_the_state_has_the_documented_size():
    with torch.device("meta"):
        session = StreamingSession(EndoMamba(3, 2, head="phase"))
        assert session.state_bytes == 12 * 768 * (3 + 16) * 4 + 8
    network = build("phase")
    session = StreamingSession(network)
    session.step(torch.randn(1, 3, 5, 32, 24))
    assert sum(x.nbytes for x in session._state) == session.state_bytes


CHILD = """
import os, signal, sys, torch
from tests.nnunet_plugins.test_streaming import build
from nnunet_plugins.streaming import StreamingSession
clip = torch.load(sys.argv[1], weights_only=True)
session = StreamingSession(build())
session.step(clip[:, :, :5])
session.save(sys.argv[2])
session.step(clip[:, :, 5:])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_stream_goes_on_elsewhere(tmp_path):
    clip, state = torch.randn(2, 3, 8, 32, 24), tmp_path / "state.safetensors"
    torch.save(clip, tmp_path / "clip.pt")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "clip.pt"), str(state)]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    whole, resumed = StreamingSession(build()), StreamingSession(build())
    whole.step(clip[:, :, :5])
    resumed.load(state)
    assert resumed.index == 5
    torch.testing.assert_close(
        resumed.step(clip[:, :, 5:]), whole.step(clip[:, :, 5:]), rtol=0, atol=1e-6
    )
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.fixture
def running() -> StreamingSession:
    session = StreamingSession(build("phase"))
    session.step(torch.randn(2, 3, 3, 32, 24))
    return session


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.randn(3, 3, 32, 24), "3 streams came and the session is in the middle of 2"),
        (torch.randn(2, 3, 24, 32), r"frames of \(24, 32\) came in the middle of a stream of"),
        (torch.zeros(2, 3, 32, 24, dtype=torch.uint8), "of floating point"),
        (torch.zeros(2, 3, 0, 32, 24), "at least one frame"),
        (torch.full((2, 3, 32, 24), torch.nan), "not finite"),
        (torch.randn(3, 32, 24), r"give \(streams, channels, h, w\)"),
        (torch.randn(2, 1, 32, 24), "image has 1 channels"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_leave_the_session_as_it_was(
    running, frames, message
):
    other = StreamingSession(build("phase"))
    other._state, other._frame_size = running._state, running._frame_size
    with pytest.raises(ValueError, match=message) as error:
        running.step(frames)
    assert "\n" not in str(error.value)
    good = torch.randn(2, 3, 32, 24)
    assert torch.equal(running.step(good), other.step(good))


def test_a_state_of_another_network_is_refused(running, tmp_path):
    path = tmp_path / "state.safetensors"
    running.save(path)
    others = {
        "heads": build("classification", d_model=24),
        "depth": build("phase", depth=6),
        "weights": build("phase"),
        "precision": build("phase").double(),
    }
    with torch.no_grad():
        others["weights"].encoder.norm_f.weight[0] += 1e-3
    for network in others.values():
        session = StreamingSession(network)
        with pytest.raises(ValueError, match="state of another network"):
            session.load(path)
        assert session.index == 0


def test_what_is_no_state_is_refused(running, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"no state")
    before = running.index
    with pytest.raises(ValueError, match="holds no state"):
        running.load(path)
    save_file({"0": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no state"):
        running.load(path)
    assert running.index == before
    with pytest.raises(ValueError, match="no frame has been seen"):
        StreamingSession(build("phase")).save(path)
    with pytest.raises(TypeError, match="cannot be asked frame by frame"):
        StreamingSession(torch.nn.Linear(1, 1))


def test_a_state_that_cannot_be_written_leaves_the_old_one(running, tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    running.save(path)
    before = load_file(path)
    running.step(torch.randn(2, 3, 32, 24))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        running.save(path)
    assert torch.equal(load_file(path)["0"], before["0"])
    assert len(list(tmp_path.iterdir())) == 1


def test_vivim_which_looks_ahead_is_refused():
    with pytest.raises(TypeError, match="it has no step"), torch.device("meta"):
        StreamingSession(Vivim(3, 2, size="b0"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_flat_over_many_frames():
    session = StreamingSession(EndoMamba(3, 3, **TINY))
    frame = torch.randn(1, 3, 16, 16)

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])

    for _ in range(300):
        logits = session.step(frame)
    before, size = pages(), sum(x.nbytes for x in session._state)
    for _ in range(2000):
        logits = session.step(frame)
    assert session.index == 2300
    assert logits.isfinite().all()
    assert sum(x.nbytes for x in session._state) == size == session.state_bytes
    assert pages() - before < 256  # a megabyte; a kept state of each step would be three
