"""What this machine has for training with mambamed, tried and not guessed, and what to do next.

Nothing is concluded from a version number: devices run an operation, every backend of the scan runs
forward and backward against the definition, and nnU-Net looks our trainer up in a process of its
own, as `nnUNetv2_train` would.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

TRAINER = "HyMambaTrainer"
ESSENTIAL = ("torch", "scan", "trainers")
"""Topics without which nothing can be trained; a problem there is a non-zero exit status."""

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_FEW_CORES = 8
_LOOKUP = f"""
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
print(recursive_find_trainer_class_by_name({TRAINER!r}).__module__)
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `advice` is what to do about it, empty if nothing has to be done."""

    topic: str
    status: Literal["ok", "note", "problem"]
    text: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `mambamed doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def run(args: argparse.Namespace) -> int:
    """Print the findings as they are made and return 1 if something essential is broken, else 0."""
    findings = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            print(f"{finding.status:<8} {finding.topic:<20} {finding.text}", flush=True)
            if finding.advice:
                print(f"{'':<29} -> {finding.advice}", flush=True)
    broken = sorted({f.topic for f in findings if f.status == "problem" and f.topic in ESSENTIAL})
    others = sum(f.status == "problem" for f in findings)
    if broken:
        verdict = f"not ready: {', '.join(broken)} must be mended first"
    elif others:
        verdict = f"works; {others} thing{'s' * (others > 1)} to set up before training"
    else:
        verdict = "ready to train"
    if args.json:
        listed = [asdict(finding) for finding in findings]
        print(json.dumps({"ready": not broken, "verdict": verdict, "findings": listed}, indent=2))
    else:
        print(f"\n{verdict[0].upper()}{verdict[1:]}.")
    return int(bool(broken))


def examine() -> Iterator[Finding]:
    """All findings, in the order in which things build on each other; takes some seconds."""
    yield from _computer()
    try:
        import torch  # noqa: F401
    except Exception as error:  # a broken build raises OSError as well as ImportError
        advice = "install it as https://pytorch.org/get-started/locally says"
        yield Finding("torch", "problem", f"cannot be imported: {_line(error)}", advice)
        return
    yield from _torch()
    yield from _scans(["cpu", *_accelerators()])
    yield from _torchvision()
    yield _package("monai")
    yield _package("nnunetv2")
    yield from _trainers()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        yield _folder(name)
    yield from _waiting_threads()


def machine() -> dict[str, str]:
    """Hardware, versions and the date by name, for the record of an experiment."""
    import torch

    return {
        "Date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "System": platform.platform(),
        "CPU": f"{cpu_name()}, {_cores()} cores",
        "Accelerator": ", ".join(map(_device_name, _accelerators())) or "none",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) or "not installed" for name in ("nnunetv2", "monai", "mambamed")},
    }


def cpu_name() -> str:
    """The processor as it calls itself, or its architecture where the system does not say."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _line(error: BaseException | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _computer() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", "ok", platform.platform())
    known = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    flags = [flag for flag in _CPU_FLAGS if flag in known]
    yield Finding("cpu", "ok", ", ".join([cpu_name(), f"{_cores()} cores", *flags]))
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        yield Finding("memory", "ok", f"{size:.0f} GiB")


def _accelerators() -> list[str]:
    import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    return devices + ["mps"] * torch.backends.mps.is_available()


def _device_name(device: str) -> str:
    import torch

    if device == "mps":
        return "Apple GPU"
    return str(getattr(torch, device.partition(":")[0]).get_device_name(device))


def _torch() -> Iterator[Finding]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    yield Finding("torch", "ok", f"{torch.__version__}, {build}, {torch.get_num_threads()} threads")
    for device in _accelerators():
        yield _device(device)
    if not _accelerators():
        if shutil.which("nvidia-smi"):
            advice = "install the CUDA build of torch, see https://pytorch.org/get-started/locally"
            yield Finding("gpu", "problem", "there is a driver, torch sees no device", advice)
        else:
            advice = "give nnU-Net's commands -device cpu (nnUNetv2_train's default is cuda)"
            yield Finding("gpu", "note", "none; training runs on the CPU", advice)


def _device(device: str) -> Finding:
    """A device, once it has added eight ones."""
    import torch

    try:
        text = f"{device}: {_device_name(device)}"
        if device.startswith("cuda"):
            about = torch.cuda.get_device_properties(device)
            memory = about.total_memory / 2**30
            text += f", {memory:.0f} GiB, compute capability {about.major}.{about.minor}"
        if torch.ones(8, device=device).sum().item() != 8:
            raise RuntimeError("the sum of eight ones is not eight")
    except Exception as error:  # whatever a driver raises is the finding
        advice = "install a torch build for this device and driver, or train with -device cpu"
        return Finding("gpu", "problem", f"{device} fails: {_line(error)}", advice)
    return Finding("gpu", "ok", text)


def _scans(devices: Sequence[str]) -> Iterator[Finding]:
    """Every backend of the selective scan, run on every device that it takes."""
    try:
        from mamba_kernels import available_backends

        names = available_backends()
    except Exception as error:  # a compiled backend that breaks its import
        advice = "pip install --force-reinstall --no-deps mambamed"
        yield Finding("scan", "problem", f"mamba_kernels fails: {_line(error)}", advice)
        return
    yield _compiled_kernels()
    for device in devices:
        for name in names:
            try:
                want = _run_scan("reference", device)
                got = _run_scan(name, device)
                microseconds = _best_time(lambda n=name, d=device: _run_scan(n, d)) * 1e6
            except ValueError:  # refused: no scan, or not on this device
                continue
            except Exception as error:  # whatever a kernel raises is the finding
                advice = f"report this line; until then use_backend('torch') instead of {name!r}"
                yield Finding("scan", "problem", f"{name} on {device}: {_line(error)}", advice)
                continue
            worst = max(
                float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True)
            )
            text = f"{name} on {device}: {microseconds:.0f} us, differs by {worst:.0e} of the peak"
            if worst < 1e-3:
                yield Finding("scan", "ok", text)
            else:
                advice = f"wrong numbers: report this line, and do not train with {name!r}"
                yield Finding("scan", "problem", text, advice)


def _compiled_kernels() -> Finding:
    from mamba_kernels.native import library

    why = library.missing()
    if why is None:
        return Finding("kernels", "ok", f"compiled, with {next(iter(library.instruction_sets()))}")
    return Finding("kernels", "note", f"not compiled, scans on CPUs are slower: {why}")


def _run_scan(backend: str, device: str) -> list["torch.Tensor"]:
    """Output and all gradients of a scan of 2 x 8 channels, 16 states and 64 steps."""
    import torch

    from mamba_kernels import selective_scan

    random = torch.Generator().manual_seed(0)
    shapes = ((2, 8, 64), (2, 8, 64), (8, 16), (2, 16, 64), (2, 16, 64))
    inputs = [torch.randn(shape, generator=random).to(device) for shape in shapes]
    inputs[2] = -inputs[2].exp()
    for x in inputs:
        x.requires_grad_()
    with torch.enable_grad():
        y = selective_scan(*inputs, backend=backend)
        y.square().sum().backward()
    return [x.cpu() for x in (y.detach(), *(x.grad for x in inputs))]


def _best_time(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _torchvision() -> Iterator[Finding]:
    try:
        import torchvision
    except ModuleNotFoundError:
        yield Finding("torchvision", "note", "not installed; mambamed does not need it")
    except Exception as error:  # built for another torch, it raises RuntimeError
        text = f"broken ({_line(error)}); mambamed does not need it"
        advice = (
            "only nnU-Net's own variants (nnUNetTrainer_5epochs, ...) need it: "
            "install the torchvision built for this torch"
        )
        yield Finding("torchvision", "note", text, advice)
    else:
        yield Finding("torchvision", "ok", torchvision.__version__)


def _package(name: str) -> Finding:
    installed = _version(name)
    if installed is None:
        return Finding(name, "problem", "not installed", f"pip install {name}")
    return Finding(name, "ok", installed)


def _trainers() -> Iterator[Finding]:
    """Whether a new Python process finds our trainer by name, start-up file and variables as is."""
    command = [sys.executable, "-c", _LOOKUP]
    elsewhere = tempfile.gettempdir()  # in a checkout, Python would find us without installation
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", cwd=elsewhere, check=False
    )
    if done.returncode == 0:
        yield Finding("trainers", "ok", f"nnU-Net finds {TRAINER} in {_line(done.stdout)}")
        return
    folder = Path(__file__).parent / "ext_trainers"
    advice = (
        "pip install --force-reinstall --no-deps mambamed (brings its start-up file back), "
        f"or export nnUNet_extTrainer={folder} (as python -m nnunet_plugins prints it)"
    )
    text = f"nnU-Net does not find {TRAINER}: {_line(done.stderr)}"
    yield Finding("trainers", "problem", text, advice)


def _folder(variable: str) -> Finding:
    value = os.environ.get(variable)
    if not value:
        home = f'"$HOME/nnUNet/{variable.partition("_")[2]}"'
        advice = f"mkdir -p {home} && export {variable}={home}"
        return Finding(variable, "problem", "not set", advice)
    if not Path(value).is_dir():
        return Finding(variable, "problem", f"{value} is no folder", f'mkdir -p "{value}"')
    free = f"{shutil.disk_usage(value).free / 1e9:.0f} GB free"
    if not os.access(value, os.W_OK):
        advice = f'chmod u+w "{value}", or choose another folder'
        return Finding(variable, "problem", f"{value} cannot be written", advice)
    return Finding(variable, "ok", f"{value}, {free}")


def _waiting_threads() -> Iterator[Finding]:
    """On few cores, threads of OpenMP that spin while they wait take the time of the others."""
    if _accelerators() or _cores() > _FEW_CORES:
        return
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        yield Finding("threads", "ok", "OMP_WAIT_POLICY=PASSIVE")
    else:
        text = f"OMP_WAIT_POLICY is {policy or 'not set'}; busy waiting slows training up to 4x"
        yield Finding("threads", "note", text, "export OMP_WAIT_POLICY=PASSIVE")
