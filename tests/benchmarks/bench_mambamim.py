"""What TOKI costs: against explicit matrix powers, and as a share of a pretraining step.

python tests/benchmarks/bench_mambamim.py [--repeats 5] [--threads 1] [--skip-step]

6^3 tokens of 384 channels, 75 % hidden, forward and backward: the paper's network at 96^3. Runs
TOKI's tests first: no speed of wrong numbers.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from nnunet_plugins.doctor import machine
from nnunet_plugins.networks import HyMamba
from pretrain.mambamim import MambaMIM
from pretrain.masking import random_visible
from pretrain.toki import contraction, interpolate

GRID, CHANNELS, HIDDEN = (6, 6, 6), 384, 0.75
PATCH = (96, 96, 96)
TESTS = Path(__file__).parents[1] / "pretrain/test_toki.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-step", action="store_true", help="leave out the step (a minute)")
    args = parser.parse_args()
    subprocess.run([sys.executable, "-m", "pytest", "-q", str(TESTS)], check=True)
    torch.set_num_threads(args.threads)
    for name, value in machine().items():
        print(f"{name}: {value}")
    toki = {"paper": "paper", "as released": "as_released"}
    calls = {name: toki_call(mode) for name, mode in toki.items()} | {"powers": powers_call()}
    seconds = in_turns(calls, args.repeats)
    for name, value in seconds.items():
        print(f"TOKI, {name:12} {1e3 * value:9.1f} ms  {seconds['powers'] / value:6.1f} x")
    if not args.skip_step:
        step = in_turns({"step": step_call()}, repeats=1)["step"]
        print(f"step at 96^3      {1e3 * step:9.1f} ms  TOKI's share {seconds['paper'] / step:.2%}")


def in_turns(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each call; they take turns, so that a busy machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (1, l, c), which are visible, and a transition that decays."""
    length = GRID[0] * GRID[1] * GRID[2]
    visible = random_visible(1, GRID, HIDDEN, torch.tensor([0])).flatten(1)
    transition = 0.3 * torch.randn(CHANNELS, CHANNELS) / CHANNELS**0.5
    return (
        torch.randn(1, length, CHANNELS, requires_grad=True),
        visible,
        transition.requires_grad_(),
    )


def toki_call(mode: str) -> Callable[[], None]:
    y, visible, transition = tokens()
    return lambda: interpolate(y, visible, transition, mode=mode).sum().backward()


def powers_call() -> Callable[[], None]:
    """The sums of Eq. 8 as they stand, a matrix power for each term."""
    y, visible, transition = tokens()

    def call() -> None:
        bounded = contraction(transition)
        rows = []
        for left, right in pairwise(visible[0].nonzero().flatten().tolist()):
            powers = [torch.linalg.matrix_power(bounded, k) for k in range(right - left)]
            drive = [
                torch.lerp(y[0, left], y[0, right], n / (right - left + 1))
                for n in range(right - left)
            ]
            for j in range(1, right - left):
                rows.append(sum(powers[j - n] @ drive[n] for n in range(j + 1)))
        torch.stack(rows).sum().backward()

    return call


def step_call() -> Callable[[], None]:
    objective = MambaMIM(HyMamba(1, 2))
    volume = torch.randn(1, 1, *PATCH)
    return lambda: objective(volume).loss.backward()


if __name__ == "__main__":
    main()
