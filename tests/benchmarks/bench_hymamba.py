"""Size and speed of the networks on a CPU: parameters, multiply-adds, seconds of a forward pass.

python tests/benchmarks/bench_hymamba.py [--patch 96] [--repeats 3] [--json FILE]

Runs the golden tests first where the recordings are at hand: no speed of a wrong network.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_plugins.doctor import machine
from nnunet_plugins.networks import HyMamba, VanillaMamba
from nnunet_plugins.networks.hymamba import stage_widths
from nnunet_plugins.registry import find_class

PAPER = {"parameters_M": 41.84, "GMAC": 1033.0}
"""The authors' network at 96^3 and 14 classes, position table and unread tensors counted in."""
CLASSES = 14
GOLDEN = Path(__file__).parents[1] / "nnunet_plugins/networks/test_golden_hymamba.py"


def small() -> nn.Module:
    widths = find_class("HyMambaTrainer_small").widths
    return HyMamba(1, CLASSES, features_per_stage=stage_widths(widths, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "HyMamba": lambda: HyMamba(1, CLASSES),
    "HyMamba, as released": lambda: HyMamba(1, CLASSES, bidirectional=False),
    "HyMamba, small": small,
    "VanillaMamba": lambda: VanillaMamba(1, CLASSES),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=3, help="timed forward passes")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    if os.environ.get("MAMBAMED_SHARED"):
        subprocess.run([sys.executable, "-m", "pytest", "-q", str(GOLDEN)], check=True)
    for name, value in machine().items():
        print(f"{name}: {value}")
    print(f"{args.patch}^3, {CLASSES} classes, {torch.get_num_threads()} threads, medians")
    print(f"paper's network: {PAPER['parameters_M']} M parameters, {PAPER['GMAC']} GMAC at 96^3")
    rows = {name: measure(NETWORKS[name], args.patch, args.repeats) for name in args.networks}
    columns = list(next(iter(rows.values())))
    print(" " * 22 + "".join(f"{column:>14}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<22}" + "".join(f"{row[column]:>14.2f}" for column in columns))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))


def measure(build: Callable[[], nn.Module], patch: int, repeats: int) -> dict[str, float]:
    """Figures of one network; the precisions take turns, so that a busy machine hits both."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build()(torch.empty(1, 1, patch, patch, patch))
    network = build().eval()
    x = torch.randn(1, 1, patch, patch, patch)
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    for _ in range(repeats + 1):
        for name, dtype in PRECISIONS.items():
            with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                start = time.perf_counter()
                network(x)
                seconds[name].append(time.perf_counter() - start)
    return {
        "parameters_M": sum(p.numel() for p in network.parameters()) / 1e6,
        "GMAC": counter.get_total_flops() / 2e9,
        **{f"{name}_s": statistics.median(times[1:]) for name, times in seconds.items()},
    }


if __name__ == "__main__":
    main()
