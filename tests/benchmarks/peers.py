"""Other selective scans behind the arguments of ours, and instruments that read the machine.

What is not installed is reported as missing.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mamba_kernels import selective_scan
from mamba_kernels.native.library import LIBRARY, instruction_sets, use_instruction_set
from nnunet_plugins.doctor import machine

Scan = Callable[..., Tensor]
"""Takes u, delta, A, B, C, D, z, delta_bias as `mamba_kernels.selective_scan` and returns y."""


class Missing(Exception):
    """What was asked for is not to be had here; the message says why."""


class Example(NamedTuple):
    """The arguments of a scan, in order: gate on, steps as Mamba initialises them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor
    delta_bias: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32):
        """Random arguments of a shape (b, d, l, n); `dtype` is that of the sequences."""
        b, d, l, n = shape
        g = torch.Generator().manual_seed(0)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=g).to(device, dtype)

        dt = torch.empty(d).uniform_(1e-3, 1e-1, generator=g)
        return cls(
            u=randn(b, d, l),
            delta=randn(b, d, l) / 2,
            A=-torch.arange(1.0, n + 1, device=device).repeat(d, 1),
            B=randn(b, n, l),
            C=randn(b, n, l),
            D=torch.ones(d, device=device),
            z=randn(b, d, l),
            delta_bias=dt.expm1().log().to(device),  # the inverse of softplus
        )


def pscan() -> Scan:
    """The parallel scan of mambapy, used as its `MambaBlock.ssm` and `.selective_scan` do."""
    from mambapy.pscan import pscan

    def scan(u, delta, A, B, C, D, z, delta_bias):
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        delta = F.softplus(delta + delta_bias)
        decay = torch.exp(delta.unsqueeze(-1) * A)
        weights = delta.unsqueeze(-1) * B.unsqueeze(2)
        states = pscan(decay, weights * u.unsqueeze(-1))
        y = (states @ C.unsqueeze(-1)).squeeze(3) + D * u
        return (y * F.silu(z)).transpose(1, 2)

    return scan


def transformers() -> Scan:
    """The path of transformers' `MambaMixer` where mamba_ssm is not installed."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # transformers imports it where it is installed, even if it does not work
        sys.modules["torchvision"] = None
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    plain = mamba_selective_scan.__wrapped__  # without a search for faster kernels

    def scan(u, delta, A, B, C, D, z, delta_bias):
        return plain(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)

    return scan


def flip_and_stack(example: Example, width: int) -> Tensor:
    """Forward, backward and across rows of so many tokens, as SegMamba and others scan: each
    direction is a scan of copied tokens. The arguments but the gate are the same for all."""
    u, delta, A, B, C, D, z, delta_bias = example

    def same(x: Tensor) -> Tensor:
        return x

    def flip(x: Tensor) -> Tensor:
        return x.flip(-1)

    def stack(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, width)).transpose(-1, -2).flatten(-2)

    def unstack(x: Tensor) -> Tensor:
        return x.unflatten(-1, (width, -1)).transpose(-1, -2).flatten(-2)

    y = torch.zeros_like(u)
    for there, back in ((same, same), (flip, flip), (stack, unstack)):
        ui, delta_i, Bi, Ci = (there(x) for x in (u, delta, B, C))
        y += back(selective_scan(ui, delta_i, A, Bi, Ci, D, None, delta_bias))
    return y * F.silu(z)


def load() -> tuple[dict[str, Scan], dict[str, str]]:
    """The peers by name, and the reasons why others are missing.

    A peer that does not compute what our definition does is missing too.
    """
    found, missing = {}, {}
    example = Example.of((2, 8, 33, 4), "cpu")
    want = selective_scan(*example, backend="reference")
    for name, peer in {"pscan": pscan, "transformers": transformers}.items():
        try:
            scan = peer()
            torch.testing.assert_close(scan(*example), want, rtol=1e-4, atol=1e-4)
            found[name] = scan
        except (ImportError, AttributeError) as error:
            missing[name] = str(error)
        except AssertionError:
            missing[name] = "it gives other outputs than our definition"
    return found, missing


def surroundings(threads: int) -> dict[str, str]:
    """The machine, its vectors, versions, threads and the date, by name."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text(encoding="utf-8").split()) if info.exists() else set()
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
    flags = [flag for flag in telling if flag in words]
    versions = {}
    for package in ("mambapy", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    features = f"torch uses {torch.backends.cpu.get_cpu_capability()}; has {' '.join(flags)}"
    return machine() | {"CPU features": features} | versions | {"Threads": str(threads)}


def peak_bytes(call: Callable[[], None], device: str) -> int:
    """Memory that a call takes beside what is there already, at most.

    On a CPU, freed memory that the process keeps for later hides some of it: ask a new process.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with suppress(AttributeError):  # glibc alone has it: freed memory goes back to the system
        ctypes.CDLL(None).malloc_trim(0)
    try:
        # The peak is from here on what is resident now.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError as error:
        raise Missing("only Linux tells peaks") from error
    before = _peak_resident()
    call()
    return _peak_resident() - before


def _peak_resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def exp_rate() -> float:
    """Exponentials a second of one thread, in cache, by the best vectors this machine has."""
    if isinstance(LIBRARY, str):
        raise Missing(LIBRARY)
    x = torch.linspace(-20, 0, 2048)
    y = torch.empty_like(x)
    best, repeats = next(iter(instruction_sets().values())), 1000
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        LIBRARY.mk_exp(x.data_ptr(), y.data_ptr(), len(x), best, repeats)
        seconds.append(time.perf_counter() - start)
    return repeats * len(x) / statistics.median(seconds)


def instruction_set(name: str) -> AbstractContextManager[None]:
    """Lets our C++ library compute with this one."""
    if name not in instruction_sets():
        raise Missing(f"the C++ library and this machine share no {name}")
    return use_instruction_set(name)
