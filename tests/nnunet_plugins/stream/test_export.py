"""A step as a file equals the network's, with the state going in and out, frame after frame."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_kernels import selective_scan
from mamba_kernels.causal_conv1d import causal_conv1d
from nnunet_plugins.cli import main
from nnunet_plugins.stream import recurrences
from nnunet_plugins.stream.export import FORMAT, FrameStep
from nnunet_plugins.stream.network import StreamBundle
from tests.nnunet_plugins.stream.conftest import ROOT


def assert_equal(ours: list[np.ndarray], wanted: list[torch.Tensor]) -> None:
    """To rounding, of the largest."""
    for a, b in zip(ours, wanted, strict=True):
        close = 1e-5 * float(b.abs().max())
        torch.testing.assert_close(torch.from_numpy(np.asarray(a)), b, rtol=0, atol=close)


@pytest.fixture(scope="module")
def onnx_file(bundle, tmp_path_factory):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exported") / "step.onnx"
    assert main(["export-step", str(bundle), "--out", str(path)]) == 0
    return path


def test_onnx_equals_the_network_over_several_frames(onnx_file, bundle):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file))
    names = [value.name for value in session.get_inputs()]
    assert names == ["frame", "index", "convolution_0", "scan_0"]
    network = StreamBundle(bundle).network
    step, ours = FrameStep(network), network.initial_state(1)
    theirs = [x.numpy() for x in ours]
    for frame in torch.rand(5, 1, 3, 32, 48):
        with torch.no_grad():
            wanted, *ours = step(frame, *ours)
        got, *theirs = session.run(None, dict(zip(names, [frame.numpy(), *theirs], strict=True)))
        assert_equal([got, *theirs], [wanted, *ours])


def test_onnx_is_small_and_knows_its_labels(onnx_file):
    import onnx

    model = onnx.load(onnx_file)
    assert {node.domain for node in model.graph.node} == {""}
    assert sum(node.op_type == "Scan" for node in model.graph.node) == 3
    assert len(model.graph.node) < 400  # a loop, not one operator a token
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata[FORMAT]) == {"labels": ["background", "polyp"]}


LOAD = """
import sys, torch, mamba_kernels
step = torch.export.load(sys.argv[1]).module()
case = torch.load(sys.argv[2], weights_only=True)
for ours, wanted in zip(step(*case["inputs"]), case["outputs"], strict=True):
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
assert not any(name.startswith("nnunet_plugins.networks") for name in sys.modules)
"""


def test_an_archive_runs_without_the_networks_code(phase_bundle, tmp_path):
    path, network = tmp_path / "step.pt2", StreamBundle(phase_bundle).network
    assert main(["export-step", str(phase_bundle), "--out", str(path), "--size", "24", "40"]) == 0
    inputs = (torch.rand(1, 3, 24, 40), *network.initial_state(1))
    with torch.no_grad():
        outputs = FrameStep(network)(*inputs)
    torch.save({"inputs": inputs, "outputs": outputs}, tmp_path / "case.pt")
    command = [sys.executable, "-c", LOAD, str(path), str(tmp_path / "case.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr


def test_other_endings_are_refused_and_nothing_is_written(bundle, tmp_path, capsys):
    assert main(["export-step", str(bundle), "--out", str(tmp_path / "step.tflite")]) == 1
    assert "name a file .onnx or .pt2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "step.pt2", "--size", "0", "5"], "--size 0 5 is no size"),
        (["--out", "folder.pt2"], "is a folder; name a file"),
        (["--out", "file/step.pt2"], "--out: nothing can be written to file"),
    ],
)
def test_sizes_and_places_are_tried_before_the_work(
    bundle, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    Path("file").touch()
    assert main(["export-step", str(bundle), *words]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.pt2"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_in_known_operators_is_the_definition(groups, reverse):
    torch.manual_seed(0)
    b, d, n, l = 2, 6, 4, 5
    u, delta, z = torch.randn(3, b, d, l)
    B, C = torch.randn(2, b, groups, n, l)
    A, D, bias, start = -torch.rand(d, n), torch.randn(d), torch.randn(d), torch.randn(b, d, n)
    wanted, last = selective_scan(
        u, delta, A, B, C, D, z, bias, initial_state=start, reverse=reverse,
        return_last_state=True, backend="reference",
    )  # fmt: skip
    operands = (u, delta, A, B, C, D, z, bias, start, True, reverse, False)
    y, state, _ = recurrences.scan_forward(*operands)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [None, "given"])
def test_the_convolution_in_known_operators_is_the_definition(start, reverse):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 5), torch.randn(6, 4), torch.randn(6)
    start = None if start is None else torch.randn(2, 6, 3)
    wanted, last = causal_conv1d(
        x, weight, bias, activation="silu", initial_state=start, reverse=reverse,
        return_last_state=True, backend="reference",
    )  # fmt: skip
    y, state = recurrences.conv_forward(x, weight, bias, start, None, True, reverse)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(state, last)
