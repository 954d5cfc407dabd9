"""Speed and memory of the selective scan: our backends and their peers in turns, then the bars.

python tests/benchmarks/bench_scan.py [--threads 1] [--budget 600] [--shapes 1,384,216,16]

Runs the tests of the kernels first: no speed of a wrong scan. Peers come with
`pip install mambapy transformers` and are optional. Prints medians; fails no bar.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import peers
import torch
from peers import Example, Missing, Scan
from tqdm import tqdm

from mamba_kernels import selective_scan, selective_scan_multi
from mamba_kernels.selective_scan import BACKENDS

ROOT = Path(__file__).parents[2]
MIB = 2**20
FORWARD, TRAINING = MODES = ("forward", "forward + backward")
Shape = tuple[int, ...]  # b, d, l, n
SHAPES: list[Shape] = [
    (1, 384, 216, 16),
    (2, 768, 1000, 16),
    (1, 128, 20480, 16),
    (5, 384, 196, 16),
]
LONG = 1000  # tokens from which on threads and memory are measured
SLICE = 4  # tokens of a row of the grid that several directions scan
TURN = 0.02  # seconds that a turn lasts at least, so that caches are as in a loop of scans
FEW = 256  # tokens of the first of the calls that tell how long one with all tokens takes
UNBEARABLE = 30  # seconds of one call: the method is left out
COMPARISON = 0.6  # part of the budget; the rest is for the metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15, help="turns of each method, at most")
    parser.add_argument("--budget", type=float, default=600, help="seconds, roughly")
    parser.add_argument("--shapes", nargs="*", type=shape_of, default=SHAPES, metavar="B,D,L,N")
    parser.add_argument("--skip-tests", action="store_true", help="time even a wrong scan")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    if not args.skip_tests:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/mamba_kernels"]
        if subprocess.run(tests, cwd=ROOT, stdout=sys.stderr).returncode:
            sys.exit("The tests fail: nothing is timed. See above, or pass --skip-tests.")

    torch.set_num_threads(args.threads)
    found, missing = peers.load()
    bench = Bench(args.device, args.shapes, args.threads, args.repeats, methods(args.device, found))
    about = peers.surroundings(args.threads)
    for name, value in about.items():
        print(f"{name}: {value}")
    for name, reason in missing.items():
        print(f"{name} is missing: {reason}")
    bench.compare(args.budget * COMPARISON)
    print_comparison(bench)
    rows = list(judged(bench, args.budget * (1 - COMPARISON)))
    print_metrics(rows)
    if args.json:
        medians = [
            {"mode": mode, "shape": shape, "seconds": seconds}
            for (mode, shape), seconds in bench.medians.items()
        ]
        record = {"machine": about, "missing": missing, "medians": medians, "metrics": rows}
        args.json.write_text(json.dumps(record, indent=2))


def shape_of(text: str) -> Shape:
    b, d, l, n = map(int, text.split(","))
    return b, d, l, n


def methods(device: str, found: dict[str, Scan]) -> dict[str, Scan]:
    """Our backends that run on the device, best first, and the peers."""
    ours = [
        name
        for name, one in BACKENDS.items()
        if one.runs_on(torch.device(device)) and not one.missing()
    ]
    return {name: backend(name) for name in ours} | found


def backend(name: str, **options: bool) -> Scan:
    return lambda *example: selective_scan(*example, backend=name, **options)


# Timing

Call = Callable[[], None]


def call_of(mode: str, scan: Scan, example: Example) -> Call:
    """One forward pass, or one with the gradients of all arguments, ready to be called."""

    def forward() -> None:
        with torch.no_grad():
            scan(*example)

    leaves = [x.clone().requires_grad_() for x in example] if mode == TRAINING else []
    grad = torch.randn_like(example.u) if mode == TRAINING else None

    def training() -> None:
        torch.autograd.grad(scan(*leaves), leaves, grad)

    return forward if mode == FORWARD else training


def turn(call: Call, device: str) -> float:
    """Median seconds of a call, called as often as fills a turn."""
    seconds: list[float] = []
    while sum(seconds) < TURN:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@dataclass
class Bench:
    """What is compared, the medians once they are known, and the means to measure more.

    Args:
        device: "cpu" or "cuda".
        shapes: (b, d, l, n) each.
        threads: Of the process.
        repeats: Most turns of each method.
        methods: Scans by name, ours first and the best one at the very first.
    """

    device: str
    shapes: list[Shape]
    threads: int
    repeats: int
    methods: dict[str, Scan]
    medians: dict[tuple[str, Shape], dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0  # that one call of `interleaved` by a metric may take

    @property
    def best(self) -> str:
        """The backend that "auto" chooses."""
        return next(iter(self.methods))

    def compare(self, budget: float) -> None:
        """Fill `medians`, in about so many seconds."""
        cells = [(mode, shape) for shape in self.shapes for mode in MODES]
        weights = [
            shape[0] * shape[1] * shape[2] * (1 + 2 * (mode == TRAINING)) for mode, shape in cells
        ]
        for (mode, shape), weight in zip(tqdm(cells, "methods"), weights, strict=True):
            example = Example.of(shape, self.device)
            calls = {
                name: call_of(mode, scan, example)
                for name, scan in self.methods.items()
                if self.bearable(mode, scan, shape)
            }
            seconds = max(5.0, budget * weight / sum(weights))
            self.medians[mode, shape] = self.interleaved(calls, seconds)

    def bearable(self, mode: str, scan: Scan, shape: Shape) -> bool:
        """Whether a call ends in time, judging by fewer tokens; some grow with their square."""
        b, d, l, n = shape
        tokens = FEW
        while tokens < l:
            start = time.perf_counter()
            call_of(mode, scan, Example.of((b, d, tokens, n), self.device))()
            more = min(2 * tokens, l)
            if (time.perf_counter() - start) * (more / tokens) ** 2 > UNBEARABLE:
                return False
            tokens = more
        return True

    def interleaved(self, calls: dict[str, Call], seconds: float) -> dict[str, float]:
        """Median seconds of each call. They take turns, so that a busy machine hits all."""
        start = time.perf_counter()
        turns: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(self.repeats + 1):
            if repeat > 1 and time.perf_counter() - start > seconds:
                break
            for name, call in calls.items():
                turns[name].append(turn(call, self.device))
        return {name: statistics.median(all_of[1:]) for name, all_of in turns.items()}

    def ratio(self, slow: Call, fast: Call) -> float:
        """How many times longer one call takes than the other."""
        medians = self.interleaved({"slow": slow, "fast": fast}, self.seconds)
        return medians["slow"] / medians["fast"]


# Metrics. Each returns figures by case; Missing where there is nothing to measure.

Figures = dict[str, float]
Variant = Callable[[Bench, Shape], Call]


def name_of(shape: Shape) -> str:
    return ",".join(map(str, shape))


def against(mode: str, slow: str, fast: str | None = None) -> Callable[[Bench], Figures]:
    """Time of one method over that of another, by default of our best."""

    def figures(bench: Bench) -> Figures:
        over = fast or bench.best
        absent = [name for name in (slow, over) if name not in bench.methods]
        if absent or slow == over:
            raise Missing(f"no {absent[0]}" if absent else f"{slow} is the best backend here")
        medians = {shape: bench.medians[mode, shape] for shape in bench.shapes}
        return {
            name_of(shape): times[slow] / times[over]
            for shape, times in medians.items()
            if slow in times and over in times
        }

    return figures


def versus(
    slow: Variant, fast: Variant, which: Callable[[Bench], list[Shape]] = lambda bench: bench.shapes
) -> Callable[[Bench], Figures]:
    """Time of one variant over that of another, in turns, at some of the shapes."""

    def figures(bench: Bench) -> Figures:
        return {name_of(s): bench.ratio(slow(bench, s), fast(bench, s)) for s in which(bench)}

    return figures


def ours(
    mode: str = FORWARD,
    dtype: torch.dtype = torch.float32,
    reverse: bool = False,
    isa: str | None = None,
    threads: int | None = None,
) -> Variant:
    """Our best backend, under conditions that hold during the call alone."""

    def variant(bench: Bench, shape: Shape) -> Call:
        if isa and bench.best != "cpu":
            raise Missing("no C++ backend")
        call = call_of(
            mode, backend("auto", reverse=reverse), Example.of(shape, bench.device, dtype)
        )
        if threads is not None and (bench.device != "cpu" or threads > (os.cpu_count() or 1)):
            raise Missing(f"no {threads} cores")

        def under_conditions() -> None:
            with peers.instruction_set(isa) if isa else nullcontext():
                torch.set_num_threads(threads or bench.threads)
                call()
                torch.set_num_threads(bench.threads)

        return under_conditions if isa or threads else call

    return variant


def long_ones(bench: Bench) -> list[Shape]:
    return [shape for shape in bench.shapes if shape[2] >= LONG]


def growth(mode: str) -> Callable[[Bench], Figures]:
    """Time of twice as many tokens over that of once."""

    def figures(bench: Bench) -> Figures:
        calls = [ours(mode)(bench, (1, 64, length, 16)) for length in (200_000, 100_000)]
        return {"1,64,L,16": bench.ratio(*calls)}

    return figures


def flip_and_stack_over_fused(bench: Bench) -> Figures:
    """Forward, backward and slice by slice under one gate: scans of copies, over one call."""

    def copies(shape: Shape) -> Call:
        example = Example.of(shape, bench.device)
        return lambda: peers.flip_and_stack(example, SLICE)

    def fused(shape: Shape) -> Call:
        u, delta, A, B, C, D, z, bias = Example.of(shape, bench.device)
        order = torch.arange(shape[2]).view(-1, SLICE).T.flatten().to(bench.device)
        each = [[x] * 3 for x in (delta, A, B, C, D)]
        orders = ["forward", "reverse", order]
        return lambda: selective_scan_multi(u, *each, z, [bias] * 3, orders=orders)

    shapes = [shape for shape in bench.shapes if shape[2] % SLICE == 0]
    with torch.no_grad():
        for shape in shapes:
            torch.testing.assert_close(copies(shape)(), fused(shape)()[0], rtol=1e-3, atol=1e-3)
        return {name_of(shape): bench.ratio(copies(shape), fused(shape)) for shape in shapes}


def exp_fraction(which: Callable[[Shape], bool]) -> Callable[[Bench], Figures]:
    """Elements a second of a forward pass, one exponential each, over those of a bare loop."""

    def figures(bench: Bench) -> Figures:
        if bench.device != "cpu":
            raise Missing("the probe is for CPUs")
        most = peers.exp_rate() * bench.threads
        return {
            name_of(shape): math.prod(shape) / bench.medians[FORWARD, shape][bench.best] / most
            for shape in filter(which, bench.shapes)
        }

    return figures


def memory(mode: str, unit: Callable[[Shape], float]) -> Callable[[Bench], Figures]:
    """Peak extra memory of our best, in units that may depend on the shape."""

    def figures(bench: Bench) -> Figures:
        return {
            name_of(shape): peak_in_new_process(bench, mode, shape) / unit(shape)
            for shape in long_ones(bench)
        }

    return figures


def sequence_bytes(shape: Shape) -> float:
    b, d, l, _ = shape
    return 4 * b * d * l


def forward_allowance(shape: Shape) -> float:
    b, _, l, n = shape
    return sequence_bytes(shape) + 5 * MIB + 2 * 4 * b * n * l


def peak_in_new_process(bench: Bench, mode: str, shape: Shape) -> float:
    """A new process has no freed memory at hand that would hide what a scan takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(peak, bench.device, mode, shape, bench.threads).result()


def peak(device: str, mode: str, shape: Shape, threads: int) -> float:
    """Bytes that one call takes at most beside its arguments, after a small call."""
    torch.set_num_threads(threads)
    call_of(mode, backend("auto"), Example.of((1, 64, 64, 16), device))()
    call = call_of(mode, backend("auto"), Example.of(shape, device))
    return peers.peak_bytes(call, device)


def import_seconds(bench: Bench) -> Figures:
    code = (
        "import time, torch; start = time.perf_counter(); import mamba_kernels; "
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, check=True, cwd=ROOT) for _ in range(5)]
    return {"": statistics.median(float(run.stdout) for run in runs)}


@dataclass(frozen=True)
class Metric:
    """A figure and its bar.

    Args:
        name: With the unit.
        bar: What the figure should reach.
        measure: Figures by case.
        at_least: Whether larger is better.
    """

    name: str
    bar: float
    measure: Callable[[Bench], Figures]
    at_least: bool = False

    def met(self, figure: float) -> bool:
        return figure >= self.bar if self.at_least else figure <= self.bar


METRICS = [
    Metric("forward: pscan / ours", 60, against(FORWARD, "pscan"), True),
    Metric("forward: reference loop / ours", 25, against(FORWARD, "reference"), True),
    Metric("forward: torch path / ours", 7, against(FORWARD, "torch"), True),
    Metric("forward + backward: pscan / ours", 30, against(TRAINING, "pscan"), True),
    Metric("forward + backward: torch path / ours", 6, against(TRAINING, "torch"), True),
    Metric("forward: pscan / torch path", 8, against(FORWARD, "pscan", "torch"), True),
    Metric("forward + backward: pscan / torch path", 5, against(TRAINING, "pscan", "torch"), True),
    Metric("forward: elements/s / exp/s", 0.45, exp_fraction(lambda s: s == SHAPES[0]), True),
    Metric("forward: elements/s / exp/s", 0.35, exp_fraction(lambda s: s != SHAPES[0]), True),
    Metric("forward: AVX2 / AVX-512", 2.3, versus(ours(isa="avx2"), ours(isa="avx512"))),
    Metric("forward: bf16 / fp32", 1.1, versus(ours(dtype=torch.bfloat16), ours())),
    Metric("forward: reverse / forward", 1.1, versus(ours(reverse=True), ours())),
    Metric(
        "forward: 1 thread / 2 threads",
        1.7,
        versus(ours(threads=1), ours(threads=2), long_ones),
        True,
    ),
    Metric("3 directions: flip and stack / fused", 1.5, flip_and_stack_over_fused, True),
    Metric("forward: memory / (y, 5 MiB, fp32 B and C)", 1, memory(FORWARD, forward_allowance)),
    Metric("forward + backward: memory / u", 6.5, memory(TRAINING, sequence_bytes)),
    Metric("forward: L = 200,000 / 100,000", 2.1, growth(FORWARD)),
    Metric("forward + backward: L = 200,000 / 100,000", 2.1, growth(TRAINING)),
    Metric("import mamba_kernels after torch, s", 0.1, import_seconds),
]


def judged(bench: Bench, budget: float) -> Iterator[dict[str, object]]:
    """A row for each metric and case, in about so many seconds."""
    bench.seconds = budget / 25  # about as many calls of `interleaved` as there are
    for metric in tqdm(METRICS, "metrics"):
        row = {"metric": metric.name, "bar": metric.bar, "at_least": metric.at_least}
        try:
            for case, figure in metric.measure(bench).items():
                yield row | {"case": case, "measured": figure, "met": metric.met(figure)}
        except Missing as reason:
            yield row | {"case": "", "skipped": str(reason)}


def print_comparison(bench: Bench) -> None:
    print(f"\nMedian ms, and how many times longer than {bench.best}, our best here")
    print(f"{'':38}" + "".join(f"{name:>20}" for name in bench.methods))
    for (mode, shape), times in bench.medians.items():
        best = times[bench.best]
        cells = [
            f"{1e3 * times[name]:11.2f} {times[name] / best:7.1f}x"
            if name in times
            else f"{f'> {1e3 * UNBEARABLE:g}':>11}{'':9}"
            for name in bench.methods
        ]
        print(f"{name_of(shape):<18}{mode:<20}" + "".join(cells))


def print_metrics(rows: list[dict[str, object]]) -> None:
    print(f"\n{'metric':<44}{'case':<18}{'bar':>8}{'measured':>10}")
    for row in rows:
        bar = f"{'>=' if row['at_least'] else '<='} {row['bar']:g}"
        line = f"{row['metric']:<44}{row['case']:<18}{bar:>8}"
        if "skipped" in row:
            print(f"{line}{'-':>10}  {row['skipped']}")
        else:
            print(f"{line}{row['measured']:>10.3g}  {'ok' if row['met'] else 'MISSED'}")


if __name__ == "__main__":
    main()
