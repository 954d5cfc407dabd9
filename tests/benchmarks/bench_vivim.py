"""Speed, memory and multiply-adds of Vivim on a CPU, and of attention in Mamba's place.

python tests/benchmarks/bench_vivim.py [--clips 5x256 32x256] [--mixers mamba window ...]
    [--lengths 5 10 ... 150] [--repeats 1] [--json FILE]

Runs the golden tests first where the recordings are at hand: no speed of a wrong network. The
mixers are those of the paper's table IV, which took a clip of 32 frames of 256 x 256 on an A6000.
Each figure is taken in a process of its own: peak memory is that of the process, less what it held
before the forward pass. CPU seconds are those of all threads, which a busy machine does not
stretch as it does the clock's. FLOPs are matrix products and convolutions; scans are not counted.
The decoder is compared with SegFormer's order of work, in GFLOP and in what comes out. Over lengths
a figure's growth is the power of the number of frames: 1 is linear.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.doctor import machine
from nnunet_plugins.networks import Vivim
from nnunet_plugins.networks.layers.frame_heads import SegFormerDecoder
from nnunet_plugins.networks.layers.segformer import MIT

PAPER = {  # training MB, inference MB, seconds
    "mamba": (19216, 5112, 0.121),
    "window": (25861, 7795, 0.142),
    "factorised": (29110, 9288, 0.156),
    "global": ("out of memory", "-", "-"),
}
GOLDEN = Path(__file__).parents[1] / "nnunet_plugins/networks/test_golden_vivim.py"
HEAD_WIDTH = 64
WINDOW = (8, 8, 8)
MOST_GFLOP = 3000
"""A forward pass with more is left out: minutes on a CPU."""
SMALL = {"size": "b0"}
SMALL_SIDE = 64


class Attention(nn.Module):
    """Self-attention in the place of a Mamba mixer: (b, l, c) of a square clip -> (b, l, c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // HEAD_WIDTH, 1)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        """Within the last but one axis: (..., l, c) -> (..., l, c)."""
        rows = self.qkv(x.flatten(0, -3)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*rows)
        return self.proj(y.transpose(1, 2).flatten(2)).view(x.shape)


class WindowAttention(Attention):
    """Within windows of 8 frames of 8 x 8 tokens, as Video Swin's."""

    def forward(self, x: Tensor, frames: int) -> Tensor:
        b, l, c = x.shape
        side = round((l // frames) ** 0.5)
        grid = (frames, side, side)
        window = [min(w, s) for w, s in zip(WINDOW, grid, strict=True)]
        missing = [-s % w for w, s in zip(window, grid, strict=True)]
        pads = [pad for m in reversed(missing) for pad in (0, m)]
        padded = F.pad(x.view(b, *grid, c), (0, 0, *pads))
        axes = [n for s, w in zip(padded.shape[1:4], window, strict=True) for n in (s // w, w)]
        y = padded.view(b, *axes, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        y = self.attend(y.flatten(4, 6)).view(y.shape).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return y.reshape(padded.shape)[:, :frames, :side, :side].reshape(x.shape)


class FactorisedAttention(Attention):
    """Within each frame, then within each place, as ViViT's model 3."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.in_time = Attention(channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        y = self.attend(x.unflatten(1, (frames, -1)))
        return self.in_time.attend(y.transpose(1, 2)).transpose(1, 2).flatten(1, 2)


MIXERS: dict[str, type[Attention] | None] = {
    "mamba": None,
    "window": WindowAttention,
    "factorised": FactorisedAttention,
    "global": Attention,
}


class PlainDecoder(SegFormerDecoder):
    """SegFormer's own order of work: project, interpolate, concatenate, fuse."""

    def fused(self, features: Sequence[Tensor]) -> Tensor:
        maps = [
            F.interpolate(
                project(x.transpose(1, 2).flatten(0, 1).movedim(1, -1)).movedim(-1, 1),
                features[0].shape[3:],
                mode="bilinear",
            )
            for x, project in zip(features, self.project, strict=True)
        ]
        return self.fuse(torch.cat(maps[::-1], dim=1))


def build(mixer: str, **options: object) -> Vivim:
    """Vivim with another mixer in its temporal layers."""
    network = Vivim(3, 2, **options).eval()
    attention = MIXERS[mixer]
    if attention is not None:
        for stage in network.encoder.stages:
            for layer in stage.mamba:
                layer.mamba = attention(layer.norm1.weight.numel())
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", nargs="*", default=["5x256", "32x256"], metavar="TxSIDE")
    parser.add_argument("--mixers", nargs="*", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--lengths", nargs="*", type=int, default=[5, 10, 20, 40, 80, 150])
    parser.add_argument("--repeats", type=int, default=1, help="timed forward passes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    if os.environ.get("MAMBAMED_SHARED"):
        subprocess.run([sys.executable, "-m", "pytest", "-q", str(GOLDEN)], check=True)
    for name, value in machine().items():
        print(f"{name}: {value}")
    print(f"{args.threads} threads, medians of {args.repeats}")
    head_figures = {**head(), "difference": head_difference()}
    figures: dict[str, object] = {"machine": machine(), "head": head_figures}
    for clip in args.clips:
        frames, side = map(int, clip.split("x"))
        print(f"\nVivim-B3, {frames} frames of {side} x {side}")
        figures[clip] = {
            mixer: print_row(mixer, measured(mixer, frames, side, args.repeats, args.threads))
            for mixer in args.mixers
        }
    print(f"\nVivim-B0, frames of {SMALL_SIDE} x {SMALL_SIDE}, one clip")
    lengths = {
        frames: print_row(
            f"{frames} frames",
            measured("mamba", frames, SMALL_SIDE, args.repeats, args.threads, SMALL),
        )
        for frames in args.lengths
    }
    figures["lengths"], figures["growth"] = lengths, growth(lengths)
    print("\nTable IV (A6000, 32 x 256): training MB, inference MB, seconds")
    for mixer, row in PAPER.items():
        print(f"{mixer:<12}" + "".join(f"{value:>15}" for value in row))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


def head(frames: int = 5, side: int = 256) -> dict[str, float]:
    """GFLOP of the decoder of Vivim-B3, in SegFormer's order and in ours."""
    widths, width = MIT["b3"].widths, MIT["b3"].decoder_width
    found = {}
    for name, kind in {"SegFormer's order": PlainDecoder, "ours": SegFormerDecoder}.items():
        with torch.device("meta"):
            decoder = kind(widths, width, 1, "batch", 0.0, False)
            features = [
                torch.empty(1, c, frames, side // 4 // 2**s, side // 4 // 2**s)
                for s, c in enumerate(widths)
            ]
        found[name] = gflop(lambda decoder=decoder, x=features: decoder(x, (side, side)))
        print(f"head, {frames} x {side}^2, {name}: {found[name]:.1f} GFLOP")
    return found


@torch.inference_mode()
def head_difference(side: int = 256) -> float:
    """Largest difference between the logits of both orders, over the largest logit."""
    torch.manual_seed(0)
    widths, width = MIT["b3"].widths, MIT["b3"].decoder_width
    plain, ours = (
        kind(widths, width, 1, "batch", 0.0, False).eval()
        for kind in (PlainDecoder, SegFormerDecoder)
    )
    ours.load_state_dict(plain.state_dict())
    features = [
        torch.randn(1, c, 1, side // 4 // 2**s, side // 4 // 2**s) for s, c in enumerate(widths)
    ]
    logits = plain(features, (side, side))
    found = float((ours(features, (side, side)) - logits).abs().max() / logits.abs().max())
    print(f"head, both orders: logits differ by {found:.1e} of the largest")
    if found > 1e-5:
        raise SystemExit("the decoder is not SegFormer's; its GFLOP mean nothing")
    return found


def growth(lengths: dict[int, dict[str, float]]) -> dict[str, float]:
    """For each figure the power of the frames it grows with, from the longer half of the lengths.

    Short clips are left out for their fixed costs.
    """
    longer = sorted(lengths)[len(lengths) // 2 :]
    found = {}
    for unit in lengths[longer[0]] if len(longer) > 1 else ():
        points = [(n, lengths[n].get(unit, 0)) for n in longer]
        if all(value > 0 for _, value in points):
            logs = ([math.log(n) for n, _ in points], [math.log(value) for _, value in points])
            found[unit] = statistics.linear_regression(*logs).slope
            print(f"{unit} grows with the frames to the power of {found[unit]:.2f}")
    return found


def measured(
    mixer: str, frames: int, side: int, repeats: int, threads: int, options: dict | None = None
) -> dict[str, float]:
    """Figures of a forward pass: GFLOP, and the others too if that is not too much."""
    with torch.device("meta"):
        network, x = build(mixer, **(options or {})), torch.empty(1, 3, frames, side, side)
    work = gflop(lambda: network(x))
    if work > MOST_GFLOP:
        return {"GFLOP": work}
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        arguments = (mixer, frames, side, repeats, threads, options or {})
        return {"GFLOP": work, **pool.submit(forward, *arguments).result()}


def forward(
    mixer: str, frames: int, side: int, repeats: int, threads: int, options: dict
) -> dict[str, float]:
    """Median seconds and peak MB of a forward pass, in a process that does nothing else."""
    torch.set_num_threads(threads)
    network, x = build(mixer, **options), torch.randn(1, 3, frames, side, side)
    seconds, cpu_seconds = [], []
    with torch.inference_mode():
        network(x[:, :, :1, :64, :64])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(repeats):
            start, cpu_start = time.perf_counter(), time.process_time()
            network(x)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": statistics.median(seconds),
        "CPU_seconds": statistics.median(cpu_seconds),
        "peak_MB": peak / 1024,
    }


def gflop(run: Callable[[], object]) -> float:
    """Of matrix products and convolutions; Mamba's own operators are left out, which is quick."""
    leave_out = patch.multiple(
        "nnunet_plugins.networks.layers.mamba",
        selective_scan_multi=lambda u, *_, **__: (u[0], None),
        causal_conv1d=lambda u, *_, **__: u,
    )
    with leave_out, torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def print_row(name: str, figures: dict[str, float]) -> dict[str, float]:
    row = "".join(f"{value:>12.2f} {unit}" for unit, value in figures.items())
    left_out = f"   left out: more than {MOST_GFLOP}" if "seconds" not in figures else ""
    print(f"{name:<12}{row}{left_out}", flush=True)
    return figures


if __name__ == "__main__":
    main()
