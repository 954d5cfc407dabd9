"""`mambamed export-step`: a bundle's network as a file that takes a frame and a state and gives an
answer and the next state, for other programs: ONNX, or torch.export's archive.

ONNX needs nothing of this project where it runs. The archive (.pt2) calls the compiled scan: import
`mamba_kernels` before `torch.export.load`.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mamba_kernels import use_backend
from nnunet_plugins.stream.network import StreamBundle
from nnunet_plugins.stream.places import check_places

FORMAT = "mambamed.step.1"
"""Key of our plain JSON in the metadata of an ONNX file."""
CHECKED_FRAMES = 3
"""Frames on which a file is compared with the network that it was made of."""
TOLERANCE = 1e-3
"""Of the outputs, relative to their largest, beyond which an export is refused."""

State = tuple[Tensor, ...]


class FrameStep(nn.Module):
    """A network's step on single frames, with tensors in and out.

    Args:
        network: With `step` and `initial_state`, such as `EndoMamba`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(b, c, h, w) and the state before -> the answer without time axis, and the state after.

        The answer is logits (b, k, h, w) or (b, k), and of landmarks two tensors (b, k, ...).
        """
        outputs, after = self.network.step(frame.unsqueeze(2), state)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return (*(x[:, :, 0] if x.ndim == 5 else x[:, 0] for x in outputs), *after)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mambamed export-step`."""
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".onnx or .pt2")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help="of the frames that the file takes; the network's image_size if not given",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the file, say how well it agrees with the network, and return 0.

    Raises:
        OSError: If the bundle has no weights or the file cannot be written.
        ValueError: If the ending is unknown, a package is missing, or the file does not agree.
    """
    if args.size and min(args.size) < 1:
        raise ValueError(f"--size {args.size[0]} {args.size[1]} is no size; give pixels")
    check_places({"--out": args.out}, {})
    bundle = StreamBundle(args.bundle)
    size = tuple(args.size or bundle.image_size)
    difference = export_step(bundle.network, args.out, size, bundle.names)
    print(
        f"{args.out}: one frame of {size[0]} x {size[1]} and the state a step; over "
        f"{CHECKED_FRAMES} frames it differs from the network by {difference:.1e} of its outputs"
    )
    return 0


@torch.no_grad()
def export_step(network: Any, out: Path, size: tuple[int, ...], labels: list[str]) -> float:
    """Write a network's step on frames of one size, after it has been compared with the network.

    Inputs are the frame (1, c, h, w), prepared as in training, and the state's tensors, zeros
    before the first frame; outputs are the answer and the state's tensors after the frame.

    Returns:
        The largest difference from the network, over the largest output.

    Raises:
        ValueError: If the ending is unknown, a package is missing, or they do not agree.
    """
    writers = {".onnx": _write_onnx, ".pt2": _write_archive}
    if out.suffix not in writers:
        raise ValueError(f"{out} ends in {out.suffix or 'nothing'}; name a file .onnx or .pt2")
    step, state = FrameStep(network.eval()), network.initial_state(1)
    frames = torch.rand(CHECKED_FRAMES, 1, network.input_channels, *size)
    with use_backend("cpu"), _quiet():
        program = torch.export.export(step, (frames[0], *state))
    partial = out.with_name(f".{out.stem}.{os.getpid()}.partial{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _quiet():
            written = writers[out.suffix](program, partial, len(state), labels)
        difference = _difference(step, written, frames, state)
        if not difference < TOLERANCE:
            raise ValueError(
                f"what was exported differs from the network by {difference:.1e} of its outputs, "
                f"and is not kept; this torch {torch.__version__} cannot export it"
            )
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return difference


Written = Callable[..., list[Tensor]]
"""A file that was written, as a function of a frame and a state."""


def _write_archive(program: Any, path: Path, states: int, labels: list[str]) -> Written:
    torch.export.save(program, path, extra_files={"labels.json": json.dumps(labels)})
    return lambda *inputs: list(torch.export.load(path).module()(*inputs))


def _write_onnx(program: Any, path: Path, states: int, labels: list[str]) -> Written:
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(p)]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing, which ONNX needs; install it with pip")
    from nnunet_plugins.stream.recurrences import decompositions

    inputs, outputs = _names(states, len(program.graph_signature.user_outputs))
    program = program.run_decompositions(decompositions())
    onnx_program: Any = torch.onnx.export(
        program, (), dynamo=True, input_names=inputs, output_names=outputs, verbose=False
    )
    onnx_program.model.metadata_props[FORMAT] = json.dumps({"labels": labels})
    onnx_program.save(path, external_data=False)
    return _in_onnxruntime(path)


def _names(states: int, outputs: int) -> tuple[list[str], list[str]]:
    """Of a step's inputs and outputs: the state's layers are numbered."""
    layers = [f"{part}_{i}" for i in range(states // 2) for part in ("convolution", "scan")]
    state = ["index", *layers]
    answers = outputs - states
    named = ["logits"] if answers == 1 else [f"answer_{i}" for i in range(answers)]
    return ["frame", *state], [*named, *(f"next_{name}" for name in state)]


def _in_onnxruntime(path: Path) -> Written:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        values = (x.numpy() for x in inputs)
        outputs: Any = session.run(None, dict(zip(names, values, strict=True)))
        return [torch.from_numpy(np.asarray(x)) for x in outputs]

    return run


def _difference(step: FrameStep, written: Written, frames: Tensor, start: State) -> float:
    """Largest over a few frames, each side with its own state, relative to the largest output."""
    ours, theirs, worst = list(start), list(start), 0.0
    for frame in frames:
        wanted, got = list(step(frame, *ours)), written(frame, *theirs)
        for a, b in zip(wanted, got, strict=True):
            scale = max(float(a.abs().max()), 1e-6)
            worst = max(worst, float((a - b).abs().max()) / scale)
        ours, theirs = wanted[-len(start) :], got[-len(start) :]
    return worst


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what torch's exporters print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
