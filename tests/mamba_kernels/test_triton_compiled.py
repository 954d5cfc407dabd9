"""The Triton kernels compiled for GPUs, without one.

Run as a script, this prints what the compiler makes of the kernels.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mamba_kernels.selective_scan import triton_launch, triton_multi
from tests.mamba_kernels.triton_scans import direction, inputs, scan

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_kernels_compile_without_spills_to_few_instructions():
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON")}
    run = subprocess.run([sys.executable, __file__], env=env, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    print(*(f"{name}: {values}" for name, values in found.items()), sep="\n")
    assert len(found) == 3 * 5
    assert all(kernel["spills"] == 0 for kernel in found.values()), found
    for count in (1, 3):
        assert found[f"sm_90 forward of {count}"]["instructions"] <= 14, found
        assert found[f"sm_90 backward of {count}"]["instructions"] <= 90, found


class Compiled:
    """In place of a module of kernels: compiles what would be launched and keeps it in `found`."""

    def __init__(self, kernels):
        self.kernels = kernels
        self.found = {}

    def __getattr__(self, name):
        return Launcher(name, getattr(self.kernels, name), self.found)


class Launcher:
    def __init__(self, name, kernel, found):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            compiled = self.kernel.warmup(*args, grid=grid, **kwargs)
            self.found[self.name] = compiled, {**kwargs, "args": args}

        return launch


class NoGpu:
    """A driver of Triton that compiles for a GPU which is not there."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch  # kernels are kept by device

    def get_current_stream(self, device):
        return 0


def compiled(capability, count, **options):
    """The kernels that one training step of so many directions launches, as (compiled kernel, its
    constants)."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from mamba_kernels.selective_scan import triton_kernels

    driver.set_active(NoGpu(GPUTarget("cuda", capability, 32)))
    kernels = Compiled(triton_kernels)
    triton_launch._kernels = lambda: kernels  # this is a process of its own
    sizes = {"b": 1, "d": 64, "l": 1024, "n": 16, "dtype": torch.bfloat16}
    x = {k: v.requires_grad_() for k, v in inputs(**(sizes | options)).items()}
    paths = [(None, False), (None, True), (torch.arange(1024), False)]
    if count == 1:
        y, _ = scan(x)
    else:
        directions = [direction(x, *path) for path in paths[:count]]
        y, _ = triton_multi.selective_scan_multi(directions, x["z"], True)
    y.sum().backward()
    return kernels.found


def sass(kernel, tool, *options):
    binary = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        run = [binary, *options, file.name]
        return subprocess.run(run, capture_output=True, encoding="utf-8", check=True).stdout


def instructions_of_longest_loop(listing):
    labels, count, longest = {}, 0, 0
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*);", line):
            count += 1
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                longest = max(longest, count - labels[target[1]])
    return longest


def figures(kernel, constants):
    """Registers, bytes of spills, and instructions per element in the loops over time."""
    listing = sass(kernel, "nvdisasm", "-c")
    usage = sass(kernel, "cuobjdump", "-res-usage")
    registers, stack = (int(re.search(rf"{k}:(\d+)", usage)[1]) for k in ("REG", "STACK"))
    result = {"registers": registers, "spills": stack + len(re.findall(r"\b(LDL|STL)\b", listing))}
    if "T" in constants:
        names = ("NO", "NI", "D", "T")
        elements = math.prod(constants[name] for name in names) / 32  # of a thread
        result["instructions"] = round(instructions_of_longest_loop(listing) / elements, 1)
    return result


if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"sm_{capability} {name} of {count}": figures(*kernel)
                for capability, count in ((80, 1), (90, 1), (90, 3))
                for name, kernel in compiled(capability, count).items()
            }
        )
    )
