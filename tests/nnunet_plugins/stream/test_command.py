"""`mambamed stream` as it is typed: overlay, masks, report, state, refusals, Ctrl-C, a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from nnunet_plugins.cli import main
from nnunet_plugins.stream.command import stopped_by_signals
from nnunet_plugins.stream.network import StreamBundle
from nnunet_plugins.streaming import StreamingSession
from tests.nnunet_plugins.stream.conftest import (
    ROOT,
    VIVIM,
    frames_of,
    packets_of,
    pictures,
    write_bundle,
    write_clip,
)


def stream(clip: Path, bundle: Path, **options: object) -> int:
    words = ["stream", str(clip), "--bundle", str(bundle), "--device", "cpu"]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return main(words)


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.asarray(Image.open(file)) for file in sorted(folder.iterdir())}


def test_overlay_masks_and_report(clip, bundle, tmp_path, capsys):
    out, masks, report = tmp_path / "o" / "out.mp4", tmp_path / "masks", tmp_path / "report.json"
    assert stream(clip, bundle, out=out, masks=masks, json=report, threads=1) == 0
    frames = frames_of(out)
    assert len(frames) == 10
    assert frames[0].shape == (32, 48, 3)
    with av.open(str(out)) as container:
        times = [float(p.time) for p in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(10) / 25, atol=1e-3)
    found = masks_in(masks)
    assert list(found) == [f"{i:06d}" for i in range(1, 11)]
    assert set(np.unique(list(found.values()))) == {0, 255}
    figures = json.loads(report.read_text())
    assert figures["frames"] == figures["arrived"] == figures["next_index"] == 10
    assert figures["latency_ms"]["p99"] >= figures["latency_ms"]["median"] > 0
    assert (figures["device"], figures["dtype"], figures["threads"]) == ("cpu", "float32", 1)
    assert (figures["dropped"], figures["corrupt"]) == (0, 0)
    seen = sum(bool(mask.any()) for mask in found.values())
    assert figures["classes"] == {"polyp": seen}
    assert "10 frames at" in capsys.readouterr().out


def test_masks_are_those_of_the_whole_clip(clip, bundle, tmp_path):
    assert stream(clip, bundle, masks=tmp_path / "masks") == 0
    prepared = StreamBundle(bundle)
    whole = torch.cat([prepared.prepare(frame) for frame in frames_of(clip)])
    with torch.no_grad():
        logits = prepared.network(whole.movedim(0, 1)[None])[0]
    expected = 255 * logits.argmax(0).numpy()
    for mask, wanted in zip(masks_in(tmp_path / "masks").values(), expected, strict=True):
        assert (mask != wanted).mean() < 1e-2  # ties apart, a stream equals the clip


def test_a_resumed_stream_equals_one_run(clip, bundle, tmp_path):
    state = tmp_path / "state.safetensors"
    assert stream(clip, bundle, masks=tmp_path / "whole") == 0
    first = {"masks": tmp_path / "parts", "max_frames": 4, "save_state": state}
    assert stream(clip, bundle, **first) == 0
    rest = {"masks": tmp_path / "parts", "skip": 4, "resume_state": state}
    assert stream(clip, bundle, json=tmp_path / "r.json", **rest) == 0
    whole, parts = masks_in(tmp_path / "whole"), masks_in(tmp_path / "parts")
    assert list(whole) == list(parts)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    figures = json.loads((tmp_path / "r.json").read_text())
    assert (figures["first_index"], figures["next_index"]) == (4, 10)


def test_frames_are_resized_there_and_masks_back(tmp_path, bundle):
    clip = write_clip(tmp_path / "large.mp4", pictures(3, 50, 70))
    assert stream(clip, bundle, masks=tmp_path / "m", out=tmp_path / "o.mp4", size=[32, 48]) == 0
    assert {mask.shape for mask in masks_in(tmp_path / "m").values()} == {(50, 70)}
    assert frames_of(tmp_path / "o.mp4")[0].shape == (50, 70, 3)


def test_classes_of_frames_are_written_on_them_and_into_the_report(clip, phase_bundle, tmp_path):
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    assert stream(clip, phase_bundle, out=out, json=report, dtype="bfloat16") == 0
    figures = json.loads(report.read_text())
    assert sum(figures["classes"].values()) == sum(r["frames"] for r in figures["runs"]) == 10
    assert {run["class"] for run in figures["runs"]} <= {"background", "polyp"}
    changed = np.abs(frames_of(out)[0].astype(int) - frames_of(clip)[0])
    assert changed[:16].mean() > 3 * changed[24:].mean()


def test_corrupt_frames_are_skipped_and_the_state_kept(clip, bundle, tmp_path):
    position, size = packets_of(clip)[4]
    data = bytearray(clip.read_bytes())
    data[position + 6 : position + size] = bytes(size - 6)
    clip.write_bytes(data)
    report = tmp_path / "report.json"
    assert stream(clip, bundle, json=report, masks=tmp_path / "masks") == 0
    figures = json.loads(report.read_text())
    assert (figures["corrupt"], figures["frames"], figures["next_index"]) == (1, 9, 9)
    assert "000005" not in masks_in(tmp_path / "masks")


def test_a_frame_size_that_changes_is_refused_and_what_was_seen_kept(bundle, tmp_path, capsys):
    parts = [
        write_clip(tmp_path / f"{i}.mjpeg", pictures(4, *size), codec="mjpeg")
        for i, size in enumerate([(32, 48), (48, 32)])
    ]
    clip = tmp_path / "both.mjpeg"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert stream(clip, bundle, out=tmp_path / "out.mp4") == 1
    assert "has 32 x 48 pixels and those before 48 x 32" in capsys.readouterr().err
    assert len(frames_of(tmp_path / "out.mp4")) == 4


def test_a_live_stream_drops_what_is_too_old(tmp_path, bundle, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", pictures(30), fps=60)
    step = StreamingSession.step
    monkeypatch.setattr(StreamingSession, "step", lambda s, x: (time.sleep(0.08), step(s, x))[1])
    report = tmp_path / "report.json"
    assert stream(clip, bundle, live=True, json=report, out=tmp_path / "out.mp4") == 0
    figures = json.loads(report.read_text())
    assert figures["arrived"] == 30
    assert figures["dropped"] >= 10
    assert figures["frames"] + figures["dropped"] == 30
    assert figures["latency_counts_waiting"] is True
    assert len(frames_of(tmp_path / "out.mp4")) == figures["frames"]
    with av.open(str(tmp_path / "out.mp4")) as container:
        last = [float(p.time) for p in container.decode(video=0)][-1]
    assert last == pytest.approx(29 / 60, abs=0.15)  # frames are shown when they were taken


def without_weights(folder: Path) -> Path:
    (write_bundle(folder) / "models" / "model.pt").unlink()
    return folder


def of_other_weights(folder: Path) -> Path:
    write_bundle(folder)
    torch.save({"a": torch.zeros(1)}, folder / "models" / "model.pt")
    return folder


def edited(folder: Path, **network: object) -> Path:
    file = write_bundle(folder) / "configs" / "inference.json"
    content = json.loads(file.read_text())
    content["network_def"] |= network
    file.write_text(json.dumps(content))
    return folder


def of_another_network(folder: Path) -> Path:
    write_bundle(folder)
    shutil.copy(VIVIM / "inference.json", folder / "configs")
    return folder


def written(name: str, content: bytes):
    """Makes bundles with other bytes in one file."""

    def make(folder: Path) -> Path:
        (write_bundle(folder) / name).write_bytes(content)
        return folder

    return make


def of_weights(change):
    """Makes bundles whose model.pt holds what `change` makes of the weights."""

    def make(folder: Path) -> Path:
        file = write_bundle(folder) / "models" / "model.pt"
        torch.save(change(torch.load(file, weights_only=True)), file)
        return folder

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (without_weights, "this bundle has no weights yet"),
        (of_other_weights, "does not fit network_def"),
        (of_another_network, "holds a Vivim, which cannot be asked frame by frame"),
        (lambda folder: write_bundle(folder, "localization"), "neither class maps nor classes"),
        (lambda folder: edited(folder, size="huge"), "cannot be built: unknown size 'huge'"),
        (lambda folder: folder, "is no bundle"),
        (written("configs/inference.json", b"{"), "inference.json cannot be read"),
        (written("configs/inference.json", b"[]"), "inference.json holds no JSON object"),
        (written("configs/inference.json", b"{}"), "inference.json has no network_def"),
        (written("configs/dataset.json", b"{"), "dataset.json cannot be read"),
        (written("configs/plans.json", b"{"), "plans.json cannot be read"),
        (written("configs/plans.json", b"{}"), "plans.json is not what nnU-Net writes"),
        (written("models/model.pt", b""), "model.pt is damaged"),
        (written("models/model.pt", b"garbage"), "model.pt is damaged"),
        (of_weights(lambda state: {"model": state, "path": Path("a")}), "not loaded for safety"),
        (of_weights(lambda state: [1]), "holds no state dict"),
        (of_weights(lambda state: {n: w / 0 for n, w in state.items()}), "training diverged"),
    ],
)
def test_bundles_that_cannot_be_streamed_are_refused_and_nothing_is_lost(
    clip, tmp_path, capsys, make, message
):
    out = tmp_path / "out.mp4"
    out.write_text("an older one")
    assert stream(clip, make(tmp_path / "bundle"), out=out) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert out.read_text() == "an older one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "out.avi"}, "does not end in .mp4"),
        ({"max_frames": 0}, "--max-frames 0 is none"),
        ({"size": [0, 5]}, "--size 0 5 is no size"),
        ({"skip": -1}, "--skip -1 is none"),
        ({"threads": 100_000}, "--threads 100000 are more than the"),
        ({"device": "cuda:99"}, "--device cuda:99 cannot be used"),
        ({"device": "meta"}, "--device meta cannot be used"),
        ({"device": "gpu"}, "--device gpu cannot be used"),
    ],
)
def test_options_that_do_not_fit_are_refused(clip, bundle, tmp_path, capsys, options, message):
    options = {k: tmp_path / v if k == "out" else v for k, v in options.items()}
    assert stream(clip, bundle, **options) == 1
    assert message in capsys.readouterr().err


def test_nothing_answered_is_no_success(clip, bundle, tmp_path, capsys):
    assert stream(clip, bundle, skip=10, json=tmp_path / "report.json") == 1
    assert "no frame was answered" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["frames"] == 0


def test_masks_of_a_classifier_are_refused(clip, phase_bundle, tmp_path, capsys):
    assert stream(clip, phase_bundle, masks=tmp_path / "masks") == 1
    assert "no masks; leave --masks out" in capsys.readouterr().err


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from nnunet_plugins.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def running(tmp_path, bundle):
    """A stream of a long file, played live, that has written some frames."""
    clip = write_clip(tmp_path / "long.mp4", pictures(500))
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    words = ["stream", str(clip), "--bundle", str(bundle), "--live", "--device", "cpu"]
    words += ["--out", str(out), "--json", str(report)]
    words += ["--save-state", str(tmp_path / "state.safetensors")]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 5000) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield process, out, report
    process.kill()
    process.wait()


@pytest.mark.parametrize("event", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_stops_and_a_second_one_interrupts(event):
    before = signal.getsignal(event)
    with stopped_by_signals() as (stop, received):
        signal.raise_signal(event)
        assert stop.is_set()
        assert received == [event]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(event)
    assert signal.getsignal(event) == before


def test_ctrl_c_keeps_everything_written_so_far(running):
    process, out, report = running
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130, error
    figures = json.loads(report.read_text())
    assert 0 < figures["frames"] < 500
    assert len(frames_of(out)) == figures["frames"] == figures["next_index"]
    assert (out.parent / "state.safetensors").is_file()


def test_a_killed_stream_leaves_a_video_that_plays(running):
    process, out, _ = running
    process.kill()
    process.communicate(timeout=30)
    assert len(frames_of(out)) >= 10
