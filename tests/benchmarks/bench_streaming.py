"""Streaming with EndoMamba: milliseconds a frame, and whether a long stream grows or drifts.

python tests/benchmarks/bench_streaming.py [--size small] [--side 224] [--head backbone]
    [--modes plain float32 mixed bfloat16 compiled] [--frames 40] [--threads 1] [--json FILE]
python tests/benchmarks/bench_streaming.py --steps 1000000

The first form times single frames of a stream of batch 1, each as a session sees it: the network
as it was built (plain), and as `mambamed stream` prepares it (float32, mixed, bfloat16, and with
--compile in float32: compiled); "free scan" is the plain network with scans that do nothing, the
least that its other operations cost.
Modes take turns after every few frames, so that what else a machine does is shared fairly, and
outputs are compared with plain ones. The second runs a net of 1 + 1 layers and 8 channels on
16 x 16 frames for so many steps. It reports how much the process grew after the first thousand,
whether all is finite, and whether the last step equals that of a fresh session that loads the
state before it. CPU milliseconds are those of all threads, which a busy machine does not stretch.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from nnunet_plugins.doctor import machine
from nnunet_plugins.networks import EndoMamba, EndoMambaBackbone
from nnunet_plugins.networks.endomamba import SIZES
from nnunet_plugins.stream.compiling import compiled, warm_up
from nnunet_plugins.stream.memory import keep_freed_memory
from nnunet_plugins.stream.packing import prepared
from nnunet_plugins.streaming import StreamingSession

TINY = {"d_model": 8, "depth": 2, "image_size": (16, 16), "patch_size": 16, "head": "phase"}
WARM_UP = 1000
TURN = 8
"""Frames of a mode before the next one's turn; the first of them is not timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--head", default="backbone", choices=["backbone", "segmentation", "phase"])
    parser.add_argument("--modes", nargs="*", default=["float32", "mixed", "bfloat16"])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="run a tiny net for so many steps instead")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for name, value in machine().items():
        print(f"{name}: {value}")
    figures = endurance(args.steps) if args.steps else speed(args)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), **figures}, indent=2))


def speed(args: argparse.Namespace) -> dict[str, object]:
    """Milliseconds a frame in each mode, and how far the outputs are from the plain network's."""
    keep_freed_memory()
    device = torch.device(args.device)
    clip = torch.randn(1, 3, args.frames, args.side, args.side, device=device)
    print(f"EndoMamba-{args.size}, {args.head}, {args.side}^2, batch 1, {args.threads} threads")
    sessions = {}
    for mode in ["plain", *(mode for mode in args.modes if mode != "plain")]:
        torch.manual_seed(0)
        network = in_mode(build(args.head, args.size, args.side).to(device), mode)
        sessions[mode] = StreamingSession(network)
        if mode == "compiled":
            print(f"compiled in {warm_up(network, clip[:, :, 0]):.0f} s")
    torch.manual_seed(0)
    sessions["free scan"] = FreeScans(build(args.head, args.size, args.side).to(device))
    outputs, figures = timed(sessions, clip)
    for mode, row in figures.items():
        exact = outputs["plain"]
        row["difference"] = float((outputs[mode] - exact).norm() / exact.norm())
        print(f"{mode:<10}" + "".join(f"{value:>12.4g} {unit}" for unit, value in row.items()))
    print(f"state: {sessions['plain'].state_bytes} bytes a stream")
    return figures


def build(head: str, size: str, side: int) -> nn.Module:
    sizes = {"size": size, "image_size": (side, side)}
    if head == "backbone":
        return EndoMambaBackbone(3, **sizes)
    return EndoMamba(3, 2, head=head, **sizes)


def in_mode(network: nn.Module, mode: str) -> nn.Module:
    """As it is, or changed for inference on its device."""
    device = next(network.parameters()).device
    if mode == "plain":
        return network
    if mode == "compiled":
        return compiled(network, "float32", device)
    return prepared(network, mode, device)


class FreeScans(StreamingSession):
    """A stream whose scans give back their inputs."""

    def step(self, frames: Tensor) -> Tensor:
        with (
            patch("nnunet_plugins.networks.layers.mamba.selective_scan", self.scan),
            patch("nnunet_plugins.networks.layers.mamba.selective_scan_multi", self.scans),
        ):
            return super().step(frames)

    @staticmethod
    def scan(u: Tensor, delta: Tensor, A: Tensor, *rest: object, **options: object) -> object:
        return u, u.new_zeros(len(u), *A.shape)

    @staticmethod
    def scans(u: list[Tensor], *rest: object, **options: object) -> object:
        return u[0], None


def timed(
    sessions: dict[str, StreamingSession], clip: Tensor
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Outputs of all frames, and figures over them but for the first few."""
    outputs, wall, cpu = ({mode: [] for mode in sessions} for _ in range(3))
    for turn in clip.split(TURN, dim=2):
        for mode, session in sessions.items():
            for i, frame in enumerate(turn.unbind(2)):
                start, cpu_start = time.perf_counter(), time.process_time()
                outputs[mode].append(session.step(frame).float())
                if clip.is_cuda:
                    torch.cuda.synchronize()
                if i > 0:
                    wall[mode].append(1000 * (time.perf_counter() - start))
                    cpu[mode].append(1000 * (time.process_time() - cpu_start))
    figures = {
        mode: {
            "ms": statistics.median(wall[mode]),
            "ms_p99": sorted(wall[mode])[math.ceil(0.99 * len(wall[mode])) - 1],
            "ms_fastest": min(wall[mode]),
            "CPU_ms": statistics.median(cpu[mode]),
        }
        for mode in sessions
    }
    return {mode: torch.stack(frames) for mode, frames in outputs.items()}, figures


def endurance(steps: int) -> dict[str, object]:
    """Growth in bytes, and whether the last of so many steps is what it should be."""
    if steps <= WARM_UP:
        raise SystemExit(f"--steps {steps} is no endurance; give more than {WARM_UP}")
    session = StreamingSession(EndoMamba(3, 3, **TINY))
    frames, finite, start = torch.randn(16, 1, 3, 16, 16), True, time.process_time()
    for i in range(steps - 1):
        logits = session.step(frames[i % len(frames)])
        if i + 1 == WARM_UP:
            before = resident_bytes()
        if i % 1000 == 0:
            finite = finite and bool(logits.isfinite().all())
    growth, seconds = resident_bytes() - before, time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        session.save(Path(folder, "state.safetensors"))
        fresh = StreamingSession(session.model)
        fresh.load(Path(folder, "state.safetensors"))
    last = frames[(steps - 1) % len(frames)]
    figures = {
        "steps": steps,
        "CPU_ms_a_step": 1000 * seconds / (steps - 1),
        "grown_bytes": growth,
        "finite": finite,
        "state_bytes": session.state_bytes,
        "equals_a_fresh_session": torch.equal(fresh.step(last), session.step(last)),
        "index": session.index,
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    return figures


def resident_bytes() -> int:
    """Of this process, now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
