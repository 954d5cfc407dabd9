"""A network's step compiled by torch: on CUDA a graph that is replayed, on CPUs C++.

A frame is hundreds of small operations, which a GPU does faster than Python can ask for them; a
CUDA graph asks for all of them at once. On CPUs networks packed by `packing` are faster.
"""

import copy
import time
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_plugins.stream.packing import PackedLayer
from nnunet_plugins.streaming import StreamingSession

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Arithmetic of a compiled network: of its weights and features."""
WARM_UP = 3
"""Steps until nothing is left to prepare: the first compiles, the second records a CUDA graph."""


def compiled(network: nn.Module, mode: str, device: torch.device, backend: str = "inductor") -> Any:
    """The network itself, on a device, with its step compiled for inference when it is first used.

    Weights and states are as before: a stream can go on with or without this.

    Args:
        network: With `step` and `initial_state`, such as `EndoMamba`.
        mode: One of `DTYPES`.
        device: Any that torch compiles for.
        backend: Of torch.compile.

    Raises:
        ValueError: If the mode is none of these or the network is packed.
    """
    if mode not in DTYPES:
        raise ValueError(
            f"a network is compiled in {' or '.join(DTYPES)}, not in {mode!r}; use one of these"
        )
    if any(isinstance(layer, PackedLayer) for layer in network.modules()):
        raise ValueError("the network is packed for a CPU already; compile one as it was built")
    network = network.eval().to(device, DTYPES[mode])
    network.step = CompiledStep(network, backend, replayed=device.type == "cuda")
    return network


def warm_up(network: Any, frame: Tensor) -> float:
    """Compile for frames like this one, (b, c, h, w), and return the seconds that it took.

    Raises:
        RuntimeError: If the network cannot be compiled here.
    """
    start, session = time.perf_counter(), StreamingSession(network)
    for _ in range(WARM_UP):
        session.step(frame)
    return time.perf_counter() - start


class CompiledStep:
    """Takes the place of a network's `step`, with the same arguments and results; for inference.

    Each shape of frames is compiled for when it first comes, 8 of them in a process.

    Args:
        network: Whose step it is.
        backend: Of torch.compile.
        replayed: Whether it becomes a CUDA graph.
    """

    def __init__(self, network: Any, backend: str, *, replayed: bool) -> None:
        self.network, self.backend, self.replayed = network, backend, replayed
        self.eager = MethodType(type(network).step, network)
        mode = "reduce-overhead" if replayed else None  # torch's name for CUDA graphs
        self.run = torch.compile(
            self.eager, fullgraph=True, dynamic=False, backend=backend, mode=mode
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompiledStep":
        """That of the network's copy."""
        return CompiledStep(copy.deepcopy(self.network, memo), self.backend, replayed=self.replayed)

    @torch.inference_mode()
    def __call__(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> Any:
        """See the network's `step`; a RuntimeError if it cannot be compiled here."""
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # takes seconds

        state = self.network.initial_state(len(x)) if state is None else state
        # torch compiles anew for tensors of another kind or other strides: these are all alike
        inputs = _own(x), tuple(y if y.is_inference() else _own(y) for y in state)
        if self.replayed:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return _own(self.run(*inputs))  # the next replay overwrites what this one gives
        except (FailOnRecompileLimitHit, TorchDynamoException) as error:
            self.eager(*inputs)  # says in its own words what does not fit it
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RuntimeError(
                f"the network cannot be compiled here ({reason}); do not compile, or, on a CPU, "
                "install a C++ compiler"
            ) from error


def _own(x: Any) -> Any:
    """The same in memory of its own, without gaps."""
    if isinstance(x, Tensor):
        return x.clone(memory_format=torch.contiguous_format)
    return type(x)(_own(y) for y in x)
