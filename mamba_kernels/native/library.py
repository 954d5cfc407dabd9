"""The compiled library as ctypes sees it: loaded once, its structures mirrored, its calls checked.

The library knows neither Python nor torch, so one file serves every version of both.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_char_p, c_int64, c_void_p
from functools import cache
from pathlib import Path
from struct import Struct

import torch
from torch import Tensor

NAMES = {"darwin": "libmambamed_kernels.dylib", "win32": "mambamed_kernels.dll"}
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CHUNK = 16  # tokens between the states that are kept for a backward pass: MK_CHUNK
BLOCK = 16  # channels are padded to a multiple of it where states are kept: MK_BLOCK
TILES = 2  # the answer of `multiplies_bfloat16` on CPUs with AMX: MK_TILES
WORK_PER_THREAD = 1 << 18  # less is done before another thread has started
WORK_PER_TEAM = 1 << 15  # less is done before a team that stands ready has begun


class Layout:
    """A structure of api.h, in 64-bit words. (ctypes.Structure takes ten times as long to fill.)

    Args:
        fields: In order: `i` numbers, `p` pointers, `a` arrays.
    """

    def __init__(self, fields: str) -> None:
        sizes = {"i": 1, "p": 1, "a": 6}
        self.at: dict[str, int] = {}  # first word of each field
        self.words = 0
        for kind, _, names in (group.partition(":") for group in fields.split()):
            for name in names.split(","):
                self.at[name] = self.words
                self.words += sizes[kind]
        self.pack = Struct(f"={self.words}q").pack


Scan = Layout(
    "i:batch,channels,tokens,states,groups,slab,softplus,reverse p:order "
    "a:u,delta,z i:rank p:low,dt_proj a:B,C p:A,D,bias,initial a:residual,y p:last,checkpoints "
    "a:grad_y p:grad_last a:grad_u,grad_delta,grad_z i:adds_u "
    "p:grad_B,grad_C,grad_A,grad_D,grad_bias,grad_initial",
)
Conv = Layout(
    "i:batch,channels,tokens,taps,slab,silu,reverse p:order a:x,weight,bias,initial,y,last "
    "a:grad_y,grad_last,grad_x,grad_initial,grad_weight,grad_bias"
)
Inner = Layout(
    "i:batch,channels,tokens,states,rank,taps,slab,reverse p:order a:x,z,y p:conv,conv_bias "
    "i:columns,dtype,tiles p:x_proj,dt_proj,dt_bias,A,D,conv_state,state,next_conv_state,"
    "next_state,u,low,weights"
)
Block = Layout(
    "i:rows,channels,inner,dtype,tiles p:eps,in_proj,out_proj,x,out,normed,xz,y i:count "
    "p:directions"
)
Pass = Layout("i:batch,tokens,slab p:x,out,before,after i:count p:blocks")
LAYOUTS = {
    "mk_scan_size": Scan,
    "mk_conv_size": Conv,
    "mk_inner_size": Inner,
    "mk_block_size": Block,
    "mk_pass_size": Pass,
}
FUNCTIONS = {  # and how many numbers they take after the structures
    "mk_scan_forward": 2,
    "mk_scan_backward": 2,
    "mk_multi_forward": 3,
    "mk_multi_backward": 3,
    "mk_blocks_forward": 2,
    "mk_scan_step": 2,
    "mk_conv_forward": 2,
    "mk_conv_backward": 2,
}


def load(path: Path) -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    if not path.exists():
        return "it was not built; make it with `python -m mamba_kernels.native.build`"
    try:
        library = ctypes.CDLL(str(path))
        library.mk_isa.restype = c_char_p
        library.mk_isa.argtypes = [c_int64]
        library.mk_bfloat16.argtypes = [c_int64]
        library.mk_use_team.argtypes = [c_void_p]
        library.mk_exp.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_int64]
        for name, numbers in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes = [c_void_p, *[c_int64] * numbers]
            function.restype = c_int64
        same = all(getattr(library, n)() == 8 * layout.words for n, layout in LAYOUTS.items())
    except (OSError, AttributeError) as error:
        return f"it does not load: {error}"
    if not same:
        return "it is of other sources; make it with `python -m mamba_kernels.native.build`"
    return library


LIBRARY = load(Path(__file__).parent / NAMES.get(sys.platform, "libmambamed_kernels.so"))


def torch_team() -> int | None:
    """Address of the function by which torch's own OpenMP threads work, or None if it has none.

    They spin for a while when their work is done: threads of ours would have to wait for them.
    """
    name = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}.get(sys.platform)
    try:
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / str(name)))
        return ctypes.cast(torch_library.GOMP_parallel, c_void_p).value
    except (OSError, AttributeError):
        return None


class Team:
    """Whether torch's threads do the work: not in a forked process, where they do not exist."""

    def __init__(self) -> None:
        self.ready = False
        if not isinstance(LIBRARY, str):
            self.use(torch_team())
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=lambda: self.use(None))

    def use(self, function: int | None) -> None:
        """Have the threads work that a function of `torch_team` calls, or with None own ones."""
        assert not isinstance(LIBRARY, str)
        LIBRARY.mk_use_team(function)
        self.ready = function is not None


TEAM = Team()


def missing() -> str | None:
    """Why there is no library here, or None if there is one."""
    return LIBRARY if isinstance(LIBRARY, str) else None


def instruction_sets() -> dict[str, int]:
    """Those of this machine that the library has code for, fastest first, with their numbers."""
    names: list[str] = []
    while not isinstance(LIBRARY, str) and (name := LIBRARY.mk_isa(len(names))) is not None:
        names.append(name.decode())  # empty where the machine lacks it
    return {name: i for i, name in enumerate(names) if name}


class _Chosen(threading.local):
    instruction_set = next(iter(instruction_sets().values()), 0)


_CHOSEN = _Chosen()


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Compute with another of `instruction_sets()` in this thread: to test and to compare them."""
    before = _CHOSEN.instruction_set
    _CHOSEN.instruction_set = instruction_sets()[name]
    try:
        yield
    finally:
        _CHOSEN.instruction_set = before


class Call:
    """One call of the library, filled argument by argument.

    Args:
        layout: The structure that the function takes.
        numbers: Its first fields.
    """

    def __init__(self, layout: Layout, *numbers: int) -> None:
        self.layout = layout
        self.words = [*numbers, *[0] * (layout.words - len(numbers))]
        self.kept: list[Tensor] = []  # alive until the call is over

    def set(self, **numbers: int) -> None:
        """Set arguments that are numbers."""
        for name, number in numbers.items():
            self.words[self.layout.at[name]] = number

    def point(self, **contiguous: Tensor | None) -> None:
        """Set arguments that are arrays without gaps, of the dtype that api.h names."""
        for name, x in contiguous.items():
            if x is not None:
                self.kept.append(x)
                self.words[self.layout.at[name]] = x.data_ptr()

    def view(self, **strided: Tensor | None) -> None:
        """Set arguments that are arrays of any dtype and strides, of no more than four axes."""
        for name, x in strided.items():
            if x is not None:
                self.place(name, x, x.stride())

    def place(self, name: str, x: Tensor, stride: tuple[int, ...]) -> None:
        """Set an argument that is an array of any dtype, with strides other than its own."""
        self.kept.append(x)
        at = self.layout.at[name]
        self.words[at : at + 2 + len(stride)] = (x.data_ptr(), DTYPES[x.dtype], *stride)

    def packed(self) -> bytes:
        """The structure as the library reads it."""
        return self.layout.pack(*self.words)

    def run(self, function: str, work: int) -> None:
        """Compute: see `_run`."""
        _run(function, work, self.packed())


def run_together(function: str, work: int, calls: Sequence[Call]) -> None:
    """Compute with several structures at once: see `_run`."""
    _run(function, work, b"".join(call.packed() for call in calls), len(calls))


def run_at(function: str, work: int, words: array[int]) -> None:
    """Compute with a structure that lies at the start of `words`: see `_run`."""
    _run(function, work, words.buffer_info()[0])


def multiplies_bfloat16() -> int:
    """How this machine multiplies bfloat16, with the instruction set that is in use.

    Returns:
        0 if it does not, 1 in pairs by AVX512_BF16, 2 in tiles by AMX.
    """
    return _bfloat16(_CHOSEN.instruction_set)


@cache  # asking the processor is slow on virtual machines
def _bfloat16(instruction_set: int) -> int:
    return 0 if isinstance(LIBRARY, str) else int(LIBRARY.mk_bfloat16(instruction_set))


def _run(function: str, work: int, *arguments: bytes | int) -> None:
    """Call the library.

    Args:
        function: One of `FUNCTIONS`.
        work: Multiply-adds, about: little of it is not spread over threads.
        arguments: Its first ones.

    Raises:
        MemoryError: There is no room for scratch.
        ValueError: The order is no permutation.
    """
    threads = torch.get_num_threads()
    if not TEAM.ready:
        threads = min(threads, 1 + work // WORK_PER_THREAD)
    elif work < WORK_PER_TEAM:
        threads = 1
    failed = getattr(LIBRARY, function)(*arguments, _CHOSEN.instruction_set, threads)
    if failed == 1:
        raise MemoryError(f"{function}: no memory for {threads} threads' scratch: free some")
    if failed == 2:
        raise ValueError(
            "an order is no permutation of the tokens: each of 0 to l - 1 must occur once"
        )


def as_float32(x: Tensor | None) -> Tensor | None:
    """As float32 without gaps."""
    if x is None or (x.dtype == torch.float32 and x.is_contiguous()):
        return x
    return x.to(torch.float32).contiguous()


@contextmanager
def changed_in_place(x: Tensor) -> Iterator[Tensor]:
    """Memory without gaps or overlaps for an update of `x`, which autograd is told of."""
    whole = x.contiguous()
    yield whole
    if whole is not x:
        x.copy_(whole)  # refused by torch where elements of x share memory
    elif not x.is_inference():
        torch.autograd.graph.increment_version(x)
